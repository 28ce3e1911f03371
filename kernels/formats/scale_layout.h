// SPDX-License-Identifier: Apache-2.0
//
// Where the scale of a block lies for Blackwell's block-scaled products: the tiles of 128 rows by 4
// blocks that cuBLASLt asks of VEC16_UE4M3 and VEC32_UE8M0 operands (cuBLAS manual, "1D block
// scaling factors layout").
//
// Purpose: one layout for kernels that write scales and host code that checks them. A row is one
// line of an operand along the sum. Scales of rows or blocks past the end exist and must be zero.
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"

namespace nibble::formats {

inline constexpr int64_t kScaleTileRows = 128;
inline constexpr int64_t kScaleTileBlocks = 4;

NIBBLE_HD inline int64_t ScaleTilesOf(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

// Bytes of all scales, padding included; one byte each.
NIBBLE_HD inline int64_t BlockScaleBytes(int64_t rows, int64_t blocks) {
  return ScaleTilesOf(rows, kScaleTileRows) * ScaleTilesOf(blocks, kScaleTileBlocks) *
         kScaleTileRows * kScaleTileBlocks;
}

// Place of the scale of block `block` of row `row`, `blocks` to a row.
NIBBLE_HD inline int64_t BlockScaleOffset(int64_t row, int64_t block, int64_t blocks) {
  const int64_t tile =
      row / kScaleTileRows * ScaleTilesOf(blocks, kScaleTileBlocks) + block / kScaleTileBlocks;
  const int64_t inside = row % kScaleTileRows;
  return tile * kScaleTileRows * kScaleTileBlocks + inside % 32 * 16 + inside / 32 * 4 +
         block % kScaleTileBlocks;
}

}  // namespace nibble::formats
