// SPDX-License-Identifier: Apache-2.0
//
// The DGE factor on a weight gradient, and quantization health.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/dge.h"
#include "kernels/health.h"

namespace nibble::cuda {
namespace {

struct DgeOp {
  double inverse_k, clip;
  int64_t cols;
  bool per_row;
  const float *wgrad, *weight, *enc;
  float* gradient;
  __device__ void operator()(int64_t i) const {
    gradient[i] +=
        wgrad[i] * formats::DgeOfWeight({inverse_k, clip}, weight[i], enc[per_row ? i / cols : 0]);
  }
};

struct HealthSums {
  double xx, qq, xq, error;
  long long underflow, saturated;
};
__device__ HealthSums operator+(const HealthSums& a, const HealthSums& b) {
  return {a.xx + b.xx,
          a.qq + b.qq,
          a.xq + b.xq,
          a.error + b.error,
          a.underflow + b.underflow,
          a.saturated + b.saturated};
}

__global__ void HealthKernel(const float* x, const float* decoded, int64_t rows, int64_t cols,
                             const float* enc, bool per_row, float largest, HealthSums* partials) {
  HealthSums sums{};
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float limit = largest == 0 ? formats::BitsFloat(formats::kInfinityBits)
                                     : largest / enc[per_row ? row : 0] * kSaturationSlack;
    for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
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

}  // namespace

Status CudaBackend::DgeAccumulate(const WeightEstimator& estimator, ConstTensorView wgrad,
                                  ConstTensorView weight, const QuantizedTensor& quantized,
                                  TensorView gradient) {
  RETURN_IF_ERROR(CheckView("DgeAccumulate", "wgrad", wgrad, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView("DgeAccumulate", "weight", weight, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView("DgeAccumulate", "gradient", gradient, quantized.rows, quantized.cols));
  if (!estimator.dge() || quantized.elem != Elem::kE2M1 || !(estimator.k >= 1) ||
      !(estimator.clip > 0) || estimator.extrapolate ||
      estimator.max_gradient != MaxGradient::kIgnore) {
    return InvalidArgumentError(
        StrFormat("DgeAccumulate: weight format %s, k = %g, clip = %g; expected e2m1, k >= 1, "
                  "clip > 0, nothing beyond the grid",
                  ElemName(quantized.elem).c_str(), estimator.k, estimator.clip));
  }
  return ForEach(
      stream_, "DgeAccumulate", gradient.size(),
      DgeOp{1.0 / estimator.k, estimator.clip, quantized.cols, quantized.per_row(), wgrad.f32(),
            weight.f32(), static_cast<const float*>(quantized.enc.data()), gradient.f32()});
}

Result<QuantizationHealth> CudaBackend::MeasureHealth(ConstTensorView x,
                                                      const QuantizedTensor& quantized,
                                                      ConstTensorView decoded) {
  constexpr int64_t kBlocks = 256;  // fixed: the order of the sums does not depend on the device
  RETURN_IF_ERROR(CheckView("MeasureHealth", "x", x, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView("MeasureHealth", "decoded", decoded, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(
      reduce_partials_.Reserve(*this, kBlocks * static_cast<int64_t>(sizeof(HealthSums))));
  HealthSums* partials = static_cast<HealthSums*>(reduce_partials_.data());
  const bool compensated = quantized.comp != OccComp::kNone;
  const float largest = compensated ? 0.0f : ElemMax(quantized.elem);
  HealthKernel<<<kBlocks, kThreads, 0, stream_>>>(
      x.f32(), decoded.f32(), quantized.rows, quantized.cols,
      static_cast<const float*>(quantized.enc.data()), quantized.per_row(), largest, partials);
  RETURN_IF_ERROR(LaunchStatus("MeasureHealth"));
  std::vector<HealthSums> host(kBlocks);
  RETURN_IF_ERROR(
      CopyOut(host.data(), partials, kBlocks * static_cast<int64_t>(sizeof(HealthSums))));
  HealthTotals totals;
  for (const HealthSums& part : host) {
    totals += {part.xx, part.qq, part.xq, part.error, part.underflow, part.saturated};
  }
  std::vector<float> enc(static_cast<size_t>(quantized.scale_count()));
  RETURN_IF_ERROR(CopyOut(enc.data(), quantized.enc.data(), quantized.scale_count() * 4));
  QuantizationHealth health = HealthFrom(totals, quantized);
  if (!enc.empty()) {
    const auto [low, high] = std::minmax_element(enc.begin(), enc.end());
    health.scale_min = static_cast<double>(*low);
    health.scale_max = static_cast<double>(*high);
  }
  return health;
}

}  // namespace nibble::cuda
