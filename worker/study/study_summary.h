// SPDX-License-Identifier: Apache-2.0
//
// StudySummary: what the runs of a study say about each arm.
// Thread-safety: value types and free functions.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "worker/study/statistics.h"
#include "worker/study/study_plan.h"

namespace nibble {

// A value after `tokens` tokens: mean over the seeds, smallest and largest.
struct CurvePoint {
  double tokens = 0;
  double mean = 0;
  double low = 0;
  double high = 0;
};

struct RateLoss {
  double learning_rate = 0;
  std::string state;  // of RunState, or "missing"
  double loss = 0;    // final validation loss when completed
};

struct ArmSummary {
  std::string name, label;
  std::string not_run;          // why there is nothing; "" otherwise
  std::vector<RateLoss> rates;  // on the first seed
  std::optional<double> rate;   // the chosen one
  bool rate_at_edge = false;    // lowest or highest of several: a better one may lie outside
  std::vector<std::optional<double>> losses;  // final validation loss by seed
  int diverged = 0;        // runs at the chosen rate, or all of them when none completed
  Interval loss;           // over the completed seeds; count 0 when there is none
  Interval difference;     // to the baseline, seed by seed; count 0 when unknown
  double gap_percent = 0;  // difference over the baseline's mean on the same seeds
  double gap_half_width = 0;
  double tokens_per_second = 0;       // mean over the completed runs
  std::vector<CurvePoint> curve;      // validation loss
  std::vector<CurvePoint> gap_curve;  // paired gap to the baseline in percent, where both are known
  // Validation loss by step, for each seed; empty without a completed run.
  std::vector<std::map<int64_t, double>> validations;

  bool complete() const { return loss.count == static_cast<int>(losses.size()); }
};

struct StudySummary {
  std::vector<ArmSummary> arms;  // as in the plan
  int baseline = 0;
  std::vector<std::string> revisions;  // of the runs that take part, sorted
  int64_t parameters = 0;
  int64_t tokens = 0;      // of one run
  double train_hours = 0;  // summed over all runs that take part
};

StudySummary Summarise(const StudyPlan& plan, const ResultLookup& results);

}  // namespace nibble
