// SPDX-License-Identifier: Apache-2.0
//
// Health: quantization health of a sampled step, one record per tensor class.
// Thread-safety: free functions; one thread, the backend's caller.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/spec/journal.h"
#include "worker/train/model.h"

namespace nibble {

// Records of the last pass with measure_health: activation, weight and gradient of the first,
// middle and last block, where they are quantized at all. Within a class (the linear layers of one
// block): shares, mse and cosine are means weighted by elements, SNR comes from the summed
// energies, scales are the extremes, and the gradient-to-noise ratio is that of the summed
// energies.
std::vector<HealthRecord> CollectHealth(const Model& model, int64_t step);

}  // namespace nibble
