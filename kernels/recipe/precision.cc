// SPDX-License-Identifier: Apache-2.0
//
// The precision each GEMM really has, and what a recipe's saved copies cost.
#include <algorithm>
#include <string>

#include "kernels/recipe/recipe.h"

namespace nibble {
namespace {

PrecisionClass ClassOf(const Quant& quant) {
  switch (quant.elem) {
    case Elem::kF32:
      return PrecisionClass::kFp32;
    case Elem::kBf16:
      return PrecisionClass::kBf16;
    default:
      break;
  }
  const bool wide = quant.pre.enabled && IsWide(quant.pre.comp);
  return ElemBits(quant.elem) == 4 && !quant.recast_e4m3 && !wide ? PrecisionClass::kFp4
                                                                  : PrecisionClass::kFp8;
}

// Whether a scale of the slot's codes varies along the contraction of the slot's GEMM, other than
// by whole groups of it, and nothing takes it out.
bool ScaleInside(const LinearRecipe& linear, Slot slot) {
  const Quant& quant = linear.Resolved(slot);
  if (!quant.has_scale()) return false;
  switch (quant.block) {
    case Block::kTensor:
    case Block::kTile:
      return false;
    case Block::kGroup:
      return linear.slot(slot).source == Source::kReuse;  // groups along the other axis
    case Block::kToken:  // constant along K and N; T is summed by wgrad
      return slot == Slot::kGw || (slot == Slot::kXw && !linear.slot(Slot::kGw).fold);
    case Block::kOutputChannel:  // constant along K and T; N is summed by dgrad
      return slot == Slot::kGd || (slot == Slot::kWd && !linear.slot(Slot::kGd).fold);
    case Block::kInputChannel:  // constant along N and T; K is summed by fprop
      return slot == Slot::kXf || slot == Slot::kWf;
  }
  return false;
}

GemmPrecision PrecisionOfGemm(const LinearRecipe& linear, Slot left, Slot right) {
  const Quant& a = linear.Resolved(left);
  const Quant& b = linear.Resolved(right);
  GemmPrecision out{};
  out.left = ClassOf(a);
  out.right = ClassOf(b);
  out.result = std::min(out.left, out.right);  // the enum runs from wide to narrow
  const bool inside = ScaleInside(linear, left) || ScaleInside(linear, right);
  out.native_fp4 = out.result == PrecisionClass::kFp4 && !inside;
  if (out.native_fp4) return out;
  if (out.result == PrecisionClass::kFp4) {
    out.result = PrecisionClass::kFp8;
    out.reason = "a vector scale lies along the contraction, so the codes are decoded first";
    return out;
  }
  const std::string left_name = PrecisionClassName(out.left);
  out.reason = out.left == out.right
                   ? "both operands are " + left_name
                   : "operands are " + left_name + " and " + PrecisionClassName(out.right);
  if (inside) out.reason += ", with a vector scale along the contraction";
  for (const Quant* quant : {&a, &b}) {
    if (quant->recast_e4m3) out.reason += ", E4M3 after the FP4 rounding";
    if (quant->pre.enabled && IsWide(quant->pre.comp)) {
      out.reason += ", outliers being 8-bit codes among the 4-bit ones";
    }
  }
  return out;
}

// Bits of the scales, per element of a row of `in`.
double ScaleBits(const Quant& quant, int64_t in) {
  const double row = static_cast<double>(std::max<int64_t>(1, in));
  switch (quant.block) {
    case Block::kTensor:
      return 0;
    case Block::kToken:
    case Block::kOutputChannel:
      return 32.0 / row;
    case Block::kInputChannel:
      return 0;  // one per column, spread over all rows
    case Block::kGroup:
    case Block::kTile:
      break;
  }
  const double group = quant.group;
  const bool coded = quant.scale != ScaleRule::kF32 && quant.scale != ScaleRule::kP2 &&
                     quant.scale != ScaleRule::kCurrent && quant.scale != ScaleRule::kCurrentP2;
  double bits = (coded ? 8.0 : 32.0) / (quant.block == Block::kTile ? group * group : group);
  if (quant.outer == Outer::k128) bits += 32.0 / 128;
  return bits;
}

double SavedBits(const Quant& quant, int64_t in) {
  double bits = ElemBits(quant.elem);
  if (!quant.has_scale()) return bits;
  if (quant.recast_e4m3) bits = 8;
  bits += ScaleBits(quant, in);
  if (quant.mask != Mask::kNone) bits += 8;  // one byte per element
  if (quant.split == Split::kChannels) {
    bits += static_cast<double>(quant.split_share) * (ElemBits(quant.split_elem) - bits);
  }
  if (quant.pre.enabled && quant.pre.comp != OccComp::kNone) {
    const double value_bits = quant.pre.comp == OccComp::kBf16 ? 32 : 8;
    bits += 2.0 * (1.0 - quant.pre.alpha) * (32.0 + value_bits) +
            32.0 / static_cast<double>(std::max<int64_t>(1, in));
  }
  return bits;
}

// Forward copy and, when it has a quantizer of its own on the source, the backward copy.
double SavedPairBits(const LinearRecipe& linear, Slot forward, Slot backward, int64_t in) {
  double bits = SavedBits(linear.slot(forward), in);
  const bool own = !linear.SharesCodes(backward) && linear.slot(backward).source == Source::kHp;
  return own ? bits + SavedBits(linear.slot(backward), in) : bits;
}

}  // namespace

const char* PrecisionClassName(PrecisionClass value) {
  static constexpr const char* kNames[] = {"fp32", "bf16", "fp8", "fp4"};
  return kNames[static_cast<int>(value)];
}

RecipePrecision PrecisionOf(const LinearRecipe& linear) {
  RecipePrecision out;
  out.fprop = PrecisionOfGemm(linear, Slot::kXf, Slot::kWf);
  out.dgrad = PrecisionOfGemm(linear, Slot::kGd, Slot::kWd);
  out.wgrad = PrecisionOfGemm(linear, Slot::kGw, Slot::kXw);
  return out;
}

double SavedInputBits(const LinearRecipe& linear, int64_t in) {
  return SavedPairBits(linear, Slot::kXf, Slot::kXw, in);
}

double SavedWeightBits(const LinearRecipe& linear, int64_t in) {
  return SavedPairBits(linear, Slot::kWf, Slot::kWd, in);
}

}  // namespace nibble
