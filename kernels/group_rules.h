// SPDX-License-Identifier: Apache-2.0
//
// GroupRule: from the statistic of a scale group to its scale, and from grid values back to
// numbers.
//
// Purpose: which formula of kernels/formats serves which scale rule, once for every backend; the
// functions compile for host and device and give the same bits there. What a scale takes from past
// calls is host work. Thread-safety: pure functions, but for the histories they are given.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/formats/block_scales.h"
#include "kernels/formats/scales.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

// What a rule looks at in a group.
enum class Statistic : uint8_t { kAmax, kDeviation, kRms };
NIBBLE_HD constexpr Statistic StatisticOf(ScaleRule rule) {
  if (rule == ScaleRule::kQuartet) return Statistic::kDeviation;
  return rule == ScaleRule::kQuest ? Statistic::kRms : Statistic::kAmax;
}
// A second-level scale belongs to the rule.
NIBBLE_HD constexpr bool HasOuterScale(ScaleRule rule) {
  return rule == ScaleRule::kNv || rule == ScaleRule::kU53 || rule == ScaleRule::kEden;
}
// E8M0, E4M3 or UE5M3 scale codes belong to the rule.
NIBBLE_HD constexpr bool HasScaleCodes(ScaleRule rule) {
  return HasOuterScale(rule) || rule == ScaleRule::kE8Floor || rule == ScaleRule::kE8Up ||
         rule == ScaleRule::kQuartet || rule == ScaleRule::kA34;
}

// Index in the random stream of the first scale group's word (elements come before).
inline constexpr uint64_t kScaleElement = uint64_t{1} << 48;

// What of a Quant the formulas read; passed to kernels by value.
struct GroupRule {
  ScaleRule scale = ScaleRule::kNone;
  ScaleRound scale_round = ScaleRound::kEven;
  bool alternatives = false;
  bool outer_per_128 = false;
  // Ties away from zero mark Quartet II's simulation, whose order of operations differs from
  // Transformer Engine's (formats::QuartetTwoGroup).
  bool simulated = false;
  bool corrected_over_groups = false;  // kEden
  float element_max = 0;
  float scale_max = 0;
  float scale_factor = 1;

  // Elements become x / enc instead of x * enc.
  NIBBLE_HD bool divides() const {
    return simulated || scale == ScaleRule::kQuest ||
           (scale == ScaleRule::kEden && corrected_over_groups);
  }
  // A random word belongs to each scale.
  NIBBLE_HD bool draws_scales() const {
    return scale_round == ScaleRound::kStochastic &&
           (scale == ScaleRule::kNv || scale == ScaleRule::kU53);
  }
  NIBBLE_HD float eden_point() const { return element_max / scale_factor; }
};

inline GroupRule GroupRuleOf(const Quant& quant) {
  GroupRule rule;
  rule.scale = quant.scale;
  rule.scale_round = quant.scale_round;
  rule.alternatives = quant.alternatives.enabled();
  rule.outer_per_128 = quant.outer == Outer::k128;
  rule.simulated = quant.scale == ScaleRule::kNv && quant.round == Round::kAway;
  rule.corrected_over_groups = quant.correction_group > quant.group;
  rule.element_max = ElemMax(quant.elem);
  rule.scale_max = quant.scale_max;
  rule.scale_factor = quant.scale_factor;
  return rule;
}

namespace internal {

// 1 / enc of rules without scale codes decides nothing but the decoding; enc is what matters.
NIBBLE_HD inline formats::GroupScale PlainScale(const GroupRule& rule, float amax, float mapped,
                                                float previous) {
  const float max = mapped == rule.element_max ? rule.scale_max : mapped;
  float enc = 1.0f;
  if (rule.scale == ScaleRule::kF32) enc = formats::ScaleF32(amax, max);
  if (rule.scale == ScaleRule::kP2) enc = formats::ScaleP2(amax, max, previous);
  if (rule.scale == ScaleRule::kCurrent) enc = formats::ScaleCurrent(amax, max, false);
  if (rule.scale == ScaleRule::kCurrentP2) enc = formats::ScaleCurrent(amax, max, true);
  return {enc, 1.0f, 0};
}

NIBBLE_HD inline formats::GroupScale NvScale(const GroupRule& rule, float amax,
                                             const formats::OuterScale& outer, float mapped,
                                             formats::ScaleRounding rounding, uint32_t word) {
  if (rule.simulated) return formats::QuartetTwoGroup(amax, outer.dec, rule.element_max, mapped);
  formats::GroupScale group =
      formats::NvGroup(amax, outer, rule.element_max, mapped, rule.alternatives, rounding, word);
  // With an outer scale per 1 x 128 a vanishing group takes the smallest scale (TetraJet-v2).
  if (rule.outer_per_128 && group.scale == 0.0f) {
    group = {1.0f / (0x1p-9f * outer.dec), 0x1p-9f, 1};
  }
  return group;
}

}  // namespace internal

// The second level from the absolute maximum of its scope. kEden: sdec in `scale`.
NIBBLE_HD inline formats::OuterScale OuterScaleOf(const GroupRule& rule, float amax) {
  switch (rule.scale) {
    case ScaleRule::kNv:
      if (rule.simulated) {
        return {1.0f, formats::QuartetTwoOuter(amax, rule.scale_max, rule.element_max), 1.0f, 1.0f};
      }
      return formats::NvOuter(amax, rule.scale_max, rule.element_max);
    case ScaleRule::kU53:
      return formats::U53Outer(amax, rule.scale_max, rule.element_max);
    case ScaleRule::kEden: {
      const float sdec = formats::EdenOuter(amax, rule.scale_max, rule.eden_point());
      return {1.0f, sdec, sdec, 1.0f};
    }
    case ScaleRule::kA34:
      return {1.0f, 1.0f, 1.0f, 3.0f};
    default:
      return {1.0f, 1.0f, 1.0f, 1.0f};
  }
}

// The scale of one group; `mapped` is the element value its amax goes to (element_max without
// alternatives), `word` the random word of a stochastic scale, `previous_enc` what a zero group of
// rule p2 keeps.
NIBBLE_HD inline formats::GroupScale GroupScaleOf(const GroupRule& rule, double statistic,
                                                  const formats::OuterScale& outer, float mapped,
                                                  uint32_t word, float previous_enc) {
  const float max = rule.element_max;
  const float amax = static_cast<float>(statistic);
  const formats::ScaleRounding rounding =
      rule.scale_round == ScaleRound::kUp           ? formats::ScaleRounding::kUp
      : rule.scale_round == ScaleRound::kStochastic ? formats::ScaleRounding::kStochastic
                                                    : formats::ScaleRounding::kEven;
  switch (rule.scale) {
    case ScaleRule::kE8Floor:
      return formats::E8M0Group(formats::E8M0FloorScale(amax, formats::FloorLog2(max)));
    case ScaleRule::kE8Up:
      return formats::E8M0Group(formats::E8M0UpScale(amax, rule.scale_max));
    case ScaleRule::kQuartet:
      return formats::QuartetGroup(statistic);
    case ScaleRule::kA34:
      return formats::ThreeQuarterGroup(amax);
    case ScaleRule::kQuest:
      return formats::QuestGroup(statistic, rule.scale_factor, max);
    case ScaleRule::kNv:
      return internal::NvScale(rule, amax, outer, mapped, rounding, word);
    case ScaleRule::kU53:
      return formats::U53Group(amax, outer, max, mapped, rounding, word);
    case ScaleRule::kEden:
      return rule.corrected_over_groups ? formats::EdenGroup(amax, outer.dec, rule.eden_point())
                                        : formats::EdenKernelGroup(amax, rule.eden_point());
    default:
      return internal::PlainScale(rule, amax, mapped, previous_enc);
  }
}

// How the grid values of one scale group become numbers again.
struct RunDecoder {
  enum class Kind : uint8_t { kPlain, kDivide, kMultiply, kTwoLevel };
  Kind kind = Kind::kPlain;
  float scale = 1;  // enc of kDivide; fl(1/enc) of kMultiply; group scale of kTwoLevel
  float outer = 1;
  float divisor = 1;

  NIBBLE_HD float Decode(float grid) const {
    if (kind == Kind::kPlain) return grid;
    if (kind == Kind::kDivide) return grid / scale;
    return kind == Kind::kMultiply ? grid * scale : ((grid * scale) * outer) / divisor;
  }
};

NIBBLE_HD inline RunDecoder DecoderOf(ScaleRule rule, bool has_group_scale,
                                      const formats::GroupScale& group, float outer,
                                      float divisor) {
  RunDecoder decoder;
  if (has_group_scale) {
    decoder.kind = RunDecoder::Kind::kTwoLevel;
    decoder.scale = group.scale;
    decoder.outer = outer;
    decoder.divisor = divisor;
  } else if (rule == ScaleRule::kF32) {
    decoder.kind = RunDecoder::Kind::kDivide;
    decoder.scale = group.enc;
  } else if (rule != ScaleRule::kNone) {
    decoder.kind = RunDecoder::Kind::kMultiply;
    // QuEST's enc is the grid's step, which the elements were divided by.
    decoder.scale = rule == ScaleRule::kQuest ? group.enc : 1.0f / group.enc;
  }
  return decoder;
}

// enc of one per-tensor group under a rule with a window; reads and advances the history.
float WindowedEnc(const Quant& quant, float amax, AmaxHistory* history);

// Whether an amax measured before serves this call, whatever is measured now.
bool HoldsAmax(const Quant& quant, const QuantizeContext& context);

// The outer amax that serves this call: `amax`, or the one measured up to quant.hold - 1 updates
// ago. An amax of 0 or that is not finite serves and is not held. Reads and advances the history.
float HeldAmax(const Quant& quant, const QuantizeContext& context, float amax);

// INVALID_ARGUMENT names the combination of axes that has no meaning.
Status CheckGroupQuant(const Quant& quant, const QuantizeContext& context);

}  // namespace nibble
