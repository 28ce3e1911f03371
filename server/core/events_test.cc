// SPDX-License-Identifier: Apache-2.0
#include "server/core/events.h"

#include <gtest/gtest.h>

#include "server/core/state.h"
#include "server/core/test_util.h"

namespace nibble::core {
namespace {

Event Parsed(const std::string& text) { return EventFromJson(*Json::Parse(text)).value(); }
Status ParseStatus(const std::string& text) { return EventFromJson(*Json::Parse(text)).status(); }

TEST(Events, UnknownTypeOrNewerFormatThenRefusedLoudly) {
  EXPECT_EQ(ParseStatus(R"({"v":1,"type":"JobTeleported","time_ms":1})").code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(ParseStatus(R"({"v":2,"type":"JobHeld","time_ms":1})").code(),
            StatusCode::kFailedPrecondition);
}

TEST(Events, DamagedThenDataLoss) {
  EXPECT_EQ(ParseStatus("[]").code(), StatusCode::kDataLoss);
  EXPECT_EQ(ParseStatus(R"({"type":"JobHeld"})").code(), StatusCode::kDataLoss);
  EXPECT_EQ(ParseStatus(R"({"v":1,"type":"JobHeld","time_ms":"x"})").code(), StatusCode::kDataLoss);
  EXPECT_EQ(ParseStatus(R"({"v":1,"type":"JobEnded","data":{"state":"GONE"}})").code(),
            StatusCode::kDataLoss);
  EXPECT_EQ(ParseStatus(R"({"v":1,"type":"JobSubmitted","job":"j-1"})").code(),
            StatusCode::kDataLoss);
}

TEST(Events, EveryTypeThenHasAName) {
  for (int i = 0; i <= static_cast<int>(EventType::kWorkerUndrained); ++i) {
    const EventType type = static_cast<EventType>(i);
    EXPECT_EQ(EventTypeFromName(Name(type)), type);
  }
  EXPECT_EQ(EventTypeFromName("Nonsense"), std::nullopt);
}

TEST(Enums, JournalReasonsThenReadInEitherSpelling) {
  EXPECT_EQ(EndReasonFromJournal("OutOfMemoryHost"), EndReason::kOutOfMemoryHost);
  EXPECT_EQ(EndReasonFromJournal("out_of_memory_host"), EndReason::kOutOfMemoryHost);
  EXPECT_EQ(EndReasonFromJournal("InvalidSpec"), EndReason::kUserError);
  EXPECT_EQ(EndReasonFromJournal(""), std::nullopt);
  EXPECT_EQ(FromName<JobState>("TIMED_OUT"), JobState::kTimedOut);
  EXPECT_EQ(FromName<JobState>("timed_out"), std::nullopt);
}

TEST(State, EventThatContradictsThenRefusedAndNothingChanges) {
  State state;
  Event event = Parsed(R"({"v":1,"type":"JobHeld","time_ms":1,"job":"j-1"})");
  event.sequence = 1;
  EXPECT_EQ(state.Apply(event).code(), StatusCode::kInternal);
  event.sequence = 2;
  EXPECT_EQ(state.Apply(event).code(), StatusCode::kInternal);
  EXPECT_EQ(state.last_sequence(), 0);
}

TEST(State, TerminalJobThenNoEventChangesItsEnd) {
  Driver driver;
  const std::string id = driver.Submit();
  driver.Do(CancelJob{id, StopMode::kSave, "", "alice"});
  State state = driver.state();
  for (const char* type : {"JobHeld", "JobResumed", "JobRequeued", "JobEnded", "JobPlaced",
                           "JobCancelRequested", "JobUpdated", "AttemptStarted"}) {
    Event event = Parsed(std::string(R"({"v":1,"time_ms":9,"job":"j-1","type":")") + type +
                         R"(","data":{}})");
    event.sequence = state.last_sequence() + 1;
    EXPECT_EQ(state.Apply(event).code(), StatusCode::kInternal) << type;
  }
  EXPECT_EQ(state.FindJob(id)->state, JobState::kCancelled);
}

std::string Dump(const State& state) {
  std::string dump;
  for (const auto& [id, job] : state.jobs()) dump += ToJson(job).Dump() + "\n";
  for (const auto& [id, worker] : state.workers()) dump += ToJson(worker).Dump() + "\n";
  for (const auto& [queue, keys] : state.queues()) {
    dump += queue + ":";
    for (const QueueKey& key : keys) dump += " " + key.job_id;
  }
  for (const std::string& id : state.live_jobs()) dump += " live " + id;
  return dump + " " + std::to_string(state.next_epoch()) + " " +
         std::to_string(state.next_job_number()) + " " + std::to_string(state.last_sequence()) +
         " " + std::to_string(state.active_jobs());
}

TEST(State, RollbackThenExactlyTheCommittedState) {
  Driver driver;
  driver.Join("w-1", 2);
  const std::string running = driver.Run();
  const std::string before = Dump(driver.state());
  Controller& controller = driver.controller();
  controller.Handle(SubmitJob{Driver::Spec(), "r-9", "alice", false}, driver.Now());
  controller.Handle(Tick{}, driver.Now());
  controller.Handle(ReportAttempt{"w-1", "s-w-1", 0,
                                  driver.ReportOf("w-1", running, SharePhase::kEnded,
                                                  Driver::Ended(EndReason::kCompleted))},
                    driver.Now());
  controller.Handle(DrainWorker{"w-1", "", "root", 0}, driver.Now());
  EXPECT_NE(Dump(driver.state()), before);
  controller.Rollback();
  EXPECT_EQ(Dump(driver.state()), before);
  EXPECT_EQ(driver.state().FindRequest("r-9"), nullptr);
  EXPECT_EQ(driver.state().DeviceHolder("w-1", "cpu0"), running);
  ASSERT_NE(controller.FindAttemptRuntime(running), nullptr);
  EXPECT_EQ(driver.Do(Tick{}).reply, OkStatus());
}

TEST(State, SnapshotRowsThenRebuildTheSameState) {
  Driver driver;
  driver.Join("w-1", 2);
  driver.Run();
  JobSpec spec = Driver::Spec();
  spec.labels = {{"arm", "fp4"}};
  spec.queue = "elsewhere";
  driver.Do(SubmitJob{spec, "r-1", "alice", false});
  driver.Do(CancelJob{"j-2", StopMode::kKill, "c-1", "alice"});
  driver.Submit(spec);
  driver.Do(DrainWorker{"w-1", "disk", "root", 77});
  RegisterWorker noted;
  noted.worker.id = "w-2";
  noted.worker.notes = {"no GPU slots: no plug-in", "cpu 0 has no dge"};
  noted.session = "s-w-2";
  driver.Do(noted);
  const SnapshotRows rows = driver.controller().Changes();
  const Result<State> rebuilt = State::FromSnapshot(rows);
  ASSERT_TRUE(rebuilt.ok()) << rebuilt.status().ToString();
  EXPECT_EQ(Dump(*rebuilt), Dump(driver.state()));
  EXPECT_EQ(rebuilt->FindWorker("w-2")->notes, noted.worker.notes);
  EXPECT_NE(rebuilt->FindRequest("r-1"), nullptr);
  EXPECT_NE(rebuilt->FindRequest("c-1"), nullptr);
  EXPECT_EQ(rebuilt->FindJobByIdOrName("job")->id, "j-3");
  driver.controller().ForgetChanges();
  EXPECT_TRUE(driver.controller().Changes().jobs.empty());
}

TEST(State, DamagedSnapshotRowThenDataLoss) {
  SnapshotRows rows;
  rows.counters = R"({"v":1,"next_job_number":2,"next_epoch":1,"last_sequence":1})";
  rows.jobs = {{"j-1", "{\"id\":\"j-1\",\"state\":\"GONE\"}"}};
  EXPECT_EQ(State::FromSnapshot(rows).status().code(), StatusCode::kDataLoss);
  rows.jobs = {{"j-1", "{"}};
  EXPECT_EQ(State::FromSnapshot(rows).status().code(), StatusCode::kDataLoss);
  rows.jobs.clear();
  rows.counters = R"({"v":9})";
  EXPECT_EQ(State::FromSnapshot(rows).status().code(), StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace nibble::core
