// SPDX-License-Identifier: Apache-2.0
//
// Learning-rate schedule: linear warm-up, then a cosine down to a share of the peak. Pure.
#pragma once

#include <cstdint>

#include "worker/spec/run_config.h"

namespace nibble {

// Steps of the warm-up: warmup_fraction of all steps, rounded up.
int64_t WarmupSteps(const OptimizerConfig& optimizer, int64_t steps);

// Learning rate of update `step` of `steps`, 1 <= step <= steps. With W warm-up steps:
//   step <= W: peak * step / W
//   step >  W: min + (peak - min) * (1 + cos(pi * (step - W) / (steps - W))) / 2
// so update W runs at the peak and the last one at min = peak * min_lr_ratio.
double LearningRate(const OptimizerConfig& optimizer, int64_t step, int64_t steps);

}  // namespace nibble
