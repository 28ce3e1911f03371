// SPDX-License-Identifier: Apache-2.0
//
// Quantize and DGE for one FP32 scale per tensor, row or column: two passes over rows.
#include <span>

#include "base/strings.h"
#include "kernels/cpu/code_loops.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/group_quantizer.h"
#include "kernels/cpu/quantize_job.h"
#include "kernels/cpu/quantize_loops.h"

namespace nibble::cpu {

Status CpuBackend::CheckQuantize(const Quant& quant, const QuantizeContext& context,
                                 ConstTensorView x, TensorView decoded, QuantizedTensor* out) {
  RETURN_IF_ERROR(CheckView("Quantize", "x", x, x.rows, x.cols));
  if (decoded.data != nullptr) {
    RETURN_IF_ERROR(CheckView("Quantize", "decoded", decoded, x.rows, x.cols));
  }
  if (quant.source == Source::kReuse || quant.elem == Elem::kF32) {
    return InvalidArgumentError("Quantize: a slot with elem fp32 or source reuse has no codes");
  }
  if (quant.split != Split::kNone) {
    return InvalidArgumentError("Quantize: a split is taken off before, by the layer");
  }
  out->rows = x.rows;
  out->cols = x.cols;
  out->elem = quant.elem;
  out->block = quant.block;
  out->contraction = context.contraction;
  out->scale = quant.scale;
  out->comp = quant.pre.enabled ? quant.pre.comp : OccComp::kNone;
  out->has_codes = context.keep_codes;
  out->wide_max = QuantizedTensor::kWideLimit;
  out->has_group_scale = false;
  out->has_mask = false;
  out->recast_enc = 0;
  return OkStatus();
}

Status CpuBackend::RunJobs(std::span<QuantizeJob> jobs, ConstTensorView x) {
  RETURN_IF_ERROR(MeasureRows(jobs, x));
  for (QuantizeJob& job : jobs) {
    RETURN_IF_ERROR(SetScales(job));
    // One factor by column and one by row: a reciprocal and a scale, either way round.
    const bool crossed = job.turned() == job.out->per_column();
    job.fast_encode = job.reciprocals != nullptr && crossed && job.quant.round == Round::kSr24 &&
                      EncsAreOrdinary(job.enc(), job.out->scale_count());
  }
  return EncodeRows(jobs, x);
}

Status CpuBackend::Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                            QuantizedTensor* out, TensorView decoded) {
  RETURN_IF_ERROR(CheckQuantize(quant, context, x, decoded, out));
  if (NeedsGroupQuantizer(quant, context)) return QuantizeGroups(quant, context, x, out, decoded);
  QuantizeJob job{quant, context, out, decoded};
  return RunJobs({&job, 1}, x);
}

Status CpuBackend::QuantizeBoth(const Quant& first, const QuantizeContext& first_context,
                                const Quant& second, const QuantizeContext& second_context,
                                ConstTensorView x, QuantizedTensor* first_out,
                                QuantizedTensor* second_out) {
  if (NeedsGroupQuantizer(first, first_context) || NeedsGroupQuantizer(second, second_context)) {
    return Backend::QuantizeBoth(first, first_context, second, second_context, x, first_out,
                                 second_out);
  }
  RETURN_IF_ERROR(CheckQuantize(first, first_context, x, {}, first_out));
  RETURN_IF_ERROR(CheckQuantize(second, second_context, x, {}, second_out));
  QuantizeJob jobs[] = {{first, first_context, first_out, {}},
                        {second, second_context, second_out, {}}};
  return RunJobs(jobs, x);
}

Status CpuBackend::ApplyEstimator(const WeightEstimator& estimator, bool accumulate,
                                  ConstTensorView product, ConstTensorView weight,
                                  const QuantizedTensor& quantized, TensorView gradient) {
  const char* const op = accumulate ? "DgeAccumulate" : "DgeScale";
  RETURN_IF_ERROR(CheckView(op, "wgrad", product, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView(op, "weight", weight, quantized.rows, quantized.cols));
  RETURN_IF_ERROR(CheckView(op, "gradient", gradient, quantized.rows, quantized.cols));
  const bool e2m1 = quantized.elem == Elem::kE2M1 || quantized.recast_enc != 0 ||
                    estimator.kind == Estimator::kSte;
  if (!e2m1 || !(estimator.k >= 1) || !(estimator.clip > 0)) {
    return InvalidArgumentError(
        StrFormat("%s: weight format %s, k = %g, clip = %g; expected e2m1, k >= 1, clip > 0", op,
                  ElemName(quantized.elem).c_str(), estimator.k, estimator.clip));
  }
  const bool plain = estimator.dge() && !estimator.extrapolate &&
                     estimator.max_gradient == MaxGradient::kIgnore &&
                     (quantized.per_row() || quantized.block == Block::kTensor);
  if (!plain) {
    EstimateByGroups(estimator, accumulate, product, weight, quantized, gradient);
    return OkStatus();
  }
  const int64_t cols = quantized.cols;
  pool_.RunRanges(quantized.rows, RowGrain(cols), [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row) {
      DgeSegment(1.0 / estimator.k, estimator.clip, Encs(quantized)[quantized.per_row() ? row : 0],
                 accumulate, product.f32() + row * cols, weight.f32() + row * cols,
                 gradient.f32() + row * cols, cols);
    }
  });
  return OkStatus();
}

Status CpuBackend::DgeAccumulate(const WeightEstimator& estimator, ConstTensorView wgrad,
                                 ConstTensorView weight, const QuantizedTensor& quantized,
                                 TensorView gradient) {
  RETURN_IF_ERROR(ApplyEstimator(estimator, true, wgrad, weight, quantized, gradient));
  if (estimator.max_gradient == MaxGradient::kIgnore) return OkStatus();
  return MaxGradientPart(estimator, wgrad, weight, quantized, gradient);
}

Status CpuBackend::DgeScale(const PendingFactor& pending) {
  RETURN_IF_ERROR(CheckIsFactor("DgeScale", pending));
  return ApplyEstimator(pending.estimator, false, pending.gradient, pending.weight,
                        *pending.quantized, pending.gradient);
}

}  // namespace nibble::cpu
