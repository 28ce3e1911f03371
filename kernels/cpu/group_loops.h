// SPDX-License-Identifier: Apache-2.0
//
// The inner loops of the group quantizer: neighbours of one line at a time, every element format.
//
// Purpose: absolute maximum, scaling, rounding under any rule, codes and decoding of short runs of
// elements. Codes here are one byte per element; PackCodes makes the resting form.
// Thread-safety: pure functions on the caller's memory. Runs do not overlap; y may be x.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/group_rules.h"
#include "kernels/quantized_tensor.h"
#include "kernels/recipe/recipe.h"

namespace nibble::cpu {

// Bits of the absolute maximum, NaN above Inf.
uint32_t RunAmaxBits(const float* x, int64_t n);
// Mean removed, population; double sums in order. n >= 1.
double RunDeviation(const float* x, int64_t n);
double RunSumOfSquares(const float* x, int64_t n);

// y = x * enc, or x / enc.
void ScaleRun(bool divides, float enc, const float* x, float* y, int64_t n);
// Grid values of y. `words` (one per element) only for the stochastic rules; te8 takes low bytes.
void RoundRun(Elem elem, Round round, const float* y, const uint32_t* words, float* grid,
              int64_t n);
void CodesOfRun(Elem elem, const float* grid, uint8_t* bytes, int64_t n);
void GridOfRun(Elem elem, const uint8_t* bytes, float* grid, int64_t n);
// One byte per code to the resting form and back: two codes per byte for the 4-bit formats.
void PackCodes(Elem elem, const uint8_t* bytes, uint8_t* packed, int64_t n);
void UnpackCodes(Elem elem, const uint8_t* packed, uint8_t* bytes, int64_t n);

void DecodeRun(const RunDecoder& decoder, const float* grid, float* decoded, int64_t n);

// x rounded to BF16.
void RoundBf16Run(const float* x, float* y, int64_t n);

// The random words of n elements, element i at `first + i * stride` of the stream; for te8 the
// element's byte.
void RandomWords(const QuantizeContext& context, Round round, int64_t first, int64_t stride,
                 uint32_t* words, int64_t n);

// to (cols, rows) = from (rows, cols) transposed, for rows [first, last) of `to`.
void TransposeBytes(const uint8_t* from, int64_t rows, int64_t cols, int64_t first, int64_t last,
                    uint8_t* to);
void TransposeFloats(const float* from, int64_t rows, int64_t cols, int64_t first, int64_t last,
                     float* to);

}  // namespace nibble::cpu
