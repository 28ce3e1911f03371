// SPDX-License-Identifier: Apache-2.0
//
// Comparison: the curves of several jobs side by side, the first one being the reference.
// Thread-safety: value types and pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "client/cli/table.h"
#include "nibble/v1/controller.pb.h"

namespace nibble::cli {

// What is compared of one job.
struct RunSummary {
  std::string job_id;
  std::string name;
  std::string recipe;
  std::string state;
  std::map<int64_t, double> losses;      // step -> training loss
  std::map<int64_t, double> validation;  // step -> validation loss
  double tokens_per_second = 0;          // median over the steps
  std::map<std::string, int64_t> memory_bytes;

  double final_train_loss() const;  // mean of the last kFinalSteps steps; NaN without steps
  double final_validation_loss() const;
  int64_t total_memory_bytes() const;
};
inline constexpr int kFinalSteps = 10;

RunSummary Summarize(const v1::Job& job, const v1::GetMetricsResponse& metrics);

// Gap of `loss` to `reference` in percent; positive = worse.
double GapPercent(double loss, double reference);

// About `points` steps that every run has, evenly spread, the last one included.
std::vector<int64_t> CommonSteps(const std::vector<RunSummary>& runs, int points);

// STEP, then LOSS for each run and GAP for each but the first.
Table LossTable(const std::vector<RunSummary>& runs, int points);
// One row a run: final losses, perplexity, tokens/s, memory, gap.
Table SummaryTable(const std::vector<RunSummary>& runs);

Json ComparisonToJson(const std::vector<RunSummary>& runs, int points);

}  // namespace nibble::cli
