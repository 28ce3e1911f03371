// SPDX-License-Identifier: Apache-2.0
//
// What every backend's Hadamard rotation shares: which ones exist, and their signs.
//
// Thread-safety: pure functions, but for the source of random numbers they are given.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/quantize_context.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

// INVALID_ARGUMENT unless the size is a power of two that divides the contraction of (rows, cols).
Status CheckRotation(const Rotation& rotation, const QuantizeContext& context, int64_t rows,
                     int64_t cols);
// Whether coordinate i of each rotated group changes its sign; 0 <= i < rotation.size.
bool IsNegative(const Rotation& rotation, const QuantizeContext& context, int i);

}  // namespace nibble
