// SPDX-License-Identifier: Apache-2.0
//
// Kernels of the weight estimators, of the gradient norm that completes their gradients, and of
// quantization health.
//
// Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/four.cuh"
#include "kernels/cuda/group_parts.cuh"
#include "kernels/cuda/quantize_parts.cuh"
#include "kernels/cuda/values.cuh"
#include "kernels/estimator_rules.h"
#include "kernels/formats/dge.h"
#include "kernels/health.h"

namespace nibble::cuda {

// Where the scale of an element lies, whatever the block.
struct ScalePlace {
  ScaleAxis axis;
  bool grouped;
  GroupLayout layout;  // of groups

  __device__ int64_t Of(int64_t row, int64_t col) const {
    if (grouped) {
      return layout.turned ? layout.Group(col, row / layout.extent)
                           : layout.Group(row, col / layout.extent);
    }
    return axis == ScaleAxis::kTensor ? 0 : (axis == ScaleAxis::kRow ? row : col);
  }
};

// On the host.
inline ScalePlace ScalePlaceOf(const QuantizedTensor& x) {
  const bool grouped = IsGrouped(x.block);
  return {AxisOf(x), grouped, grouped ? GroupLayoutOf(x) : GroupLayout{}};
}

// gradient = product * D(bf16(weight) * enc), plus what it was (else plus 0) when accumulating;
// product may be gradient.
struct EstimateOp {
  WeightEstimator estimator;
  ScalePlace place;
  bool accumulate;
  int64_t cols;
  const float *product, *weight, *enc;
  float* gradient;
  __device__ void operator()(int64_t i) const {
    const float scaled = formats::RoundBf16(weight[i]) * enc[place.Of(i / cols, i % cols)];
    const float factor = EstimatorDerivative(estimator, SnapToE2M1Max(scaled));
    gradient[i] = (accumulate ? gradient[i] : 0.0f) + product[i] * factor;
  }
};

// The same for the plain DGE and scales by tensor or row.
struct DgeOp {
  double inverse_k, clip;
  int64_t cols;
  bool per_row, accumulate;
  const float *product, *weight, *enc;
  float* gradient;
  __device__ void operator()(int64_t i) const {
    const float factor =
        formats::DgeOfWeight({inverse_k, clip}, weight[i], enc[per_row ? i / cols : 0]);
    gradient[i] = (accumulate ? gradient[i] : 0.0f) + product[i] * factor;
  }
};

inline constexpr int kSquareBlocks = 1024;  // fixed: so is the order of the sums

// DgeOp in place, not accumulating, and the sums of the new squares added to partials by block: 8
// bytes read and 4 written per element. Rows by block, at most kSquareBlocks. kFour: rows are whole
// fours.
struct DgeSquaresTask {
  double inverse_k, clip;
  int64_t rows, cols;
  bool per_row;
  const float *weight, *enc;
  float* gradient;
  double* partials;
};
template <bool kFour>
__global__ void DgeSquaresKernel(DgeSquaresTask t) {
  const formats::DgeConstants constants(t.inverse_k, t.clip);
  double sum = 0;
  for (int64_t row = blockIdx.x; row < t.rows; row += gridDim.x) {
    const float enc = t.enc[t.per_row ? row : 0];
    for (int64_t col = 4 * static_cast<int64_t>(threadIdx.x); col < t.cols; col += 4 * kThreads) {
      const int64_t at = row * t.cols + col;
      const int64_t live = t.cols - col;
      const auto weight = LoadSome<kFour>(t.weight + at, live);
      auto gradient = LoadSome<kFour>(t.gradient + at, live);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float factor = formats::DgeOfWeight(constants, weight.x[k], enc);
        const float value = kFour || k < live ? 0.0f + gradient.x[k] * factor : 0.0f;
        gradient.x[k] = value;
        sum += static_cast<double>(value) * static_cast<double>(value);
      }
      StoreSome<kFour>(gradient, live, t.gradient + at);
    }
  }
  const double total = BlockSum(sum);
  if (threadIdx.x == 0) t.partials[blockIdx.x] += total;
}

// Adds the squares of x to partials by block; at most kSquareBlocks.
__global__ void SquaresKernel(const float* x, int64_t n, double* partials) {
  double sum = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const double value = static_cast<double>(x[i]);
    sum += value * value;
  }
  const double total = BlockSum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] += total;
}

struct HealthSums {
  double xx, qq, xq, error;
  long long underflow, saturated;
};
__device__ inline HealthSums operator+(const HealthSums& a, const HealthSums& b) {
  return {a.xx + b.xx,
          a.qq + b.qq,
          a.xq + b.xq,
          a.error + b.error,
          a.underflow + b.underflow,
          a.saturated + b.saturated};
}

// largest 0: nothing counts as saturated.
template <typename Values>
__global__ void HealthKernel(Values x, const float* decoded, int64_t rows, int64_t cols,
                             const float* enc, ScalePlace place, float largest,
                             HealthSums* partials) {
  HealthSums sums{};
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
      const float limit = largest == 0 ? formats::BitsFloat(formats::kInfinityBits)
                                       : largest / enc[place.Of(row, i)] * kSaturationSlack;
      const float value = x.At(row * cols + i);
      const float meant = decoded[row * cols + i];
      const double a = static_cast<double>(value);
      const double b = static_cast<double>(meant);
      sums = sums + HealthSums{a * a,
                               b * b,
                               a * b,
                               (a - b) * (a - b),
                               value != 0.0f && meant == 0.0f ? 1 : 0,
                               formats::Magnitude(value) > limit ? 1 : 0};
    }
  }
  const HealthSums total =
      BlockCombine(sums, [](const HealthSums& a, const HealthSums& b) { return a + b; });
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

}  // namespace nibble::cuda
