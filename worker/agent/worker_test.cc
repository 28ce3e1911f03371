// SPDX-License-Identifier: Apache-2.0
//
// The program nibble-worker as a process, with a controller in this one.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <optional>

#include "base/files.h"
#include "base/process.h"
#include "base/strings.h"
#include "tests/support/http_get.h"
#include "worker/agent/agent_test_support.h"
#include "worker/agent/fake_controller.h"
#include "worker/agent/supervise.h"
#include "worker/agent/wire.h"

namespace nibble::agent {
namespace {

std::string WorkerProgram() { return std::string(NIBBLE_BINARY_DIR) + "/bin/nibble-worker"; }

class WorkerTest : public ::testing::Test {
 protected:
  void TearDown() override {
    KillWorker();
    for (const std::string& run_dir : ListRunDirs(state_.path())) {
      Result<TrainerProcess> left = TrainerProcess::Adopt(run_dir);
      ASSERT_TRUE(left.ok());
      left->Kill(false);
      EXPECT_TRUE(Eventually([&] { return left->Gone(); }));
    }
    if (HasFailure()) std::fputs(ReadFile(log_path()).value_or("").c_str(), stderr);
  }

  std::string log_path() const { return JoinPath(state_.path(), "test-worker.log"); }

  void StartWorker(std::vector<std::string> more_flags = {}) {
    ProcessOptions options;
    options.argv = {WorkerProgram(),    "--state-dir", state_.path(), "--trainer",
                    FakeTrainer(),      "--slots",     "2",           "--worker-id",
                    "worker-under-test"};
    if (std::find(more_flags.begin(), more_flags.end(), "--controller") == more_flags.end()) {
      more_flags.insert(more_flags.end(), {"--controller", controller_.address()});
    }
    options.argv.insert(options.argv.end(), more_flags.begin(), more_flags.end());
    options.stdout_path = log_path();
    options.stderr_path = log_path();
    Result<Process> process = Process::Start(options);
    ASSERT_TRUE(process.ok()) << process.status().ToString();
    worker_ = *process;
  }

  void StartRegisteredWorker(std::vector<std::string> more_flags = {}) {
    const int before = controller_.registrations();
    StartWorker(std::move(more_flags));
    ASSERT_TRUE(Eventually([&] { return controller_.registrations() > before; }));
  }

  void KillWorker() {
    if (!worker_.has_value()) return;
    EXPECT_TRUE(worker_->Signal(SIGKILL).ok());
    EXPECT_TRUE(worker_->Wait().ok());
    worker_.reset();
  }

  AttemptKey Submit(const std::string& job, int device, std::map<std::string, std::string> env) {
    const StartRequest request = StartOf(job, 1, 1, device, std::move(env));
    v1::ControllerMessage message;
    v1::StartAttempt& start = *message.mutable_start();
    *start.mutable_key() = ToProto(request.key);
    start.set_run_json(request.run_json);
    start.add_device_indices(device);
    start.set_world_size(1);
    for (const auto& [name, value] : request.env) (*start.mutable_env())[name] = value;
    EXPECT_TRUE(controller_.Send(message));
    return request.key;
  }

  void RequestStop(const AttemptKey& key, bool save, int grace_ms) {
    v1::ControllerMessage message;
    *message.mutable_stop()->mutable_key() = ToProto(key);
    message.mutable_stop()->set_save(save);
    message.mutable_stop()->set_grace_ms(grace_ms);
    message.mutable_stop()->set_reason("cancel");
    EXPECT_TRUE(controller_.Send(message));
  }

  v1::AttemptReport WaitFor(const AttemptKey& key, const std::string& state) {
    v1::AttemptReport found;
    EXPECT_TRUE(Eventually([&] {
      for (const v1::AttemptReport& report : controller_.reports(key.job_id)) {
        if (report.state() != state) continue;
        found = report;
        return true;
      }
      return false;
    })) << key.ToString()
        << " never became " << state;
    return found;
  }

  int64_t LastStep(const AttemptKey& key) {
    int64_t step = 0;
    for (const auto& [seq, record] : controller_.records(key.job_id)) {
      if (record.has_step()) step = record.step().step();
    }
    return step;
  }

  // Every seq from 1 to the end record arrived.
  void ExpectComplete(const AttemptKey& key) {
    const auto records = controller_.records(key.job_id);
    ASSERT_FALSE(records.empty());
    EXPECT_EQ(records.rbegin()->first, static_cast<int64_t>(records.size()));
    EXPECT_TRUE(records.rbegin()->second.has_end());
  }

  std::string Get(const std::string& path) {
    const std::string address =
        std::string(StrTrim(ReadFile(JoinPath(state_.path(), "worker.address")).value_or("")));
    const int64_t port = ParseInt(address.substr(address.rfind(':') + 1)).value_or(0);
    const auto response = nibble::testing::HttpGet(static_cast<int>(port), path);
    if (!response.ok()) return response.status().ToString();
    return response->body + " " + std::to_string(response->code);
  }

  StateDir state_;
  FakeController controller_;
  std::optional<Process> worker_;
};

TEST_F(WorkerTest, RegistersItsProvedSlotsAndBeats) {
  StartRegisteredWorker({"--pool", "night"});
  const v1::Register content = controller_.last_register();
  EXPECT_EQ(content.worker_id(), "worker-under-test");
  EXPECT_EQ(content.pool(), "night");
  ASSERT_EQ(content.devices_size(), 2);
  EXPECT_EQ(content.devices(1).index(), 1);
  EXPECT_EQ(content.devices(1).threads(), 4);
  EXPECT_EQ(content.devices(1).features(0), "e2m1");
  ASSERT_EQ(content.notes_size(), 1);
  EXPECT_EQ(content.notes(0), "no GPU slots: none here");
  EXPECT_EQ(content.http_address() + "\n",
            ReadFile(JoinPath(state_.path(), "worker.address")).value());
  EXPECT_TRUE(Eventually([&] { return controller_.heartbeats() >= 3; }));
}

TEST_F(WorkerTest, RunsAJobAndForwardsItsWholeJournal) {
  StartRegisteredWorker();
  const AttemptKey key = Submit("job-a", 0, {{"FAKE_STEPS", "1200"}, {"FAKE_STEP_MS", "0"}});
  const v1::AttemptReport end = WaitFor(key, "ended");
  EXPECT_EQ(end.end_reason(), kEndCompleted);
  EXPECT_EQ(end.step(), 1200);
  ExpectComplete(key);
  EXPECT_EQ(controller_.records("job-a").size(), 1202u);
  EXPECT_EQ(controller_.records("job-a").at(3).step().loss(), 1.5);
}

TEST_F(WorkerTest, StopSavesAndKillKills) {
  StartRegisteredWorker();
  const AttemptKey saved = Submit("job-a", 0, {{"FAKE_STEPS", "1000000"}});
  const AttemptKey killed =
      Submit("job-b", 1, {{"FAKE_STEPS", "1000000"}, {"FAKE_MODE", "ignore_term"}});
  WaitFor(saved, "running");
  WaitFor(killed, "running");
  RequestStop(saved, true, 60'000);
  RequestStop(killed, true, 30);
  EXPECT_EQ(WaitFor(saved, "ended").end_reason(), kEndPreempted);
  EXPECT_EQ(WaitFor(killed, "ended").signal(), SIGKILL);
  ExpectComplete(saved);
}

TEST_F(WorkerTest, TrainingGoesOnWithoutTheControllerAndLosesNoRecord) {
  StartRegisteredWorker();
  const AttemptKey key = Submit("job-a", 0, {{"FAKE_STEPS", "300"}, {"FAKE_STEP_MS", "1"}});
  ASSERT_TRUE(Eventually([&] { return LastStep(key) > 0; }));
  controller_.Stop();
  const std::string exit_file = JoinPath(RunDir(state_.path(), key), kExitFile);
  ASSERT_TRUE(Eventually([&] { return PathExists(exit_file); }));  // finished meanwhile
  controller_.Start();
  ASSERT_TRUE(controller_.running());
  EXPECT_EQ(WaitFor(key, "ended").end_reason(), kEndCompleted);
  ExpectComplete(key);
  EXPECT_EQ(LastStep(key), 300);
  EXPECT_EQ(controller_.registrations(), 2);
}

TEST_F(WorkerTest, KilledWorkerIsReplacedByOneThatAdoptsItsTrainers) {
  StartRegisteredWorker();
  const AttemptKey key = Submit("job-a", 0, {{"FAKE_STEPS", "1000000"}});
  const AttemptKey ends = Submit("job-b", 1, {{"FAKE_STEPS", "100"}});
  ASSERT_TRUE(Eventually([&] { return LastStep(key) > 0 && LastStep(ends) > 0; }));
  const pid_t supervisor = ReadSupervisor(RunDir(state_.path(), key))->pid;
  KillWorker();
  const std::string exit_file = JoinPath(RunDir(state_.path(), ends), kExitFile);
  ASSERT_TRUE(Eventually([&] { return PathExists(exit_file); }));
  const int64_t before = LastStep(key);
  StartRegisteredWorker();
  EXPECT_GE(controller_.last_register().inventory_size(), 1);
  EXPECT_EQ(WaitFor(ends, "ended").end_reason(), kEndCompleted);
  EXPECT_TRUE(Eventually([&] { return LastStep(key) > before; }));
  EXPECT_TRUE(ProcessAlive(supervisor));
  RequestStop(key, true, 60'000);
  EXPECT_EQ(WaitFor(key, "ended").end_reason(), kEndPreempted);
  ExpectComplete(key);
  ExpectComplete(ends);
}

TEST_F(WorkerTest, TerminatedWorkerLeavesTrainersUnlessToldToStopThem) {
  StartRegisteredWorker();
  const AttemptKey key = Submit("job-a", 0, {{"FAKE_STEPS", "1000000"}});
  WaitFor(key, "running");
  const pid_t supervisor = ReadSupervisor(RunDir(state_.path(), key))->pid;
  ASSERT_TRUE(worker_->Signal(SIGTERM).ok());
  EXPECT_TRUE(worker_->Wait()->success());
  EXPECT_TRUE(ProcessAlive(supervisor));
  StartRegisteredWorker({"--stop-trainers-on-exit"});
  ASSERT_TRUE(worker_->Signal(SIGTERM).ok());
  EXPECT_TRUE(worker_->Wait()->success());
  worker_.reset();
  EXPECT_FALSE(ProcessAlive(supervisor));
  EXPECT_EQ(WaitFor(key, "ended").end_reason(), kEndPreempted);
}

TEST_F(WorkerTest, AttemptTheControllerForgotIsKilled) {
  StartRegisteredWorker();
  const AttemptKey key = Submit("job-a", 0, {{"FAKE_STEPS", "1000000"}});
  WaitFor(key, "running");
  const pid_t supervisor = ReadSupervisor(RunDir(state_.path(), key))->pid;
  controller_.Forget("job-a");
  controller_.Stop();
  EXPECT_TRUE(ProcessAlive(supervisor));
  controller_.Start();
  EXPECT_TRUE(Eventually([&] { return !ProcessAlive(supervisor); }));
}

TEST_F(WorkerTest, MetricsAndHealthAreServed) {
  StartRegisteredWorker();
  const AttemptKey key = Submit("job-a", 0, {{"FAKE_MODE", "exit_3"}});
  WaitFor(key, "ended");
  EXPECT_EQ(Get("/healthz"), "ok\n 200");
  EXPECT_TRUE(Get("/nothing").ends_with(" 404"));
  std::string metrics;
  EXPECT_TRUE(Eventually([&] {
    metrics = Get("/metrics");
    return metrics.find("nibble_worker_trainer_exits_total{result=\"error\"} 1") !=
           std::string::npos;
  })) << metrics;
  for (const char* line :
       {"nibble_build_info{component=\"worker\"", "nibble_worker_trainers_running 0",
        "nibble_worker_trainer_exits_total{result=\"ok\"} 0", "nibble_worker_journal_lag_bytes 0",
        "nibble_worker_spool_records 0", "nibble_worker_controller_connected 1",
        "nibble_worker_reconnects_total 0", "nibble_worker_disk_free_bytes"}) {
    EXPECT_NE(metrics.find(line), std::string::npos) << line;
  }
}

TEST_F(WorkerTest, TokenIsSentAndItsAbsenceLoggedOnce) {
  controller_.RequireToken("secret-token");
  StartWorker();
  const auto lines_with = [&](const std::string& text) {
    int lines = 0;
    for (const std::string& line : StrSplit(ReadFile(log_path()).value_or(""), '\n')) {
      lines += line.find(text) != std::string::npos;
    }
    return lines;
  };
  ASSERT_TRUE(Eventually([&] { return controller_.refusals() >= 3; }));
  KillWorker();
  EXPECT_EQ(lines_with("no or wrong token"), 1);
  const std::string token_file = JoinPath(state_.path(), "token");
  ASSERT_TRUE(AtomicWriteFile(token_file, "secret-token\n").ok());
  StartRegisteredWorker({"--token-file", token_file});
}

TEST_F(WorkerTest, TlsWithCertificatesOnBothSides) {
  const std::string cert = JoinPath(state_.path(), "cert.pem");
  const std::string key = JoinPath(state_.path(), "key.pem");
  const auto made =
      RunCommand({"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                  "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
                  "subjectAltName=DNS:localhost", "-out", cert, "-keyout", key});
  if (!made.ok() || !made->status.success()) GTEST_SKIP() << "needs the program openssl";
  grpc::SslServerCredentialsOptions ssl(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  ssl.pem_root_certs = ReadFile(cert).value();
  ssl.pem_key_cert_pairs.push_back({ReadFile(key).value(), ReadFile(cert).value()});
  FakeController controller(grpc::SslServerCredentials(ssl));
  const std::string address = "localhost:" + std::string(StrSplit(controller.address(), ':')[1]);
  StartWorker({"--controller", address, "--tls-ca", cert, "--tls-cert", cert, "--tls-key", key});
  EXPECT_TRUE(Eventually([&] { return controller.registrations() > 0; }));
}

TEST_F(WorkerTest, SecondWorkerOnTheSameFolderIsRefused) {
  StartRegisteredWorker();
  const auto second = RunCommand({WorkerProgram(), "--state-dir", state_.path(), "--trainer",
                                  FakeTrainer(), "--controller", controller_.address()});
  EXPECT_EQ(second->status.exit_code, 1);
  EXPECT_NE(second->output.find("is locked by process"), std::string::npos) << second->output;
}

TEST_F(WorkerTest, BadFlagsSayWhatToGive) {
  const auto run = [&](std::vector<std::string> flags) {
    std::vector<std::string> argv = {WorkerProgram(), "--state-dir", state_.path()};
    if (flags[0] != "--trainer") argv.insert(argv.end(), {"--trainer", FakeTrainer()});
    argv.insert(argv.end(), flags.begin(), flags.end());
    const CommandOutput output = RunCommand(argv).value();
    EXPECT_NE(output.status.exit_code, 0) << StrJoin(flags, " ");
    return output.output;
  };
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"--controller", "nowhere"}, "is not HOST:PORT"},
      {{"--controller", "10.0.0.1:7790"}, "--insecure"},
      {{"--slots", "0"}, "--slots 0 is not in 1 to 1024"},
      {{"--slots", "99"}, "more than the 8 threads of fake cpu"},
      {{"--pool", "No Good"}, "--pool 'No Good'"},
      {{"--grace", "soon"}, "'soon'"},
      {{"--worker-id", "A b"}, "worker id 'A b'"},
      {{"--tls-cert", "x"}, "--tls-key"},
      {{"--http", "127.0.0.1"}, "--http '127.0.0.1'"},
      {{"--http", "192.0.2.1:1"}, "cannot serve HTTP on '192.0.2.1:1'"},
      {{"--trainer", "/does/not/exist"}, "/does/not/exist"},
      {{"--unknown"}, "--unknown"},
  };
  for (const auto& [flags, expected] : cases) {
    const std::string output = run(flags);
    EXPECT_NE(output.find(expected), std::string::npos) << StrJoin(flags, " ") << ": " << output;
  }
}

TEST_F(WorkerTest, FailedSelfTestRegistersNothing) {
  ::setenv("FAKE_SELF_TEST", "fail", 1);
  const auto run = RunCommand({WorkerProgram(), "--state-dir", state_.path(), "--trainer",
                               FakeTrainer(), "--controller", controller_.address()});
  ::unsetenv("FAKE_SELF_TEST");
  EXPECT_EQ(run->status.exit_code, 1);
  EXPECT_NE(run->output.find("canary e2m1_gemm"), std::string::npos) << run->output;
  EXPECT_EQ(controller_.registrations(), 0);
}

TEST_F(WorkerTest, HelpAndVersionAreThere) {
  const auto help = RunCommand({WorkerProgram(), "--help"});
  EXPECT_TRUE(help->status.success());
  EXPECT_NE(help->output.find("Example"), std::string::npos);
  EXPECT_NE(RunCommand({WorkerProgram(), "--version"})->output.find("nibble-worker "),
            std::string::npos);
}

TEST_F(WorkerTest, WorkerIdIsMadeOnceAndKept) {
  const auto start = [&] {
    ProcessOptions options;
    options.argv = {WorkerProgram(), "--state-dir",  state_.path(),        "--trainer",
                    FakeTrainer(),   "--controller", controller_.address()};
    options.stderr_path = log_path();
    const int before = controller_.registrations();
    worker_ = Process::Start(options).value();
    EXPECT_TRUE(Eventually([&] { return controller_.registrations() > before; }));
    KillWorker();
    return controller_.last_register().worker_id();
  };
  const std::string first = start();
  EXPECT_TRUE(first.starts_with("w-")) << first;
  EXPECT_EQ(start(), first);
}

}  // namespace
}  // namespace nibble::agent
