// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/group_scales.h"

#include <cmath>

#include "base/strings.h"
#include "kernels/formats/scales.h"

namespace nibble::cpu {
namespace {

formats::ScaleRounding RoundingOf(ScaleRound round) {
  switch (round) {
    case ScaleRound::kUp:
      return formats::ScaleRounding::kUp;
    case ScaleRound::kStochastic:
      return formats::ScaleRounding::kStochastic;
    default:
      return formats::ScaleRounding::kEven;
  }
}

float EdenPoint(const Quant& quant) { return ElemMax(quant.elem) / quant.scale_factor; }

// 1 / enc of rules without scale codes decides nothing but the decoding; enc is what matters.
formats::GroupScale Plain(float enc) { return {enc, 1.0f, 0}; }

formats::GroupScale PlainScaleOf(const Quant& quant, float amax, float mapped, float previous) {
  const float max = mapped == ElemMax(quant.elem) ? quant.scale_max : mapped;
  switch (quant.scale) {
    case ScaleRule::kF32:
      return Plain(formats::ScaleF32(amax, max));
    case ScaleRule::kP2:
      return Plain(formats::ScaleP2(amax, max, previous));
    case ScaleRule::kCurrent:
      return Plain(formats::ScaleCurrent(amax, max, false));
    case ScaleRule::kCurrentP2:
      return Plain(formats::ScaleCurrent(amax, max, true));
    default:
      return Plain(1.0f);
  }
}

Status Refuse(const Quant& quant, const char* rule) {
  return InvalidArgumentError(
      StrFormat("Quantize: %s, block %s, scale %s, round %s: %s", ElemName(quant.elem).c_str(),
                BlockName(quant.block, quant.group).c_str(), ScaleName(quant).c_str(),
                RoundName(quant.round).c_str(), rule));
}

bool OneLineOrLess(Block block) { return block != Block::kTensor && block != Block::kTile; }

}  // namespace

Statistic StatisticOf(ScaleRule rule) {
  if (rule == ScaleRule::kQuartet) return Statistic::kDeviation;
  return rule == ScaleRule::kQuest ? Statistic::kRms : Statistic::kAmax;
}

bool HasOuterScale(ScaleRule rule) {
  return rule == ScaleRule::kNv || rule == ScaleRule::kU53 || rule == ScaleRule::kEden;
}

bool HasScaleCodes(ScaleRule rule) {
  return HasOuterScale(rule) || rule == ScaleRule::kE8Floor || rule == ScaleRule::kE8Up ||
         rule == ScaleRule::kQuartet || rule == ScaleRule::kA34;
}

bool SimulatedOrder(const Quant& quant) {
  return quant.scale == ScaleRule::kNv && quant.round == Round::kAway;
}

bool DividesByEnc(const Quant& quant) {
  return SimulatedOrder(quant) || quant.scale == ScaleRule::kQuest ||
         (quant.scale == ScaleRule::kEden && quant.correction_group > quant.group);
}

formats::OuterScale OuterScaleOf(const Quant& quant, float amax) {
  const float max = ElemMax(quant.elem);
  switch (quant.scale) {
    case ScaleRule::kNv:
      if (SimulatedOrder(quant)) {
        return {1.0f, formats::QuartetTwoOuter(amax, quant.scale_max, max), 1.0f, 1.0f};
      }
      return formats::NvOuter(amax, quant.scale_max, max);
    case ScaleRule::kU53:
      return formats::U53Outer(amax, quant.scale_max, max);
    case ScaleRule::kEden: {
      const float sdec = formats::EdenOuter(amax, quant.scale_max, EdenPoint(quant));
      return {1.0f, sdec, sdec, 1.0f};
    }
    case ScaleRule::kA34:
      return {1.0f, 1.0f, 1.0f, 3.0f};
    default:
      return {1.0f, 1.0f, 1.0f, 1.0f};
  }
}

formats::GroupScale GroupScaleOf(const Quant& quant, double statistic,
                                 const formats::OuterScale& outer, float mapped, uint32_t word,
                                 float previous_enc) {
  const float max = ElemMax(quant.elem);
  const float amax = static_cast<float>(statistic);
  switch (quant.scale) {
    case ScaleRule::kE8Floor:
      return formats::E8M0Group(formats::E8M0FloorScale(amax, formats::FloorLog2(max)));
    case ScaleRule::kE8Up:
      return formats::E8M0Group(formats::E8M0UpScale(amax, quant.scale_max));
    case ScaleRule::kQuartet:
      return formats::QuartetGroup(statistic);
    case ScaleRule::kA34:
      return formats::ThreeQuarterGroup(amax);
    case ScaleRule::kQuest:
      return formats::QuestGroup(statistic, quant.scale_factor, max);
    case ScaleRule::kNv: {
      if (SimulatedOrder(quant)) return formats::QuartetTwoGroup(amax, outer.dec, max, mapped);
      formats::GroupScale group =
          formats::NvGroup(amax, outer, max, mapped, quant.alternatives.enabled(),
                           RoundingOf(quant.scale_round), word);
      // With an outer scale per 1 x 128 a vanishing group takes the smallest scale (TetraJet-v2).
      if (quant.outer == Outer::k128 && group.scale == 0.0f) {
        group = {1.0f / (0x1p-9f * outer.dec), 0x1p-9f, 1};
      }
      return group;
    }
    case ScaleRule::kU53:
      return formats::U53Group(amax, outer, max, mapped, RoundingOf(quant.scale_round), word);
    case ScaleRule::kEden:
      return quant.correction_group > quant.group
                 ? formats::EdenGroup(amax, outer.dec, EdenPoint(quant))
                 : formats::EdenKernelGroup(amax, EdenPoint(quant));
    default:
      return PlainScaleOf(quant, amax, mapped, previous_enc);
  }
}

RunDecoder DecoderOf(ScaleRule rule, bool has_group_scale, const formats::GroupScale& group,
                     float outer, float divisor) {
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

RunDecoder DecoderOf(const QuantizedTensor& x, int64_t group, int64_t outer) {
  formats::GroupScale scale{static_cast<const float*>(x.enc.data())[group], 1.0f, 0};
  float outer_scale = 1.0f;
  if (x.has_group_scale) {
    scale.scale = static_cast<const float*>(x.group_scale.data())[group];
    outer_scale = static_cast<const float*>(x.outer_scale.data())[outer];
  }
  return DecoderOf(x.scale, x.has_group_scale, scale, outer_scale, x.outer_divisor);
}

float WindowedEnc(const Quant& quant, float amax, AmaxHistory* history) {
  AmaxHistory fresh;
  AmaxHistory& past = history != nullptr ? *history : fresh;
  const bool delayed = quant.scale == ScaleRule::kDelayed;
  const int window = quant.window > 1 ? quant.window : 1;
  // A window counts past values; delayed scaling's history counts the current one.
  const int length = delayed ? window : window + 1;
  past.amax.resize(static_cast<size_t>(length), 0.0f);
  past.amax[0] = amax;
  float enc = past.enc;
  if (!delayed) {
    uint32_t bits = formats::FloatBits(amax);
    if (past.seen >= window) {
      bits = 0;
      for (int i = 1; i < length; ++i) bits = formats::AmaxUpdate(bits, past.amax[i]);
    }
    const float largest = formats::BitsFloat(bits);
    enc = quant.scale == ScaleRule::kP2
              ? formats::ScaleP2(largest, quant.scale_max, past.enc)
              : PlainScaleOf(quant, largest, ElemMax(quant.elem), past.enc).enc;
    past.enc = enc;
  } else {
    past.enc = formats::ScaleDelayed(past.amax.data(), length, quant.scale_max,
                                     formats::HistoryRule::kMax, 0, past.enc);
  }
  formats::RotateHistory(past.amax.data(), length);
  ++past.seen;
  return enc;
}

float HeldAmax(const Quant& quant, const QuantizeContext& context, float amax) {
  if (quant.hold <= 1 || context.history == nullptr || context.completed < 0) return amax;
  AmaxHistory& held = *context.history;
  if (held.seen > 0) {
    const int64_t age = context.completed - static_cast<int64_t>(held.enc);
    if (age >= 0 && age < quant.hold) return held.amax[0];
  }
  if (!(amax > 0) || !formats::IsFinite(amax)) return amax;
  held.amax.assign(1, amax);
  held.enc = static_cast<float>(context.completed);
  held.seen = 1;
  return amax;
}

Status CheckGroupQuant(const Quant& quant, const QuantizeContext& context) {
  const ScaleRule rule = quant.scale;
  const bool needs_group = quant.block == Block::kGroup || quant.block == Block::kTile;
  if (!quant.has_scale()) return Refuse(quant, "an element format with a scale is needed");
  if (needs_group && quant.group < 1) return Refuse(quant, "a group size of 1 or more is needed");
  if (context.fold != nullptr) {
    return Refuse(quant, "folding needs one FP32 scale per tensor, row or column");
  }
  if (quant.pre.enabled && quant.pre.comp != OccComp::kNone) {
    return Refuse(quant, "an outlier residual needs one FP32 scale per tensor, row or column");
  }
  if (quant.elem == Elem::kInt4C && quant.round != Round::kEven && quant.round != Round::kSr24) {
    return Refuse(quant, "the centred INT4 grid rounds even or sr24");
  }
  const bool e2m1_rule =
      rule == ScaleRule::kQuartet || rule == ScaleRule::kA34 || rule == ScaleRule::kEden;
  if (e2m1_rule && quant.elem != Elem::kE2M1) return Refuse(quant, "the rule is one of E2M1");
  if (StatisticOf(rule) != Statistic::kAmax && !OneLineOrLess(quant.block)) {
    return Refuse(quant, "the rule needs groups of one row or column");
  }
  if (rule == ScaleRule::kEden &&
      (quant.block != Block::kGroup || quant.correction_group % quant.group != 0 ||
       quant.correction_group < quant.group || !(quant.scale_factor > 0))) {
    return Refuse(quant, "eden needs block 1xB and a correction over whole groups");
  }
  if (quant.outer == Outer::k128 &&
      (quant.block != Block::kGroup || 128 % quant.group != 0 || rule == ScaleRule::kEden)) {
    return Refuse(quant, "an outer scale per 1x128 needs groups that divide 128");
  }
  if (quant.alternatives.enabled() && rule != ScaleRule::kNv && rule != ScaleRule::kU53) {
    return Refuse(quant, "alternatives need rule nv or u53");
  }
  if ((rule == ScaleRule::kDelayed || quant.window > 1) && quant.block != Block::kTensor) {
    return Refuse(quant, "a window needs one scale for the tensor");
  }
  if (quant.mask == Mask::kTrust && rule != ScaleRule::kQuest) {
    return Refuse(quant, "the trust mask needs rule quest");
  }
  return OkStatus();
}

}  // namespace nibble::cpu
