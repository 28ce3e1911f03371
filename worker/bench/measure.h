// SPDX-License-Identifier: Apache-2.0
//
// Measure: interleaved timing of several ways to do the same work.
//
// Purpose: on a shared machine the speed of everything drifts together, so contestants run in turn
// (A, B, A, B, ...) and are compared by the ratios of the same round.
// Clock: processor time of the calling thread when the work has one thread (what else runs on the
// machine then counts little), wall time otherwise.
// Thread-safety: one thread. Ownership: a Contestant owns its samples.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace nibble::bench {

// kProcessCpu: of all threads together.
enum class ClockKind { kThreadCpu, kProcessCpu, kWall };
const char* ClockName(ClockKind clock);  // "thread_cpu", "process_cpu", "wall"
inline ClockKind ClockFor(int threads) {
  return threads == 1 ? ClockKind::kThreadCpu : ClockKind::kWall;
}
double NowSeconds(ClockKind clock);

// One run: by the clock of the benchmark, and processor time of all its threads.
struct Sample {
  double seconds = 0;
  double cpu_seconds = 0;
};

struct Contestant {
  Contestant(std::string contestant, std::function<Result<Sample>()> work)
      : name(std::move(contestant)), run(std::move(work)) {}

  std::string name;
  std::function<Result<Sample>()> run;  // does the work once
  // One per round, warm-up left out.
  std::vector<double> seconds;
  std::vector<double> cpu_seconds;
};

// A Contestant::run that times `work` with `clock`.
std::function<Result<Sample>()> Timed(ClockKind clock, std::function<Status()> work);

struct Effort {
  double seconds = 1;  // wall time that warm-up and rounds may take together
  int min_rounds = 3;
  int max_rounds = 60;
};
// One warm-up of each, then rounds in which each runs once, until the next round would pass
// `effort.seconds` or max_rounds are done; never fewer than min_rounds.
Status RunInterleaved(const Effort& effort, std::vector<Contestant>& contestants);

struct Summary {
  int n = 0;
  double median = 0, p10 = 0, p90 = 0, min = 0;
};
Summary Summarise(std::vector<double> values);
// Summary of base[i] / value[i]: above 1 means that `value` is faster. Equal sizes.
Summary SummariseRatios(const std::vector<double>& base, const std::vector<double>& value);

// {"median": ..., "p10": ..., "p90": ..., "min": ..., "n": ...}, each times `factor`.
Json ToJson(const Summary& summary, double factor = 1);

// Rounded to `digits` significant digits, so that JSON stays readable.
double Significant(double value, int digits = 4);

}  // namespace nibble::bench
