// SPDX-License-Identifier: Apache-2.0
//
// The pointwise part of blocked attention, on scores that lie key by key.
//
// Purpose: a panel of `width` queries stands side by side (one query per vector lane), keys follow
// one another, so maxima and sums over keys need no sum across lanes, and what a query gets does
// not depend on the width of the panel. Thread-safety: pure functions. width: a multiple of 16.
#pragma once

#include <cstdint>

namespace nibble::cpu {

// Online softmax of a block of keys (Milakov and Gimelshein 2018; FlashAttention-2, algorithm 1).
// scores (keys, width): in, products q k; out, exp(scale * score - max), with `bf16` rounded to
// BF16 after it has entered the sum. max, sum (width): running, updated; rescale (width): what
// everything summed so far must be multiplied by. Start with max = -FLT_MAX, sum = 0. Query l sees
// the first visible + l keys of the block; visible may be negative.
void OnlineSoftmax(float* scores, int64_t keys, int64_t width, float scale, bool bf16,
                   int64_t visible, float* max, float* sum, float* rescale);

// x (rows, width) *= factor (width).
void ScaleColumns(float* x, int64_t rows, int64_t width, const float* factor);

// The backward pass of a block of keys: scores (keys, width) become the probabilities
// exp(scale * score - lse), dprobabilities becomes the gradient of the unscaled products,
// p * (dp - delta) * scale; with `bf16` both rounded to BF16. Hidden keys get zeros.
void ScoreGradients(float* scores, float* dprobabilities, int64_t keys, int64_t width, float scale,
                    bool bf16, int64_t visible, const float* lse, const float* delta);

// Sum of a * b.
float RowProduct(const float* a, const float* b, int64_t count);

}  // namespace nibble::cpu
