// SPDX-License-Identifier: Apache-2.0
#include "worker/bench/timed_backend.h"

namespace nibble::bench {

double TimedBackend::SecondsOf(const std::string& operation) const {
  for (const auto& [name, seconds] : seconds_) {
    if (name == operation) return seconds;
  }
  return 0;
}

void TimedBackend::Count(const char* operation, double seconds) {
  for (auto& [name, total] : seconds_) {
    if (name == operation) {
      total += seconds;
      return;
    }
  }
  seconds_.emplace_back(operation, seconds);
}

template <typename Call>
auto TimedBackend::Time(const char* operation, Call&& call) {
  const double start = NowSeconds(clock_);
  Enter();
  auto result = call();
  Leave();
  Count(operation, NowSeconds(clock_) - start);
  return result;
}

Status TimedBackend::CopyIn(void* device, const void* host, int64_t size_bytes) {
  return Time("copy", [&] { return inner_.CopyIn(device, host, size_bytes); });
}

Status TimedBackend::CopyOut(void* host, const void* device, int64_t size_bytes) {
  return Time("copy", [&] { return inner_.CopyOut(host, device, size_bytes); });
}

Status TimedBackend::Copy(void* to_device, const void* from_device, int64_t size_bytes) {
  return Time("copy", [&] { return inner_.Copy(to_device, from_device, size_bytes); });
}

Status TimedBackend::TransferIn(int lane, void* device, const void* host, int64_t size_bytes) {
  return Time("transfer", [&] { return inner_.TransferIn(lane, device, host, size_bytes); });
}

Status TimedBackend::TransferOut(int lane, void* host, const void* device, int64_t size_bytes) {
  return Time("transfer", [&] { return inner_.TransferOut(lane, host, device, size_bytes); });
}

Status TimedBackend::Fill(TensorView x, float value) {
  return Time("copy", [&] { return inner_.Fill(x, value); });
}

Status TimedBackend::EmbeddingForward(ConstTensorView table, ConstTensorView ids, TensorView out) {
  return Time("embedding", [&] { return inner_.EmbeddingForward(table, ids, out); });
}

Status TimedBackend::EmbeddingBackward(ConstTensorView ids, ConstTensorView dout,
                                       TensorView dtable) {
  return Time("embedding", [&] { return inner_.EmbeddingBackward(ids, dout, dtable); });
}

Status TimedBackend::RmsNormForward(ConstTensorView x, ConstTensorView weight, float epsilon,
                                    TensorView out, TensorView rstd) {
  return Time("rms_norm", [&] { return inner_.RmsNormForward(x, weight, epsilon, out, rstd); });
}

Status TimedBackend::AddRmsNormForward(ConstTensorView a, ConstTensorView b, ConstTensorView weight,
                                       float epsilon, TensorView sum, TensorView out,
                                       TensorView rstd) {
  return Time("rms_norm",
              [&] { return inner_.AddRmsNormForward(a, b, weight, epsilon, sum, out, rstd); });
}

Status TimedBackend::RmsNormBackward(ConstTensorView dout, ConstTensorView x,
                                     ConstTensorView weight, ConstTensorView rstd, TensorView dx,
                                     bool accumulate_dx, TensorView dweight) {
  return Time("rms_norm", [&] {
    return inner_.RmsNormBackward(dout, x, weight, rstd, dx, accumulate_dx, dweight);
  });
}

Status TimedBackend::RopeForward(const RopeParams& params, ConstTensorView x, TensorView out) {
  return Time("rope", [&] { return inner_.RopeForward(params, x, out); });
}

Status TimedBackend::RopeBackward(const RopeParams& params, TensorView dx) {
  return Time("rope", [&] { return inner_.RopeBackward(params, dx); });
}

Status TimedBackend::AttentionForward(const AttentionParams& params, ConstTensorView q,
                                      ConstTensorView k, ConstTensorView v, TensorView out,
                                      TensorView lse) {
  return Time("attention", [&] { return inner_.AttentionForward(params, q, k, v, out, lse); });
}

Status TimedBackend::AttentionBackward(const AttentionParams& params, ConstTensorView dout,
                                       ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                       ConstTensorView out, ConstTensorView lse, TensorView dq,
                                       TensorView dk, TensorView dv) {
  return Time("attention", [&] {
    return inner_.AttentionBackward(params, dout, q, k, v, out, lse, dq, dk, dv);
  });
}

Status TimedBackend::SwiGluForward(ConstTensorView gate, ConstTensorView up, TensorView out) {
  return Time("swiglu", [&] { return inner_.SwiGluForward(gate, up, out); });
}

Status TimedBackend::SwiGluBackward(ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                                    TensorView dgate, TensorView dup) {
  return Time("swiglu", [&] { return inner_.SwiGluBackward(dout, gate, up, dgate, dup); });
}

Status TimedBackend::Add(ConstTensorView a, ConstTensorView b, TensorView out) {
  return Time("elementwise", [&] { return inner_.Add(a, b, out); });
}

Status TimedBackend::Axpy(float factor, ConstTensorView x, TensorView y) {
  return Time("elementwise", [&] { return inner_.Axpy(factor, x, y); });
}

Status TimedBackend::Scale(float factor, TensorView x) {
  return Time("elementwise", [&] { return inner_.Scale(factor, x); });
}

Status TimedBackend::RoundToBf16(ConstTensorView x, TensorView out) {
  return Time("elementwise", [&] { return inner_.RoundToBf16(x, out); });
}

Status TimedBackend::CrossEntropy(TensorView logits, ConstTensorView targets, float gradient_scale,
                                  TensorView gradient, TensorView losses) {
  return Time("cross_entropy", [&] {
    return inner_.CrossEntropy(logits, targets, gradient_scale, gradient, losses);
  });
}

Status TimedBackend::Gemm(GemmMode mode, ConstTensorView a, Transpose transpose_a,
                          ConstTensorView b, Transpose transpose_b, bool accumulate,
                          TensorView out) {
  const bool head = head_size_ > 0 && (a.rows == head_size_ || a.cols == head_size_ ||
                                       b.rows == head_size_ || out.rows == head_size_);
  return Time(head ? "head_gemm" : "gemm",
              [&] { return inner_.Gemm(mode, a, transpose_a, b, transpose_b, accumulate, out); });
}

Status TimedBackend::Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                              QuantizedTensor* out, TensorView decoded) {
  return Time("quantize", [&] { return inner_.Quantize(quant, context, x, out, decoded); });
}

Status TimedBackend::QuantizeBoth(const Quant& first, const QuantizeContext& first_context,
                                  const Quant& second, const QuantizeContext& second_context,
                                  ConstTensorView x, QuantizedTensor* first_out,
                                  QuantizedTensor* second_out) {
  return Time("quantize", [&] {
    return inner_.QuantizeBoth(first, first_context, second, second_context, x, first_out,
                               second_out);
  });
}

// A composition is timed by its parts.
Status TimedBackend::QuantizeFormed(const OperandSource& source, const Quant& quant,
                                    const QuantizeContext& context, QuantizedTensor* out) {
  const Op op = source.form == OperandSource::Form::kSwiGlu ? Op::kSwiGlu : Op::kRmsNorm;
  if (inner_.Supports({op, quant.elem}) != Support::kFast) {
    return Backend::QuantizeFormed(source, quant, context, out);
  }
  return Time("quantize", [&] { return inner_.QuantizeFormed(source, quant, context, out); });
}

Status TimedBackend::SwiGluBackwardToCodes(const SwiGluGradientViews& views,
                                           const std::array<QuantizeTarget, 2>& dgate,
                                           const std::array<QuantizeTarget, 2>& dup) {
  if (inner_.Supports({Op::kSwiGlu, dgate[0].quant->elem}) != Support::kFast) {
    return Backend::SwiGluBackwardToCodes(views, dgate, dup);
  }
  return Time("quantize", [&] { return inner_.SwiGluBackwardToCodes(views, dgate, dup); });
}

Status TimedBackend::Dequantize(const QuantizedTensor& x, TensorView decoded) {
  return Time("dequantize", [&] { return inner_.Dequantize(x, decoded); });
}

Status TimedBackend::DgeAccumulate(const WeightEstimator& estimator, ConstTensorView wgrad,
                                   ConstTensorView weight, const QuantizedTensor& quantized,
                                   TensorView gradient) {
  return Time("dge",
              [&] { return inner_.DgeAccumulate(estimator, wgrad, weight, quantized, gradient); });
}

Status TimedBackend::DgeScale(const PendingFactor& pending) {
  return Time("dge", [&] { return inner_.DgeScale(pending); });
}

Status TimedBackend::QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                                   const QuantizedTensor& b, TensorView out) {
  return Time("quantized_gemm", [&] { return inner_.QuantizedGemm(params, a, b, out); });
}

Status TimedBackend::ApplyMask(const QuantizedTensor& quantized, TensorView x) {
  return Time("mask", [&] { return inner_.ApplyMask(quantized, x); });
}

Status TimedBackend::Rotate(const Rotation& rotation, const QuantizeContext& context, bool inverse,
                            ConstTensorView x, TensorView out) {
  return Time("rotate", [&] { return inner_.Rotate(rotation, context, inverse, x, out); });
}

Result<QuantizationHealth> TimedBackend::MeasureHealth(ConstTensorView x,
                                                       const QuantizedTensor& quantized,
                                                       ConstTensorView decoded) {
  return Time("health", [&] { return inner_.MeasureHealth(x, quantized, decoded); });
}

Status TimedBackend::AdamW(const AdamWParams& params, ConstTensorView gradient, TensorView m,
                           TensorView v, TensorView parameter) {
  return Time("adamw", [&] { return inner_.AdamW(params, gradient, m, v, parameter); });
}

Status TimedBackend::AdamWQuantize(const AdamWParams& params, const Quant& quant,
                                   const QuantizeContext& context, ConstTensorView gradient,
                                   TensorView m, TensorView v, TensorView parameter,
                                   QuantizedTensor* out) {
  return Time("adamw_quantize", [&] {
    return inner_.AdamWQuantize(params, quant, context, gradient, m, v, parameter, out);
  });
}

Status TimedBackend::RoundedAdamW(const AdamWParams& params, const StatePrecision& precision,
                                  ConstTensorView gradient, TensorView m, TensorView v,
                                  TensorView parameter, StateScales* scales) {
  return Time("adamw", [&] {
    return inner_.RoundedAdamW(params, precision, gradient, m, v, parameter, scales);
  });
}

Status TimedBackend::AddPath(ConstTensorView x, TensorView previous, TensorView path) {
  return Time("weight rule", [&] { return inner_.AddPath(x, previous, path); });
}

Result<int64_t> TimedBackend::ResetOscillating(float ratio, ConstTensorView path,
                                               ConstTensorView quantized_path,
                                               ConstTensorView quantized, TensorView weight) {
  return Time("weight rule", [&] {
    return inner_.ResetOscillating(ratio, path, quantized_path, quantized, weight);
  });
}

Status TimedBackend::RoundToE4M3(float scale, TensorView x) {
  return Time("quantize", [&] { return inner_.RoundToE4M3(scale, x); });
}

Result<float> TimedBackend::AbsMax(ConstTensorView x) {
  return Time("reduction", [&] { return inner_.AbsMax(x); });
}

Result<double> TimedBackend::Sum(ConstTensorView x) {
  return Time("reduction", [&] { return inner_.Sum(x); });
}

Result<double> TimedBackend::ScaledSumOfSquares(std::span<const PendingFactor> pending,
                                                ConstTensorView gradients) {
  return Time(pending.empty() ? "reduction" : "dge",
              [&] { return inner_.ScaledSumOfSquares(pending, gradients); });
}

Result<double> TimedBackend::SumOfSquares(ConstTensorView x) {
  return Time("reduction", [&] { return inner_.SumOfSquares(x); });
}

}  // namespace nibble::bench
