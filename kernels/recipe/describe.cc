// SPDX-License-Identifier: Apache-2.0
//
// What a recipe means, for people and for estimates.
#include <algorithm>
#include <string>
#include <vector>

#include "base/strings.h"
#include "kernels/formats/occ.h"
#include "kernels/recipe/recipe.h"

namespace nibble {
namespace {

std::string ElemTitle(Elem elem) {
  std::string title = ElemName(elem);
  for (char& c : title) c = static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  return title + StrFormat(" (%d bit)", ElemBits(elem));
}

std::string ScaleTitle(const Quant& quant) {
  const double max = static_cast<double>(quant.scale_max);
  const char* per = quant.block == Block::kToken           ? "token"
                    : quant.block == Block::kOutputChannel ? "output channel"
                                                           : "tensor";
  switch (quant.scale) {
    case ScaleRule::kF32:
    case ScaleRule::kCurrent:
      return StrFormat(", scale %g/amax per %s", max, per);
    case ScaleRule::kP2:
      return StrFormat(", power-of-two scale to at most %g per %s", max, per);
    case ScaleRule::kCurrentP2:
      return StrFormat(", scale %g/amax cut to a power of two per %s", max, per);
    default:
      break;
  }
  return "";
}

std::string OccTitle(const Occ& occ) {
  if (!occ.enabled) return "";
  static constexpr const char* kComp[] = {"outliers dropped", "outliers kept in E4M3",
                                          "outliers kept in BF16"};
  return StrFormat(", clamped at quantile %g of the %s, %s", occ.alpha,
                   occ.scope == OccScope::kTensor ? "tensor" : "token",
                   kComp[static_cast<int>(occ.comp)]);
}

std::string SlotLine(const LinearRecipe& linear, Slot slot) {
  const Quant& quant = linear.slot(slot);
  std::string line = std::string(SlotName(slot)) + ": ";
  if (quant.source == Source::kReuse) {
    return line + "the codes of " +
           (slot == Slot::kWd   ? SlotName(Slot::kWf)
            : slot == Slot::kGw ? SlotName(Slot::kGd)
                                : SlotName(Slot::kXf)) +
           ", " + ElemTitle(linear.Resolved(slot).elem);
  }
  line += ElemTitle(quant.elem) + ScaleTitle(quant) + OccTitle(quant.pre);
  if (quant.round != Round::kEven) line += ", rounding " + RoundName(quant.round);
  return line;
}

PrecisionClass ClassOf(Elem elem) {
  switch (elem) {
    case Elem::kF32:
      return PrecisionClass::kFp32;
    case Elem::kBf16:
      return PrecisionClass::kBf16;
    default:
      return ElemBits(elem) == 4 ? PrecisionClass::kFp4 : PrecisionClass::kFp8;
  }
}

// left_inside, right_inside: the operand's vector scale lies along the contraction.
GemmPrecision PrecisionOfGemm(const Quant& left, const Quant& right, bool left_inside,
                              bool right_inside) {
  GemmPrecision out{};
  out.left = ClassOf(left.elem);
  out.right = ClassOf(right.elem);
  out.result = std::min(out.left, out.right);  // the enum runs from wide to narrow
  const bool inside = (left_inside && left.block != Block::kTensor) ||
                      (right_inside && right.block != Block::kTensor);
  out.native_fp4 = out.result == PrecisionClass::kFp4 && !inside;
  if (out.result == PrecisionClass::kFp4 && inside) {
    out.result = PrecisionClass::kFp8;
    out.reason = "a vector scale lies along the contraction, so the codes are decoded first";
  } else if (!out.native_fp4) {
    out.reason = out.left == out.right
                     ? std::string("both operands are ") + PrecisionClassName(out.left)
                     : std::string("operands are ") + PrecisionClassName(out.left) + " and " +
                           PrecisionClassName(out.right);
    if (inside) out.reason += ", with a vector scale along the contraction";
  }
  return out;
}

double SavedBits(const Quant& quant, int64_t in) {
  double bits = ElemBits(quant.elem);
  if (quant.has_scale() && quant.block != Block::kTensor) bits += 32.0 / static_cast<double>(in);
  if (quant.pre.enabled && quant.pre.comp != OccComp::kNone) {
    const double value_bits = quant.pre.comp == OccComp::kE4M3 ? 8 : 32;
    bits += 2.0 * (1.0 - quant.pre.alpha) * (32.0 + value_bits) + 32.0 / static_cast<double>(in);
  }
  return bits;
}

}  // namespace

const char* PrecisionClassName(PrecisionClass value) {
  static constexpr const char* kNames[] = {"fp32", "bf16", "fp8", "fp4"};
  return kNames[static_cast<int>(value)];
}

std::vector<std::string> DescribeRecipe(const Recipe& recipe) {
  std::vector<std::string> lines;
  for (int i = 0; i < kSlotCount; ++i) {
    lines.push_back(SlotLine(recipe.linear, static_cast<Slot>(i)));
  }
  const WeightEstimator& estimator = recipe.linear.weight_estimator;
  lines.push_back(estimator.dge() ? StrFormat("weight gradient: DGE, k = %g, at most %g",
                                              estimator.k, estimator.clip)
                                  : std::string("weight gradient: straight-through"));
  if (recipe.bf16_blocks_first > 0 || recipe.bf16_blocks_last > 0) {
    lines.push_back(StrFormat("blocks kept in BF16: first %d, last %d", recipe.bf16_blocks_first,
                              recipe.bf16_blocks_last));
  }
  const RecipePrecision precision = PrecisionOf(recipe.linear);
  const auto gemm = [](const char* name, const GemmPrecision& p) {
    return std::string(name) + " " + PrecisionClassName(p.result) +
           (p.native_fp4 ? "" : " (" + p.reason + ")");
  };
  lines.push_back("GEMM precision: " + gemm("fprop", precision.fprop) + "; " +
                  gemm("dgrad", precision.dgrad) + "; " + gemm("wgrad", precision.wgrad));
  return lines;
}

std::vector<std::string> RecipeWarnings(const Recipe& recipe, int64_t tokens, int64_t in) {
  std::vector<std::string> warnings;
  for (const Slot slot : {Slot::kXf, Slot::kXw}) {
    const Quant& quant = recipe.linear.slot(slot);
    if (quant.source == Source::kReuse || !quant.pre.enabled) continue;
    const int64_t n = quant.pre.scope == OccScope::kToken ? in : tokens * in;
    if (n < 1) continue;
    const formats::QuantileIndices index = formats::OccIndices(quant.pre.alpha, n);
    if (index.low == 0 && index.high == n - 1) {
      warnings.push_back(StrFormat(
          "%s: outlier clamping at quantile %g of %lld values clamps nothing (no-op); lower alpha "
          "or use scope tensor",
          SlotName(slot), quant.pre.alpha, static_cast<long long>(n)));
    }
  }
  return warnings;
}

RecipePrecision PrecisionOf(const LinearRecipe& linear) {
  // tok scales of X and dY factor out of fprop and dgrad and lie inside wgrad; och scales of W
  // factor out of fprop and lie inside dgrad.
  RecipePrecision out;
  out.fprop = PrecisionOfGemm(linear.Resolved(Slot::kXf), linear.Resolved(Slot::kWf), false, false);
  out.dgrad = PrecisionOfGemm(linear.Resolved(Slot::kGd), linear.Resolved(Slot::kWd), false, true);
  out.wgrad = PrecisionOfGemm(linear.Resolved(Slot::kGw), linear.Resolved(Slot::kXw), true, true);
  return out;
}

double SavedInputBits(const LinearRecipe& linear, int64_t in) {
  double bits = SavedBits(linear.slot(Slot::kXf), in);
  if (!linear.SharesCodes(Slot::kXw)) bits += SavedBits(linear.slot(Slot::kXw), in);
  return bits;
}

double SavedWeightBits(const LinearRecipe& linear, int64_t in) {
  double bits = SavedBits(linear.slot(Slot::kWf), in);
  if (!linear.SharesCodes(Slot::kWd)) bits += SavedBits(linear.slot(Slot::kWd), in);
  return bits;
}

}  // namespace nibble
