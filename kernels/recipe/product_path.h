// SPDX-License-Identifier: Apache-2.0
//
// Which products of a layer can multiply codes, and which operands a device quantizes in tiles, as
// far as the recipe decides.
//
// Purpose: one rule for the layers, which ask it for every product, and for people, to whom `nibble
// recipes show` lists the paths; one for the kernels and for estimates of their memory.
// Thread-safety: pure functions.
#pragma once

#include "kernels/recipe/recipe.h"

namespace nibble {

// Why the product of two slots needs decoded operands; nullptr when their codes may be multiplied:
// scales constant along the sum, or per group of it (equal groups of 8, 16, .., 128 in both), or
// folded into the left operand. A backend without a kernel for the formats decodes nevertheless.
const char* WhyDecoded(const LinearRecipe& recipe, Slot left, Slot right);

// Whether a backend that multiplies codes of the formats for which `takes` holds does so here.
bool MultipliesCodes(const LinearRecipe& recipe, Slot left, Slot right, bool (*takes)(Elem));

// Formats whose codes the CPU backend multiplies, as integers.
bool CpuMultipliesCodes(Elem elem);
// Those of a CUDA device, carried as FP8 bytes or as BF16.
constexpr bool CudaMultipliesCodes(Elem elem) {
  return elem == Elem::kE2M1 || elem == Elem::kE4M3 || elem == Elem::kE5M2 || elem == Elem::kInt8;
}

// Whether a CUDA device quantizes an operand in tiles, where maxima stay within the tile, under a
// rotation of `size` elements or none (0).
inline constexpr int kSmallestInTiles = 16, kLargestInTiles = 128;
constexpr bool CudaQuantizesInTiles(const Quant& quant, int size) {
  const int group = quant.group;
  return quant.block == Block::kGroup && group >= kSmallestInTiles && group <= kLargestInTiles &&
         (group & (group - 1)) == 0 && size <= kLargestInTiles &&
         (quant.scale != ScaleRule::kEden || group == kSmallestInTiles);
}

}  // namespace nibble
