// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <csignal>

#include "server/core/test_util.h"

namespace nibble::core {
namespace {

TEST(Submit, SameRequestIdAndBodyThenSameJob) {
  Driver driver;
  const Decision first = driver.Do(SubmitJob{Driver::Spec(), "r-1", "alice", false});
  const Decision again = driver.Do(SubmitJob{Driver::Spec(), "r-1", "alice", false});
  EXPECT_EQ(again.reply, OkStatus());
  EXPECT_TRUE(again.repeated);
  EXPECT_EQ(again.job_id, first.job_id);
  EXPECT_TRUE(again.events.empty());
  EXPECT_EQ(driver.state().jobs().size(), 1u);
}

TEST(Submit, SameRequestIdAndOtherBodyThenConflict) {
  Driver driver;
  driver.Do(SubmitJob{Driver::Spec(), "r-1", "alice", false});
  JobSpec other = Driver::Spec();
  other.spec_json = "{\"steps\":2}";
  const Decision conflict = driver.Do(SubmitJob{other, "r-1", "alice", false});
  EXPECT_EQ(conflict.reply.code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(conflict.job_id, "");
  EXPECT_EQ(driver.state().jobs().size(), 1u);
}

TEST(Submit, RequestIdThenRememberedAfterTheEndAndARestart) {
  Driver driver;
  const Decision first = driver.Do(SubmitJob{Driver::Spec(), "r-1", "alice", false});
  driver.Do(CancelJob{first.job_id, StopMode::kSave, "", "alice"});
  driver.Restart();
  EXPECT_EQ(driver.Do(SubmitJob{Driver::Spec(), "r-1", "alice", false}).job_id, first.job_id);
}

TEST(Submit, BadSpecThenNamesFieldValueAndLimit) {
  Driver driver;
  const auto refused = [&](auto change) {
    JobSpec spec = Driver::Spec();
    change(spec);
    const Decision decision = driver.Do(SubmitJob{spec, "", "alice", false});
    EXPECT_EQ(decision.reply.code(), StatusCode::kInvalidArgument);
    EXPECT_TRUE(decision.events.empty());
    return decision.reply.message();
  };
  EXPECT_NE(refused([](JobSpec& s) { s.name = "Bad Name"; }).find("Bad Name"), std::string::npos);
  EXPECT_NE(refused([](JobSpec& s) { s.resources.nodes = 0; }).find("resources.nodes is 0"),
            std::string::npos);
  EXPECT_NE(refused([](JobSpec& s) { s.resources.slots_per_node = 65; }).find("1 to 64"),
            std::string::npos);
  EXPECT_NE(refused([](JobSpec& s) { s.retry.on_exit_codes = {0}; }).find("onExitCodes"),
            std::string::npos);
  EXPECT_NE(refused([](JobSpec& s) {
              s.spec_json = std::string(kMaxSpecBytes + 1, 'x');
            }).find("at most"),
            std::string::npos);
  EXPECT_NE(refused([](JobSpec& s) { s.queue = ""; }).find("queue"), std::string::npos);
}

TEST(Submit, TooManyActiveJobsThenResourceExhausted) {
  Driver driver(Options{.max_active_jobs = 1});
  const std::string id = driver.Submit();
  EXPECT_EQ(driver.Do(SubmitJob{Driver::Spec(), "", "alice", false}).reply.code(),
            StatusCode::kResourceExhausted);
  driver.Do(CancelJob{id, StopMode::kSave, "", "alice"});
  EXPECT_EQ(driver.Do(SubmitJob{Driver::Spec(), "", "alice", false}).reply, OkStatus());
}

TEST(Cancel, PendingJobThenCancelledAtOnce) {
  Driver driver;
  const std::string id = driver.Submit();
  EXPECT_EQ(driver.Do(CancelJob{id, StopMode::kSave, "c-1", "bob"}).reply, OkStatus());
  EXPECT_EQ(driver.job_state(id), JobState::kCancelled);
  EXPECT_NE(driver.job(id).end_detail.find("bob"), std::string::npos);
}

TEST(Cancel, RunningJobThenSavesFirstAndNowKills) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  auto stops = Of<StopAttempt>(driver.Do(CancelJob{id, StopMode::kSave, "", "bob"}).commands);
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_EQ(stops[0].mode, StopMode::kSave);
  EXPECT_EQ(stops[0].grace_ms, 60'000);
  EXPECT_EQ(driver.job_state(id), JobState::kStopping);
  stops = Of<StopAttempt>(driver.Do(CancelJob{id, StopMode::kKill, "", "bob"}).commands);
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_EQ(stops[0].mode, StopMode::kKill);
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kNone, 0, SIGKILL));
  EXPECT_EQ(driver.job_state(id), JobState::kCancelled);
  EXPECT_EQ(driver.job(id).end_reason, EndReason::kCancelledByUser);
  EXPECT_TRUE(driver.job(id).infra_failures_ms.empty());
}

TEST(Cancel, JobCompletesBeforeItStopsThenItSucceeded) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Do(CancelJob{id, StopMode::kSave, "", "bob"});
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kCompleted));
  EXPECT_EQ(driver.job_state(id), JobState::kSucceeded);
}

TEST(Cancel, RequestIdThenIdempotentAndConflictsAreRefused) {
  Driver driver;
  const std::string a = driver.Submit();
  const std::string b = driver.Submit();
  driver.Do(CancelJob{a, StopMode::kSave, "c-1", "bob"});
  EXPECT_TRUE(driver.Do(CancelJob{a, StopMode::kSave, "c-1", "bob"}).repeated);
  const Decision conflict = driver.Do(CancelJob{b, StopMode::kSave, "c-1", "bob"});
  EXPECT_EQ(conflict.reply.code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(driver.job_state(b), JobState::kPending);
  EXPECT_EQ(driver.Do(CancelJob{a, StopMode::kSave, "", "bob"}).reply, OkStatus());
}

TEST(Cancel, EndedOrUnknownJobThenRefused) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kCompleted));
  EXPECT_EQ(driver.Do(CancelJob{id, StopMode::kSave, "", "bob"}).reply.code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(driver.Do(CancelJob{"j-99", StopMode::kSave, "", "bob"}).reply.code(),
            StatusCode::kNotFound);
}

TEST(Pause, RunningJobThenSavesReleasesAndIsHeldUntilResumed) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  const auto stops = Of<StopAttempt>(driver.Do(PauseJob{id, "alice"}).commands);
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_EQ(stops[0].cause, StopCause::kPause);
  EXPECT_EQ(driver.Do(PauseJob{id, "alice"}).reply, OkStatus());  // again is fine
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kPreempted));
  EXPECT_EQ(driver.job_state(id), JobState::kHeld);
  EXPECT_EQ(driver.state().DeviceHolder("w-1", "cpu0"), "");
  EXPECT_EQ(driver.controller().Explain(id, driver.Now().wall_ms)->reason,
            PendingReason::kHeldByUser);
  driver.Pass(5);
  EXPECT_EQ(driver.job_state(id), JobState::kHeld);
  driver.Do(ResumeJob{id, "alice"});
  driver.Do(Tick{});
  EXPECT_EQ(driver.job_state(id), JobState::kScheduled);
  EXPECT_EQ(driver.job(id).attempts.back().number, 2);
}

TEST(Pause, ResumedBeforeItTookEffectThenGoesOnAfterTheSave) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Do(PauseJob{id, "alice"});
  driver.Do(ResumeJob{id, "alice"});
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kPreempted));
  EXPECT_EQ(driver.job_state(id), JobState::kScheduled);
}

TEST(Pause, WhileCancellingThenRefused) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Do(CancelJob{id, StopMode::kSave, "", "bob"});
  EXPECT_EQ(driver.Do(PauseJob{id, "alice"}).reply.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(driver.Do(RequeueJob{id, "alice"}).reply.code(), StatusCode::kFailedPrecondition);
}

TEST(Pause, DivergedWhileStoppingThenFailed) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Do(PauseJob{id, "alice"});
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kDiverged, 10));
  EXPECT_EQ(driver.job_state(id), JobState::kFailed);
}

TEST(Requeue, RunningJobThenKeepsItsPlaceInTheOrder) {
  Driver driver;
  driver.Join("w-1");
  const std::string first = driver.Run();
  driver.now_ms += 10;
  const std::string second = driver.Submit();
  driver.Do(RequeueJob{first, "alice"});
  driver.Say("w-1", first, SharePhase::kEnded, Driver::Ended(EndReason::kPreempted));
  EXPECT_EQ(driver.job_state(first), JobState::kScheduled);
  EXPECT_EQ(driver.job_state(second), JobState::kPending);
}

TEST(Update, PriorityThenChangesTheOrderAndTimeLimitApplies) {
  Driver driver;
  driver.Join("w-1");
  const std::string running = driver.Run();
  driver.Submit();
  const std::string later = driver.Submit();
  EXPECT_EQ(driver.Do(UpdateJob{later, 5, std::nullopt, "alice"}).reply, OkStatus());
  driver.Do(UpdateJob{running, std::nullopt, 5'000, "alice"});
  driver.Pass(6);
  EXPECT_EQ(driver.job(running).stop.cause, StopCause::kTimeLimit);
  driver.Say("w-1", running, SharePhase::kEnded, Driver::Ended(EndReason::kPreempted));
  EXPECT_EQ(driver.job_state(later), JobState::kScheduled);
  EXPECT_EQ(driver.Do(UpdateJob{later, std::nullopt, -1, "alice"}).reply.code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(driver.Do(UpdateJob{later, std::nullopt, std::nullopt, "alice"}).reply.code(),
            StatusCode::kInvalidArgument);
}

TEST(Drain, WorkerThenGetsNothingNewAndAtTheDeadlineJobsMoveOn) {
  Driver driver;
  driver.Join("w-1");
  const std::string id = driver.Run();
  driver.Do(DrainWorker{"w-1", "new kernel", "root", driver.Now().wall_ms + 10'000});
  driver.Pass(9);
  EXPECT_EQ(driver.job_state(id), JobState::kRunning);
  driver.Pass(1);
  EXPECT_EQ(driver.job(id).stop.cause, StopCause::kDrain);
  driver.Say("w-1", id, SharePhase::kEnded, Driver::Ended(EndReason::kPreempted));
  EXPECT_EQ(driver.job_state(id), JobState::kPending);
  EXPECT_EQ(driver.job(id).user_failures, 0);
  const auto why = driver.controller().Explain(id, driver.Now().wall_ms);
  EXPECT_EQ(why->reason, PendingReason::kResources);
  EXPECT_NE(why->workers[0].find("draining (root: new kernel)"), std::string::npos);
  driver.Do(UndrainWorker{"w-1", "root"});
  driver.Do(Tick{});
  EXPECT_EQ(driver.job_state(id), JobState::kScheduled);
  EXPECT_EQ(driver.Do(DrainWorker{"w-9", "", "root", 0}).reply.code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace nibble::core
