// SPDX-License-Identifier: Apache-2.0
#include "worker/bench/measure.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <ctime>
#include <utility>

namespace nibble::bench {
namespace {

// Linear interpolation between order statistics.
double Quantile(const std::vector<double>& sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

}  // namespace

const char* ClockName(ClockKind clock) {
  return clock == ClockKind::kWall        ? "wall"
         : clock == ClockKind::kThreadCpu ? "thread_cpu"
                                          : "process_cpu";
}

double NowSeconds(ClockKind clock) {
  timespec now{};
  clock_gettime(clock == ClockKind::kWall        ? CLOCK_MONOTONIC
                : clock == ClockKind::kThreadCpu ? CLOCK_THREAD_CPUTIME_ID
                                                 : CLOCK_PROCESS_CPUTIME_ID,
                &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::function<Result<Sample>()> Timed(ClockKind clock, std::function<Status()> work) {
  return [clock, work = std::move(work)]() -> Result<Sample> {
    const double cpu_start = NowSeconds(ClockKind::kProcessCpu);
    const double start = NowSeconds(clock);
    RETURN_IF_ERROR(work());
    const double end = NowSeconds(clock);
    return Sample{end - start, NowSeconds(ClockKind::kProcessCpu) - cpu_start};
  };
}

Status RunInterleaved(const Effort& effort, std::vector<Contestant>& contestants) {
  const double start = NowSeconds(ClockKind::kWall);
  for (int round = -1; round < effort.max_rounds; ++round) {  // -1 warms up
    const double round_start = NowSeconds(ClockKind::kWall);
    for (Contestant& contestant : contestants) {
      const Result<Sample> sample = contestant.run();
      if (!sample.ok()) return sample.status().WithContext(contestant.name);
      if (round < 0) continue;
      contestant.seconds.push_back(sample->seconds);
      contestant.cpu_seconds.push_back(sample->cpu_seconds);
    }
    const double now = NowSeconds(ClockKind::kWall);
    const bool full = now - start + (now - round_start) > effort.seconds;
    if (full && round + 1 >= effort.min_rounds) break;
  }
  return OkStatus();
}

Summary Summarise(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return {static_cast<int>(values.size()), Quantile(values, 0.5), Quantile(values, 0.1),
          Quantile(values, 0.9), values.front()};
}

Summary SummariseRatios(const std::vector<double>& base, const std::vector<double>& value) {
  std::vector<double> ratios;
  for (size_t i = 0; i < base.size() && i < value.size(); ++i) {
    if (value[i] > 0) ratios.push_back(base[i] / value[i]);
  }
  return Summarise(std::move(ratios));
}

double Significant(double value, int digits) {
  if (value == 0 || !std::isfinite(value)) return value;
  const double scale =
      std::pow(10.0, digits - 1 - static_cast<int>(std::floor(std::log10(std::fabs(value)))));
  return std::round(value * scale) / scale;
}

Json ToJson(const Summary& summary, double factor) {
  return Json::Object({{"median", Significant(summary.median * factor)},
                       {"p10", Significant(summary.p10 * factor)},
                       {"p90", Significant(summary.p90 * factor)},
                       {"min", Significant(summary.min * factor)},
                       {"n", summary.n}});
}

}  // namespace nibble::bench
