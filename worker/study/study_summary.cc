// SPDX-License-Identifier: Apache-2.0
#include "worker/study/study_summary.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>

namespace nibble {
namespace {

constexpr double kSecondsPerHour = 3600;

// Collects what the runs of one arm share with the others.
struct Totals {
  std::set<std::string> revisions;
  std::set<std::string> counted;  // hashes
  double seconds = 0;

  void Add(const RunRecord& record, StudySummary& summary) {
    if (!counted.insert(record.hash).second) return;
    if (!record.revision.empty()) revisions.insert(record.revision);
    seconds += record.train_seconds;
    summary.parameters = std::max(summary.parameters, record.parameters);
  }
};

// The means of what each step has; steps that lack one of `count` values are left out, because a
// mean over other seeds would jump.
std::vector<CurvePoint> MeanCurve(const std::map<int64_t, std::vector<double>>& by_step,
                                  size_t count, double tokens_per_step) {
  std::vector<CurvePoint> curve;
  for (const auto& [step, values] : by_step) {
    if (values.size() != count) continue;
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    curve.push_back(
        {static_cast<double>(step) * tokens_per_step, MeanInterval(values).mean, *low, *high});
  }
  return curve;
}

double TokensPerStep(const StudyPlan& plan) {
  const RunConfig config = ConfigOf(plan, {0, 1, plan.definition.seeds.front()});
  return static_cast<double>(config.tokens_per_step());
}

class ArmReader {
 public:
  ArmReader(const StudyPlan& plan, const ResultLookup& results, Totals* totals,
            StudySummary* summary)
      : plan_(plan), results_(results), totals_(*totals), summary_(*summary) {}

  ArmSummary Read(int index) {
    const ArmPlan& planned = plan_.arms[static_cast<size_t>(index)];
    ArmSummary arm;
    arm.name = planned.arm.name;
    arm.label = planned.arm.label;
    arm.not_run = planned.not_run;
    arm.losses.resize(plan_.definition.seeds.size());
    if (!arm.not_run.empty()) return arm;
    ReadRates(index, planned, arm);
    arm.rate = ChosenRate(plan_, index, results_);
    if (!arm.rate) return arm;
    const std::vector<double>& rates = planned.arm.learning_rates;
    arm.rate_at_edge =
        rates.size() > 1 && (*arm.rate == rates.front() || *arm.rate == rates.back());
    ReadSeeds(index, arm);
    return arm;
  }

 private:
  const RunRecord* Find(const RunKey& key) {
    const RunRecord* record = results_(RunHash(ConfigOf(plan_, key), plan_.data.fingerprint));
    if (record != nullptr && record->state != RunState::kNotRun) totals_.Add(*record, summary_);
    return record;
  }

  void ReadRates(int index, const ArmPlan& planned, ArmSummary& arm) {
    int diverged = 0;
    for (const double rate : planned.arm.learning_rates) {
      const RunRecord* record = Find({index, rate, plan_.definition.seeds.front()});
      RateLoss point{rate, "missing", 0};
      if (record != nullptr) {
        point.state = RunStateName(record->state);
        point.loss = record->final_validation_loss;
        if (record->state == RunState::kNotRun) arm.not_run = record->message;
        diverged += record->state == RunState::kDiverged ? 1 : 0;
      }
      arm.rates.push_back(point);
    }
    if (diverged == static_cast<int>(planned.arm.learning_rates.size())) arm.diverged = diverged;
  }

  void ReadSeeds(int index, ArmSummary& arm) {
    std::vector<double> losses;
    std::map<int64_t, std::vector<double>> by_step;
    double speed = 0;
    arm.validations.resize(arm.losses.size());
    for (size_t s = 0; s < plan_.definition.seeds.size(); ++s) {
      const RunRecord* record = Find({index, *arm.rate, plan_.definition.seeds[s]});
      if (record == nullptr) continue;
      arm.diverged += record->state == RunState::kDiverged ? 1 : 0;
      if (record->state != RunState::kCompleted) continue;
      arm.losses[s] = record->final_validation_loss;
      losses.push_back(record->final_validation_loss);
      speed += record->tokens_per_second;
      for (const ValidationRecord& v : record->validation) {
        by_step[v.step].push_back(v.loss);
        arm.validations[s][v.step] = v.loss;
      }
    }
    if (losses.empty()) return;
    arm.loss = MeanInterval(losses);
    arm.tokens_per_second = speed / static_cast<double>(losses.size());
    arm.curve = MeanCurve(by_step, losses.size(), TokensPerStep(plan_));
  }

  const StudyPlan& plan_;
  const ResultLookup& results_;
  Totals& totals_;
  StudySummary& summary_;
};

void Compare(const ArmSummary& baseline, double tokens_per_step, ArmSummary& arm) {
  std::vector<double> own, other;
  std::map<int64_t, std::vector<double>> gaps;
  for (size_t s = 0; s < arm.losses.size(); ++s) {
    if (!arm.losses[s] || !baseline.losses[s]) continue;
    own.push_back(*arm.losses[s]);
    other.push_back(*baseline.losses[s]);
    for (const auto& [step, loss] : arm.validations[s]) {
      const auto same = baseline.validations[s].find(step);
      if (same == baseline.validations[s].end()) continue;
      gaps[step].push_back(100 * (loss - same->second) / same->second);
    }
  }
  if (own.empty()) return;
  arm.difference = PairedDifference(own, other);
  const double scale = 100 / MeanInterval(other).mean;
  arm.gap_percent = arm.difference.mean * scale;
  arm.gap_half_width = arm.difference.half_width * scale;
  arm.gap_curve = MeanCurve(gaps, own.size(), tokens_per_step);
}

}  // namespace

StudySummary Summarise(const StudyPlan& plan, const ResultLookup& results) {
  StudySummary summary;
  Totals totals;
  ArmReader reader(plan, results, &totals, &summary);
  for (int i = 0; i < static_cast<int>(plan.arms.size()); ++i) {
    summary.arms.push_back(reader.Read(i));
  }
  summary.baseline = plan.definition.baseline_index();
  const ArmSummary baseline = summary.arms[static_cast<size_t>(summary.baseline)];
  for (ArmSummary& arm : summary.arms) Compare(baseline, TokensPerStep(plan), arm);
  summary.revisions.assign(totals.revisions.begin(), totals.revisions.end());
  summary.train_hours = totals.seconds / kSecondsPerHour;
  summary.tokens = TokensPerRun(plan);
  return summary;
}

}  // namespace nibble
