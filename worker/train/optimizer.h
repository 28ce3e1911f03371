// SPDX-License-Identifier: Apache-2.0
//
// Optimizer: AdamW over all parameters, weight decay on matrices only, global-norm clipping.
// Thread-safety: free functions; one thread, the backend's caller.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/spec/run_config.h"
#include "worker/train/model.h"
#include "worker/train/parameters.h"

namespace nibble {

// sqrt(sum g^2) over all gradients, FP64 sums; NaN or infinite when a gradient is. Gradients of
// `pending` get their factors first.
Result<double> GradientNorm(Backend& backend, const Parameters& parameters,
                            std::span<const PendingFactor> pending = {});

// What gradients are multiplied by so that their norm is at most clip_norm; 1 when clip_norm is 0.
double ClipFactor(double gradient_norm, double clip_norm);

// Whose forward passes the new weights serve, and where in training the first of them stands.
struct NextPass {
  Model* model = nullptr;  // nullptr: codes are made when they are needed
  LinearStep step;
};

// Update `step` (1 for the first). Gradients are not changed. `seed` draws the random numbers of a
// stochastically rounded state. With a model in `next`, its layers may make the codes of new
// weights on the way; Model::WeightsChanged must follow either way.
Status ApplyAdamW(Backend& backend, const OptimizerConfig& config, int64_t step,
                  double learning_rate, double gradient_scale, Parameters* parameters,
                  uint64_t seed = 0, const NextPass& next = {});

}  // namespace nibble
