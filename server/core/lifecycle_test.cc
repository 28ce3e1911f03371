// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <csignal>

#include "server/core/test_util.h"

namespace nibble::core {
namespace {

TEST(Lifecycle, JobRunsOnceThenSucceeds) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Submit();
  EXPECT_EQ(driver.job_state(id), JobState::kScheduled);
  driver.Say("w-1", id, SharePhase::kStarted);
  EXPECT_EQ(driver.job_state(id), JobState::kStarting);
  driver.Do(ReportProgress{"w-1", id, 1, driver.job(id).attempts[0].epoch, 3});
  EXPECT_EQ(driver.job_state(id), JobState::kRunning);
  driver.Pass(10);
  const Decision end =
      driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kCompleted));
  EXPECT_EQ(driver.job_state(id), JobState::kSucceeded);
  EXPECT_EQ(driver.job(id).end_reason, EndReason::kCompleted);
  EXPECT_EQ(driver.job(id).ran_ms, 10'000);
  EXPECT_EQ(Of<ForgetAttempt>(end.commands).size(), 1u);
  EXPECT_EQ(driver.state().DeviceHolder("w-1", "cpu0"), "");
}

TEST(Lifecycle, StartCommandThenCarriesGangAndSpec) {
  Driver driver;
  driver.Join("w-1", 2);
  driver.Join("w-2", 2);
  JobSpec spec = Driver::Spec();
  spec.resources.nodes = 2;
  spec.resources.slots_per_node = 2;
  spec.spec_json = "{\"a\":1}";
  driver.Do(SubmitJob{spec, "", "alice", false});
  const auto starts = Of<StartAttempt>(driver.Do(Tick{}).commands);
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_EQ(starts[0].world_size, 4);
  EXPECT_EQ(starts[0].nodes, 2);
  EXPECT_EQ(starts[1].first_rank, 2);
  EXPECT_EQ(starts[1].node_rank, 1);
  EXPECT_EQ(starts[1].master_address, "w-1:9000");
  EXPECT_EQ(starts[1].spec_json, "{\"a\":1}");
  EXPECT_EQ(starts[0].epoch, starts[1].epoch);
}

// A message is cut where a character ends: half of one would make every answer that holds it
// unreadable for the client.
TEST(Lifecycle, LongMessageThenCutBetweenCharacters) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  Outcome outcome = Driver::Ended(EndReason::kDiverged, 10);
  outcome.message = std::string(kMaxTextBytes - 1, 'x') + "\u00e9";
  driver.Say("w-1", id, SharePhase::kEnded, outcome);
  const Attempt& attempt = driver.job(id).attempts[0];
  EXPECT_EQ(attempt.shares[0].outcome.message, std::string(kMaxTextBytes - 1, 'x'));
  outcome.message = "\u00e9";
  for (size_t i = 0; i < kMaxTextBytes; ++i) outcome.message += "\u00e9";
  driver.Submit();
  driver.Say("w-1", "j-2", SharePhase::kStarted);
  driver.Say("w-1", "j-2", SharePhase::kEnded, outcome);
  const std::string& detail = driver.job("j-2").end_detail;
  EXPECT_LE(detail.size(), kMaxTextBytes);
  EXPECT_GE(detail.size(), kMaxTextBytes - 1);
  EXPECT_TRUE(detail.ends_with("\u00e9")) << detail;
}

TEST(Lifecycle, DivergedThenFailsWithoutRetry) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kDiverged, 10));
  EXPECT_EQ(driver.job_state(id), JobState::kFailed);
  EXPECT_EQ(driver.job(id).end_reason, EndReason::kDiverged);
  EXPECT_EQ(driver.job(id).attempts.size(), 1u);
}

TEST(Lifecycle, TrainerKilledFromOutsideThenInfraPaysAndJobResumesFromCheckpoint) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  const int64_t epoch = driver.job(id).attempts[0].epoch;
  driver.Do(ReportCheckpoint{"w-1", id, 1, epoch, CheckpointAt(40)});
  const Decision end = driver.Do(ReportAttempt{
      "w-1", "s-w-1", 0,
      driver.ReportOf("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 0, SIGKILL))});
  EXPECT_EQ(driver.job_state(id), JobState::kRecovering);
  EXPECT_EQ(driver.job(id).user_failures, 0);
  EXPECT_EQ(driver.job(id).infra_failures_ms.size(), 1u);
  const auto starts = Of<StartAttempt>(driver.Do(Tick{}).commands);  // the first retry is immediate
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_EQ(starts[0].attempt, 2);
  EXPECT_GT(starts[0].epoch, epoch);
  ASSERT_TRUE(starts[0].resume_from.has_value());
  EXPECT_EQ(starts[0].resume_from->step, 40);
}

TEST(Lifecycle, ExitZeroWithoutLastWordThenNeverSuccess) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone));
  EXPECT_EQ(driver.job(id).attempts[0].end_reason, EndReason::kNodeLost);
  EXPECT_EQ(driver.job(id).attempts[0].charge, Charge::kInfra);
  EXPECT_FALSE(IsTerminal(driver.job_state(id)));
}

TEST(Lifecycle, RetryableExitCodeThenUserBudgetIsSpentAndJobFails) {
  Driver driver;
  driver.Join("w-1");
  JobSpec spec = Driver::Spec();
  spec.retry.user = 2;
  spec.retry.backoff_base_ms = 10'000;
  const std::string id = driver.Submit(spec);
  for (int attempt = 1; attempt <= 3; ++attempt) {
    ASSERT_EQ(driver.job_state(id), JobState::kScheduled) << attempt;
    driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kUserError, 75));
    if (attempt < 3) {
      EXPECT_EQ(driver.job_state(id), JobState::kPending);
      const auto why = driver.controller().Explain(id, driver.Now().wall_ms);
      EXPECT_EQ(why->reason, PendingReason::kRetryBackoff);
      driver.Pass(attempt == 1 ? 10 : 20);  // the wait doubles
    }
  }
  EXPECT_EQ(driver.job_state(id), JobState::kFailed);
  EXPECT_EQ(driver.job(id).end_reason, EndReason::kRetryBudgetSpent);
  EXPECT_NE(driver.job(id).end_detail.find("exit code 75"), std::string::npos);
  EXPECT_TRUE(driver.job(id).infra_failures_ms.empty());
}

TEST(Lifecycle, OtherExitCodeThenFailsAtOnce) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Submit();
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 2));
  EXPECT_EQ(driver.job_state(id), JobState::kFailed);
  EXPECT_EQ(driver.job(id).end_reason, EndReason::kUserError);
}

TEST(Lifecycle, InfraBudgetSpentThenFails) {
  Driver driver;
  driver.Join("w-1");
  JobSpec spec = Driver::Spec();
  spec.retry.infra_per_day = 1;
  spec.retry.backoff_base_ms = 0;
  const std::string id = driver.Submit(spec);
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 0, SIGKILL));
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 0, SIGKILL));
  EXPECT_EQ(driver.job_state(id), JobState::kFailed);
  EXPECT_EQ(driver.job(id).end_reason, EndReason::kRetryBudgetSpent);
}

TEST(Lifecycle, InfraFailuresOlderThanADayThenDoNotCount) {
  Driver driver;
  driver.Join("w-1");
  JobSpec spec = Driver::Spec();
  spec.retry.infra_per_day = 1;
  spec.retry.backoff_base_ms = 0;
  const std::string id = driver.Submit(spec);
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 0, SIGKILL));
  driver.now_ms += int64_t{25} * 3600 * 1000;
  driver.Do(Tick{});
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 0, SIGKILL));
  EXPECT_FALSE(IsTerminal(driver.job_state(id)));
  EXPECT_EQ(driver.job(id).infra_failures_ms.size(), 1u);
}

TEST(Lifecycle, TimeLimitThenCountsRunningTimeOverAttempts) {
  Driver driver;
  driver.Join("w-1");
  JobSpec spec = Driver::Spec();
  spec.time_limit_ms = 30'000;
  spec.retry.backoff_base_ms = 0;
  const std::string id = driver.Run(spec);
  driver.Pass(20);
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 0, SIGKILL));
  driver.Pass(60);  // placed again but not started: this does not count
  driver.Say("w-1", id, SharePhase::kRunning, {}, 1);
  EXPECT_TRUE(Of<StopAttempt>(driver.Pass(9)).empty());
  const auto stops = Of<StopAttempt>(driver.Pass(2));
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_EQ(stops[0].mode, StopMode::kSave);
  EXPECT_EQ(driver.job_state(id), JobState::kStopping);
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kPreempted));
  EXPECT_EQ(driver.job_state(id), JobState::kTimedOut);
  EXPECT_EQ(driver.job(id).end_reason, EndReason::kTimeLimit);
}

TEST(Lifecycle, NoFirstStepInTimeThenStartTimeoutOnInfraBudget) {
  Driver driver;
  driver.Join("w-1");
  JobSpec spec = Driver::Spec();
  spec.start_timeout_ms = 20'000;
  const std::string id = driver.Submit(spec);
  driver.Say("w-1", id, SharePhase::kStarted);
  const auto stops = Of<StopAttempt>(driver.Pass(20));
  ASSERT_FALSE(stops.empty());
  EXPECT_EQ(stops[0].mode, StopMode::kKill);
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 0, SIGKILL));
  EXPECT_EQ(driver.job(id).attempts[0].end_reason, EndReason::kStartTimeout);
  EXPECT_EQ(driver.job(id).attempts[0].charge, Charge::kInfra);
}

TEST(Lifecycle, TalkingWorkerNeverConfirmsThenTheStartIsGivenUp) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Submit();
  driver.Pass(119);
  EXPECT_EQ(driver.job_state(id), JobState::kScheduled);
  driver.Pass(1);
  EXPECT_EQ(driver.job_state(id), JobState::kStopping);
  driver.Pass(31);
  driver.Do(Heartbeat{"w-1", "s-w-1", 1, true, {}});  // and it does not have it either
  EXPECT_EQ(driver.job(id).attempts[0].end_reason, EndReason::kStartTimeout);
  EXPECT_EQ(driver.state().DeviceHolder("w-1", "cpu0"), "");
  EXPECT_FALSE(IsTerminal(driver.job_state(id)));
}

TEST(Lifecycle, StepsStopThenStalled) {
  Driver driver;
  driver.Join("w-1");
  JobSpec spec = Driver::Spec();
  spec.stall_timeout_ms = 10'000;
  const std::string id = driver.Run(spec);
  const int64_t epoch = driver.job(id).attempts[0].epoch;
  driver.Pass(8);
  driver.Do(ReportProgress{"w-1", id, 1, epoch, 2});
  EXPECT_TRUE(Of<StopAttempt>(driver.Pass(8)).empty());
  driver.Do(ReportProgress{"w-1", id, 1, epoch, 2});  // not a new step
  EXPECT_EQ(Of<StopAttempt>(driver.Pass(3)).size(), 1u);
  EXPECT_EQ(driver.job(id).stop.cause, StopCause::kStalled);
}

TEST(Lifecycle, OneShareOfAGangFailsThenTheOthersAreKilledAndTheCauseIsNamed) {
  Driver driver;
  driver.Join("w-1");
  driver.Join("w-2");
  JobSpec spec = Driver::Spec();
  spec.resources.nodes = 2;
  const std::string id = driver.Submit(spec);
  driver.Say("w-1", id, SharePhase::kRunning, {}, 1);
  driver.Say("w-2", id, SharePhase::kRunning, {}, 1);
  const Decision end =
      driver.Say("w-2", id, SharePhase::kEnded, Driver::Ended(EndReason::kDataUnreadable, 11));
  const auto stops = Of<StopAttempt>(end.commands);
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_EQ(stops[0].mode, StopMode::kKill);
  EXPECT_EQ(driver.job_state(id), JobState::kStopping);
  EXPECT_EQ(driver.state().DeviceHolder("w-2", "cpu0"), "");
  EXPECT_EQ(driver.state().DeviceHolder("w-1", "cpu0"), id);
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 0, SIGKILL));
  EXPECT_EQ(driver.job_state(id), JobState::kFailed);
  EXPECT_EQ(driver.job(id).end_reason, EndReason::kDataUnreadable);
  EXPECT_NE(driver.job(id).end_detail.find("w-2"), std::string::npos);
}

TEST(Lifecycle, StopNotConfirmedThenKillAndThenTheWorkerIsDrained) {
  Driver driver;
  driver.Join("w-1");
  JobSpec spec = Driver::Spec();
  spec.stop_grace_ms = 10'000;
  const std::string id = driver.Run(spec);
  driver.Do(CancelJob{id, StopMode::kSave, "", "alice"});
  driver.Pass(39);
  const auto kills = Of<StopAttempt>(driver.Pass(2));
  ASSERT_FALSE(kills.empty());
  EXPECT_EQ(kills[0].mode, StopMode::kKill);
  EXPECT_FALSE(driver.state().FindWorker("w-1")->draining);
  driver.Pass(31);
  EXPECT_TRUE(driver.state().FindWorker("w-1")->draining);
  EXPECT_EQ(driver.state().FindWorker("w-1")->drain_actor, "controller");
  EXPECT_EQ(driver.job_state(id), JobState::kStopping);  // until confirmed or fenced
}

TEST(Lifecycle, UnaskedPreemptionThenRequeuedAfterAPauseAndNobodyPays) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kPreempted));
  EXPECT_EQ(driver.job_state(id), JobState::kPending);
  EXPECT_EQ(driver.job(id).preemptions, 1);
  EXPECT_EQ(driver.job(id).user_failures, 0);
  EXPECT_TRUE(driver.job(id).infra_failures_ms.empty());
  driver.Pass(6);
  EXPECT_EQ(driver.job_state(id), JobState::kScheduled);
}

}  // namespace
}  // namespace nibble::core
