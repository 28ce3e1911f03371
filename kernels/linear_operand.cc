// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear_operand.h"

#include <string>

namespace nibble {
namespace {

// The slot's GEMM sums over the rows of the matrix as it is stored.
Axis ContractionOf(Slot slot) {
  return slot == Slot::kWd || slot == Slot::kGw || slot == Slot::kXw ? Axis::kRows : Axis::kCols;
}

// The slot's quantizer for the matrix as it is stored: an output channel is a row of W and a column
// of dY there, whichever way the contraction runs.
Quant StoredQuant(const LinearRecipe& recipe, Slot slot) {
  Quant quant = recipe.slot(slot);
  const bool weight = slot == Slot::kWf || slot == Slot::kWd;
  if (weight && quant.block == Block::kOutputChannel) quant.block = Block::kToken;
  const WeightEstimator& estimator = recipe.weight_estimator;
  if (slot == Slot::kWf && estimator.max_gradient == MaxGradient::kSoftmax) {
    quant.smooth_max = estimator.max_temperature;
  }
  if (slot == Slot::kGd && quant.block == Block::kOutputChannel) quant.block = Block::kInputChannel;
  return quant;
}

// Signs have streams of their own, one per product of a layer.
uint32_t SignsStream(Slot slot, uint32_t layer) {
  const uint32_t product = static_cast<uint32_t>(slot) / 2;
  return 0x80000000u | (layer * 4 + product);
}

}  // namespace

int64_t LinearWorkspace::size_bytes() const {
  int64_t total = product_.capacity_bytes() + rotated_.capacity_bytes() + rest_.capacity_bytes();
  for (const GradientOperands& gradient : gradients_) {
    total += gradient.dgrad.codes().codes.capacity_bytes();
    total += gradient.wgrad.codes().codes.capacity_bytes();
  }
  for (const DecodedBuffer& buffer : decoded_) total += buffer.memory.capacity_bytes();
  for (const DecodedBuffer& buffer : bf16_) total += buffer.memory.capacity_bytes();
  return total;
}

size_t LinearWorkspace::RoleOf(Slot slot) {
  switch (slot) {
    case Slot::kXf:
    case Slot::kXw:
      return 0;
    case Slot::kWf:
    case Slot::kWd:
      return 1;
    case Slot::kGd:
      return 2;
    case Slot::kGw:
      break;
  }
  return 3;
}

Status SlotOperand::Prepare(LinearWorkspace& workspace, const LinearRecipe& recipe, Slot slot,
                            uint32_t layer, const LinearStep& step, const SlotOperand* fold,
                            ConstTensorView source, const OperandExtras& extras) {
  slot_ = slot;
  quant_ = StoredQuant(recipe, slot);
  context_ = QuantizeContext();
  context_.seed = step.seed;
  context_.step = step.step;
  context_.completed = step.completed;
  context_.stream = layer * 8 + static_cast<uint32_t>(slot);
  context_.contraction = ContractionOf(slot);
  context_.rotation_stream = SignsStream(slot, extras.signs_layer);
  context_.replay = step.replay;
  // Rotated values and decoded codes are quantized as they are; Transformer Engine rounds its
  // rotated values to BF16.
  context_.round_source = quant_.rotation.size > 0 ? quant_.rotation.signs == Signs::kFixed
                                                   : quant_.source != Source::kRequant;
  if (quant_.has_history()) {
    context_.history = extras.history != nullptr ? extras.history : &history_;
    if (!step.advance_histories) {
      workspace.peeked_ = *context_.history;
      context_.history = &workspace.peeked_;
    }
  }
  if (quant_.fold) {
    if (fold == nullptr || !fold->has_codes()) {
      return FailedPreconditionError(std::string("linear.") + SlotName(slot) +
                                     ": fold needs codes in the other operand of the product");
    }
    context_.fold = &fold->codes();
  }
  source_ = has_codes() ? ConstTensorView() : source;
  stamp_ = workspace.NextStamp();
  return OkStatus();
}

Status SlotOperand::Make(LinearWorkspace& workspace, const LinearRecipe& recipe, Slot slot,
                         uint32_t layer, const LinearStep& step, const SlotOperand* fold,
                         OperandForms forms, ConstTensorView source, const OperandExtras& extras) {
  RETURN_IF_ERROR(Prepare(workspace, recipe, slot, layer, step, fold, source, extras));
  if (!has_codes()) return OkStatus();
  Backend& backend = workspace.backend();
  LinearWorkspace::DecodedBuffer& buffer = workspace.decoded_[LinearWorkspace::RoleOf(slot)];
  TensorView decoded;
  if (forms.decoded || forms.health) {
    ASSIGN_OR_RETURN(decoded, buffer.memory.View(backend, source.rows, source.cols));
    buffer.content = 0;
  }
  context_.keep_codes = forms.codes;
  splits_ = quant_.split != Split::kNone && !extras.whole;
  if (!splits_) split_.Clear();
  TensorView rotated;
  if (quant_.rotation.size > 0) {
    ASSIGN_OR_RETURN(rotated, workspace.rotated_.View(backend, source.rows, source.cols));
  }
  // A split and health look at the rotated values, not only at their codes.
  const bool codes_alone = !splits_ && !forms.health;
  if (rotated.data != nullptr && !codes_alone) {
    RETURN_IF_ERROR(RotateSource(backend, quant_, context_, source, rotated));
    source = rotated;
  }
  const ConstTensorView whole = source;
  if (splits_) {
    ASSIGN_OR_RETURN(const TensorView rest,
                     workspace.rest_.View(backend, source.rows, source.cols));
    if (source.dtype == DType::kBF16) {
      RETURN_IF_ERROR(backend.RoundToBf16(source, rest));
      source = rest;
    }
    RETURN_IF_ERROR(split_.Take(backend, quant_, context_, source, extras.channels, rest));
    source = rest;
  }
  Quant quant = quant_;
  quant.split = Split::kNone;
  if (rotated.data != nullptr && codes_alone) {
    RETURN_IF_ERROR(backend.QuantizeRotated(quant, context_, source, rotated, &codes_, decoded));
  } else {
    RETURN_IF_ERROR(backend.Quantize(quant, context_, source, &codes_, decoded));
  }
  codes_.nonfinite_amax += splits_ ? split_.nonfinite_amax() : 0;
  if (splits_ && decoded.data != nullptr) {
    RETURN_IF_ERROR(split_.AddTo(backend, decoded));
  }
  if (decoded.data != nullptr) buffer.content = stamp_;
  if (forms.health) {
    ASSIGN_OR_RETURN(health_, backend.MeasureHealth(whole, codes_, decoded));
  }
  return OkStatus();
}

Status SlotOperand::MakeFormed(LinearWorkspace& workspace, const LinearRecipe& recipe, Slot slot,
                               uint32_t layer, const LinearStep& step,
                               const OperandSource& source) {
  RETURN_IF_ERROR(Prepare(workspace, recipe, slot, layer, step, nullptr, source.rows, {}));
  splits_ = false;
  split_.Clear();
  return workspace.backend().QuantizeFormed(source, quant_, context_, &codes_);
}

Result<std::array<QuantizeTarget, 2>> SlotOperand::PrepareBoth(
    LinearWorkspace& workspace, const LinearRecipe& recipe, uint32_t layer, const LinearStep& step,
    const SlotOperand& dgrad_fold, const SlotOperand& wgrad_fold, ConstTensorView dy,
    SlotOperand* dgrad, SlotOperand* wgrad) {
  RETURN_IF_ERROR(dgrad->Prepare(workspace, recipe, Slot::kGd, layer, step, &dgrad_fold, dy, {}));
  RETURN_IF_ERROR(wgrad->Prepare(workspace, recipe, Slot::kGw, layer, step, &wgrad_fold, dy, {}));
  return std::array<QuantizeTarget, 2>{{{&dgrad->quant_, &dgrad->context_, &dgrad->codes_},
                                        {&wgrad->quant_, &wgrad->context_, &wgrad->codes_}}};
}

Status SlotOperand::MakeBoth(LinearWorkspace& workspace, const LinearRecipe& recipe, uint32_t layer,
                             const LinearStep& step, const SlotOperand& dgrad_fold,
                             const SlotOperand& wgrad_fold, ConstTensorView dy, SlotOperand* dgrad,
                             SlotOperand* wgrad) {
  ASSIGN_OR_RETURN(const auto to, PrepareBoth(workspace, recipe, layer, step, dgrad_fold,
                                              wgrad_fold, dy, dgrad, wgrad));
  return workspace.backend().QuantizeBoth(*to[0].quant, *to[0].context, *to[1].quant,
                                          *to[1].context, dy, to[0].out, to[1].out);
}

bool SlotOperand::QuantizesInUpdate(const Backend& backend, const LinearRecipe& recipe) {
  const Quant quant = StoredQuant(recipe, Slot::kWf);
  return quant.has_scale() && !quant.stochastic() && quant.rotation.size == 0 &&
         quant.split == Split::kNone && !quant.has_history() && !quant.pre.enabled && !quant.fold &&
         quant.fallback_error == 0 && !quant.alternatives.enabled() && !quant.recast_e4m3 &&
         quant.mask == Mask::kNone && quant.smooth_max == 0 && quant.source == Source::kHp &&
         backend.QuantizesInUpdate(quant);
}

Status SlotOperand::MakeUpdating(LinearWorkspace& workspace, const LinearRecipe& recipe,
                                 uint32_t layer, const LinearStep& step,
                                 const WeightUpdate& update) {
  RETURN_IF_ERROR(
      Prepare(workspace, recipe, Slot::kWf, layer, step, nullptr, update.weight, {layer, nullptr}));
  splits_ = false;
  split_.Clear();
  return workspace.backend().AdamWQuantize(update.params, quant_, context_, update.gradient,
                                           update.m, update.v, update.weight, &codes_);
}

Status SlotOperand::PullBack(Backend& backend, bool rotated, TensorView gradient) const {
  const bool masked = has_codes() && codes_.has_mask;
  const bool rotates = quant_.rotation.size > 0;
  // The mask belongs to the rotated values.
  if (masked && rotates && !rotated) {
    RETURN_IF_ERROR(backend.Rotate(quant_.rotation, context_, false, gradient, gradient));
  }
  if (masked) RETURN_IF_ERROR(backend.ApplyMask(codes_, gradient));
  if (!rotates || !(masked || rotated)) return OkStatus();
  return backend.Rotate(quant_.rotation, context_, true, gradient, gradient);
}

Status SlotOperand::DecodedSource(LinearWorkspace& workspace, TensorView out) {
  ASSIGN_OR_RETURN(const ConstTensorView decoded, Decoded(workspace));
  Backend& backend = workspace.backend();
  if (quant_.rotation.size > 0) {
    return backend.Rotate(quant_.rotation, context_, true, decoded, out);
  }
  return backend.Copy(out.data, decoded.data, decoded.size_bytes());
}

Result<ConstTensorView> SlotOperand::Decoded(LinearWorkspace& workspace) {
  if (quant_.elem == Elem::kF32 && source_.dtype == DType::kF32) return source_;
  Backend& backend = workspace.backend();
  LinearWorkspace::DecodedBuffer& buffer = workspace.decoded_[LinearWorkspace::RoleOf(slot_)];
  const int64_t rows = has_codes() ? codes_.rows : source_.rows;
  const int64_t cols = has_codes() ? codes_.cols : source_.cols;
  ASSIGN_OR_RETURN(const TensorView decoded, buffer.memory.View(backend, rows, cols));
  if (buffer.content == stamp_) return ConstTensorView(decoded);
  buffer.content = 0;
  RETURN_IF_ERROR(has_codes() ? backend.Dequantize(codes_, decoded)
                              : backend.RoundToBf16(source_, decoded));
  if (has_codes() && splits_) {
    RETURN_IF_ERROR(split_.AddTo(backend, decoded));
  }
  if (!has_codes() && quant_.rotation.size > 0) {
    RETURN_IF_ERROR(backend.Rotate(quant_.rotation, context_, false, decoded, decoded));
  }
  buffer.content = stamp_;
  return ConstTensorView(decoded);
}

Result<ConstTensorView> SlotOperand::InBf16(LinearWorkspace& workspace) {
  if (source_.dtype == DType::kBF16) return source_;
  Backend& backend = workspace.backend();
  LinearWorkspace::DecodedBuffer& buffer = workspace.bf16_[LinearWorkspace::RoleOf(slot_)];
  ASSIGN_OR_RETURN(const TensorView rounded,
                   buffer.memory.View(backend, source_.rows, source_.cols, DType::kBF16));
  if (buffer.content == stamp_) return ConstTensorView(rounded);
  buffer.content = 0;
  RETURN_IF_ERROR(backend.RoundToBf16(source_, rounded));
  buffer.content = stamp_;
  return ConstTensorView(rounded);
}

}  // namespace nibble
