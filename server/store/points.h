// SPDX-License-Identifier: Apache-2.0
//
// Points: what a rank of an attempt measured, as plain structs. Values may be NaN or infinite (a
// diverging loss is a fact). Value types.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace nibble::store {

// One rank of one attempt: the unit of order and of deduplication.
struct StreamKey {
  std::string job_id;
  int attempt = 0;
  int rank = 0;
  friend bool operator<(const StreamKey& a, const StreamKey& b) {
    return std::tie(a.job_id, a.attempt, a.rank) < std::tie(b.job_id, b.attempt, b.rank);
  }
  friend bool operator==(const StreamKey&, const StreamKey&) = default;
};

struct StepPoint {
  int64_t step = 0;
  int64_t time_ms = 0;  // wall time at the worker
  double loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  int64_t tokens = 0;  // since the beginning of the run
  double tokens_per_second = 0;
  double step_seconds = 0;
  int64_t memory_bytes = 0;  // in use after the step
};

struct ValidationPoint {
  int64_t step = 0;
  int64_t time_ms = 0;
  double loss = 0;
  int64_t tokens = 0;  // evaluated
};

// Quantization health of one tensor class at one step; ratios are 0..1.
struct HealthPoint {
  int64_t step = 0;
  int64_t time_ms = 0;
  std::string tensor_class;  // "activation_mlp_first", ...; at most 64 bytes
  double underflow_ratio = 0;
  double saturation_ratio = 0;
  double mse = 0;
  double snr_db = 0;
  double cosine = 0;
  double scale_min = 0;
  double scale_max = 0;
  double gradient_to_noise = 0;  // 0 = not measured
  int64_t nonfinite = 0;         // blocks whose maximum was not finite
};

// Anything that is said once or rarely about an attempt: its start, its memory by class, its end.
struct Note {
  int64_t time_ms = 0;
  std::string name;  // "start", "memory", "end"; at most 64 bytes
  std::string json;  // at most 64 KiB
};

struct CheckpointPoint {
  int64_t step = 0;
  int64_t time_ms = 0;
  int64_t size_bytes = 0;
  double save_seconds = 0;
  double validation_loss = 0;  // 0 = not measured
  std::string path;            // at most 4096 bytes
};

// What one forwarded piece of journal holds, in journal order within each kind.
struct PointBatch {
  std::vector<StepPoint> steps;
  std::vector<ValidationPoint> validations;
  std::vector<HealthPoint> healths;
  std::vector<CheckpointPoint> checkpoints;
  std::vector<Note> notes;
  size_t size() const {
    return steps.size() + validations.size() + healths.size() + checkpoints.size() + notes.size();
  }
};

// A point together with the attempt that made it.
template <typename Point>
struct Attributed {
  int attempt = 0;
  Point point;
};

}  // namespace nibble::store
