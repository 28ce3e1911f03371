// SPDX-License-Identifier: Apache-2.0
//
// The DGE factor on a weight gradient, and quantization health.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/estimate_kernels.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/formats/dge.h"

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

}  // namespace

Status CudaBackend::DgeAccumulate(const WeightEstimator& estimator, ConstTensorView wgrad,
                                  ConstTensorView weight, const QuantizedTensor& quantized,
                                  TensorView gradient) {
  RETURN_IF_ERROR(CheckView("DgeAccumulate", "wgrad", wgrad, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView("DgeAccumulate", "weight", weight, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView("DgeAccumulate", "gradient", gradient, quantized.rows, quantized.cols));
  const bool e2m1 = quantized.elem == Elem::kE2M1 || estimator.kind == Estimator::kSte;
  if (!e2m1 || !(estimator.k >= 1) || !(estimator.clip > 0)) {
    return InvalidArgumentError(
        StrFormat("DgeAccumulate: weight format %s, k = %g, clip = %g; expected e2m1, k >= 1, "
                  "clip > 0",
                  ElemName(quantized.elem).c_str(), estimator.k, estimator.clip));
  }
  if (estimator.max_gradient != MaxGradient::kIgnore) {
    return UnimplementedError(
        "DgeAccumulate: the CUDA backend has no gradient through the scale's maximum (estMax); use "
        "backend cpu for this recipe");
  }
  const bool plain = estimator.dge() && !estimator.extrapolate &&
                     (quantized.per_row() || quantized.block == Block::kTensor);
  if (!plain) {
    return ForEach(
        stream_, "DgeAccumulate", gradient.size(),
        EstimateOp{estimator, ScalePlaceOf(quantized), quantized.cols, wgrad.f32(), weight.f32(),
                   static_cast<const float*>(quantized.enc.data()), gradient.f32()});
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
  const bool unlimited = quantized.comp != OccComp::kNone || quantized.folded;
  const float largest = unlimited ? 0.0f : ElemMax(quantized.elem);
  HealthKernel<<<kBlocks, kThreads, 0, stream_>>>(
      x.f32(), decoded.f32(), quantized.rows, quantized.cols,
      static_cast<const float*>(quantized.enc.data()), ScalePlaceOf(quantized), largest, partials);
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
  if (quantized.counting) {
    QuantizeCounters counters;
    RETURN_IF_ERROR(CopyOut(&counters, quantized.counters.data(), sizeof(counters)));
    health.nonfinite_amax = counters.nonfinite_amax;
  }
  if (!enc.empty()) {
    const auto [low, high] = std::minmax_element(enc.begin(), enc.end());
    health.scale_min = static_cast<double>(*low);
    health.scale_max = static_cast<double>(*high);
  }
  return health;
}

}  // namespace nibble::cuda
