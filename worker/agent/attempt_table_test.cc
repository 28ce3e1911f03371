// SPDX-License-Identifier: Apache-2.0
//
// The rules of attempts with real processes, real journals and no network.
#include "worker/agent/attempt_table.h"

#include <gtest/gtest.h>

#include <csignal>
#include <set>

#include "base/json.h"
#include "base/strings.h"
#include "worker/agent/agent_test_support.h"

namespace nibble::agent {
namespace {

const std::map<std::string, std::string> kEndless = {{"FAKE_STEPS", "1000000"}};

class AttemptTableTest : public testing::Test {
 protected:
  void SetUp() override { Restart(); }

  void TearDown() override {
    for (const AttemptReport& report : table_->Inventory()) Kill(report.key);
    EXPECT_TRUE(PollUntil([&] { return table_->idle(); }));
  }

  // A new table over the same folder, as after a restart of the worker.
  void Restart(const std::string& trainer = FakeTrainer(), const Clock& clock = Clock::Real()) {
    DeviceInfo device;
    device.kind = "cpu";
    device.threads = 3;
    RunSettings settings{state_.path(), trainer, FakeTrainer(), {device, device}};
    settings.devices[1].index = 1;
    table_ = std::make_unique<AttemptTable>(settings, /*default_grace_ms=*/60'000, clock);
    table_->Load();
  }

  bool PollUntil(const std::function<bool()>& condition) {
    return Eventually([&] {
      table_->Poll();
      return condition();
    });
  }

  void Kill(const AttemptKey& key) { table_->Stop({key, false, 0, "test"}); }

  // Sends and acknowledges everything due, as a controller that is there would.
  void Exchange() {
    while (const auto batch = table_->NextTelemetry()) {
      for (const JournalRecord& record : batch->records) {
        received_[batch->key.ToString()].push_back(record.seq);
      }
      table_->AcknowledgeTelemetry(batch->key, batch->records.back().seq);
    }
    while (const auto report = table_->NextReport()) {
      table_->ReportSent(*report);
      reports_.push_back(*report);
    }
  }

  // The first report with this state; waits for it.
  AttemptReport WaitFor(const AttemptKey& key, const std::string& state) {
    AttemptReport found;
    EXPECT_TRUE(PollUntil([&] {
      Exchange();
      for (const AttemptReport& report : reports_) {
        if (report.key == key && report.state == state) {
          found = report;
          return true;
        }
      }
      return false;
    })) << key.ToString()
        << " never became " << state;
    return found;
  }

  std::string RunFile(const AttemptKey& key, const std::string& name) {
    return JoinPath(RunDir(state_.path(), key), name);
  }
  pid_t Supervisor(const AttemptKey& key) {
    pid_t pid = 0;
    EXPECT_TRUE(Eventually([&] {
      const auto id = ReadSupervisor(RunDir(state_.path(), key));
      pid = id.ok() ? id->pid : 0;
      return pid != 0;
    }));
    return pid;
  }
  pid_t TrainerOf(pid_t supervisor) {
    const std::string task = "/proc/" + std::to_string(supervisor) + "/task/";
    pid_t pid = 0;
    EXPECT_TRUE(Eventually([&] {
      const auto text = ReadFile(task + std::to_string(supervisor) + "/children");
      pid = static_cast<pid_t>(ParseInt(StrTrim(text.value_or(""))).value_or(0));
      return pid != 0;
    }));
    return pid;
  }

  StateDir state_;
  FakeClock clock_;  // of a table that asks for it
  std::unique_ptr<AttemptTable> table_;
  std::vector<AttemptReport> reports_;
  std::map<std::string, std::vector<int64_t>> received_;
};

TEST_F(AttemptTableTest, RunsToTheEndAndReportsItAfterTheJournal) {
  const StartRequest start = StartOf("job-a", 1, 7, 0, {{"FAKE_STEPS", "3"}});
  table_->Start(start);
  EXPECT_EQ(WaitFor(start.key, kStateStarting).step, 0);
  const AttemptReport end = WaitFor(start.key, kStateEnded);
  EXPECT_EQ(end.exit_code, 0);
  EXPECT_EQ(end.signal, 0);
  EXPECT_EQ(end.end_reason, kEndCompleted);
  EXPECT_EQ(end.end_message, "after step 3");
  EXPECT_EQ(end.step, 3);
  EXPECT_EQ(received_[start.key.ToString()], (std::vector<int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(table_->Inventory().size(), 1u);
  table_->AcknowledgeEnd(start.key);
  EXPECT_TRUE(PollUntil([&] { return table_->Inventory().empty(); }));
  EXPECT_TRUE(LoadAttemptRecord(RunDir(state_.path(), start.key))->done);
  EXPECT_EQ(table_->Stats().exits_ok, 1);
}

TEST_F(AttemptTableTest, TrainerGetsItsRunSectionAndEnvironment) {
  StartRequest start = StartOf("job-a", 2, 7, 1, kEndless);
  start.env["RANK"] = "9";  // ours wins
  table_->Start(start);
  WaitFor(start.key, kStateRunning);
  const Json run = (*Json::Parse(ReadFile(RunFile(start.key, "run.json")).value()))["run"];
  EXPECT_EQ(run["dir"].AsString(), RunDir(state_.path(), start.key));
  EXPECT_EQ(run["jobId"].AsString(), "job-a");
  EXPECT_EQ(run["attempt"].AsInt(), 2);
  EXPECT_EQ(run["epoch"].AsInt(), 7);
  EXPECT_EQ(run["worldSize"].AsInt(), 1);
  EXPECT_EQ(run["threads"].AsInt(), 3);
  EXPECT_TRUE(run["journal"].AsBool());
  const pid_t trainer = TrainerOf(Supervisor(start.key));
  std::string text = ReadFile("/proc/" + std::to_string(trainer) + "/environ").value();
  const std::vector<std::string> env = StrSplit(text, '\0');
  const std::set<std::string> lines(env.begin(), env.end());
  const std::string checkpoints = state_.path() + "/runs/job-a/checkpoints";
  for (const std::string& expected :
       {std::string("RANK=0"), std::string("WORLD_SIZE=1"), std::string("LOCAL_RANK=0"),
        std::string("MASTER_ADDR=127.0.0.1"), std::string("TORCHELASTIC_RESTART_COUNT=1"),
        std::string("TORCHELASTIC_RUN_ID=job-a"), std::string("NIBBLE_JOB_ID=job-a"),
        std::string("NIBBLE_ATTEMPT=2"), std::string("NIBBLE_EPOCH=7"),
        "NIBBLE_CHECKPOINT_DIR=" + checkpoints}) {
    EXPECT_TRUE(lines.contains(expected)) << expected;
  }
}

TEST_F(AttemptTableTest, AttemptsOfAJobShareTheirCheckpoints) {
  const StartRequest first = StartOf("job-a", 1, 1, 0, {{"FAKE_STEPS", "1"}});
  table_->Start(first);
  WaitFor(first.key, kStateEnded);
  ASSERT_TRUE(MakeDirectories(RunFile(first.key, "checkpoints/step-1")).ok());
  ASSERT_TRUE(AtomicWriteFile(RunFile(first.key, "checkpoints/step-1/manifest.json"), "{}").ok());
  StartRequest second = StartOf("job-a", 2, 2, 0, {{"FAKE_STEPS", "1"}});
  second.run_json = R"({"checkpoint":{"resumeFrom":"/somewhere/else","everySteps":5}})";
  table_->Start(second);
  WaitFor(second.key, kStateEnded);
  EXPECT_TRUE(PathExists(RunFile(second.key, "checkpoints/step-1/manifest.json")));
  const Json config = *Json::Parse(ReadFile(RunFile(second.key, "run.json")).value());
  EXPECT_EQ(config["checkpoint"]["resumeFrom"].AsString(), "");  // the job's own newest one
  EXPECT_EQ(config["checkpoint"]["everySteps"].AsInt(), 5);
}

TEST_F(AttemptTableTest, StopWithSaveLetsTheTrainerFinish) {
  const StartRequest start = StartOf("job-a", 1, 1, 0, kEndless);
  table_->Start(start);
  WaitFor(start.key, kStateRunning);
  table_->Stop({start.key, true, 60'000, "pause"});
  const AttemptReport end = WaitFor(start.key, kStateEnded);
  EXPECT_EQ(end.exit_code, 0);
  EXPECT_EQ(end.end_reason, kEndPreempted);
}

TEST_F(AttemptTableTest, TrainerThatIgnoresTheStopIsKilledAfterItsGrace) {
  auto env = kEndless;
  env["FAKE_MODE"] = "ignore_term";
  const StartRequest start = StartOf("job-a", 1, 1, 0, env);
  table_->Start(start);
  WaitFor(start.key, kStateRunning);
  table_->Stop({start.key, true, 50, "cancel"});
  EXPECT_EQ(WaitFor(start.key, kStateStopping).signal, 0);
  const AttemptReport end = WaitFor(start.key, kStateEnded);
  EXPECT_EQ(end.signal, SIGKILL);
  EXPECT_EQ(end.end_message, "killed (cancel)");
  EXPECT_EQ(table_->Stats().exits_signal, 1);
}

TEST_F(AttemptTableTest, ProcessesTheTrainerLeavesBehindAreKilledWithIt) {
  auto env = kEndless;
  env["FAKE_MODE"] = "grandchild";
  const StartRequest start = StartOf("job-a", 1, 1, 0, env);
  table_->Start(start);
  WaitFor(start.key, kStateRunning);
  const std::string file = RunFile(start.key, "grandchild.pid");
  ASSERT_TRUE(Eventually([&] { return PathExists(file); }));
  const auto grandchild = static_cast<pid_t>(ParseInt(ReadFile(file).value()).value());
  ASSERT_TRUE(ProcessAlive(grandchild));
  ::kill(TrainerOf(Supervisor(start.key)), SIGTERM);  // ignored by both
  Kill(start.key);
  EXPECT_EQ(WaitFor(start.key, kStateEnded).signal, SIGKILL);
  EXPECT_FALSE(ProcessAlive(grandchild));
}

TEST_F(AttemptTableTest, KilledTrainerAndKilledSupervisorBothEndTheAttempt) {
  const StartRequest a = StartOf("job-a", 1, 1, 0, {{"FAKE_MODE", "kill_self"}});
  table_->Start(a);
  EXPECT_EQ(WaitFor(a.key, kStateEnded).signal, SIGKILL);
  const StartRequest b = StartOf("job-b", 1, 1, 1, kEndless);
  table_->Start(b);
  WaitFor(b.key, kStateRunning);
  const pid_t supervisor = Supervisor(b.key);
  const pid_t trainer = TrainerOf(supervisor);
  ::kill(supervisor, SIGKILL);
  EXPECT_EQ(WaitFor(b.key, kStateEnded).signal, SIGKILL);
  EXPECT_FALSE(ProcessAlive(trainer));
}

TEST_F(AttemptTableTest, ExitCodesAndEndReasonsAreReported) {
  const StartRequest a = StartOf("job-a", 1, 1, 0, {{"FAKE_MODE", "exit_3"}});
  const StartRequest b = StartOf("job-b", 1, 1, 1, {{"FAKE_MODE", "diverge"}});
  table_->Start(a);
  table_->Start(b);
  const AttemptReport end_a = WaitFor(a.key, kStateEnded);
  EXPECT_EQ(end_a.exit_code, 3);
  EXPECT_EQ(end_a.end_reason, "");
  const AttemptReport end_b = WaitFor(b.key, kStateEnded);
  EXPECT_EQ(end_b.exit_code, 10);
  EXPECT_EQ(end_b.end_reason, kEndDiverged);
  EXPECT_EQ(table_->Stats().exits_error, 2);
}

TEST_F(AttemptTableTest, MissingTrainerIsAFailedStart) {
  Restart("/does/not/exist/nibble-trainer");
  const StartRequest start = StartOf("job-a", 1, 1, 0, {});
  table_->Start(start);
  const AttemptReport end = WaitFor(start.key, kStateEnded);
  EXPECT_TRUE(end.start_failed);
  EXPECT_NE(end.end_message.find("/does/not/exist/nibble-trainer"), std::string::npos);
}

TEST_F(AttemptTableTest, ImpossibleRequestsAreFailedStarts) {
  StartRequest bad_json = StartOf("job-a", 1, 1, 0, {});
  bad_json.run_json = "[1,";
  StartRequest no_device = StartOf("job-b", 1, 1, 5, {});
  StartRequest two_ranks = StartOf("job-c", 1, 1, 0, {});
  two_ranks.world_size = 2;
  StartRequest bad_name = StartOf("../../etc", 1, 1, 0, {});
  for (const StartRequest& request : {bad_json, no_device, two_ranks, bad_name}) {
    table_->Start(request);
    EXPECT_TRUE(WaitFor(request.key, kStateEnded).start_failed) << request.key.job_id;
  }
  EXPECT_FALSE(PathExists(state_.path() + "/etc"));
}

TEST_F(AttemptTableTest, StaleEpochsStartAndStopNothing) {
  const StartRequest start = StartOf("job-a", 3, 9, 0, kEndless);
  table_->Start(start);
  WaitFor(start.key, kStateRunning);
  const StartRequest older = StartOf("job-a", 2, 8, 1, {});
  table_->Start(older);
  const AttemptReport refused = WaitFor(older.key, kStateEnded);
  EXPECT_TRUE(refused.start_failed);
  EXPECT_NE(refused.end_message.find("stale epoch 8"), std::string::npos);
  table_->Stop({older.key, false, 0, "cancel"});
  table_->Start(start);  // asked again: nothing but another report
  reports_.clear();
  WaitFor(start.key, kStateRunning);
  EXPECT_EQ(table_->Stats().trainers_running, 1);
  Restart();  // the epoch is known after a restart too
  table_->Start(older);
  reports_.clear();
  EXPECT_TRUE(WaitFor(older.key, kStateEnded).start_failed);
}

TEST_F(AttemptTableTest, NewerAttemptWaitsUntilTheOlderOneIsGone) {
  auto env = kEndless;
  env["FAKE_MODE"] = "ignore_term";
  const StartRequest older = StartOf("job-a", 1, 1, 0, env);
  table_->Start(older);
  WaitFor(older.key, kStateRunning);
  const pid_t trainer = TrainerOf(Supervisor(older.key));
  const StartRequest newer = StartOf("job-a", 2, 2, 0, kEndless);
  table_->Start(newer);
  WaitFor(newer.key, kStateRunning);
  EXPECT_FALSE(ProcessAlive(trainer));
  EXPECT_EQ(table_->Inventory().size(), 1u);
}

TEST_F(AttemptTableTest, DeviceInUseIsRefusedAndOneBeingFreedIsWaitedFor) {
  const StartRequest holder = StartOf("job-a", 1, 1, 0, kEndless);
  table_->Start(holder);
  WaitFor(holder.key, kStateRunning);
  const StartRequest intruder = StartOf("job-b", 1, 1, 0, kEndless);
  table_->Start(intruder);
  const AttemptReport refused = WaitFor(intruder.key, kStateEnded);
  EXPECT_TRUE(refused.start_failed);
  EXPECT_EQ(refused.end_message, "its device is held by job-a/1@1");
  Kill(holder.key);
  const StartRequest next = StartOf("job-c", 1, 1, 0, kEndless);
  table_->Start(next);
  WaitFor(next.key, kStateRunning);
}

TEST_F(AttemptTableTest, RestartedWorkerAdoptsWhatRunsAndReportsWhatEnded) {
  const StartRequest runs = StartOf("job-a", 1, 1, 0, kEndless);
  const StartRequest ends = StartOf("job-b", 1, 1, 1, {{"FAKE_STEPS", "2"}});
  table_->Start(runs);
  table_->Start(ends);
  WaitFor(runs.key, kStateRunning);
  const pid_t supervisor = Supervisor(runs.key);
  EXPECT_TRUE(Eventually([&] { return PathExists(RunFile(ends.key, kExitFile)); }));
  table_.reset();
  reports_.clear();
  Restart();
  EXPECT_TRUE(ProcessAlive(supervisor));
  EXPECT_EQ(table_->Inventory().size(), 2u);
  EXPECT_EQ(WaitFor(ends.key, kStateEnded).end_reason, kEndCompleted);
  WaitFor(runs.key, kStateRunning);
  const auto& seqs = received_[runs.key.ToString()];
  EXPECT_EQ(std::set<int64_t>(seqs.begin(), seqs.end()).size(),
            static_cast<size_t>(*std::max_element(seqs.begin(), seqs.end())));  // none lost
  table_->Stop({runs.key, true, 60'000, "cancel"});
  EXPECT_EQ(WaitFor(runs.key, kStateEnded).end_reason, kEndPreempted);
}

TEST_F(AttemptTableTest, EndCarriesTheNewestCheckpoint) {
  const StartRequest start = StartOf("job-a", 1, 1, 0, kEndless);
  table_->Start(start);
  WaitFor(start.key, kStateRunning);
  table_->Stop({start.key, true, 60'000, "cancel"});
  const AttemptReport end = WaitFor(start.key, kStateEnded);
  ASSERT_TRUE(end.checkpoint.has_value());
  const auto& checkpoint = std::get<CheckpointRecord>(end.checkpoint->event);
  EXPECT_EQ(checkpoint.step, end.step);
  EXPECT_TRUE(checkpoint.path.ends_with("/checkpoints/c")) << checkpoint.path;
  EXPECT_GT(end.checkpoint->time_ms, 0);
}

// A new session tells of an end only after the journal before it, for as long as that may take.
TEST_F(AttemptTableTest, EndWaitsForItsJournalInEverySession) {
  const StartRequest start = StartOf("job-a", 1, 1, 0, {{"FAKE_STEPS", "2"}});
  table_->Start(start);
  EXPECT_TRUE(Eventually([&] { return PathExists(RunFile(start.key, kExitFile)); }));
  const auto state = [&] { return table_->Inventory().at(0).state; };
  const auto begin = [&] {
    table_.reset();
    Restart(FakeTrainer(), clock_);
    EXPECT_TRUE(PollUntil([&] { return table_->idle(); }));
    clock_.Advance(std::chrono::milliseconds(10 * kDrainBeforeReportMs));  // no controller so far
    table_->ResetSession();
  };
  begin();
  EXPECT_EQ(state(), kStateRunning);
  clock_.Advance(std::chrono::milliseconds(kDrainBeforeReportMs - 1));
  EXPECT_EQ(state(), kStateRunning);
  clock_.Advance(std::chrono::milliseconds(1));
  EXPECT_EQ(state(), kStateEnded);  // telemetry does not hold it back for ever
  begin();
  EXPECT_EQ(state(), kStateRunning);
  Kill(start.key);  // nobody waits for its journal
  EXPECT_EQ(state(), kStateEnded);
  begin();
  EXPECT_EQ(state(), kStateRunning);
  Exchange();
  EXPECT_EQ(state(), kStateEnded);
}

TEST_F(AttemptTableTest, StartCutOffBeforeItsSupervisorCanNeverHappenLate) {
  const AttemptKey key{"job-a", 1, 1};
  ASSERT_TRUE(MakeDirectories(RunDir(state_.path(), key)).ok());
  AttemptRecord record;
  record.key = key;
  ASSERT_TRUE(SaveAttemptRecord(RunDir(state_.path(), key), record).ok());
  Restart();  // as if the worker had died right after the record
  EXPECT_EQ(WaitFor(key, kStateEnded).signal, SIGKILL);
  ProcessOptions late;
  late.argv = {FakeTrainer(), kSuperviseCommand, RunDir(state_.path(), key), "/bin/true"};
  late.stderr_path = "/dev/null";
  EXPECT_EQ(Process::Start(late)->Wait()->exit_code, 126);
  EXPECT_FALSE(PathExists(RunFile(key, kExitFile)));
}

TEST_F(AttemptTableTest, FolderOfAnEarlierAttemptIsNeverTakenForTheNewOne) {
  const StartRequest first = StartOf("job-a", 1, 1, 0, {{"FAKE_STEPS", "1"}});
  table_->Start(first);
  WaitFor(first.key, kStateEnded);
  const StartRequest again = StartOf("job-a", 1, 2, 0, {{"FAKE_STEPS", "1"}});
  table_->Start(again);
  const AttemptReport end = WaitFor(again.key, kStateEnded);
  EXPECT_TRUE(end.start_failed);
  EXPECT_EQ(end.end_reason, "");
}

TEST_F(AttemptTableTest, DamagedRecordIsLeftAloneAndTheOthersAreRead) {
  ASSERT_TRUE(MakeDirectories(state_.path() + "/runs/job-x/attempt-1").ok());
  ASSERT_TRUE(AtomicWriteFile(state_.path() + "/runs/job-x/attempt-1/attempt.json", "{").ok());
  const StartRequest start = StartOf("job-a", 1, 1, 0, kEndless);
  table_->Start(start);
  WaitFor(start.key, kStateRunning);
  Restart();
  EXPECT_EQ(table_->Inventory().size(), 1u);
}

TEST_F(AttemptTableTest, WhatTheControllerDoesNotNameIsKilledAndForgotten) {
  const StartRequest kept = StartOf("job-a", 1, 1, 0, kEndless);
  const StartRequest unknown = StartOf("job-b", 1, 1, 1, kEndless);
  table_->Start(kept);
  table_->Start(unknown);
  WaitFor(kept.key, kStateRunning);
  WaitFor(unknown.key, kStateRunning);
  table_->Keep({kept.key});
  EXPECT_TRUE(PollUntil([&] { return table_->Inventory().size() == 1; }));
  EXPECT_EQ(table_->Inventory()[0].key, kept.key);
  EXPECT_EQ(WaitFor(unknown.key, kStateEnded).signal, SIGKILL);
}

TEST_F(AttemptTableTest, EndIsReportedAgainUntilAcknowledged) {
  const StartRequest start = StartOf("job-a", 1, 1, 0, {{"FAKE_STEPS", "1"}});
  table_->Start(start);
  WaitFor(start.key, kStateEnded);
  EXPECT_FALSE(table_->NextReport().has_value());  // not before its time
  table_->ResetSession();
  EXPECT_EQ(table_->NextReport()->state, kStateEnded);
}

TEST_F(AttemptTableTest, UnreadableJournalLinesLoseOnlyThemselves) {
  const StartRequest start = StartOf("job-a", 1, 1, 0, {{"FAKE_MODE", "garbage"}});
  table_->Start(start);
  EXPECT_EQ(WaitFor(start.key, kStateEnded).end_reason, kEndCompleted);
  // start 1, steps 2..6 with the line of seq 3 unreadable (a warning takes its place), end 8.
  EXPECT_EQ(received_[start.key.ToString()], (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST_F(AttemptTableTest, ClosingWorkerSavesTrainersAndTakesNoMore) {
  const StartRequest start = StartOf("job-a", 1, 1, 0, kEndless);
  table_->Start(start);
  WaitFor(start.key, kStateRunning);
  table_->StopAll("worker shutdown");
  const StartRequest late = StartOf("job-b", 1, 1, 1, kEndless);
  table_->Start(late);
  EXPECT_TRUE(WaitFor(late.key, kStateEnded).start_failed);
  EXPECT_EQ(WaitFor(start.key, kStateEnded).end_reason, kEndPreempted);
  EXPECT_TRUE(table_->idle());
}

}  // namespace
}  // namespace nibble::agent
