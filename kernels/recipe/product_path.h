// SPDX-License-Identifier: Apache-2.0
//
// Which products of a layer can multiply codes, as far as the recipe decides.
//
// Purpose: one rule for the layers, which ask it for every product, and for people, to whom `nibble
// recipes show` lists the paths. Thread-safety: pure functions.
#pragma once

#include "kernels/recipe/recipe.h"

namespace nibble {

// Why the product of two slots needs decoded operands; nullptr when their codes may be multiplied:
// scales constant along the sum, or per group of it (equal groups of 8, 16, .., 128 in both), or
// folded into the left operand. A backend without a kernel for the formats decodes nevertheless.
const char* WhyDecoded(const LinearRecipe& recipe, Slot left, Slot right);

// Formats whose codes the CPU backend multiplies, as integers.
bool CpuMultipliesCodes(Elem elem);

}  // namespace nibble
