// SPDX-License-Identifier: Apache-2.0
//
// The inner loops of quantization: one segment of one row at a time, vectorised.
//
// Purpose: amax and clamping statistics, rounding to an element grid, codes, and decoding; Quantize
// and Dequantize are built from the same decoding loop, so they agree bit for bit.
// Thread-safety: pure functions on the caller's memory.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/recipe/recipe.h"

namespace nibble::cpu {

// Elements handled at a time: small enough for the first-level cache, even for packing.
inline constexpr int64_t kSegment = 512;

// What the passes of Quantize know about one row. Bounds are infinite without clamping.
struct RowStats {
  float low;
  float high;
  uint32_t amax_bits;           // of the BF16 values after clamping
  uint32_t residual_amax_bits;  // of what the clamp took off
  int32_t residual_count;
  int32_t wide_max;  // of codes with their wide residual; written while encoding
};

// Fills amax_bits from n values (no clamping).
void MeasurePlain(const float* x, int64_t n, RowStats* stats);
// Fills amax_bits, residual_amax_bits, residual_count, given the bounds.
void MeasureClamped(const float* x, int64_t n, RowStats* stats);

// Where a segment's elements sit in the random stream.
struct RandomPosition {
  const QuantizeContext& context;
  int64_t first_element;
  int64_t stride;  // from one element of the segment to the next
};

// grid[i] = y[i] rounded to the element format. n <= kSegment.
void RoundSegment(const Quant& quant, const RandomPosition& random, const float* y, float* grid,
                  int64_t n);

// Codes of grid values, E2M1 packed two per byte.
void EncodeSegment(Elem elem, const float* grid, uint8_t* codes, int64_t n);
void GridFromCodes(Elem elem, const uint8_t* codes, float* grid, int64_t n);
// decoded = grid / enc (f32, p2) or grid * fl(1/enc) (cur); grid itself without a scale.
void DecodeSegment(ScaleRule scale, float enc, const float* grid, float* decoded, int64_t n);

// The same with one enc per element.
void DecodeColumns(ScaleRule scale, const float* enc, const float* grid, float* decoded, int64_t n);
// decoded *= fold, by which the source was divided; where that is +Inf, decoded becomes 0.
void UnfoldRow(float fold, float* decoded, int64_t n);
void UnfoldColumns(const float* fold, float* decoded, int64_t n);

// Order-preserving keys of bf16(x).
void OrderKeys(const float* x, uint16_t* keys, int64_t n);

// gradient = product * D(bf16(weight) * enc), plus what it was (else plus 0) when accumulating.
// product may be gradient.
void DgeSegment(double inverse_k, double clip, float enc, bool accumulate, const float* product,
                const float* weight, float* gradient, int64_t n);

}  // namespace nibble::cpu
