// SPDX-License-Identifier: Apache-2.0
//
// JobView: what a watcher knows of a job, folded from WatchJob messages, and how it looks in a
// terminal: progress bar, ETA, loss curve, throughput, quantization health.
//
// Thread-safety: one thread. Limits: at most kMaxCurvePoints points are kept; beyond that every
// second one is dropped.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "client/cli/context.h"
#include "client/lib/curve.h"
#include "nibble/v1/controller.pb.h"

namespace nibble::cli {

inline constexpr size_t kMaxCurvePoints = 20'000;

class JobView {
 public:
  void Apply(const v1::WatchJobResponse& message);

  const v1::Job& job() const { return job_; }
  bool ended() const;
  const std::map<int64_t, double>& losses() const { return losses_; }
  const std::map<int64_t, double>& validation() const { return validation_; }
  // Newest sample of each tensor class.
  const std::map<std::string, v1::HealthPoint>& health() const { return health_; }
  const std::map<std::string, int64_t>& memory_bytes() const { return memory_bytes_; }
  // Step progress: the newest of records and job.
  int64_t step() const;
  int64_t steps_total() const;
  double tokens_per_second() const;

  // The block that is drawn again and again, at most terminal.width wide.
  std::vector<std::string> Render(const Terminal& terminal) const;
  // Header line: state, name, recipe, worker.
  std::string HeaderLine(const Terminal& terminal) const;
  // "  120/300 [████    ] 40 % · loss 5.123 · val 5.4 · 12.3 k tok/s · ETA 1m20s"
  std::string ProgressLine(int bar_width) const;
  // All tensor classes of the newest sample; the worst of first, middle and last block.
  std::vector<std::string> HealthLines() const;
  std::vector<std::string> WorstHealthLines() const;

 private:
  void ApplyRecord(const v1::MetricRecord& record);

  v1::Job job_;
  std::optional<v1::StepPoint> newest_;
  int64_t steps_total_ = 0;
  int32_t attempt_ = 0;  // of the newest record; an older attempt's later steps are void
  std::map<int64_t, double> losses_;
  std::map<int64_t, double> validation_;
  std::map<std::string, v1::HealthPoint> health_;
  std::map<std::string, int64_t> memory_bytes_;
};

}  // namespace nibble::cli
