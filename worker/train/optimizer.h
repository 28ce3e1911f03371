// SPDX-License-Identifier: Apache-2.0
//
// Optimizer: AdamW over all parameters, weight decay on matrices only, global-norm clipping.
// Thread-safety: free functions; one thread, the backend's caller.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/spec/run_config.h"
#include "worker/train/parameters.h"

namespace nibble {

// sqrt(sum g^2) over all gradients, FP64 sums; NaN or infinite when a gradient is.
Result<double> GradientNorm(Backend& backend, const Parameters& parameters);

// What gradients are multiplied by so that their norm is at most clip_norm; 1 when clip_norm is 0.
double ClipFactor(double gradient_norm, double clip_norm);

// Update `step` (1 for the first). Gradients are not changed. `seed` draws the random numbers of a
// stochastically rounded state.
Status ApplyAdamW(Backend& backend, const OptimizerConfig& config, int64_t step,
                  double learning_rate, double gradient_scale, Parameters* parameters,
                  uint64_t seed = 0);

}  // namespace nibble
