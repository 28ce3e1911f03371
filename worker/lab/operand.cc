// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/operand.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "base/strings.h"
#include "kernels/formats/bf16.h"

namespace nibble {
namespace {

constexpr uint32_t kLayer = 0;  // of the random stream

// The forward slot, or Gd, whose tensor this slot reads too.
Slot FirstSlotOf(Slot slot) {
  switch (slot) {
    case Slot::kWd:
      return Slot::kWf;
    case Slot::kGw:
      return Slot::kGd;
    case Slot::kXw:
      return Slot::kXf;
    default:
      return slot;
  }
}

template <typename T>
Result<std::vector<T>> HostCopy(Backend* backend, const Buffer& buffer, int64_t count) {
  std::vector<T> host(static_cast<size_t>(count));
  const auto bytes = count * static_cast<int64_t>(sizeof(T));
  if (bytes > buffer.capacity_bytes()) {
    return InternalError(StrFormat("quantized tensor: %lld bytes wanted of a buffer of %lld",
                                   static_cast<long long>(bytes),
                                   static_cast<long long>(buffer.capacity_bytes())));
  }
  RETURN_IF_ERROR(backend->CopyOut(host.data(), buffer.data(), bytes));
  return host;
}

template <typename T>
OutputTensor TensorOf(std::string name, const char* dtype, std::vector<int64_t> shape,
                      const std::vector<T>& values) {
  OutputTensor out{std::move(name), dtype, std::move(shape), {}};
  out.bytes.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  return out;
}

const char* CodeDType(Elem elem) {
  switch (elem) {
    case Elem::kE4M3:
      return "F8_E4M3";
    case Elem::kE5M2:
      return "F8_E5M2";
    case Elem::kBf16:
      return "BF16";
    case Elem::kInt8:
      return "I8";
    default:
      return "U8";
  }
}

// Four-bit codes get a byte each: readers then need no packing rule.
Result<OutputTensor> Codes(Backend* backend, const QuantizedTensor& q) {
  const int64_t row_bytes = q.code_row_bytes();
  ASSIGN_OR_RETURN(std::vector<uint8_t> packed,
                   HostCopy<uint8_t>(backend, q.codes, q.rows * row_bytes));
  if (ElemBits(q.elem) != 4) {
    return TensorOf("codes", CodeDType(q.elem), {q.rows, q.cols}, packed);
  }
  std::vector<uint8_t> codes(static_cast<size_t>(q.rows * q.cols));
  for (int64_t row = 0; row < q.rows; ++row) {
    for (int64_t col = 0; col < q.cols; ++col) {
      const uint8_t pair = packed[static_cast<size_t>(row * row_bytes + col / 2)];
      codes[static_cast<size_t>(row * q.cols + col)] = col % 2 == 0 ? pair & 15 : pair >> 4;
    }
  }
  return TensorOf("codes", "U8", {q.rows, q.cols}, codes);
}

// Plain scales are the multipliers before rounding; group scales are what decoding multiplies by.
Status AddScales(Backend* backend, const QuantizedTensor& q, Operand* out) {
  const int64_t groups = q.scale_count();
  const Buffer& scales = q.has_group_scale ? q.group_scale : q.enc;
  ASSIGN_OR_RETURN(out->scales, HostCopy<float>(backend, scales, groups));
  out->tensors.push_back(TensorOf("scales", "F32", {groups}, out->scales));
  out->metadata["scales"] = q.has_group_scale ? "factor of decoding" : "multiplier before rounding";
  if (q.recast_enc != 0) {
    out->metadata["recast_enc"] = StrFormat("%.9g", static_cast<double>(q.recast_enc));
  }
  if (!q.has_group_scale) return OkStatus();
  const int64_t outers = q.outer_count();
  ASSIGN_OR_RETURN(const auto codes, HostCopy<uint8_t>(backend, q.scale_codes, groups));
  ASSIGN_OR_RETURN(const auto outer, HostCopy<float>(backend, q.outer_scale, outers));
  out->tensors.push_back(TensorOf("scale_codes", "U8", {groups}, codes));
  out->tensors.push_back(TensorOf("outer_scales", "F32", {outers}, outer));
  out->metadata["group"] = std::to_string(q.group);
  out->metadata["outer_divisor"] = StrFormat("%.9g", static_cast<double>(q.outer_divisor));
  return OkStatus();
}

Status AddResidual(Backend* backend, const QuantizedTensor& q, Operand* out) {
  if (q.comp == OccComp::kNone) return OkStatus();
  const int64_t count = q.residual_count;
  ASSIGN_OR_RETURN(const auto offsets, HostCopy<int32_t>(backend, q.residual_offsets, q.rows + 1));
  ASSIGN_OR_RETURN(const auto columns, HostCopy<int32_t>(backend, q.residual_columns, count));
  out->tensors.push_back(TensorOf("residual_offsets", "I32", {q.rows + 1}, offsets));
  out->tensors.push_back(TensorOf("residual_columns", "I32", {count}, columns));
  if (q.comp == OccComp::kBf16) {
    ASSIGN_OR_RETURN(const auto values, HostCopy<float>(backend, q.residual_values, count));
    out->tensors.push_back(TensorOf("residual_values", "F32", {count}, values));
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const auto values, HostCopy<uint8_t>(backend, q.residual_values, count));
  const char* dtype = q.comp == OccComp::kE4M3 ? "F8_E4M3" : "I8";
  out->tensors.push_back(TensorOf("residual_values", dtype, {count}, values));
  out->metadata["residual_enc"] = StrFormat("%.9g", static_cast<double>(q.residual_enc));
  return OkStatus();
}

// An operand that no code stands for: FP32 as it is, or rounded to BF16.
Operand Unscaled(const Quant& quant, Slot holder, const Matrix& x) {
  Operand out{holder, quant, {}, {}, {}, {}};
  Matrix decoded = x;
  decoded.name = "decoded";
  double source = 0, noise = 0;
  for (float& value : decoded.values) {
    const float before = value;
    if (quant.elem == Elem::kBf16) value = formats::RoundBf16(value);
    source += static_cast<double>(before) * static_cast<double>(before);
    const double error = static_cast<double>(before) - static_cast<double>(value);
    noise += error * error;
  }
  QuantizationHealth& health = out.health;
  health.elements = static_cast<int64_t>(x.values.size());
  health.mse = noise / static_cast<double>(health.elements);
  health.source_norm = std::sqrt(source);
  health.noise_norm = std::sqrt(noise);
  health.snr_db = noise > 0 ? 10 * std::log10(source / noise) : kMaxSnrDb;
  out.tensors.push_back(OutputOf(decoded));
  return out;
}

Result<Operand> HostOperand(Backend* backend, const Quant& quant, Slot holder,
                            const QuantizedTensor& q, Matrix decoded) {
  Operand out{holder, quant, {}, {}, {}, {}};
  ASSIGN_OR_RETURN(OutputTensor codes, Codes(backend, q));
  out.tensors.push_back(std::move(codes));
  RETURN_IF_ERROR(AddScales(backend, q, &out));
  decoded.name = "decoded";
  out.tensors.push_back(OutputOf(decoded));
  out.metadata["elem"] = ElemName(q.elem);
  out.metadata["block"] = BlockName(q.block, q.group);
  out.metadata["scale"] = ScaleName(quant);
  out.metadata["packing"] = "one code per element";
  RETURN_IF_ERROR(AddResidual(backend, q, &out));
  return out;
}

// The operand whose scales `slot` folds in: W for Gd, X for Gw, through their forward slots.
Status MakeFold(LinearWorkspace* workspace, const LinearRecipe& recipe, Slot slot,
                const LinearStep& step, const Matrix* other, SlotOperand* fold) {
  if (other == nullptr) {
    return InvalidArgumentError(
        StrFormat("slot %s divides by the scales of %s; give that tensor with --fold FILE[:NAME]",
                  SlotName(slot), slot == Slot::kGd ? "W" : "X"));
  }
  const Slot forward = slot == Slot::kGd ? Slot::kWf : Slot::kXf;
  return fold->Make(*workspace, recipe, forward, kLayer, step, nullptr, {}, other->view());
}

}  // namespace

Result<Operand> QuantizeOperand(Backend* backend, const LinearRecipe& recipe, Slot slot,
                                const LinearStep& step, const Matrix& x, const Matrix* other) {
  const Slot first = FirstSlotOf(slot);
  const Slot holder = recipe.SharesCodes(slot) ? first : slot;
  const Quant& quant = recipe.slot(holder);
  if (!quant.has_scale()) return Unscaled(quant, holder, x);

  Matrix source = x;
  int64_t nonfinite = 0;  // met before the slot's own quantizer
  if (quant.source == Source::kRequant) {
    ASSIGN_OR_RETURN(Operand forward, QuantizeOperand(backend, recipe, first, step, x, nullptr));
    nonfinite = forward.health.nonfinite_amax;
    for (const OutputTensor& tensor : forward.tensors) {
      if (tensor.name != "decoded") continue;
      std::memcpy(source.values.data(), tensor.bytes.data(), tensor.bytes.size());
    }
  }
  LinearWorkspace workspace(backend);
  SlotOperand fold, operand;
  if (quant.fold) RETURN_IF_ERROR(MakeFold(&workspace, recipe, holder, step, other, &fold));
  OperandForms forms;
  forms.decoded = forms.health = true;
  RETURN_IF_ERROR(operand.Make(workspace, recipe, holder, kLayer, step,
                               quant.fold ? &fold : nullptr, forms, source.view()));
  ASSIGN_OR_RETURN(const ConstTensorView view, operand.Decoded(workspace));
  Matrix decoded = MakeMatrix("decoded", x.rows, x.cols);
  RETURN_IF_ERROR(backend->CopyOut(decoded.values.data(), view.data, view.size_bytes()));
  ASSIGN_OR_RETURN(Operand out,
                   HostOperand(backend, quant, holder, operand.codes(), std::move(decoded)));
  out.health = operand.health();
  out.health.nonfinite_amax += nonfinite;
  return out;
}

Json ScaleHistogram(const std::vector<float>& scales) {
  std::map<int, int64_t> bins;
  int64_t odd = 0;
  for (const float scale : scales) {
    if (!(scale > 0) || !std::isfinite(scale)) {
      ++odd;
    } else {
      ++bins[std::ilogb(scale)];
    }
  }
  Json histogram = Json::Array();
  for (const auto& [exponent, count] : bins) {
    histogram.Append(Json::Object({{"log2", exponent}, {"count", count}}));
  }
  if (odd > 0) histogram.Append(Json::Object({{"log2", Json()}, {"count", odd}}));
  return histogram;
}

}  // namespace nibble
