// SPDX-License-Identifier: Apache-2.0
//
// Names and defaults shared by all backends; Buffer.
#include "kernels/backend.h"

#include <string>

namespace nibble {

const char* DTypeName(DType type) {
  static constexpr const char* kNames[] = {"f32", "bf16", "i32", "u8", "f16"};
  return kNames[static_cast<int>(type)];
}

const char* OpName(Op op) {
  static constexpr const char* kNames[] = {
      "embedding",     "rms_norm", "rope",     "attention",      "swiglu", "elementwise",
      "cross_entropy", "gemm",     "quantize", "quantized_gemm", "adamw",  "reduction"};
  return kNames[static_cast<int>(op)];
}

const char* SupportName(Support support) {
  static constexpr const char* kNames[] = {"none", "reference", "fast"};
  return kNames[static_cast<int>(support)];
}

Status Buffer::Reserve(Backend& backend, int64_t size_bytes) {
  if (backend_ == &backend && size_bytes <= capacity_bytes_) return OkStatus();
  Reset();
  ASSIGN_OR_RETURN(data_, backend.Allocate(size_bytes));
  backend_ = &backend;
  capacity_bytes_ = size_bytes;
  return OkStatus();
}

Result<TensorView> Buffer::View(Backend& backend, int64_t rows, int64_t cols, DType type) {
  RETURN_IF_ERROR(Reserve(backend, rows * cols * SizeOf(type)));
  return TensorView{data_, rows, cols, type};
}

void Buffer::Reset() {
  if (backend_ != nullptr) backend_->Free(data_);
  backend_ = nullptr;
  data_ = nullptr;
  capacity_bytes_ = 0;
}

int64_t QuantizedTensor::code_row_bytes() const { return (cols * ElemBits(elem) + 7) / 8; }

int64_t QuantizedTensor::scale_count() const {
  const auto groups = [&](int64_t n) { return (n + group - 1) / group; };
  if (block == Block::kTile) return groups(rows) * groups(cols);
  if (block == Block::kGroup) {
    return contraction == Axis::kCols ? rows * groups(cols) : cols * groups(rows);
  }
  return per_column() ? cols : (per_row() ? rows : 1);
}

int64_t QuantizedTensor::outer_count() const {
  if (outer == Outer::kTensor) return 1;
  return along_rows() ? cols * ((rows + 127) / 128) : rows * ((cols + 127) / 128);
}

int64_t QuantizedTensor::size_bytes() const {
  int64_t total = has_codes ? rows * code_row_bytes() : 0;
  if (has_group_scale) {
    total += scale_count() + outer_count() * 4;
  } else if (scale != ScaleRule::kNone) {
    total += scale_count() * 4;
  }
  if (recast_enc != 0) total += 4;
  if (has_mask) total += rows * cols;
  if (comp != OccComp::kNone) {
    const int64_t value_bytes = comp == OccComp::kBf16 ? 4 : 1;
    total += (rows + 1) * 4 + residual_count * (4 + value_bytes);
  }
  return total;
}

Status Backend::RoundedAdamW(const AdamWParams&, const StatePrecision&, ConstTensorView, TensorView,
                             TensorView, TensorView, StateScales*) {
  return UnimplementedError("backend " + std::string(name()) + " has no AdamW on a rounded state");
}

Result<float> Backend::AbsMax(ConstTensorView) {
  return UnimplementedError("backend " + std::string(name()) + " has no AbsMax");
}

Status Backend::RoundToE4M3(float, TensorView) {
  return UnimplementedError("backend " + std::string(name()) + " has no RoundToE4M3");
}

Status Backend::AddPath(ConstTensorView, TensorView, TensorView) {
  return UnimplementedError("backend " + std::string(name()) + " has no AddPath");
}

Result<int64_t> Backend::ResetOscillating(float, ConstTensorView, ConstTensorView, ConstTensorView,
                                          TensorView) {
  return UnimplementedError("backend " + std::string(name()) + " has no ResetOscillating");
}

Status Backend::TransferIn(int, void* device, const void* host, int64_t size_bytes) {
  return CopyIn(device, host, size_bytes);
}
Status Backend::TransferOut(int, void* host, const void* device, int64_t size_bytes) {
  return CopyOut(host, device, size_bytes);
}
Status Backend::LaneAfterWork(int) { return OkStatus(); }
Status Backend::WorkAfterLane(int) { return OkStatus(); }
Status Backend::PinHost(void*, int64_t) { return OkStatus(); }
void Backend::UnpinHost(void*) {}

Status Backend::BeginStep() { return OkStatus(); }
Status Backend::EndStep() { return OkStatus(); }

Status Backend::AddRmsNormForward(ConstTensorView a, ConstTensorView b, ConstTensorView weight,
                                  float epsilon, TensorView sum, TensorView out, TensorView rstd) {
  RETURN_IF_ERROR(Add(a, b, sum));
  return RmsNormForward(sum, weight, epsilon, out, rstd);
}

Status Backend::ReadCounters(QuantizedTensor*) { return OkStatus(); }

Status Backend::QuantizeBoth(const Quant& first, const QuantizeContext& first_context,
                             const Quant& second, const QuantizeContext& second_context,
                             ConstTensorView x, QuantizedTensor* first_out,
                             QuantizedTensor* second_out) {
  RETURN_IF_ERROR(Quantize(first, first_context, x, first_out, {}));
  return Quantize(second, second_context, x, second_out, {});
}

bool Backend::QuantizesInUpdate(const Quant&) const { return false; }

Status Backend::AdamWQuantize(const AdamWParams& params, const Quant& quant,
                              const QuantizeContext& context, ConstTensorView gradient,
                              TensorView m, TensorView v, TensorView parameter,
                              QuantizedTensor* out) {
  RETURN_IF_ERROR(AdamW(params, gradient, m, v, parameter));
  return Quantize(quant, context, parameter, out, {});
}

Result<double> Backend::ScaledSumOfSquares(std::span<const PendingFactor> pending,
                                           ConstTensorView gradients) {
  for (const PendingFactor& factor : pending) RETURN_IF_ERROR(DgeScale(factor));
  return SumOfSquares(gradients);
}

Status FormRows(Backend& backend, const OperandSource& s) {
  switch (s.form) {
    case OperandSource::Form::kRmsNorm:
      return backend.RmsNormForward(s.a, s.weight, s.epsilon, s.rows, s.rstd);
    case OperandSource::Form::kAddRmsNorm:
      return backend.AddRmsNormForward(s.a, s.b, s.weight, s.epsilon, s.sum, s.rows, s.rstd);
    case OperandSource::Form::kSwiGlu:
      break;
  }
  return backend.SwiGluForward(s.a, s.b, s.rows);
}

Status Backend::QuantizeFormed(const OperandSource& source, const Quant& quant,
                               const QuantizeContext& context, QuantizedTensor* out) {
  RETURN_IF_ERROR(FormRows(*this, source));
  if (quant.rotation.size == 0) return Quantize(quant, context, source.rows, out, {});
  return QuantizeRotated(quant, context, source.rows, source.rows, out, {});
}

Status RotateSource(Backend& backend, const Quant& quant, const QuantizeContext& context,
                    ConstTensorView x, TensorView rotated) {
  if (quant.source != Source::kRequant) {
    RETURN_IF_ERROR(backend.RoundToBf16(x, rotated));
    x = rotated;
  }
  return backend.Rotate(quant.rotation, context, false, x, rotated);
}

Status Backend::QuantizeRotated(const Quant& quant, const QuantizeContext& context,
                                ConstTensorView x, TensorView rotated, QuantizedTensor* out,
                                TensorView decoded) {
  RETURN_IF_ERROR(RotateSource(*this, quant, context, x, rotated));
  return Quantize(quant, context, rotated, out, decoded);
}

Status Backend::SwiGluBackwardToCodes(const SwiGluGradientViews& v,
                                      const std::array<QuantizeTarget, 2>& dgate,
                                      const std::array<QuantizeTarget, 2>& dup) {
  RETURN_IF_ERROR(SwiGluBackward(v.dout, v.gate, v.up, v.dgate, v.dup));
  const auto both = [&](const std::array<QuantizeTarget, 2>& to, ConstTensorView x) {
    return QuantizeBoth(*to[0].quant, *to[0].context, *to[1].quant, *to[1].context, x, to[0].out,
                        to[1].out);
  };
  RETURN_IF_ERROR(both(dgate, v.dgate));
  return both(dup, v.dup);
}

}  // namespace nibble
