// SPDX-License-Identifier: Apache-2.0
//
// Estimate: what a run will cost before it runs. Pure arithmetic, thread-safe.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/recipe/recipe.h"
#include "worker/spec/run_config.h"

namespace nibble {

// Bytes one rank holds at its peak, by class. The trainer measures the same classes.
struct MemoryBytes {
  int64_t weights = 0;      // master weights
  int64_t gradients = 0;    // accumulation buffers
  int64_t optimizer = 0;    // AdamW moments, or the places that offloaded ones visit
  int64_t activations = 0;  // saved for backward, and the step's work buffers
  int64_t quantized = 0;    // quantized copies: codes, scales, decoded operands, residuals
  int64_t host = 0;         // offloaded moments: in host memory, not in the total
  int64_t total() const { return weights + gradients + optimizer + activations + quantized; }
};

struct RunEstimate {
  int64_t parameters = 0;
  double flops_per_token = 0;  // forward and backward, attention included
  int64_t tokens_per_step = 0;
  int64_t steps = 0;
  MemoryBytes memory;
};

// Parameters of a model with untied or tied head; vocab_size must be resolved (> 0).
int64_t CountParameters(const ModelConfig& model);

// Precondition: a config that ParseRunConfig accepted. INVALID_ARGUMENT when vocab_size is 0.
Result<RunEstimate> EstimateRun(const RunConfig& config, const Recipe& recipe);

}  // namespace nibble
