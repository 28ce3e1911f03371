// SPDX-License-Identifier: Apache-2.0
//
// The part of the self-test that no recipe covers: what a step does beside its quantized layers.
// Thread-safety: one thread, the caller of both backends. Memory is reached through the backend.
#pragma once

#include "base/status.h"
#include "kernels/backend.h"

namespace nibble {

// Attention forward and backward (FP32 and BF16, head sizes 64 and 128, grouped heads, an odd
// length), RMSNorm alone and with the residual sum, rotary positions, SwiGLU, embedding, cross-
// entropy and AdamW against `reference`; on a backend that stores BF16 also what a run may keep as
// such, from projection and rotation to both backward passes. Bounds: 1e-5 of the largest value
// expected where only the order of sums and the last bit of exp, sin and cos differ; 2e-2 for
// attention in BF16, whose probabilities are rounded around another maximum; 3e-2 of activations
// kept in BF16. No device can train without one of them, so a refusal is an error, too:
// FAILED_PRECONDITION. INTERNAL names operation, result, element and bound.
Status ProveStepOperations(Backend& backend, Backend& reference);

}  // namespace nibble
