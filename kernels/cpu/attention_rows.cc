// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/attention_rows.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/cpu/vector_math.h"
#include "kernels/formats/bf16.h"

namespace nibble::cpu {
namespace {

// Key j of the block is hidden from query l when j >= visible + l.
void Hide(float* scores, int64_t keys, int64_t width, int64_t visible, float value) {
  for (int64_t j = std::max<int64_t>(visible, 0); j < keys; ++j) {
    const int64_t hidden = std::min(width, j - visible + 1);
    std::fill(scores + j * width, scores + j * width + hidden, value);
  }
}

// kLanes queries of the panel.
NIBBLE_LOOP void SoftmaxLanes(float* scores, int64_t keys, int64_t width, float scale, bool bf16,
                              float* max, float* sum, float* rescale) {
  // Written with a vector type: compilers leave the loop of selections scalar.
  using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));
  Vector most = Vector{} - formats::kLargestFloat;
  for (int64_t j = 0; j < keys; ++j) {
    Vector row;
    std::memcpy(&row, scores + j * width, sizeof row);
    most = row > most ? row : most;
  }
  float largest[kLanes];
  std::memcpy(largest, &most, sizeof most);
  float reference[kLanes], total[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const float scaled = largest[l] * scale;
    reference[l] = scaled > max[l] ? scaled : max[l];
    rescale[l] = Exp(max[l] - reference[l]);
    max[l] = reference[l];
    total[l] = 0.0f;
  }
  for (int64_t j = 0; j < keys; ++j) {
    float* row = scores + j * width;
    for (int l = 0; l < kLanes; ++l) {
      const float p = Exp(row[l] * scale - reference[l]);
      row[l] = bf16 ? formats::RoundBf16(p) : p;
      total[l] += p;
    }
  }
  for (int l = 0; l < kLanes; ++l) sum[l] = sum[l] * rescale[l] + total[l];
}

NIBBLE_LOOP void ScaleLanes(float* x, int64_t rows, int64_t width, const float* factor) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int l = 0; l < kLanes; ++l) x[i * width + l] *= factor[l];
  }
}

NIBBLE_LOOP void GradientLanes(float* scores, float* dprobabilities, int64_t keys, int64_t width,
                               float scale, const float* lse, const float* delta) {
  for (int64_t j = 0; j < keys; ++j) {
    float* row = scores + j * width;
    float* drow = dprobabilities + j * width;
    NIBBLE_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) {
      const float p = Exp(row[l] * scale - lse[l]);
      row[l] = p;
      drow[l] = (p * (drow[l] - delta[l])) * scale;
    }
  }
}

NIBBLE_LOOP void RoundAll(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = formats::RoundBf16(x[i]);
}

NIBBLE_LOOP float Dot(const float* a, const float* b, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[i + l] * b[i + l];
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += a[i] * b[i];
  return FoldLanes(lanes);
}

}  // namespace

void OnlineSoftmax(float* scores, int64_t keys, int64_t width, float scale, bool bf16,
                   int64_t visible, float* max, float* sum, float* rescale) {
  Hide(scores, keys, width, visible, -std::numeric_limits<float>::infinity());
  for (int64_t l = 0; l < width; l += kLanes) {
    Cloned<SoftmaxLanes>(scores + l, keys, width, scale, bf16, max + l, sum + l, rescale + l);
  }
}

void ScaleColumns(float* x, int64_t rows, int64_t width, const float* factor) {
  for (int64_t l = 0; l < width; l += kLanes) Cloned<ScaleLanes>(x + l, rows, width, factor + l);
}

void ScoreGradients(float* scores, float* dprobabilities, int64_t keys, int64_t width, float scale,
                    bool bf16, int64_t visible, const float* lse, const float* delta) {
  for (int64_t l = 0; l < width; l += kLanes) {
    Cloned<GradientLanes>(scores + l, dprobabilities + l, keys, width, scale, lse + l, delta + l);
  }
  if (bf16) {
    Cloned<RoundAll>(scores, keys * width);
    Cloned<RoundAll>(dprobabilities, keys * width);
  }
  Hide(scores, keys, width, visible, 0.0f);
  Hide(dprobabilities, keys, width, visible, 0.0f);
}

float RowProduct(const float* a, const float* b, int64_t count) { return Cloned<Dot>(a, b, count); }

}  // namespace nibble::cpu
