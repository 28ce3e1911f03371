// SPDX-License-Identifier: Apache-2.0
//
// Does a recipe fit a model: the sizes of every linear layer against the recipe's blocks.
// Pure functions, thread-safe.
#pragma once

#include <array>
#include <cstdint>

#include "base/status.h"
#include "kernels/recipe/recipe.h"
#include "worker/spec/run_config.h"

namespace nibble {

struct LinearShape {
  int64_t in = 0;
  int64_t out = 0;
};

// The linear layers of one block, by LinearKind.
std::array<LinearShape, kLinearKinds> BlockLinears(const ModelConfig& model);

// INVALID_ARGUMENT names block, layer, slot, size and divisor of the first layer that a recipe part
// (before the first stage or in any of them) cannot cut evenly. `tokens` of a micro-batch; 0 leaves
// T unchecked.
Status CheckRecipeFits(const ModelConfig& model, const Recipe& recipe, int64_t tokens);

}  // namespace nibble
