// SPDX-License-Identifier: Apache-2.0
#include "worker/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibble {

int64_t WarmupSteps(const OptimizerConfig& optimizer, int64_t steps) {
  const double exact = optimizer.warmup_fraction * static_cast<double>(steps);
  return std::clamp<int64_t>(static_cast<int64_t>(std::ceil(exact)), 0, steps);
}

double LearningRate(const OptimizerConfig& optimizer, int64_t step, int64_t steps) {
  const int64_t warmup = WarmupSteps(optimizer, steps);
  if (step <= warmup) {
    return optimizer.peak_lr * static_cast<double>(step) / static_cast<double>(warmup);
  }
  const double progress =
      static_cast<double>(std::min(step, steps) - warmup) / static_cast<double>(steps - warmup);
  const double minimum = optimizer.peak_lr * optimizer.min_lr_ratio;
  return minimum +
         (optimizer.peak_lr - minimum) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
}

}  // namespace nibble
