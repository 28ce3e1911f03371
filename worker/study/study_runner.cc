// SPDX-License-Identifier: Apache-2.0
#include "worker/study/study_runner.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <thread>
#include <utility>

#include "base/files.h"
#include "base/strings.h"

namespace nibble {
namespace {

constexpr int kMaxCrashes = 3;  // of one run in one call
constexpr int64_t kStatusIntervalMs = 2'000;
constexpr auto kPoll = std::chrono::milliseconds(50);
constexpr auto kStopPatience = std::chrono::seconds(60);
// A run saves this often when the study does not say how often.
constexpr int64_t kCheckpointsPerRun = 4;

}  // namespace

StudyRunner::StudyRunner(const StudyPlan& plan, RunStore* store, StudyRunnerOptions options)
    : plan_(plan), store_(*store), options_(std::move(options)) {}

std::string StudyRunner::Name(const RunKey& key) const {
  return StrFormat("%s lr %g seed %lld", plan_.arms[static_cast<size_t>(key.arm)].arm.name.c_str(),
                   key.learning_rate, static_cast<long long>(key.seed));
}

bool StudyRunner::BudgetSpent() const {
  const double spent = static_cast<double>(options_.clock->SteadyMillis() - started_ms_) / 1000.0;
  return options_.budget_seconds > 0 && spent >= options_.budget_seconds;
}

Result<bool> StudyRunner::StartNext() {
  const auto find = [this](const std::string& hash) { return store_.Find(hash); };
  for (const RunKey& key : WantedRuns(plan_, find)) {
    Active active{key, ConfigOf(plan_, key), "", {}};
    active.hash = RunHash(active.config, plan_.data.fingerprint);
    const bool busy = std::any_of(active_.begin(), active_.end(),
                                  [&](const Active& other) { return other.hash == active.hash; });
    if (busy) continue;
    RunConfig& config = active.config;
    config.run.dir = store_.RunFolder(active.hash);
    config.run.threads = options_.threads;
    if (config.checkpoint.every_steps == 0) {
      config.checkpoint.every_steps =
          (config.schedule.steps + kCheckpointsPerRun - 1) / kCheckpointsPerRun;
    }
    config.checkpoint.keep_last = 1;
    config.checkpoint.keep_best = 0;
    RETURN_IF_ERROR(MakeDirectories(config.run.dir));
    const std::string spec = JoinPath(config.run.dir, "run.json");
    RETURN_IF_ERROR(AtomicWriteFile(spec, RunConfigToJson(config).Dump(2) + "\n"));
    ProcessOptions process;
    process.argv = {options_.trainer, "--config", spec, "--quiet"};
    process.stdout_path = process.stderr_path = JoinPath(config.run.dir, "trainer.log");
    process.parent_death_signal = SIGTERM;
    ASSIGN_OR_RETURN(active.process, Process::Start(process));
    active_.push_back(std::move(active));
    return true;
  }
  return false;
}

Status StudyRunner::TakeResult(const Active& active, const ExitStatus& exit) {
  const std::string folder = store_.RunFolder(active.hash);
  RunRecord record;
  if (Result<RunRecord> read = ReadRunJournal(JoinPath(folder, kJournalFileName)); read.ok()) {
    record = *std::move(read);
  }
  if (exit.signal != 0) {
    record.state = RunState::kUnfinished;
    if (++crashes_[active.hash] >= kMaxCrashes) {
      record.state = RunState::kNotRun;
      record.message =
          StrFormat("the trainer ended %d times with %s", kMaxCrashes, exit.ToString().c_str());
    }
  } else if (record.state == RunState::kUnfinished && !exit.success()) {
    record.state = RunState::kNotRun;
    record.message = "the trainer ended with " + exit.ToString() + "; see " + folder;
  }
  if (record.state == RunState::kUnfinished) return OkStatus();
  record.hash = active.hash;
  record.revision = options_.revision;
  record.spec = RunConfigToJson(active.config);
  const bool finished = record.state != RunState::kNotRun;
  if (finished && !options_.keep_checkpoints) {
    RETURN_IF_ERROR(RemoveTree(JoinPath(folder, "checkpoints")));
  }
  options_.note(Name(active.key) + ": " +
                (record.state == RunState::kCompleted
                     ? StrFormat("validation loss %.4f, %s tokens/s", record.final_validation_loss,
                                 FormatCount(record.tokens_per_second).c_str())
                     : std::string(RunStateName(record.state)) + ": " + record.message));
  return store_.Save(std::move(record));
}

Status StudyRunner::Reap() {
  for (size_t i = 0; i < active_.size();) {
    ASSIGN_OR_RETURN(const std::optional<ExitStatus> exit, active_[i].process.TryWait());
    if (!exit) {
      ++i;
      continue;
    }
    const Active ended = std::move(active_[i]);
    active_.erase(active_.begin() + static_cast<long>(i));
    RETURN_IF_ERROR(TakeResult(ended, *exit));
  }
  return OkStatus();
}

void StudyRunner::StopAll() {
  for (const Active& active : active_) (void)active.process.Signal(SIGTERM).ok();
  for (Active& active : active_) {
    const auto exit = active.process.WaitFor(kStopPatience);
    if (exit.ok() && exit->has_value()) {
      (void)TakeResult(active, **exit).ok();  // a run that just ended counts
    } else {
      (void)active.process.Signal(SIGKILL).ok();
      (void)active.process.Wait().ok();
    }
  }
  active_.clear();
}

void StudyRunner::ShowStatus() {
  const int64_t now = options_.clock->SteadyMillis();
  if (now - shown_ms_ < kStatusIntervalMs && shown_ms_ != 0) return;
  shown_ms_ = now;
  std::vector<std::string> running;
  double done_runs = progress_.finished;
  double rate = 0;  // tokens per second of one trainer, mean over the running ones
  int rated = 0;
  double tokens_per_run = 0;
  for (const Active& active : active_) {
    const int64_t steps = active.config.schedule.steps;
    tokens_per_run = static_cast<double>(steps * active.config.tokens_per_step());
    const auto record = ReadRunJournal(JoinPath(store_.RunFolder(active.hash), kJournalFileName));
    const int64_t step = record.ok() ? record->steps : 0;
    done_runs += static_cast<double>(step) / static_cast<double>(steps);
    if (record.ok() && record->tokens_per_second > 0) {
      rate += record->tokens_per_second;
      ++rated;
    }
    running.push_back(StrFormat("%s %lld/%lld", Name(active.key).c_str(),
                                static_cast<long long>(step), static_cast<long long>(steps)));
  }
  std::string line = StrFormat("%s: %d of %d runs", plan_.definition.id().c_str(),
                               progress_.finished, progress_.total);
  if (rated > 0) {
    const double left = (progress_.total - done_runs) * tokens_per_run;
    line += ", " + FormatDuration(left / (rate / rated * options_.jobs)) + " left";
  }
  options_.status(line + " | " + StrJoin(running, ", "));
}

bool StudyRunner::OutOfTime(StudyEnd* end) const {
  if (options_.stop_requested()) {
    *end = StudyEnd::kStopped;
    return true;
  }
  *end = StudyEnd::kBudgetSpent;
  return BudgetSpent();
}

Result<StudyEnd> StudyRunner::Run() {
  Result<StudyEnd> end = Loop();
  StopAll();
  return end;
}

Result<StudyEnd> StudyRunner::Loop() {
  started_ms_ = options_.clock->SteadyMillis();
  const auto find = [this](const std::string& hash) { return store_.Find(hash); };
  progress_ = ProgressOf(plan_, find);
  StudyEnd end = StudyEnd::kFinished;
  while (!OutOfTime(&end)) {
    const size_t before = active_.size();
    RETURN_IF_ERROR(Reap());
    if (active_.size() != before) progress_ = ProgressOf(plan_, find);
    bool more = true;
    while (more && static_cast<int>(active_.size()) < options_.jobs) {
      ASSIGN_OR_RETURN(more, StartNext());
    }
    if (active_.empty()) return StudyEnd::kFinished;
    ShowStatus();
    std::this_thread::sleep_for(kPoll);
  }
  return end;
}

}  // namespace nibble
