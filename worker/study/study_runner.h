// SPDX-License-Identifier: Apache-2.0
//
// StudyRunner: carries out a plan, one nibble-trainer process per run, several at a time.
//
// A run that was stopped or killed goes on from its checkpoint; a finished one is not repeated.
// Asked to stop, or out of budget, the runner lets the trainers save and leaves the rest for the
// next call. Thread-safety: one thread. Ownership: borrows plan and store.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/process.h"
#include "base/status.h"
#include "worker/study/run_store.h"
#include "worker/study/study_plan.h"

namespace nibble {

struct StudyRunnerOptions {
  std::string folder;   // "study": the store's folder; raw records go to folder/ID/
  std::string trainer;  // the program
  std::string revision;
  int jobs = 1;               // trainers at once
  int threads = 1;            // of each
  double budget_seconds = 0;  // 0: no limit
  bool keep_checkpoints = false;
  std::function<bool()> stop_requested = [] { return false; };
  std::function<void(const std::string&)> note;    // a line that stays
  std::function<void(const std::string&)> status;  // the progress line, every two seconds
  const Clock* clock = &Clock::Real();
};

enum class StudyEnd { kFinished, kStopped, kBudgetSpent };

class StudyRunner {
 public:
  StudyRunner(const StudyPlan& plan, RunStore* store, StudyRunnerOptions options);

  // Errors: a run folder that cannot be written, a trainer that cannot be started. A run that
  // fails is no error: its record says why.
  Result<StudyEnd> Run();

 private:
  struct Active {
    RunKey key;
    RunConfig config;
    std::string hash;
    Process process;
  };

  Result<StudyEnd> Loop();
  std::string Name(const RunKey& key) const;
  // Starts the most urgent run that is not active; false when there is none.
  Result<bool> StartNext();
  // Takes in the trainers that have ended.
  Status Reap();
  Status TakeResult(const Active& active, const ExitStatus& exit);
  void StopAll();
  void ShowStatus();
  bool BudgetSpent() const;
  // Whether to stop now, and as what.
  bool OutOfTime(StudyEnd* end) const;

  const StudyPlan& plan_;
  RunStore& store_;
  StudyRunnerOptions options_;
  int64_t started_ms_ = 0;
  int64_t shown_ms_ = 0;
  PlanProgress progress_;
  std::vector<Active> active_;
  std::map<std::string, int> crashes_;  // by hash
};

}  // namespace nibble
