// SPDX-License-Identifier: Apache-2.0
//
// Downsampler: at most N points of a loss curve that keep its spikes, in one pass and O(N) memory.
//
// The range is cut into (N - 2) / 2 buckets of equal step width. Each keeps its point of lowest and
// of highest loss; a loss that is not finite counts as highest. The first and the last point of the
// range are kept besides. Points may come in any order. Thread-compatible.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "server/store/points.h"

namespace nibble::store {

class Downsampler {
 public:
  // Preconditions: first_step <= last_step, max_points >= 4.
  Downsampler(int64_t first_step, int64_t last_step, int max_points);
  // Precondition: first_step <= step <= last_step.
  void Add(const Attributed<StepPoint>& point);
  // By step, each point once. Call once, last.
  std::vector<Attributed<StepPoint>> Take();

 private:
  struct Bucket {
    std::optional<Attributed<StepPoint>> low;
    std::optional<Attributed<StepPoint>> high;
  };
  const int64_t first_step_;
  const int64_t width_;
  std::optional<Attributed<StepPoint>> first_;
  std::optional<Attributed<StepPoint>> last_;
  std::vector<Bucket> buckets_;
};

}  // namespace nibble::store
