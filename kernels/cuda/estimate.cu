// SPDX-License-Identifier: Apache-2.0
//
// The factors of weight estimators, the gradient norm with them, and quantization health.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/estimate_kernels.cuh"
#include "kernels/cuda/launch.h"

namespace nibble::cuda {
namespace {

Status CheckEstimator(const char* op, const PendingFactor& p, ConstTensorView product) {
  const QuantizedTensor& quantized = *p.quantized;
  RETURN_IF_ERROR(CheckView(op, "wgrad", product, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView(op, "weight", p.weight, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView(op, "gradient", p.gradient, quantized.rows, quantized.cols));
  const WeightEstimator& estimator = p.estimator;
  const bool e2m1 = quantized.elem == Elem::kE2M1 || estimator.kind == Estimator::kSte;
  if (e2m1 && estimator.k >= 1 && estimator.clip > 0) return OkStatus();
  return InvalidArgumentError(
      StrFormat("%s: weight format %s, k = %g, clip = %g; expected e2m1, k >= 1, clip > 0", op,
                ElemName(quantized.elem).c_str(), estimator.k, estimator.clip));
}

// The plain DGE with scales by tensor or row.
bool IsPlain(const PendingFactor& p) {
  return p.estimator.dge() && !p.estimator.extrapolate &&
         (p.quantized->per_row() || p.quantized->block == Block::kTensor);
}

}  // namespace

Status CudaBackend::ApplyEstimator(const PendingFactor& p, bool accumulate,
                                   ConstTensorView product) {
  const char* const op = accumulate ? "DgeAccumulate" : "DgeScale";
  RETURN_IF_ERROR(CheckEstimator(op, p, product));
  const QuantizedTensor& quantized = *p.quantized;
  const auto* enc = static_cast<const float*>(quantized.enc.data());
  if (!IsPlain(p)) {
    return ForEach(stream_, op, p.gradient.size(),
                   EstimateOp{p.estimator, ScalePlaceOf(quantized), accumulate, quantized.cols,
                              product.f32(), p.weight.f32(), enc, p.gradient.f32()});
  }
  return ForEach(stream_, op, p.gradient.size(),
                 DgeOp{1.0 / p.estimator.k, p.estimator.clip, quantized.cols, quantized.per_row(),
                       accumulate, product.f32(), p.weight.f32(), enc, p.gradient.f32()});
}

Status CudaBackend::DgeAccumulate(const WeightEstimator& estimator, ConstTensorView wgrad,
                                  ConstTensorView weight, const QuantizedTensor& quantized,
                                  TensorView gradient) {
  if (estimator.max_gradient != MaxGradient::kIgnore) {
    return UnimplementedError(
        "DgeAccumulate: the CUDA backend has no gradient through the scale's maximum (estMax); use "
        "backend cpu for this recipe");
  }
  return ApplyEstimator({estimator, weight, &quantized, gradient}, true, wgrad);
}

Status CudaBackend::DgeScale(const PendingFactor& pending) {
  RETURN_IF_ERROR(CheckIsFactor("DgeScale", pending));
  return ApplyEstimator(pending, false, pending.gradient);
}

// Every kernel adds to the same sums by block, in the order of launches. Gradients without a factor
// lie between those with one.
Result<double> CudaBackend::ScaledSumOfSquares(std::span<const PendingFactor> pending,
                                               ConstTensorView gradients) {
  constexpr const char* kOp = "ScaledSumOfSquares";
  if (pending.empty()) return SumOfSquares(gradients);
  RETURN_IF_ERROR(CheckSameSize(kOp, "gradients", gradients, gradients.size()));
  RETURN_IF_ERROR(reduce_partials_.Reserve(*this, kSquareBlocks * 8));
  auto* const partials = static_cast<double*>(reduce_partials_.data());
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(partials, 0, kSquareBlocks * 8, stream_), kOp));
  const float* next = gradients.f32();
  const auto squares_until = [&](const float* end) -> Status {
    if (end < next || end > gradients.f32() + gradients.size()) {
      return InvalidArgumentError(
          "ScaledSumOfSquares: a pending gradient lies before another or outside the gradients");
    }
    if (end == next) return OkStatus();
    SquaresKernel<<<std::min<unsigned>(GridFor(end - next), kSquareBlocks), kThreads, 0, stream_>>>(
        next, end - next, partials);
    return LaunchStatus(kOp);
  };
  for (const PendingFactor& p : pending) {
    if (!IsPlain(p)) {
      RETURN_IF_ERROR(DgeScale(p));
      continue;
    }
    RETURN_IF_ERROR(CheckIsFactor(kOp, p));
    RETURN_IF_ERROR(CheckEstimator(kOp, p, p.gradient));
    RETURN_IF_ERROR(squares_until(p.gradient.f32()));
    next = p.gradient.f32() + p.gradient.size();
    const QuantizedTensor& q = *p.quantized;
    const DgeSquaresTask task{1.0 / p.estimator.k,
                              p.estimator.clip,
                              q.rows,
                              q.cols,
                              q.per_row(),
                              p.weight.f32(),
                              static_cast<const float*>(q.enc.data()),
                              p.gradient.f32(),
                              partials};
    const bool four = InFours(q.cols, {p.weight.data, p.gradient.data});
    const auto kernel = four ? DgeSquaresKernel<true> : DgeSquaresKernel<false>;
    kernel<<<std::min<unsigned>(GridForRows(q.rows), kSquareBlocks), kThreads, 0, stream_>>>(task);
    RETURN_IF_ERROR(LaunchStatus(kOp));
  }
  RETURN_IF_ERROR(squares_until(gradients.f32() + gradients.size()));
  return SumPartials(kSquareBlocks);
}

Result<QuantizationHealth> CudaBackend::MeasureHealth(ConstTensorView x,
                                                      const QuantizedTensor& quantized,
                                                      ConstTensorView decoded) {
  constexpr int64_t kBlocks = 256;  // fixed: the order of the sums does not depend on the device
  RETURN_IF_ERROR(CheckView("MeasureHealth", "x", x, quantized.rows, quantized.cols, FloatType(x)));
  RETURN_IF_ERROR(CheckView("MeasureHealth", "decoded", decoded, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(
      reduce_partials_.Reserve(*this, kBlocks * static_cast<int64_t>(sizeof(HealthSums))));
  HealthSums* partials = static_cast<HealthSums*>(reduce_partials_.data());
  const bool unlimited = quantized.comp != OccComp::kNone || quantized.folded;
  const float largest = unlimited ? 0.0f : ElemMax(quantized.elem);
  RETURN_IF_ERROR(WithValues(x, [&](auto values) {
    HealthKernel<<<kBlocks, kThreads, 0, stream_>>>(values, decoded.f32(), quantized.rows,
                                                    quantized.cols,
                                                    static_cast<const float*>(quantized.enc.data()),
                                                    ScalePlaceOf(quantized), largest, partials);
    return LaunchStatus("MeasureHealth");
  }));
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
