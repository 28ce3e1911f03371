// SPDX-License-Identifier: Apache-2.0
//
// DeviceWorkspace: work memory of the CUDA backend for one training step, as an estimate counts it.
// Pure arithmetic, thread-safe.
#pragma once

#include <cstdint>

#include "kernels/recipe/recipe.h"
#include "worker/spec/buffer_plan.h"
#include "worker/spec/run_config.h"

namespace nibble {

// Bytes of kernels/cuda's own buffers: codes as tensor cores take them (as on Hopper: FP8 bytes
// where both operands have them, else BF16 and the product before its scales), attention's
// operands in BF16, angles of positions, partial sums, statistics of scale groups, cuBLASLt's
// workspace.
int64_t DeviceWorkspaceBytes(const ModelConfig& model, const Recipe& recipe, const BufferPlan& plan,
                             int64_t seq_len);

}  // namespace nibble
