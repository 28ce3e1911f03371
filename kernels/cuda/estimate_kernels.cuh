// SPDX-License-Identifier: Apache-2.0
//
// Kernels of the weight estimators and of quantization health.
//
// Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/group_parts.cuh"
#include "kernels/cuda/quantize_parts.cuh"
#include "kernels/estimator_rules.h"
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

// gradient += wgrad * D(bf16(weight) * enc).
struct EstimateOp {
  WeightEstimator estimator;
  ScalePlace place;
  int64_t cols;
  const float *wgrad, *weight, *enc;
  float* gradient;
  __device__ void operator()(int64_t i) const {
    const float scaled = formats::RoundBf16(weight[i]) * enc[place.Of(i / cols, i % cols)];
    gradient[i] += wgrad[i] * EstimatorDerivative(estimator, SnapToE2M1Max(scaled));
  }
};

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
__global__ void HealthKernel(const float* x, const float* decoded, int64_t rows, int64_t cols,
                             const float* enc, ScalePlace place, float largest,
                             HealthSums* partials) {
  HealthSums sums{};
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
      const float limit = largest == 0 ? formats::BitsFloat(formats::kInfinityBits)
                                       : largest / enc[place.Of(row, i)] * kSaturationSlack;
      const float value = formats::RoundBf16(x[row * cols + i]);
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
