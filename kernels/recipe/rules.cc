// SPDX-License-Identifier: Apache-2.0
//
// The rules that tie recipe fields together. Each has a name that errors and documents quote.
#include <cmath>
#include <string>
#include <vector>

#include "base/strings.h"
#include "kernels/recipe/recipe.h"

namespace nibble {
namespace {

constexpr float kE4M3Bound = 448.0f;
constexpr float kUe5m3Bound = 61440.0f;

enum class Rule : uint8_t {
  kReuseSource,
  kReuseWhole,
  kUnscaled,
  kScaleNeeded,
  kScaleRange,
  kScaleElement,
  kGroupScale,
  kScaleRound,
  kOuter,
  kHistory,
  kCorrection,
  kRounding,
  kAxis,
  kAlternatives,
  kClamp,
  kWide,
  kMask,
  kSplit,
  kFold,
  kSharedRotation,
  kSharedGroup,
  kRotatedReuse,
  kEstimator,
  kOverrides,
  kStages,
  kWeightRule,
  kDivisible,
};

bool IsWeight(Slot slot) { return slot == Slot::kWf || slot == Slot::kWd; }
bool IsInput(Slot slot) { return slot == Slot::kXf || slot == Slot::kXw; }
bool IsForward(Slot slot) { return slot == Slot::kXf || slot == Slot::kWf; }

Status Broken(Rule rule, const std::string& where, const std::string& what) {
  const RecipeRule& row = RecipeRules()[static_cast<size_t>(rule)];
  return InvalidArgumentError("recipe field " + where + " breaks the rule '" + row.name + "' (" +
                              row.demand + "): " + what);
}

// A rule for E2M1 elements in groups with their own coded scale.
bool IsE2M1GroupRule(ScaleRule rule) {
  return rule == ScaleRule::kNv || rule == ScaleRule::kU53 || rule == ScaleRule::kQuartet ||
         rule == ScaleRule::kA34 || rule == ScaleRule::kEden;
}
bool IsE8Rule(ScaleRule rule) { return rule == ScaleRule::kE8Floor || rule == ScaleRule::kE8Up; }
bool HasCodedMantissa(ScaleRule rule) {
  return rule == ScaleRule::kNv || rule == ScaleRule::kU53 || rule == ScaleRule::kEden;
}
bool IsFloatRule(ScaleRule rule) {
  return rule == ScaleRule::kF32 || rule == ScaleRule::kP2 || rule == ScaleRule::kCurrent ||
         rule == ScaleRule::kCurrentP2;
}

Status CheckUnscaled(const std::string& where, const Quant& quant) {
  Quant plain;
  plain.elem = quant.elem;
  plain.source = quant.source;
  if (quant == plain) return OkStatus();
  return Broken(Rule::kUnscaled, where, ElemName(quant.elem) + " stands with further fields");
}

Status CheckScale(const std::string& where, const Quant& quant) {
  const std::string elem = ElemName(quant.elem);
  const std::string scale = ScaleName(quant);
  const bool groups = quant.block == Block::kGroup || quant.block == Block::kTile;
  if (quant.scale == ScaleRule::kNone) {
    return Broken(Rule::kScaleNeeded, where + ".scale", "scale is missing for " + elem);
  }
  if (IsE2M1GroupRule(quant.scale) && quant.elem != Elem::kE2M1) {
    return Broken(Rule::kScaleElement, where + ".scale", scale + " with " + elem);
  }
  if (quant.scale == ScaleRule::kQuest &&
      (quant.elem != Elem::kInt4C ||
       (quant.block != Block::kToken && quant.block != Block::kOutputChannel))) {
    return Broken(Rule::kScaleElement, where + ".scale",
                  scale + " with " + elem + " by " + BlockName(quant.block, quant.group));
  }
  if ((IsE2M1GroupRule(quant.scale) || IsE8Rule(quant.scale)) && !groups) {
    return Broken(Rule::kGroupScale, where + ".block",
                  scale + " by " + BlockName(quant.block, quant.group));
  }
  if (quant.scale == ScaleRule::kQuartet && quant.block != Block::kGroup) {
    return Broken(Rule::kGroupScale, where + ".block",
                  "qst by " + BlockName(quant.block, quant.group));
  }
  const bool bound_by_element = IsFloatRule(quant.scale) || quant.scale == ScaleRule::kDelayed ||
                                quant.scale == ScaleRule::kE8Up;
  const float limit = bound_by_element                 ? ElemMax(quant.elem)
                      : quant.scale == ScaleRule::kU53 ? kUe5m3Bound
                                                       : kE4M3Bound;
  if ((bound_by_element || HasCodedMantissa(quant.scale)) &&
      !(quant.scale_max > 0 && quant.scale_max <= limit)) {
    return Broken(Rule::kScaleRange, where + ".scale",
                  StrFormat("%s of %s must be above 0 and at most %g", scale.c_str(), elem.c_str(),
                            static_cast<double>(limit)));
  }
  if (quant.scale_round != ScaleRound::kEven && !HasCodedMantissa(quant.scale)) {
    return Broken(Rule::kScaleRound, where + ".scale_round", "the scale rule is " + scale);
  }
  if (quant.outer == Outer::k128 &&
      ((quant.scale != ScaleRule::kNv && quant.scale != ScaleRule::kU53) ||
       quant.block != Block::kGroup || 128 % quant.group != 0)) {
    return Broken(Rule::kOuter, where + ".outer",
                  scale + " by " + BlockName(quant.block, quant.group));
  }
  if (quant.hold > 1 && ((quant.scale != ScaleRule::kNv && quant.scale != ScaleRule::kU53) ||
                         quant.outer != Outer::kTensor)) {
    return Broken(Rule::kHistory, where + ".hold", scale);
  }
  const bool window = quant.window > 1 || quant.scale == ScaleRule::kDelayed;
  if (window && (quant.block != Block::kTensor ||
                 !(IsFloatRule(quant.scale) || quant.scale == ScaleRule::kDelayed))) {
    return Broken(Rule::kHistory, where + ".window",
                  scale + " by " + BlockName(quant.block, quant.group));
  }
  if (quant.scale == ScaleRule::kEden &&
      (quant.block != Block::kGroup || quant.correction_group % quant.group != 0)) {
    return Broken(Rule::kCorrection, where + ".scale",
                  scale + " by " + BlockName(quant.block, quant.group));
  }
  return OkStatus();
}

Status CheckAlternatives(const std::string& where, const Quant& quant) {
  const Alternatives& list = quant.alternatives;
  if (!list.enabled()) return OkStatus();
  const bool random = quant.round == Round::kSr24 || quant.round == Round::kTe8;
  const bool ordered = list.maxima[0] <= 6 && list.maxima[1] < list.maxima[0];
  const float reach = quant.scale_max * list.maxima[0] / list.maxima[1];
  if (quant.scale == ScaleRule::kNv && !random && ordered && reach <= kE4M3Bound) return OkStatus();
  return Broken(Rule::kAlternatives, where + ".alternatives",
                AlternativesName(list) + " on scale " + ScaleName(quant) + ", round " +
                    RoundName(quant.round) +
                    StrFormat(", largest group scale %g", static_cast<double>(reach)));
}

// One FP32 scale of this call per tensor, row or column, codes straight from the BF16 source: what
// outliers beside the codes and folded scales need.
bool HasOnePlainScale(const Quant& quant) {
  const bool grouped = quant.block == Block::kGroup || quant.block == Block::kTile;
  const bool fp8 = quant.elem == Elem::kE4M3 || quant.elem == Elem::kE5M2;
  const bool elem = quant.elem == Elem::kE2M1 || quant.elem == Elem::kInt8 ||
                    (fp8 && quant.round == Round::kEven);
  const bool plain = quant.mask == Mask::kNone && !quant.recast_e4m3 && quant.fallback_error == 0;
  const bool source = quant.rotation.size == 0 || quant.rotation.signs == Signs::kFixed;
  return !grouped && elem && IsFloatRule(quant.scale) && quant.window == 1 && plain && source &&
         quant.source == Source::kHp;
}

std::string ScaleOfWhat(const Quant& quant) {
  return ElemName(quant.elem) + " by " + BlockName(quant.block, quant.group) + ", scale " +
         ScaleName(quant) + ", round " + RoundName(quant.round);
}

Status CheckOutliers(const std::string& where, Slot slot, const Quant& quant) {
  if (!quant.pre.enabled) return OkStatus();
  if (!IsInput(slot)) return Broken(Rule::kClamp, where + ".pre", "the slot is not an input");
  if (!(quant.pre.alpha >= 0.5 && quant.pre.alpha <= 1.0)) {
    return Broken(Rule::kClamp, where + ".pre.occ.alpha",
                  StrFormat("alpha is %g; expected 0.5 to 1", quant.pre.alpha));
  }
  const bool vector = quant.block == Block::kTensor || quant.block == Block::kToken;
  const bool plain = HasOnePlainScale(quant);
  if (IsWide(quant.pre.comp) && (quant.elem != Elem::kE2M1 || !vector || !plain)) {
    return Broken(Rule::kWide, where + ".pre.occ.comp", ScaleOfWhat(quant));
  }
  if (quant.pre.comp != OccComp::kNone && !plain) {
    return Broken(Rule::kClamp, where + ".pre.occ.comp", ScaleOfWhat(quant));
  }
  return OkStatus();
}

Status CheckMask(const std::string& where, Slot slot, const LinearRecipe& linear) {
  const Quant& quant = linear.slot(slot);
  if (quant.mask == Mask::kNone) return OkStatus();
  const bool fits = quant.mask == Mask::kBelow6
                        ? quant.elem == Elem::kE2M1 && quant.block == Block::kGroup
                        : quant.scale == ScaleRule::kQuest;
  if (!IsForward(slot) || !fits) {
    return Broken(Rule::kMask, where + ".mask",
                  "the slot is " + ElemName(quant.elem) + ", scale " + ScaleName(quant));
  }
  // The gradient of a rotated operand comes out rotated only when the other one's saved codes are.
  const Slot other = slot == Slot::kXf ? Slot::kWd : Slot::kXw;
  if (quant.rotation.size > 0 && linear.slot(other).source == Source::kHp) {
    return Broken(Rule::kMask, where + ".mask",
                  std::string("the slot is rotated and ") + SlotName(other) + " has source hp");
  }
  return OkStatus();
}

Status CheckAxis(const std::string& where, Slot slot, const Quant& quant) {
  const bool wrong = (quant.block == Block::kToken && IsWeight(slot)) ||
                     (quant.block == Block::kOutputChannel && IsInput(slot)) ||
                     (quant.block == Block::kInputChannel && !IsWeight(slot) && !IsInput(slot));
  if (!wrong) return OkStatus();
  return Broken(Rule::kAxis, where + ".block", BlockName(quant.block, quant.group));
}

Status CheckSlot(const std::string& path, Slot slot, const LinearRecipe& linear) {
  const Quant& quant = linear.slot(slot);
  const std::string where = path + "." + SlotName(slot);
  if (quant.source != Source::kHp && ReuseTarget(slot) == slot) {
    return Broken(Rule::kReuseSource, where + ".source", "there is no earlier slot");
  }
  if (quant.source == Source::kReuse) {
    Quant plain;
    plain.source = Source::kReuse;
    return quant == plain ? OkStatus() : Broken(Rule::kReuseWhole, where, "it has other fields");
  }
  if (!quant.has_scale()) return CheckUnscaled(where, quant);
  RETURN_IF_ERROR(CheckScale(where, quant));
  const bool e2m1_rounding = quant.round != Round::kEven && quant.round != Round::kSr24;
  if (e2m1_rounding && quant.elem != Elem::kE2M1) {
    return Broken(Rule::kRounding, where + ".round",
                  RoundName(quant.round) + " with " + ElemName(quant.elem));
  }
  RETURN_IF_ERROR(CheckAxis(where, slot, quant));
  RETURN_IF_ERROR(CheckAlternatives(where, quant));
  RETURN_IF_ERROR(CheckOutliers(where, slot, quant));
  return CheckMask(where, slot, linear);
}

bool SplitFits(Slot slot, const Quant& quant) {
  if (quant.split == Split::kMean) return IsInput(slot);
  return (IsForward(slot) || slot == Slot::kXw) && quant.split_share > 0 && quant.split_share < 1 &&
         (quant.split_window > 0 || quant.split_from == 0);
}

Status CheckSplits(const std::string& path, const LinearRecipe& linear) {
  const Quant* channels = nullptr;  // of the first slot that splits some off
  for (int i = 0; i < kSlotCount; ++i) {
    const Slot slot = static_cast<Slot>(i);
    const Quant& quant = linear.slot(slot);
    if (quant.split == Split::kNone) continue;
    const std::string where = path + "." + SlotName(slot) + ".split";
    if (!SplitFits(slot, quant)) {
      return Broken(
          Rule::kSplit, where,
          StrFormat("share %g, from_step %d, window %d", static_cast<double>(quant.split_share),
                    quant.split_from, quant.split_window));
    }
    const Elem elem = quant.split_elem;
    if (elem != Elem::kF32 && elem != Elem::kBf16 && elem != Elem::kE4M3 && elem != Elem::kE5M2 &&
        elem != Elem::kE2M1) {
      return Broken(Rule::kSplit, where, "its elem is " + ElemName(elem));
    }
    if (quant.split == Split::kMean) continue;
    if (channels == nullptr) channels = &quant;
    if (channels->split_share != quant.split_share || channels->split_from != quant.split_from ||
        channels->split_window != quant.split_window) {
      return Broken(Rule::kSplit, where, "another slot splits other channels off");
    }
  }
  const Quant& x = linear.slot(Slot::kXf);
  const Quant& w = linear.slot(Slot::kWf);
  const bool x_channels = x.split == Split::kChannels;
  if (x_channels != (w.split == Split::kChannels) || (x_channels && x.split_elem != w.split_elem)) {
    return Broken(Rule::kSplit, path + ".Wf.split", "Xf and Wf differ");
  }
  return OkStatus();
}

Status CheckFold(const std::string& path, Slot slot, const LinearRecipe& linear) {
  const Quant& quant = linear.slot(slot);
  if (!quant.fold) return OkStatus();
  const bool dgrad = slot == Slot::kGd;
  const std::string where = path + "." + SlotName(slot) + ".fold";
  if (!dgrad && slot != Slot::kGw) return Broken(Rule::kFold, where, "not a gradient slot");
  const Slot other = dgrad ? Slot::kWd : Slot::kXw;
  const Quant& codes = linear.slot(dgrad ? Slot::kWf : Slot::kXf);
  if (linear.slot(other).source != Source::kReuse) {
    return Broken(Rule::kFold, where, std::string(SlotName(other)) + " does not reuse its codes");
  }
  if (codes.block != (dgrad ? Block::kOutputChannel : Block::kToken)) {
    return Broken(Rule::kFold, where,
                  "the reused codes are scaled by " + BlockName(codes.block, codes.group));
  }
  if (quant.block != Block::kTensor &&
      quant.block != (dgrad ? Block::kToken : Block::kOutputChannel)) {
    return Broken(Rule::kFold, where, "its own block is " + BlockName(quant.block, quant.group));
  }
  if (!HasOnePlainScale(quant)) return Broken(Rule::kFold, where, ScaleOfWhat(quant));
  if (codes.pre.enabled && (codes.pre.comp == OccComp::kE4M3 || codes.pre.comp == OccComp::kBf16)) {
    return Broken(Rule::kFold, where,
                  "the outliers of the reused codes have a scale of their own; use comp wide");
  }
  return OkStatus();
}

// One GEMM: `left`, `right` contract `what`.
Status CheckPair(const std::string& path, Slot left, Slot right, const LinearRecipe& linear) {
  const Quant& a = linear.slot(left);
  const Quant& b = linear.slot(right);
  const std::string where = path + "." + SlotName(right);
  const auto rotation = [](const Quant& quant) {
    return quant.source == Source::kReuse ? Rotation{} : quant.rotation;
  };
  if (!(rotation(a) == rotation(b))) {
    return Broken(Rule::kSharedRotation, where + ".xform",
                  std::string(SlotName(left)) + " has " + RotationName(rotation(a)) + ", " +
                      SlotName(right) + " has " + RotationName(rotation(b)));
  }
  const auto group = [&linear](Slot slot) {
    const Quant& quant = linear.Resolved(slot);
    const bool own = linear.slot(slot).source != Source::kReuse;
    const bool tile = quant.block == Block::kTile;
    return quant.has_scale() && (tile || (own && quant.block == Block::kGroup)) ? quant.group : 0;
  };
  if (group(left) != 0 && group(right) != 0 && group(left) != group(right)) {
    return Broken(Rule::kSharedGroup, where + ".block",
                  StrFormat("%s has groups of %d, %s of %d", SlotName(left), group(left),
                            SlotName(right), group(right)));
  }
  return OkStatus();
}

Status CheckEstimator(const std::string& path, const LinearRecipe& linear) {
  const WeightEstimator& estimator = linear.weight_estimator;
  const Quant& weight = linear.slot(Slot::kWf);
  if (estimator.kind != Estimator::kSte && weight.elem != Elem::kE2M1) {
    return Broken(Rule::kEstimator, path + ".estW", "Wf is " + ElemName(weight.elem));
  }
  if (estimator.max_gradient != MaxGradient::kIgnore && !weight.has_scale()) {
    return Broken(Rule::kEstimator, path + ".estMax", "Wf is " + ElemName(weight.elem));
  }
  const bool plain_amax = weight.scale != ScaleRule::kQuartet &&
                          weight.scale != ScaleRule::kQuest && weight.scale != ScaleRule::kEden &&
                          !weight.has_history() && !weight.alternatives.enabled() &&
                          !weight.recast_e4m3;
  if (estimator.max_gradient == MaxGradient::kSoftmax && !plain_amax) {
    return Broken(Rule::kEstimator, path + ".estMax",
                  "softmax with a Wf of scale " + ScaleName(weight));
  }
  if (!(estimator.k >= 1 && estimator.clip > 0 && estimator.temperature > 0)) {
    return Broken(Rule::kEstimator, path + ".estW",
                  StrFormat("k = %g, clip = %g, temperature = %g; expected k >= 1, the others "
                            "above 0",
                            estimator.k, estimator.clip, estimator.temperature));
  }
  return OkStatus();
}

Status CheckLinear(const std::string& path, const LinearRecipe& linear) {
  for (int i = 0; i < kSlotCount; ++i) {
    RETURN_IF_ERROR(CheckSlot(path, static_cast<Slot>(i), linear));
  }
  for (int i = 0; i < kSlotCount; ++i) {
    RETURN_IF_ERROR(CheckFold(path, static_cast<Slot>(i), linear));
  }
  RETURN_IF_ERROR(CheckSplits(path, linear));
  RETURN_IF_ERROR(CheckPair(path, Slot::kXf, Slot::kWf, linear));
  RETURN_IF_ERROR(CheckPair(path, Slot::kGd, Slot::kWd, linear));
  RETURN_IF_ERROR(CheckPair(path, Slot::kGw, Slot::kXw, linear));
  if (linear.slot(Slot::kGw).source != Source::kHp && linear.slot(Slot::kGd).rotation.size > 0) {
    return Broken(Rule::kRotatedReuse, path + ".Gw.source",
                  "Gd is rotated by " + RotationName(linear.slot(Slot::kGd).rotation));
  }
  return CheckEstimator(path, linear);
}

Status CheckStages(const Recipe& recipe) {
  double share = 0;
  for (size_t i = 0; i < recipe.stages.size(); ++i) {
    const Stage& stage = recipe.stages[i];
    const std::string where = StrFormat("stages[%zu]", i);
    RETURN_IF_ERROR(CheckLinear(where + ".linear", stage.linear));
    if (stage.from_share <= 0 && stage.noise_multiple <= 0) {
      return Broken(Rule::kStages, where, "it has neither from_share nor noise_multiple");
    }
    if (stage.from_share >= 1 || (stage.from_share > 0 && stage.from_share <= share)) {
      return Broken(Rule::kStages, where + ".from_share",
                    StrFormat("it is %g after %g", stage.from_share, share));
    }
    if (stage.from_share > 0) share = stage.from_share;
    const LinearRecipe& before = i == 0 ? recipe.linear : recipe.stages[i - 1].linear;
    if (stage.noise_multiple > 0 && !before.slot(Slot::kGd).has_scale()) {
      return Broken(Rule::kStages, where + ".noise_multiple",
                    "Gd before it is " + ElemName(before.slot(Slot::kGd).elem) +
                        ", which has no quantization noise to compare with");
    }
  }
  return OkStatus();
}

}  // namespace

const std::vector<RecipeRule>& RecipeRules() {
  // By Rule.
  static const std::vector<RecipeRule> rules = {
      {"reuse-source", "reuse and requant are for Wd, Gw and Xw"},
      {"reuse-whole", "a slot with source reuse has no other field and no random stream"},
      {"unscaled", "fp32 and bf16 take none but elem and source"},
      {"scale-needed", "every element format but fp32 and bf16 needs a scale"},
      {"scale-range",
       "F is at most the element's largest value, BOUND at most 448, T at most 61440"},
      {"scale-element", "nv, u53, qst, a34 and eden scale e2m1; quest scales int4c by tok or och"},
      {"group-scale", "e8f, e8u, nv, u53, a34 and eden need block 1xB or BxB, qst 1xB"},
      {"scale-round", "scale_round is for nv, u53 and eden"},
      {"outer", "outer 1x128 needs nv or u53 by 1xB with B dividing 128"},
      {"history",
       "window above 1 and dly need block tensor with f32, p2, cur or dly; hold needs nv or u53 "
       "with "
       "outer tensor"},
      {"correction", "eden needs block 1xB and a correction group that is a multiple of B"},
      {"rounding", "half_up, away, zero and te8 are for e2m1"},
      {"axis", "tok is a row of X or dY, och a row of W or column of dY, ich a column of W or X"},
      {"alternatives",
       "AoverB needs nv(BOUND), a deterministic round, A < B <= 6 and BOUND * B / A <= 448"},
      {"clamp",
       "pre.occ is for Xf and Xw, alpha from 0.5 to 1; comp needs e2m1, int8, or FP8 rounded even, "
       "by "
       "tensor, tok or ich with f32, p2 or cur of this call, no mask, post, fallback, H or fresh "
       "signs"},
      {"wide", "comp wide and wide_e4m3 need e2m1 by tensor or tok with f32, p2 or cur"},
      {"mask",
       "masks are for Xf and Wf: lt6 with e2m1 by 1xB, trust with quest; a rotated one needs the "
       "other operand's backward slot to be reuse or requant"},
      {"split",
       "mean is for Xf and Xw; channels for Xf and Wf, alike, and Xw, with a share between 0 and "
       "1 and from_step only with a window; elem is fp32, bf16, e4m3, e5m2 or e2m1"},
      {"fold",
       "sw folds into Gd by tensor or tok when Wd reuses Wf by och; sx folds into Gw by tensor or "
       "och when Xw reuses Xf by tok without a residual of its own scale; Gd and Gw are as comp of "
       "clamp demands"},
      {"shared-rotation", "both operands of a GEMM have the same xform"},
      {"shared-group", "both operands of a GEMM have the same contraction block"},
      {"rotated-reuse", "Gw needs source hp when Gd is rotated"},
      {"estimator",
       "dge, power, spline and sigmoid need an e2m1 Wf, estMax a scaled one, softmax one whose "
       "rule "
       "looks at this call's amax, once; k is at least 1"},
      {"overrides", "an override's first block is not behind its last"},
      {"stages",
       "a stage has from_share in (0, 1), growing, or a noise_multiple with a scaled Gd before it"},
      {"weight-rule",
       "oscireset needs a scaled, deterministic Wf, from_share below 1 and a window within period"},
      {"divisible", "T, K and N are multiples of every block, rotation and correction on them"},
  };
  return rules;
}

Status ValidateRecipe(const Recipe& recipe) {
  RETURN_IF_ERROR(CheckLinear("linear", recipe.linear));
  for (size_t i = 0; i < recipe.overrides.size(); ++i) {
    const Override& override = recipe.overrides[i];
    const std::string where = StrFormat("overrides[%zu]", i);
    RETURN_IF_ERROR(CheckLinear(where + ".linear", override.linear));
    const bool same_end = (override.first_block < 0) == (override.last_block < 0);
    if (same_end && override.first_block > override.last_block) {
      return Broken(Rule::kOverrides, where + ".blocks",
                    StrFormat("[%d, %d]", override.first_block, override.last_block));
    }
  }
  RETURN_IF_ERROR(CheckStages(recipe));
  const WeightRule& rule = recipe.weight_rule;
  if (!rule.enabled) return OkStatus();
  const Quant& weight = recipe.linear.slot(Slot::kWf);
  if (!weight.has_scale() || rule.from_share >= 1 || rule.window > rule.period) {
    return Broken(
        Rule::kWeightRule, "weight_rule.oscireset",
        StrFormat("Wf is %s, from_share %g, window %d, period %d", ElemName(weight.elem).c_str(),
                  rule.from_share, rule.window, rule.period));
  }
  // A weight whose quantized value is drawn anew each step always oscillates.
  const auto steady = [](const LinearRecipe& linear) {
    const Quant& wf = linear.slot(Slot::kWf);
    return !wf.stochastic() && (wf.split != Split::kChannels || wf.split_window > 0);
  };
  bool all_steady = steady(recipe.linear);
  for (const Override& override : recipe.overrides) all_steady &= steady(override.linear);
  for (const Stage& stage : recipe.stages) all_steady &= steady(stage.linear);
  if (all_steady) return OkStatus();
  return Broken(Rule::kWeightRule, "weight_rule.oscireset",
                "Wf is rounded or rotated at random, or split at columns that each X chooses");
}

}  // namespace nibble
