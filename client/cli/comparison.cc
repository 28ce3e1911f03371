// SPDX-License-Identifier: Apache-2.0
#include "client/cli/comparison.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/strings.h"
#include "client/cli/job_text.h"
#include "client/lib/proto_json.h"

namespace nibble::cli {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Mean over a window around `step`: single steps are noisy. Never looks past the run's end.
double SmoothedLoss(const std::map<int64_t, double>& losses, int64_t step) {
  constexpr int64_t kHalfWindow = kFinalSteps / 2;
  double sum = 0;
  int count = 0;
  for (auto it = losses.lower_bound(step - kHalfWindow);
       it != losses.end() && it->first <= step + kHalfWindow; ++it) {
    sum += it->second;
    ++count;
  }
  return count > 0 ? sum / count : kNaN;
}

std::string Label(const RunSummary& run) { return run.recipe.empty() ? run.name : run.recipe; }

std::string GapText(double gap) { return std::isnan(gap) ? "" : StrFormat("%+.2f %%", gap); }

std::string LossOrNothing(double loss) { return std::isnan(loss) ? "" : LossText(loss); }

}  // namespace

double RunSummary::final_train_loss() const {
  double sum = 0;
  int count = 0;
  for (auto it = losses.rbegin(); it != losses.rend() && count < kFinalSteps; ++it, ++count) {
    sum += it->second;
  }
  return count > 0 ? sum / count : kNaN;
}

double RunSummary::final_validation_loss() const {
  return validation.empty() ? kNaN : validation.rbegin()->second;
}

int64_t RunSummary::total_memory_bytes() const {
  int64_t total = 0;
  for (const auto& [name, bytes] : memory_bytes) {
    if (name != "total" && name != "peak_rss") total += bytes;
  }
  return total;
}

RunSummary Summarize(const v1::Job& job, const v1::GetMetricsResponse& metrics) {
  RunSummary run;
  run.job_id = job.id();
  run.name = job.spec().metadata().name();
  run.recipe = job.spec().precision().recipe();
  run.state = JobStateName(job.state());
  run.memory_bytes = {job.progress().memory_bytes().begin(), job.progress().memory_bytes().end()};
  std::vector<double> rates;
  for (const v1::MetricRecord& metric : metrics.records()) {
    const v1::JournalRecord& record = metric.record();
    if (record.has_step()) {
      run.losses[record.step().step()] = record.step().loss();
      rates.push_back(record.step().tokens_per_second());
    } else if (record.has_validation()) {
      run.validation[record.validation().step()] = record.validation().loss();
    } else if (record.has_memory()) {
      for (const auto& [name, bytes] : record.memory().bytes()) run.memory_bytes[name] = bytes;
    }
  }
  run.tokens_per_second = Median(rates);
  return run;
}

double GapPercent(double loss, double reference) { return 100 * (loss / reference - 1); }

std::vector<int64_t> CommonSteps(const std::vector<RunSummary>& runs, int points) {
  std::vector<int64_t> common;
  if (runs.empty() || points < 1) return common;
  for (const auto& [step, loss] : runs[0].losses) {
    const bool everywhere = std::all_of(runs.begin(), runs.end(), [&](const RunSummary& run) {
      return run.losses.count(step) > 0;
    });
    if (everywhere) common.push_back(step);
  }
  const auto wanted = static_cast<size_t>(points);
  if (common.size() <= wanted) return common;
  std::vector<int64_t> picked;
  for (size_t i = 1; i <= wanted; ++i) picked.push_back(common[i * common.size() / wanted - 1]);
  return picked;
}

Table LossTable(const std::vector<RunSummary>& runs, int points) {
  std::vector<std::string> columns = {">STEP"};
  for (size_t i = 0; i < runs.size(); ++i) {
    columns.push_back(">" + Label(runs[i]));
    if (i > 0) columns.push_back(">GAP");
  }
  Table table(columns);
  for (const int64_t step : CommonSteps(runs, points)) {
    std::vector<std::string> row = {std::to_string(step)};
    const double reference = SmoothedLoss(runs[0].losses, step);
    for (size_t i = 0; i < runs.size(); ++i) {
      const double loss = SmoothedLoss(runs[i].losses, step);
      row.push_back(LossText(loss));
      if (i > 0) row.push_back(GapText(GapPercent(loss, reference)));
    }
    table.AddRow(std::move(row));
  }
  return table;
}

Table SummaryTable(const std::vector<RunSummary>& runs) {
  Table table({"JOB", "NAME", "RECIPE", "STATE", ">TRAIN LOSS", ">VAL LOSS", ">PERPLEXITY",
               ">VAL GAP", ">TOK/S", ">MEMORY"});
  for (const RunSummary& run : runs) {
    const double validation = run.final_validation_loss();
    const double gap = GapPercent(validation, runs[0].final_validation_loss());
    table.AddRow({run.job_id, run.name, run.recipe, run.state,
                  LossOrNothing(run.final_train_loss()), LossOrNothing(validation),
                  std::isnan(validation) ? "" : StrFormat("%.2f", std::exp(validation)),
                  &run == &runs[0] ? "" : GapText(gap), FormatCount(run.tokens_per_second),
                  run.total_memory_bytes() > 0
                      ? FormatBytes(static_cast<double>(run.total_memory_bytes()))
                      : ""});
  }
  return table;
}

Json ComparisonToJson(const std::vector<RunSummary>& runs, int points) {
  Json json = Json::Object();
  Json list = Json::Array();
  for (const RunSummary& run : runs) {
    Json memory = Json::Object();
    for (const auto& [name, bytes] : run.memory_bytes) memory.Set(name, bytes);
    list.Append(Json::Object(
        {{"job", run.job_id},
         {"name", run.name},
         {"recipe", run.recipe},
         {"state", run.state},
         {"finalTrainLoss", run.final_train_loss()},
         {"finalValidationLoss", run.final_validation_loss()},
         {"perplexity", std::exp(run.final_validation_loss())},
         {"gapPercent", GapPercent(run.final_validation_loss(), runs[0].final_validation_loss())},
         {"tokensPerSecond", run.tokens_per_second},
         {"memoryBytes", memory}}));
  }
  json.Set("runs", std::move(list));
  Json rows = Json::Array();
  for (const int64_t step : CommonSteps(runs, points)) {
    Json losses = Json::Array();
    for (const RunSummary& run : runs) losses.Append(SmoothedLoss(run.losses, step));
    rows.Append(Json::Object({{"step", step}, {"losses", losses}}));
  }
  json.Set("losses", std::move(rows));
  return json;
}

}  // namespace nibble::cli
