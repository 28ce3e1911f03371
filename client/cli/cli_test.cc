// SPDX-License-Identifier: Apache-2.0
//
// The command line against a fake controller: exit codes, output formats, retries, streams.
#include <gtest/gtest.h>

#include <chrono>
#include <sstream>
#include <thread>

#include "base/files.h"
#include "base/strings.h"
#include "client/cli/command_line.h"
#include "client/cli/fake_server.h"
#include "client/lib/job_yaml.h"

namespace nibble::cli {
namespace {

struct Outcome {
  int code = -1;
  std::string out;
  std::string err;
};

v1::Job MakeJob(const std::string& id, v1::JobState state) {
  v1::Job job;
  job.set_id(id);
  job.set_user("ada");
  job.set_state(state);
  job.mutable_submit_time()->set_seconds(1'700'000'000);
  v1::JobSpec& spec = *job.mutable_spec();
  spec.mutable_metadata()->set_name("run-" + id);
  spec.set_queue("main");
  spec.mutable_precision()->set_recipe("fp4_ms_paper");
  v1::Progress& progress = *job.mutable_progress();
  progress.set_step(120);
  progress.set_steps_total(300);
  progress.set_loss(4.25);
  progress.set_tokens_per_second(12345);
  progress.set_eta_seconds(90);
  v1::Attempt& attempt = *job.add_attempts();
  attempt.set_number(1);
  attempt.set_worker_id("w-1");
  return job;
}

class Cli : public ::testing::Test {
 protected:
  Outcome Run(std::vector<std::string> arguments) {
    std::ostringstream out, err;
    CliContext context(out, err, interrupt_, Terminal());
    // The server goes last, where every subcommand takes it.
    arguments.insert(arguments.end(), {"--server", server_.address()});
    Outcome outcome;
    outcome.code = RunCommandLine(arguments, context);
    outcome.out = out.str();
    outcome.err = err.str();
    return outcome;
  }

  std::string WriteSpec(const std::string& text) {
    if (folder_.empty()) folder_ = MakeTempDirectory("cli").value();
    const std::string path = JoinPath(folder_, "job.yaml");
    EXPECT_TRUE(AtomicWriteFile(path, text).ok());
    return path;
  }

  void TearDown() override {
    if (folder_.empty()) return;
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  FakeServer server_;
  Interrupt interrupt_;
  std::string folder_;
};

constexpr char kSpec[] =
    "apiVersion: nibble/v1\nkind: TrainJob\nmetadata: {name: tiny}\n"
    "model:\n  heads: 5\n";

TEST_F(Cli, StatusCodesBecomeExitCodes) {
  const std::vector<std::pair<Status, int>> cases = {
      {InternalError("broken"), 1},        {NotFoundError("no job"), 3},
      {UnauthenticatedError("who"), 4},    {PermissionDeniedError("no"), 4},
      {FailedPreconditionError("now"), 7}, {AlreadyExistsError("taken"), 7},
      {ResourceExhaustedError("full"), 1}, {InvalidArgumentError("odd"), 2}};
  for (const auto& [status, code] : cases) {
    FakeBehaviour behaviour;
    behaviour.status = status;
    server_.Set(behaviour);
    const Outcome outcome = Run({"describe", "x"});
    EXPECT_EQ(outcome.code, code) << status.ToString();
    EXPECT_TRUE(outcome.out.empty());
    EXPECT_NE(outcome.err.find(status.message()), std::string::npos) << outcome.err;
  }
}

TEST_F(Cli, UsageErrorsExitWithTwoAndPrintNothingOnStdout) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"ps", "--bogus"},
                                             {"frobnicate"},
                                             {"describe"},
                                             {"ps", "-o", "xml"},
                                             {"ps", "--limit", "many"},
                                             {"ps", "--limit", "-1"},
                                             {"ps", "--state", "runing"},
                                             {"ps", "--sort", "colour"},
                                             {"ps", "-l", "arm"},
                                             {"compare", "one"},
                                             {"logs", "j", "--since", "yesterday"},
                                             {"wait", "j", "--timeout", "soon"},
                                             {"metrics", "j", "--kind", "steps"},
                                             {"update", "j"},
                                             {"completion", "csh"}}) {
    std::ostringstream out, err;
    CliContext context(out, err, interrupt_, Terminal());
    std::vector<std::string> all = {"--server", server_.address()};
    all.insert(all.end(), arguments.begin(), arguments.end());
    EXPECT_EQ(RunCommandLine(all, context), 2) << StrJoin(arguments, " ") << err.str();
    EXPECT_EQ(out.str(), "");
    EXPECT_NE(err.str(), "");
  }
}

TEST_F(Cli, EverySubcommandHasHelpWithAnExample) {
  for (const CommandInfo& command : DescribeCommands()) {
    if (command.name == "tokenize") continue;  // --help is nibble-data's
    std::ostringstream out, err;
    CliContext context(out, err, interrupt_, Terminal());
    EXPECT_EQ(RunCommandLine({command.name, "--help"}, context), 0) << command.name;
    EXPECT_NE(out.str().find("Example:\n  "), std::string::npos) << command.name;
    EXPECT_EQ(err.str(), "");
  }
}

TEST_F(Cli, UnavailableIsTriedAgainAtMostFiveTimes) {
  FakeBehaviour behaviour;
  behaviour.jobs = {MakeJob("j1", v1::JOB_STATE_RUNNING)};
  behaviour.unavailable = 2;
  server_.Set(behaviour);
  EXPECT_EQ(Run({"describe", "j1"}).code, 0);
  EXPECT_EQ(server_.record().calls, 3);
  behaviour.unavailable = 100;
  server_.Set(behaviour);
  const Outcome outcome = Run({"describe", "j1"});
  EXPECT_EQ(outcome.code, 5);
  EXPECT_EQ(server_.record().calls, 5);
  EXPECT_NE(outcome.err.find(server_.address()), std::string::npos);
  EXPECT_NE(outcome.err.find("nibble up"), std::string::npos);
}

TEST_F(Cli, SlowAnswerEndsAtTheDeadline) {
  FakeBehaviour behaviour;
  behaviour.delay_ms = 30'000;
  server_.Set(behaviour);
  const Outcome outcome = Run({"ps", "--timeout", "200ms"});
  EXPECT_EQ(outcome.code, 124);
  EXPECT_NE(outcome.err.find("200 ms"), std::string::npos) << outcome.err;
}

TEST_F(Cli, InterruptEndsACallAndAStream) {
  FakeBehaviour behaviour;
  behaviour.delay_ms = 30'000;
  behaviour.hold_stream = true;
  behaviour.logs.resize(1);
  behaviour.logs[0].set_text("line");
  server_.Set(behaviour);
  std::thread presser([this] {
    while (server_.record().logs.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    interrupt_.Trigger();
  });
  const Outcome logs = Run({"logs", "-f", "j1"});
  presser.join();
  EXPECT_EQ(logs.code, 130);
  EXPECT_NE(logs.err.find("job j1 goes on"), std::string::npos) << logs.err;
  EXPECT_EQ(Run({"ps"}).code, 130);
}

TEST_F(Cli, TokenGoesWithEveryCall) {
  FakeBehaviour behaviour;
  server_.Set(behaviour);
  const std::string token = WriteSpec("s3cret-token\n");
  EXPECT_EQ(Run({"nodes", "--token-file", token}).code, 0);
  ASSERT_EQ(server_.record().authorization.size(), 1u);
  EXPECT_EQ(server_.record().authorization[0], "Bearer s3cret-token");
  EXPECT_EQ(Run({"nodes", "--token-file", token + ".none"}).code, 3);
}

TEST_F(Cli, SubmitSendsTheFileWithFlagsOnTop) {
  server_.Set({});
  const Outcome outcome =
      Run({"submit", "-f", WriteSpec(kSpec), "--set", "model.layers=3", "--set", "data.path=/d",
           "-n", "other", "-q", "gpu", "--env", "A=b=c", "--priority", "-7", "-t", "90m"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(outcome.out.starts_with("submitted job-1 (other) to queue gpu: PENDING"))
      << outcome.out;
  const v1::SubmitJobRequest sent = server_.record().submit;
  EXPECT_TRUE(sent.request_id().starts_with("req-"));
  EXPECT_FALSE(sent.user().empty());
  EXPECT_EQ(sent.spec().model().layers(), 3);
  EXPECT_EQ(sent.spec().model().heads(), 5);
  EXPECT_EQ(sent.spec().metadata().name(), "other");
  EXPECT_EQ(sent.spec().env().at("A"), "b=c");
  EXPECT_EQ(sent.spec().priority(), -7);
  EXPECT_EQ(sent.spec().time_limit().seconds(), 5400);
  EXPECT_EQ(Run({"submit", "-f", WriteSpec(kSpec), "-o", "name"}).out, "job-1\n");
  EXPECT_EQ(Run({"apply", "-f", WriteSpec(kSpec), "--request-id", "mine"}).code, 0);
  EXPECT_EQ(server_.record().submit.request_id(), "mine");
}

TEST_F(Cli, RejectedSpecExitsWithSixAndNamesLines) {
  FakeBehaviour behaviour;
  behaviour.status = InvalidArgumentError("2 mistakes");
  auto* violation = behaviour.detail.add_violations();
  violation->set_field("model.heads");
  violation->set_description("5 does not divide hiddenSize 64");
  server_.Set(behaviour);
  const std::string path = WriteSpec(kSpec);
  Outcome outcome = Run({"submit", "-f", path});
  EXPECT_EQ(outcome.code, 6);
  EXPECT_NE(outcome.err.find(path + ":5: model.heads: 5 does not divide"), std::string::npos)
      << outcome.err;
  outcome = Run({"submit", "-f", WriteSpec("modle: 1\n")});
  EXPECT_EQ(outcome.code, 6);
  EXPECT_NE(outcome.err.find(":1: unknown key 'modle'; did you mean 'model'?"), std::string::npos);
  EXPECT_EQ(Run({"submit", "-f", WriteSpec(kSpec), "--set", "model.layrs=1"}).code, 6);
  EXPECT_EQ(Run({"submit", "-f", "/nonexistent.yaml"}).code, 3);
}

TEST_F(Cli, DryRunPrintsTheEstimateAndSubmitsNothing) {
  FakeBehaviour behaviour;
  behaviour.estimate.set_parameters(4'200'000);
  (*behaviour.estimate.mutable_memory_bytes())["weights"] = 16 << 20;
  (*behaviour.estimate.mutable_memory_bytes())["total"] = 64 << 20;
  v1::Fit& no = *behaviour.estimate.add_fits();
  no.set_worker_id("w-small");
  no.set_why_not("needs 64.0 MiB, 32.0 MiB are free");
  v1::Fit& yes = *behaviour.estimate.add_fits();
  yes.set_worker_id("w-big");
  yes.set_fits(true);
  yes.set_step_seconds(0.5);
  yes.set_total_hours(0.05);
  server_.Set(behaviour);
  const Outcome outcome = Run({"submit", "-f", WriteSpec(kSpec), "--dry-run"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_TRUE(server_.record().submit.dry_run());
  for (const char* part : {"4.20 M", "weights 16.0 MiB", "total 64.0 MiB", "w-small",
                           "32.0 MiB are", "w-big", "0.5s", "3m00s"}) {
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << "\n" << outcome.out;
  }
}

TEST_F(Cli, ListPrintsEveryFormat) {
  FakeBehaviour behaviour;
  behaviour.jobs = {MakeJob("j2", v1::JOB_STATE_RUNNING), MakeJob("j1", v1::JOB_STATE_SUCCEEDED)};
  server_.Set(behaviour);
  const std::vector<std::string> table = StrSplit(Run({"ps"}).out, '\n');
  ASSERT_EQ(table.size(), 4u);
  std::istringstream header(table[0]), row(table[1]);
  std::vector<std::string> names{std::istream_iterator<std::string>(header), {}};
  EXPECT_EQ(StrJoin(names, " "),
            "ID NAME USER QUEUE PRI STATE GPUS STEP LOSS TOK/S ETA RESTARTS AGE REASON");
  EXPECT_TRUE(table[1].starts_with("j2  run-j2  ada   main     0  RUNNING       1  120/300"))
      << table[1];
  EXPECT_EQ(StrSplit(Run({"ls", "--no-headers"}).out, '\n').size(), 3u);
  EXPECT_NE(Run({"ps", "-o", "wide"}).out.find("fp4_ms_paper"), std::string::npos);
  EXPECT_EQ(Run({"queue", "-o", "name"}).out, "j2\nj1\n");
  EXPECT_EQ(Run({"ps", "--limit", "1", "-o", "name"}).out, "j2\n");
  EXPECT_EQ(Run({"ps", "--sort", "name", "-o", "name"}).out, "j1\nj2\n");
  const auto json = Json::Parse(Run({"ps", "-o", "json"}).out);
  ASSERT_TRUE(json.ok());
  ASSERT_EQ(json->size(), 2u);
  EXPECT_EQ(json->At(0)["state"].AsString(), "RUNNING");
  EXPECT_TRUE(Run({"ps", "-o", "yaml"}).out.starts_with("- id: j2\n"));
}

TEST_F(Cli, ListSendsItsFilters) {
  server_.Set({});
  EXPECT_EQ(Run({"ps", "-q", "gpu", "--state", "running,pending", "-l", "a=b,c=d"}).code, 0);
  const v1::ListJobsRequest sent = server_.record().list;
  EXPECT_EQ(sent.queue(), "gpu");
  EXPECT_EQ(sent.states_size(), 2);
  EXPECT_EQ(sent.labels().at("c"), "d");
}

TEST_F(Cli, WaitTellsHowTheJobEnded) {
  const std::vector<std::pair<v1::JobState, int>> cases = {{v1::JOB_STATE_SUCCEEDED, 0},
                                                           {v1::JOB_STATE_FAILED, 100},
                                                           {v1::JOB_STATE_TIMED_OUT, 100},
                                                           {v1::JOB_STATE_REJECTED, 100},
                                                           {v1::JOB_STATE_CANCELLED, 103}};
  for (const auto& [state, code] : cases) {
    FakeBehaviour behaviour;
    behaviour.jobs = {MakeJob("j1", state)};
    behaviour.jobs[0].mutable_attempts(0)->set_exit_code(12);
    behaviour.watch.resize(2);
    *behaviour.watch[0].mutable_job() = MakeJob("j1", v1::JOB_STATE_RUNNING);
    behaviour.watch[0].set_cursor(1);
    *behaviour.watch[1].mutable_job() = behaviour.jobs[0];
    behaviour.watch[1].set_cursor(2);
    behaviour.hold_stream = true;  // the client has to leave by itself
    server_.Set(behaviour);
    EXPECT_EQ(Run({"wait", "j1"}).code, code);
    EXPECT_EQ(Run({"wait", "j1", "--timeout", "5s"}).code, code);
    EXPECT_EQ(Run({"wait", "j1", "--propagate"}).code, 12);
  }
  FakeBehaviour behaviour;
  behaviour.jobs = {MakeJob("j1", v1::JOB_STATE_RUNNING)};
  server_.Set(behaviour);
  EXPECT_EQ(Run({"wait", "j1", "--timeout", "50ms"}).code, 101);
}

v1::WatchJobResponse WatchStep(int64_t cursor, int64_t step, double loss) {
  v1::WatchJobResponse message;
  message.set_cursor(cursor);
  v1::MetricRecord& record = *message.add_records();
  record.set_attempt(1);
  v1::StepPoint& point = *record.mutable_record()->mutable_step();
  point.set_step(step);
  point.set_loss(loss);
  point.set_step_seconds(0.5);
  point.set_tokens_per_second(4096);
  return message;
}

TEST_F(Cli, WatchResumesAtItsCursorAfterALostConnection) {
  FakeBehaviour behaviour;
  behaviour.watch.resize(1);
  *behaviour.watch[0].mutable_job() = MakeJob("j1", v1::JOB_STATE_RUNNING);
  behaviour.watch[0].set_cursor(1);
  for (int i = 1; i <= 10; ++i) behaviour.watch.push_back(WatchStep(i + 1, i * 30, 9.0 - i * 0.5));
  behaviour.watch.push_back(behaviour.watch[0]);
  behaviour.watch.back().mutable_job()->set_state(v1::JOB_STATE_SUCCEEDED);
  behaviour.watch.back().set_cursor(12);
  behaviour.break_stream_after = 4;
  server_.Set(behaviour);
  const Outcome outcome = Run({"watch", "j1"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const FakeRecord record = server_.record();
  ASSERT_EQ(record.watches.size(), 2u);
  EXPECT_EQ(record.watches[0].cursor(), 0);
  EXPECT_EQ(record.watches[1].cursor(), 4);
  EXPECT_NE(outcome.out.find("step 30/300  10 %  loss 8.5000  4.10 k tok/s  ETA 2m15s"),
            std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.out.find("step 300/300 100 %  loss 4.0000"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.err.find("job j1 SUCCEEDED"), std::string::npos) << outcome.err;
}

TEST_F(Cli, LogsComeOnceEachThroughALostConnection) {
  FakeBehaviour behaviour;
  for (int i = 0; i < 6; ++i) {
    v1::StreamLogsResponse line;
    line.set_time_ms(1000 + i / 3);  // three lines share a millisecond
    line.set_text(StrFormat("line %d", i));
    line.set_attempt(2);
    behaviour.logs.push_back(line);
  }
  behaviour.break_stream_after = 5;
  server_.Set(behaviour);
  const Outcome outcome = Run({"logs", "j1", "--tail", "100"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "line 0\nline 1\nline 2\nline 3\nline 4\nline 5\n");
  const FakeRecord record = server_.record();
  ASSERT_EQ(record.logs.size(), 2u);
  EXPECT_EQ(record.logs[0].tail(), 100);
  EXPECT_EQ(record.logs[1].tail(), 0);
  EXPECT_EQ(record.logs[1].since_ms(), 1001);
  EXPECT_EQ(record.logs[1].attempt(), 2);
}

v1::MetricRecord StepRecord(int64_t step, double loss) {
  return WatchStep(1, step, loss).records(0);
}

TEST_F(Cli, MetricsPrintAsTableCsvAndJson) {
  FakeBehaviour behaviour;
  for (int step = 1; step <= 3; ++step) {
    *behaviour.metrics.add_records() = StepRecord(step, 5.0 - step);
  }
  v1::MetricRecord& validation = *behaviour.metrics.add_records();
  validation.mutable_record()->mutable_validation()->set_step(3);
  validation.mutable_record()->mutable_validation()->set_loss(2.5);
  server_.Set(behaviour);
  EXPECT_NE(Run({"metrics", "j1"}).out.find("TOKENS_PER_SECOND"), std::string::npos);
  const Outcome csv = Run({"metrics", "j1", "-o", "csv"});
  const std::vector<std::string> lines = StrSplit(csv.out, '\n');
  ASSERT_EQ(lines.size(), 5u) << csv.out;
  EXPECT_TRUE(lines[0].starts_with("kind,attempt,rank,step,loss,gradNorm")) << lines[0];
  EXPECT_TRUE(lines[1].starts_with("step,1,0,1,4")) << lines[1];
  const auto all = Json::Parse(Run({"metrics", "j1", "--kind", "all", "-o", "json"}).out);
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(all->size(), 4u);
  EXPECT_EQ(all->At(3)["kind"].AsString(), "validation");
  EXPECT_EQ(StrSplit(Run({"metrics", "j1", "-o", "jsonl"}).out, '\n').size(), 4u);
}

TEST_F(Cli, CompareShowsLossesAndGap) {
  FakeBehaviour behaviour;
  behaviour.jobs = {MakeJob("a", v1::JOB_STATE_SUCCEEDED), MakeJob("b", v1::JOB_STATE_SUCCEEDED)};
  for (int step = 1; step <= 40; ++step) {
    *behaviour.metrics.add_records() = StepRecord(step, 4.0);
  }
  v1::MetricRecord& validation = *behaviour.metrics.add_records();
  validation.mutable_record()->mutable_validation()->set_loss(2.0);
  server_.Set(behaviour);
  const Outcome outcome = Run({"compare", "a", "b", "--points", "4"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("+0.00 %"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("7.39"), std::string::npos) << outcome.out;  // exp(2)
  const auto json = Json::Parse(Run({"compare", "a", "b", "-o", "json"}).out);
  ASSERT_TRUE(json.ok());
  EXPECT_EQ((*json)["runs"].size(), 2u);
  EXPECT_EQ((*json)["losses"].size(), 10u);
}

TEST_F(Cli, ControlCommandsSendTheirFlagsAndReportEachJob) {
  FakeBehaviour behaviour;
  behaviour.jobs = {MakeJob("a", v1::JOB_STATE_STOPPING), MakeJob("b", v1::JOB_STATE_HELD)};
  server_.Set(behaviour);
  const Outcome cancel = Run({"cancel", "a", "zzz", "b", "--now"});
  EXPECT_EQ(cancel.code, 3);  // one is unknown, the others were done
  EXPECT_EQ(cancel.out, "a STOPPING\nb HELD\n");
  EXPECT_TRUE(server_.record().cancel.now());
  EXPECT_FALSE(server_.record().cancel.request_id().empty());
  EXPECT_EQ(Run({"pause", "b"}).out, "b HELD\n");
  EXPECT_EQ(Run({"resume", "b", "-o", "name"}).out, "b\n");
  EXPECT_EQ(Run({"update", "b", "--priority", "5", "-t", "2h"}).code, 0);
  EXPECT_EQ(server_.record().update.priority(), 5);
  EXPECT_EQ(server_.record().update.time_limit().seconds(), 7200);
  EXPECT_EQ(Run({"drain", "w-1", "--reason", "disk"}).out, "w-1 draining\n");
  EXPECT_EQ(server_.record().drain.reason(), "disk");
  EXPECT_EQ(Run({"undrain", "w-1"}).out, "w-1 up\n");
}

TEST_F(Cli, ClusterCommandsPrint) {
  FakeBehaviour behaviour;
  v1::Node node;
  node.set_worker_id("w-1");
  node.set_state("up");
  v1::Device& device = *node.add_devices();
  device.set_memory_bytes(int64_t{8} << 30);
  device.add_features("e2m1");
  behaviour.nodes = {node};
  behaviour.jobs = {MakeJob("j1", v1::JOB_STATE_RUNNING)};
  *behaviour.metrics.add_records() = StepRecord(1, 5);
  *behaviour.metrics.add_records() = StepRecord(2, 3);
  behaviour.explain.set_reason("Resources");
  behaviour.explain.add_nodes()->set_why_not("all devices are busy");
  behaviour.events.resize(1);
  behaviour.events[0].set_type("JobSubmitted");
  server_.Set(behaviour);
  EXPECT_NE(Run({"nodes"}).out.find("8.0 GiB"), std::string::npos);
  EXPECT_TRUE(Run({"nodes"}).err.empty());
  EXPECT_NE(Run({"top"}).out.find("█▁"), std::string::npos);
  EXPECT_NE(Run({"version"}).out.find("9.9.9"), std::string::npos);
  EXPECT_NE(Run({"why", "j1"}).out.find("all devices are busy"), std::string::npos);
  EXPECT_NE(Run({"events", "j1"}).out.find("JobSubmitted"), std::string::npos);
  EXPECT_NE(Run({"describe", "j1"}).out.find("recipe: fp4_ms_paper"), std::string::npos);
}

// What a worker does not offer stands beneath the table, once for all who say the same, and in JSON
// with each worker; names alone stay names.
TEST_F(Cli, NodesSayWhyTheyOfferNoGpu) {
  FakeBehaviour behaviour;
  for (int i = 1; i <= 5; ++i) {
    v1::Node& node = behaviour.nodes.emplace_back();
    node.set_worker_id("w-" + std::to_string(i));
    node.add_notes("no GPU slots: the plug-in was not found");
  }
  behaviour.nodes[1].add_notes("GPU 0 is not offered: the driver is older");
  server_.Set(behaviour);
  const Outcome table = Run({"nodes"});
  EXPECT_EQ(table.out.find("GPU"), std::string::npos) << table.out;
  EXPECT_EQ(table.err,
            "nibble: w-1, w-2, w-3 and 2 more: no GPU slots: the plug-in was not found\n"
            "nibble: w-2: GPU 0 is not offered: the driver is older\n");
  const Json json = Json::Parse(Run({"nodes", "-o", "json"}).out).value();
  EXPECT_EQ(json.At(1)["notes"].At(1).AsString(), "GPU 0 is not offered: the driver is older");
  EXPECT_EQ(json.At(4)["notes"].size(), 1u);
  EXPECT_TRUE(Run({"nodes", "-o", "name"}).err.empty());
}

}  // namespace
}  // namespace nibble::cli
