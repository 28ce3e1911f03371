// SPDX-License-Identifier: Apache-2.0
//
// StudyPlan: a study definition made concrete: which runs there are, what each one's spec and hash
// are, and which of them are wanted next given the results so far.
//
// Every arm first runs each of its learning rates on the first seed; the rate with the lowest final
// validation loss then runs on the other seeds. Runs are named by a hash over everything that
// decides their numbers, so studies share runs, and a finished run is never repeated.
// Thread-safety: value types and free functions.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "worker/spec/run_config.h"
#include "worker/study/run_record.h"
#include "worker/study/study_data.h"
#include "worker/study/study_definition.h"

namespace nibble {

struct ArmPlan {
  StudyArm arm;
  std::string not_run;      // why the recipe cannot be built; "" when it can
  std::string recipe_json;  // complete, named after the arm
};

struct StudyPlan {
  StudyDefinition definition;
  StudyData data;
  std::vector<ArmPlan> arms;  // as in the definition
};

// One run of a study.
struct RunKey {
  int arm = 0;
  double learning_rate = 0;
  int64_t seed = 0;
  friend bool operator==(const RunKey&, const RunKey&) = default;
};

// Resolves every arm's recipe; an arm whose recipe is unknown or not built keeps the reason.
// INVALID_ARGUMENT when the base run or a patch path is wrong.
Result<StudyPlan> MakePlan(StudyDefinition definition, StudyData data);

// The run's config. Its dir, threads and journal are left to the caller.
// Without a recipe (not_run) its recipe_json is empty and it cannot be run.
RunConfig ConfigOf(const StudyPlan& plan, const RunKey& key);

// 64 hex digits over model, sequence length, optimizer, schedule, seed, the recipe without its name
// and summary, and the token files. Threads, folders and checkpoint rules change no number and take
// no part.
std::string RunHash(const RunConfig& config, const std::string& data_fingerprint);

// How a run stands: nullptr when nothing is known of it. Borrowed.
using ResultLookup = std::function<const RunRecord*(const std::string& hash)>;

// The arm's rate for all seeds: of the completed first-seed runs the one with the lowest final
// validation loss, the smaller rate on a tie. nullopt while a first-seed run has no result, and
// when none completed.
std::optional<double> ChosenRate(const StudyPlan& plan, int arm, const ResultLookup& results);

// Runs of the plan that are wanted now and have no result, most urgent first: all arms on the first
// seed (the baseline first), then every further seed. An arm with a run that cannot be run gets no
// further ones. Runs of equal hash come once.
std::vector<RunKey> WantedRuns(const StudyPlan& plan, const ResultLookup& results);

// How far a study is. An arm that cannot be run, or diverged at every rate, takes no further runs.
struct PlanProgress {
  int finished = 0;
  int total = 0;
};
PlanProgress ProgressOf(const StudyPlan& plan, const ResultLookup& results);

// What studies take before anything has run: distinct runs over all plans, which may share some.
// A seed beyond the first counts as one run at whatever rate gets chosen. Arms whose recipe is not
// built are counted as if it were.
struct PlanCost {
  int runs = 0;
  int64_t tokens = 0;  // trained on, over all runs
};
PlanCost CostOf(const std::vector<StudyPlan>& plans);

// Training tokens of each run of the study.
int64_t TokensPerRun(const StudyPlan& plan);

}  // namespace nibble
