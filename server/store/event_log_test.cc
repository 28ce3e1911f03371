// SPDX-License-Identifier: Apache-2.0
#include "server/store/event_log.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "base/files.h"
#include "base/strings.h"
#include "server/store/engine.h"
#include "server/store/sqlite.h"

namespace nibble::store {
namespace {

using core::CancelJob;
using core::Decision;
using core::Instant;
using core::StopMode;
using core::SubmitJob;

class EventLogTest : public testing::Test {
 protected:
  void SetUp() override { directory_ = MakeTempDirectory("event-log").value(); }
  void TearDown() override { EXPECT_EQ(RemoveTree(directory_), OkStatus()); }

  std::unique_ptr<SqliteEventLog> OpenLog() {
    auto log = SqliteEventLog::Open({directory_, 1'000});
    EXPECT_TRUE(log.ok()) << log.status().ToString();
    return log.ok() ? std::move(log).value() : nullptr;
  }
  Status OpenStatus() { return SqliteEventLog::Open({directory_, 1'000}).status(); }
  std::unique_ptr<Engine> OpenEngine(EventLog* log, int snapshot_every = 10'000) {
    EngineOptions options;
    options.snapshot_every_events = snapshot_every;
    auto engine = Engine::Open(options, log, Now());
    EXPECT_TRUE(engine.ok()) << engine.status().ToString();
    return engine.ok() ? std::move(engine).value() : nullptr;
  }
  Instant Now() { return {1'700'000'000'000 + ++time_ms_, time_ms_}; }
  static SubmitJob Submit(const std::string& request_id) {
    SubmitJob submit;
    submit.spec.name = "job";
    submit.spec.project = "research";
    submit.spec.spec_json = "{\"text\":\"" + std::string(300, 'x') + "\"}";
    submit.request_id = request_id;
    submit.actor = "alice";
    return submit;
  }
  std::string DbPath() const { return JoinPath(directory_, "control.db"); }

  std::string directory_;
  int64_t time_ms_ = 0;
};

std::string Dump(const core::State& state) {
  std::string dump;
  for (const auto& [id, job] : state.jobs()) dump += core::ToJson(job).Dump() + "\n";
  for (const auto& [id, worker] : state.workers()) dump += core::ToJson(worker).Dump() + "\n";
  return dump + std::to_string(state.last_sequence());
}

TEST_F(EventLogTest, ReopenedThenTheStateIsTheSame) {
  std::string before;
  {
    auto log = OpenLog();
    auto engine = OpenEngine(log.get(), 7);  // snapshots on the way
    for (int i = 0; i < 20; ++i) {
      const auto decisions = engine->Step({Submit("r-" + std::to_string(i))}, Now());
      ASSERT_EQ(decisions[0].reply, OkStatus());
      if (i % 3 == 0)
        engine->Step({CancelJob{decisions[0].job_id, StopMode::kSave, "", "bob"}}, Now());
    }
    before = Dump(engine->state());
  }
  auto log = OpenLog();
  EXPECT_EQ(Dump(OpenEngine(log.get())->state()), before);
}

TEST_F(EventLogTest, TwoControllersOnOneDirectoryThenTheSecondIsRefusedWithTheHoldersPid) {
  auto log = OpenLog();
  const pid_t child = fork();
  if (child == 0) {  // locks are per process, so the second controller must be one
    const Status status = SqliteEventLog::Open({directory_, 1'000}).status();
    const bool told = status.code() == StatusCode::kFailedPrecondition &&
                      status.message().find(std::to_string(getppid())) != std::string::npos &&
                      status.message().find(directory_) != std::string::npos;
    _exit(told ? 0 : 1);
  }
  int code = -1;
  ASSERT_EQ(waitpid(child, &code, 0), child);
  EXPECT_EQ(code, 0);
}

TEST_F(EventLogTest, DamagedOrForeignFileThenRefused) {
  ASSERT_EQ(AtomicWriteFile(DbPath(), std::string(8192, 'z')), OkStatus());
  EXPECT_EQ(OpenStatus().code(), StatusCode::kDataLoss);
  ASSERT_EQ(RemoveTree(DbPath()), OkStatus());
  {
    auto db = Sqlite::Open(DbPath(), false);
    ASSERT_EQ(db->Run("CREATE TABLE recipes (name TEXT)"), OkStatus());
  }
  EXPECT_EQ(OpenStatus().code(), StatusCode::kFailedPrecondition);
}

TEST_F(EventLogTest, NewerSchemaOrUnknownEventThenRefused) {
  { auto log = OpenLog(); }
  {
    auto db = Sqlite::Open(DbPath(), false);
    ASSERT_EQ(db->Run("PRAGMA user_version = 2"), OkStatus());
  }
  EXPECT_NE(OpenStatus().message().find("schema 2"), std::string::npos);
  {
    auto db = Sqlite::Open(DbPath(), false);
    ASSERT_EQ(db->Run("PRAGMA user_version = 1; INSERT INTO events VALUES (1, 1, 'j-1', '', "
                      "'{\"v\":1,\"type\":\"JobTeleported\"}')"),
              OkStatus());
  }
  EXPECT_EQ(OpenLog()->Load().status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(EventLogTest, DamagedEventOrGapThenDataLoss) {
  {
    auto log = OpenLog();
    auto engine = OpenEngine(log.get());
    for (int i = 0; i < 3; ++i) engine->Step({Submit("")}, Now());
  }
  {
    auto db = Sqlite::Open(DbPath(), false);
    ASSERT_EQ(db->Run("UPDATE events SET body = substr(body, 9) WHERE sequence = 2"), OkStatus());
  }
  EXPECT_EQ(OpenLog()->Load().status().code(), StatusCode::kDataLoss);
  {
    auto db = Sqlite::Open(DbPath(), false);
    ASSERT_EQ(db->Run("DELETE FROM events WHERE sequence = 2"), OkStatus());
  }
  EXPECT_EQ(OpenLog()->Load().status().code(), StatusCode::kDataLoss);
}

TEST_F(EventLogTest, SequenceThatDoesNotFollowThenRefused) {
  auto log = OpenLog();
  ASSERT_TRUE(log->Load().ok());
  core::Event event;
  event.sequence = 2;
  EXPECT_EQ(log->Append({event}).code(), StatusCode::kInternal);
}

TEST_F(EventLogTest, DiskFullThenSubmitFailsStateStandsAndLaterItWorksAgain) {
  auto log = OpenLog();
  auto engine = OpenEngine(log.get());
  engine->Step({Submit("r-1")}, Now());
  const std::string before = Dump(engine->state());

  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  rlimit tight = limit;
  tight.rlim_cur = 16'384;  // no file may grow beyond this
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  std::vector<core::Input> many(100, Submit(""));
  const auto refused = engine->Step(many, Now());
  const auto read = log->History("j-1", "", 0, 10);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  signal(SIGXFSZ, old_handler);

  EXPECT_EQ(refused[0].reply.code(), StatusCode::kResourceExhausted) << refused[0].reply.ToString();
  EXPECT_EQ(refused[99].reply.code(), StatusCode::kResourceExhausted);
  EXPECT_FALSE(engine->health().ok());
  EXPECT_EQ(Dump(engine->state()), before);
  ASSERT_TRUE(read.ok()) << read.status().ToString();  // reads go on
  EXPECT_EQ(read->size(), 1u);
  EXPECT_EQ(engine->Step({Submit("r-2")}, Now())[0].reply, OkStatus());
  EXPECT_TRUE(engine->health().ok());
  EXPECT_EQ(engine->state().jobs().size(), 2u);
}

TEST_F(EventLogTest, HistoryThenByJobInOrderAndPaged) {
  auto log = OpenLog();
  auto engine = OpenEngine(log.get());
  engine->Step({Submit("r-1"), Submit("r-2")}, Now());
  engine->Step({core::PauseJob{"j-1", "bob"}}, Now());
  engine->Step({core::ResumeJob{"j-1", "bob"}}, Now());
  const auto all = log->History("j-1", "", 0, 100);
  ASSERT_EQ(all->size(), 3u);
  EXPECT_EQ(all->at(0).type, core::EventType::kJobSubmitted);
  EXPECT_EQ(all->at(1).actor, "bob");
  const auto rest = log->History("j-1", "", all->at(1).sequence, 100);
  ASSERT_EQ(rest->size(), 1u);
  EXPECT_EQ(rest->at(0).type, core::EventType::kJobResumed);
  EXPECT_EQ(log->History("j-1", "", 0, 0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(log->History("j-9", "", 0, 5)->empty());
}

TEST_F(EventLogTest, CompactedThenOldWorkerEventsGoAndJobHistoryStays) {
  auto log = OpenLog();
  auto engine = OpenEngine(log.get());
  core::RegisterWorker worker;
  worker.worker.id = "w-1";
  worker.session = "s-1";
  engine->Step({worker, Submit("r-1")}, Now());
  const int64_t later_ms = Now().wall_ms + 5'000;
  EXPECT_EQ(log->Compact(later_ms).value(), 0);  // no snapshot covers it yet
  core::Controller copy({}, log->Load().value(), Now());
  ASSERT_EQ(log->SaveSnapshot(engine->controller().Changes()), OkStatus());
  EXPECT_EQ(log->Compact(later_ms).value(), 1);
  EXPECT_EQ(log->History("j-1", "", 0, 10)->size(), 1u);
  const std::string before = Dump(engine->state());
  engine.reset();
  log.reset();
  log = OpenLog();
  const auto loaded = log->Load();
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(Dump(*loaded), before);
}

// A child submits in a loop and tells what was acknowledged; it is killed without warning; what it
// told must all be there.
TEST_F(EventLogTest, KilledInTheMiddleOfAppendingThenEveryAcknowledgedJobIsThere) {
  int64_t acknowledged = 0;
  for (int round = 0; round < 4; ++round) {
    int pipe_ends[2];
    ASSERT_EQ(pipe(pipe_ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      auto log = SqliteEventLog::Open({directory_, 1'000});
      if (!log.ok()) _exit(1);
      EngineOptions options;
      options.snapshot_every_events = 50;
      auto engine = Engine::Open(options, log->get(), Now());
      if (!engine.ok()) _exit(1);
      while (true) {
        const auto decisions = (*engine)->Step({Submit("")}, Now());
        const int64_t number = ParseInt(decisions[0].job_id.substr(2)).value_or(0);
        if (write(pipe_ends[1], &number, sizeof(number)) != sizeof(number)) _exit(1);
      }
    }
    close(pipe_ends[1]);
    int64_t number = 0;
    const int64_t enough = acknowledged + 40 + 17 * round;
    while (acknowledged < enough && read(pipe_ends[0], &number, sizeof(number)) == sizeof(number)) {
      acknowledged = number;
    }
    kill(child, SIGKILL);
    while (read(pipe_ends[0], &number, sizeof(number)) == sizeof(number)) acknowledged = number;
    close(pipe_ends[0]);
    int code = 0;
    ASSERT_EQ(waitpid(child, &code, 0), child);
    ASSERT_TRUE(WIFSIGNALED(code));
    ASSERT_GE(acknowledged, enough);
    const auto state = OpenLog()->Load();
    ASSERT_TRUE(state.ok()) << state.status().ToString();
    for (int64_t i = 1; i <= acknowledged; ++i) {
      ASSERT_NE(state->FindJob("j-" + std::to_string(i)), nullptr) << i;
    }
    EXPECT_LE(state->next_job_number(), acknowledged + 2);
    acknowledged = state->next_job_number() - 1;
  }
}

}  // namespace
}  // namespace nibble::store
