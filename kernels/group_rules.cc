// SPDX-License-Identifier: Apache-2.0
#include "kernels/group_rules.h"

#include "base/strings.h"

namespace nibble {
namespace {

Status Refuse(const Quant& quant, const char* rule) {
  return InvalidArgumentError(
      StrFormat("Quantize: %s, block %s, scale %s, round %s: %s", ElemName(quant.elem).c_str(),
                BlockName(quant.block, quant.group).c_str(), ScaleName(quant).c_str(),
                RoundName(quant.round).c_str(), rule));
}

bool OneLineOrLess(Block block) { return block != Block::kTensor && block != Block::kTile; }

}  // namespace

float WindowedEnc(const Quant& quant, float amax, AmaxHistory* history) {
  AmaxHistory fresh;
  AmaxHistory& past = history != nullptr ? *history : fresh;
  const GroupRule rule = GroupRuleOf(quant);
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
              : GroupScaleOf(rule, static_cast<double>(largest), {}, rule.element_max, 0, past.enc)
                    .enc;
    past.enc = enc;
  } else {
    past.enc = formats::ScaleDelayed(past.amax.data(), length, quant.scale_max,
                                     formats::HistoryRule::kMax, 0, past.enc);
  }
  formats::RotateHistory(past.amax.data(), length);
  ++past.seen;
  return enc;
}

bool HoldsAmax(const Quant& quant, const QuantizeContext& context) {
  if (quant.hold <= 1 || context.history == nullptr || context.completed < 0) return false;
  const AmaxHistory& held = *context.history;
  if (held.seen == 0) return false;
  const int64_t age = context.completed - static_cast<int64_t>(held.enc);
  return age >= 0 && age < quant.hold;
}

float HeldAmax(const Quant& quant, const QuantizeContext& context, float amax) {
  if (HoldsAmax(quant, context)) return context.history->amax[0];
  if (quant.hold <= 1 || context.history == nullptr || context.completed < 0) return amax;
  if (!(amax > 0) || !formats::IsFinite(amax)) return amax;
  AmaxHistory& held = *context.history;
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

}  // namespace nibble
