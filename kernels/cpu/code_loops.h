// SPDX-License-Identifier: Apache-2.0
//
// From values to codes, one segment of one row at a time: scaling, then rounding straight to codes.
//
// Purpose: the hot loops of quantizers whose codes a GEMM multiplies: E2M1 nearest even and sr24,
// INT8 nearest even and sr24, with clamping, folding, and scales by row or by column.
// Thread-safety: pure functions on the caller's memory.
#pragma once

#include <cstdint>

#include "kernels/recipe/recipe.h"

namespace nibble::cpu {

// How a segment is brought to the scale of its codes: y = fl(fl(clamp(bf16(x)) / fold) * enc).
// A pointer holds one value per element of the segment; nullptr: the single value is for all.
struct Scaling {
  float low = 0, high = 0;  // clamping bounds, infinite without clamping
  const float* fold_by_column = nullptr;
  float fold = 1.0f;
  bool folded = false;
  const float* enc_by_column = nullptr;
  float enc = 1.0f;
};
// Precondition: not folded and clamped at once.
void ScaleSegment(const Scaling& scaling, const float* x, float* y, int64_t n);

// Magnitude bits of the largest bf16(x[i]) / fold[i].
uint32_t FoldedAmax(const float* x, const float* fold, int64_t n);
// Running maxima of magnitude bits, one per column: of clamp(bf16(x[i])) or bf16(x[i]) / fold.
void ColumnAmax(const float* x, float low, float high, uint32_t* amax, int64_t n);
void FoldedColumnAmax(const float* x, float fold, uint32_t* amax, int64_t n);

// planes[l * stride + i] = words[4 * i + l], l in 0..3, i in [0, n).
void SplitLanes(const uint32_t* words, uint32_t* planes, int64_t stride, int64_t n);

// Whether EncodeCodes has a loop for this quantizer.
bool EncodesDirectly(const Quant& quant);
// Codes of y, packed as QuantizedTensor holds them. `words`: of each element, for sr24. n <=
// kSegment.
void EncodeCodes(const Quant& quant, const float* y, const uint32_t* words, uint8_t* codes,
                 int64_t n);

// Folding without divisions computes with reciprocals = fl(1 / fold), whose products differ from
// the specified quotients in the last bits, and finds out where that could change a result. It
// needs magnitudes far from the ends of the range.
inline constexpr float kLargestReciprocable = 0x1p60f;
inline constexpr float kLargestFastEnc = 0x1p66f;
bool Reciprocable(const float* fold, int64_t n);    // each +Inf or in [2^-60, 2^60]
bool EncsAreOrdinary(const float* enc, int64_t n);  // each in [2^-66, 2^66]

// As FoldedAmax. Precondition: Reciprocable(fold).
uint32_t FoldedAmaxFast(const float* x, const float* fold, const float* reciprocals, int64_t n);
}  // namespace nibble::cpu
