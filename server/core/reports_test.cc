// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <csignal>

#include "server/core/test_util.h"

namespace nibble::core {
namespace {

TEST(Lease, SilentWorkerThenJobIsSuspectAndGoesOnWhenItReturns) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Pass(29, false);
  EXPECT_EQ(driver.job_state(id), JobState::kRunning);
  driver.Pass(1, false);
  EXPECT_EQ(driver.job_state(id), JobState::kSuspect);
  EXPECT_EQ(driver.state().FindWorker("w-1")->state, WorkerState::kSuspect);
  EXPECT_TRUE(driver.controller().Available().usable_workers.empty());
  driver.Do(Heartbeat{"w-1", "s-w-1", 0, false, {}});
  EXPECT_EQ(driver.job_state(id), JobState::kRunning);
  EXPECT_EQ(driver.job(id).attempts.size(), 1u);
}

TEST(Lease, ExpiredThenJobRecoversElsewhereAndTheOldEpochIsRefused) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  const int64_t old_epoch = driver.job(id).attempts[0].epoch;
  driver.Join("w-2");
  driver.Disconnect("w-1");
  driver.Pass(121);
  EXPECT_EQ(driver.state().FindWorker("w-1")->state, WorkerState::kLost);
  EXPECT_EQ(driver.job_state(id), JobState::kScheduled);
  EXPECT_EQ(driver.job(id).attempts[1].shares[0].worker_id, "w-2");
  EXPECT_EQ(driver.job(id).infra_failures_ms.size(), 1u);
  EXPECT_EQ(driver.job(id).user_failures, 0);
  EXPECT_EQ(driver.controller().CheckEpoch(id, 1, old_epoch).code(), StatusCode::kAborted);
  const Decision stale = driver.Do(ReportCheckpoint{"w-1", id, 1, old_epoch, CheckpointAt(99)});
  EXPECT_EQ(stale.reply.code(), StatusCode::kAborted);
  EXPECT_FALSE(driver.job(id).latest_checkpoint.has_value());
  EXPECT_EQ(driver.Do(Heartbeat{"w-1", "s-w-1", 0, false, {}}).reply.code(), StatusCode::kAborted);
}

TEST(Lease, LostWorkerComesBackThenItsOldTrainerIsKilledBeforeTheDeviceIsUsed) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  const AttemptReport old = driver.ReportOf("w-1", id, SharePhase::kRunning, {}, 7);
  driver.Disconnect("w-1");
  driver.Pass(121);
  EXPECT_EQ(driver.job_state(id), JobState::kRecovering);
  const Decision back = driver.Join("w-1", 1, "main", {old});
  const auto stops = Of<StopAttempt>(back.commands);
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_EQ(stops[0].mode, StopMode::kKill);
  EXPECT_EQ(stops[0].epoch, old.epoch);
  driver.Pass(3);
  EXPECT_EQ(driver.job_state(id), JobState::kRecovering);  // the device is still in use
  driver.Do(Heartbeat{"w-1", "s-w-1", 1, true, {}});       // now it is not
  driver.Do(Tick{});
  EXPECT_EQ(driver.job_state(id), JobState::kScheduled);
}

TEST(Lease, UnwantedTrainerReportedEndedOrNoMoreThenItsDeviceIsFreeAgain) {
  Driver driver;
  const AttemptReport unknown{"j-77", 1, 500, SharePhase::kRunning, {"cpu0"}, 3, {}};
  driver.Join("w-1", 1, "main", {unknown});
  const std::string id = driver.Submit();
  EXPECT_EQ(driver.job_state(id), JobState::kPending);
  AttemptReport ended = unknown;
  ended.phase = SharePhase::kEnded;
  driver.Do(ReportAttempt{"w-1", "s-w-1", 0, ended});
  driver.Do(Tick{});
  EXPECT_EQ(driver.job_state(id), JobState::kScheduled);

  Driver other;
  other.Join("w-1", 1, "main", {unknown});
  const std::string waits = other.Submit();
  other.Pass(119);
  EXPECT_EQ(other.job_state(waits), JobState::kPending);
  other.Pass(1);  // heartbeats came, nothing was said about it for a whole lease
  EXPECT_EQ(other.job_state(waits), JobState::kScheduled);
}

TEST(Lease, ControllerItselfPausedThenNobodyIsLost) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Pass(5);
  driver.now_ms += 600'000;
  driver.Do(Tick{});
  EXPECT_EQ(driver.job_state(id), JobState::kRunning);
  driver.Pass(121, false);  // real silence still counts
  EXPECT_EQ(driver.job_state(id), JobState::kRecovering);
}

TEST(Restart, LiveAttemptsThenKeptAndWorkersHaveAFullLeaseToReturn) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  const AttemptReport report = driver.ReportOf("w-1", id, SharePhase::kRunning, {}, 9);
  driver.now_ms += 3'600'000;  // the controller was away for an hour
  driver.Restart();
  driver.Pass(100);
  EXPECT_EQ(driver.job_state(id), JobState::kSuspect);
  const Decision back = driver.Join("w-1", 1, "main", {report});
  EXPECT_TRUE(back.commands.empty());
  EXPECT_EQ(driver.job_state(id), JobState::kRunning);
  EXPECT_EQ(driver.job(id).attempts.size(), 1u);
  EXPECT_GE(driver.controller().RanMillis(driver.job(id), driver.Now()), 3'600'000);
}

TEST(Restart, WorkerDoesNotReturnThenItsJobsRecover) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Restart();
  driver.Join("w-2");
  driver.Pass(119);
  EXPECT_EQ(driver.job_state(id), JobState::kSuspect);
  driver.Pass(2);
  EXPECT_EQ(driver.job_state(id), JobState::kScheduled);
}

TEST(Inventory, StartedAttemptMissingThenLostAndInfraPays) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Join("w-1");  // a new session that knows nothing
  EXPECT_EQ(driver.job(id).attempts[0].charge, Charge::kInfra);
  EXPECT_NE(driver.job(id).attempts[0].detail.find("missing from the worker's inventory"),
            std::string::npos);
}

TEST(Inventory, StartNeverArrivedThenItIsSentAgainWithTheSameEpoch) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Submit();
  const auto starts = Of<StartAttempt>(driver.Join("w-1").commands);
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_EQ(starts[0].epoch, driver.job(id).attempts[0].epoch);
  EXPECT_EQ(driver.job(id).attempts.size(), 1u);
}

TEST(Inventory, UnconfirmedStartThenRepeatedOnlyAfterAWhile) {
  Driver driver;
  driver.Join("w-1");
  driver.Submit();
  EXPECT_TRUE(Of<StartAttempt>(driver.Pass(9)).empty());
  EXPECT_EQ(Of<StartAttempt>(driver.Pass(1)).size(), 1u);
}

TEST(Inventory, UnknownAttemptThenKilledAndUnknownEndForgotten) {
  Driver driver;
  AttemptReport alive{"j-77", 1, 500, SharePhase::kRunning, {"cpu0"}, 3, {}};
  AttemptReport ended{"j-78", 1, 501, SharePhase::kEnded, {"cpu1"}, 3, {}};
  const Decision decision = driver.Join("w-1", 2, "main", {alive, ended});
  EXPECT_EQ(decision.reply, OkStatus());
  EXPECT_EQ(Of<StopAttempt>(decision.commands).size(), 1u);
  EXPECT_EQ(Of<ForgetAttempt>(decision.commands).size(), 1u);
  EXPECT_EQ(driver.controller().Available().blocked_devices.at("w-1").count("cpu0"), 1u);
}

TEST(Inventory, EndHeardTwiceThenRecordedOnce) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  const AttemptReport end =
      driver.ReportOf("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kCompleted));
  driver.Do(ReportAttempt{"w-1", "s-w-1", 0, end});
  const Decision again = driver.Do(ReportAttempt{"w-1", "s-w-1", 0, end});
  EXPECT_EQ(again.reply, OkStatus());
  EXPECT_TRUE(again.events.empty());
  EXPECT_EQ(Of<ForgetAttempt>(again.commands).size(), 1u);
}

TEST(Inventory, OlderThanTheNewsThenNotCompared) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Submit();
  driver.Do(ReportAttempt{"w-1", "s-w-1", 5, driver.ReportOf("w-1", id, SharePhase::kStarted)});
  driver.Do(Heartbeat{"w-1", "s-w-1", 4, true, {}});  // taken before the start, arrives after
  EXPECT_EQ(driver.job_state(id), JobState::kStarting);
  driver.Do(Heartbeat{"w-1", "s-w-1", 6, true, {}});
  EXPECT_EQ(driver.job(id).attempts[0].end_reason, EndReason::kNodeLost);
}

TEST(Inventory, StoppedBeforeTheWorkerHadItThenNeverStarted) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Submit();
  driver.Do(CancelJob{id, StopMode::kSave, "", "alice"});
  Outcome outcome;
  outcome.kind = OutcomeKind::kNeverStarted;
  driver.Say("w-1", id, SharePhase::kEnded, outcome);
  EXPECT_EQ(driver.job_state(id), JobState::kCancelled);
}

TEST(Epoch, StaleReportThenAbortedAndNothingChanges) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  AttemptReport stale =
      driver.ReportOf("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kCompleted));
  stale.epoch -= 1;
  const Decision decision = driver.Do(ReportAttempt{"w-1", "s-w-1", 0, stale});
  EXPECT_EQ(decision.reply.code(), StatusCode::kAborted);
  EXPECT_TRUE(decision.events.empty());
  EXPECT_EQ(driver.job_state(id), JobState::kRunning);
  EXPECT_EQ(driver.Do(ReportProgress{"w-1", id, 1, stale.epoch, 5}).reply.code(),
            StatusCode::kAborted);
  EXPECT_EQ(driver.controller().CheckEpoch(id, 2, stale.epoch).code(), StatusCode::kAborted);
}

TEST(Epoch, AttemptEndedInTheOrdinaryWayThenItsLateDataIsTaken) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  const int64_t epoch = driver.job(id).attempts[0].epoch;
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kCompleted));
  EXPECT_EQ(driver.controller().CheckEpoch(id, 1, epoch), OkStatus());
  driver.Do(ReportCheckpoint{"w-1", id, 1, epoch, CheckpointAt(50)});
  EXPECT_EQ(driver.job(id).latest_checkpoint->step, 50);
  EXPECT_EQ(driver.job_state(id), JobState::kSucceeded);
}

// The end brings the newest checkpoint, in a report as in an inventory, and a stale end brings
// none.
TEST(Checkpoint, InAnEndThenKnownWithIt) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  AttemptReport end =
      driver.ReportOf("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 0, 9), 45);
  end.checkpoint = CheckpointAt(40);
  end.epoch -= 1;
  EXPECT_EQ(driver.Do(ReportAttempt{"w-1", "s-w-1", 0, end}).reply.code(), StatusCode::kAborted);
  EXPECT_FALSE(driver.job(id).latest_checkpoint.has_value());
  end.epoch += 1;
  driver.Join("w-1", 1, "main", {end});
  EXPECT_EQ(driver.job(id).latest_checkpoint->step, 40);
  EXPECT_EQ(driver.job(id).latest_checkpoint->attempt, 1);
  EXPECT_EQ(driver.job(id).failures_in_row, 1);  // of this attempt: the checkpoint came before it
  driver.Pass(60);
  const auto starts = Of<StartAttempt>(driver.Do(Tick{}).commands);
  ASSERT_EQ(driver.job(id).attempts.size(), 2u);
  EXPECT_EQ(driver.job(id).attempts[1].resume_step, 40);
  driver.Say("w-1", id, SharePhase::kRunning, {}, 41);
  end = driver.ReportOf("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kCompleted), 60);
  end.checkpoint = CheckpointAt(60);
  end.checkpoint->path.assign(5000, 'x');  // refused, and the end all the same taken
  const Decision done = driver.Do(ReportAttempt{"w-1", "s-w-1", 0, end});
  EXPECT_EQ(done.reply, OkStatus());
  EXPECT_EQ(driver.job_state(id), JobState::kSucceeded);
  EXPECT_EQ(driver.job(id).latest_checkpoint->step, 40);
}

TEST(Checkpoint, OlderOrRepeatedThenNoEvent) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  const int64_t epoch = driver.job(id).attempts[0].epoch;
  EXPECT_EQ(driver.Do(ReportCheckpoint{"w-1", id, 1, epoch, CheckpointAt(20)}).events.size(), 1u);
  EXPECT_TRUE(driver.Do(ReportCheckpoint{"w-1", id, 1, epoch, CheckpointAt(20)}).events.empty());
  EXPECT_TRUE(driver.Do(ReportCheckpoint{"w-1", id, 1, epoch, CheckpointAt(10)}).events.empty());
}

TEST(Register, SameIdOnAnotherHostThenRefusedWhileTheLeaseIsInTime) {
  Driver driver;
  driver.Join("w-1");
  RegisterWorker other;
  other.worker.id = "w-1";
  other.worker.host = "elsewhere";
  other.session = "s-other";
  EXPECT_EQ(driver.Do(other).reply.code(), StatusCode::kAlreadyExists);
  driver.Do(SessionClosed{"w-1", "s-w-1"});
  EXPECT_EQ(driver.Do(other).reply, OkStatus());
}

TEST(Register, BadWorkersThenRefused) {
  Driver driver;
  RegisterWorker input;
  input.worker.id = "Bad Id";
  EXPECT_EQ(driver.Do(input).reply.code(), StatusCode::kInvalidArgument);
  input.worker.id = "w-1";
  Device device;
  device.id = "cpu0";
  input.worker.devices = {device, device};
  EXPECT_EQ(driver.Do(input).reply.code(), StatusCode::kInvalidArgument);
  input.worker.devices.assign(kMaxDevicesPerWorker + 1, Device{});
  EXPECT_EQ(driver.Do(input).reply.code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(driver.state().workers().empty());
}

TEST(Session, ClosedThenNothingIsPlacedThere) {
  Driver driver;
  driver.Join("w-1");
  driver.Do(SessionClosed{"w-1", "s-w-1"});
  const std::string id = driver.Submit();
  EXPECT_EQ(driver.job_state(id), JobState::kPending);
  EXPECT_EQ(driver.Do(SessionClosed{"w-1", "s-old"}).reply.code(), StatusCode::kAborted);
}

}  // namespace
}  // namespace nibble::core
