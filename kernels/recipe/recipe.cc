// SPDX-License-Identifier: Apache-2.0
//
// Rules that tie recipe fields together, exclusions, and Recipe -> JSON.
#include "kernels/recipe/recipe.h"

#include <string>

#include "base/strings.h"

namespace nibble {
namespace {

// Which slot `reuse` points at; the forward slots and Gd have nothing to reuse.
Slot ReuseTarget(Slot slot) {
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

bool IsWeight(Slot slot) { return slot == Slot::kWf || slot == Slot::kWd; }
bool IsInput(Slot slot) { return slot == Slot::kXf || slot == Slot::kXw; }

Status SlotError(Slot slot, const std::string& what) {
  return InvalidArgumentError(std::string("recipe field linear.") + SlotName(slot) + what);
}

Status ValidateUnscaled(Slot slot, const Quant& quant) {
  const std::string elem = ElemName(quant.elem);
  if (quant.scale != ScaleRule::kNone) return SlotError(slot, ".scale: " + elem + " takes none");
  if (quant.block != Block::kTensor) return SlotError(slot, ".block: " + elem + " has no scale");
  if (quant.round != Round::kEven) return SlotError(slot, ".round: " + elem + " rounds even only");
  if (quant.pre.enabled) {
    return SlotError(slot, ".pre: outlier clamping needs a scaled element format");
  }
  return OkStatus();
}

Status ValidateSlot(Slot slot, const Quant& quant) {
  if (quant.source == Source::kReuse) {
    if (ReuseTarget(slot) != slot) return OkStatus();
    return SlotError(slot, ".source: reuse has no earlier slot here; it is for Wd, Gw and Xw");
  }
  if (!quant.has_scale()) return ValidateUnscaled(slot, quant);
  const std::string elem = ElemName(quant.elem);
  if (quant.scale == ScaleRule::kNone) {
    return SlotError(slot, ".scale is missing: " + elem + " needs f32(F), p2(F) or cur(F)");
  }
  if (!(quant.scale_max > 0 && quant.scale_max <= ElemMax(quant.elem))) {
    return SlotError(slot, StrFormat(".scale: F = %g must be above 0 and at most %g, the largest "
                                     "%s value",
                                     static_cast<double>(quant.scale_max),
                                     static_cast<double>(ElemMax(quant.elem)), elem.c_str()));
  }
  if (quant.elem != Elem::kE2M1 && quant.round != Round::kEven) {
    return SlotError(slot, ".round: '" + RoundName(quant.round) + "' exists for e2m1 only; " +
                               elem + " rounds even");
  }
  if (quant.block == Block::kToken && IsWeight(slot)) {
    return SlotError(slot, ".block: tok is a row of X or dY; a row of W is och");
  }
  if (quant.block == Block::kOutputChannel && !IsWeight(slot)) {
    return SlotError(slot, ".block: och is a row of W; a row of X or dY is tok");
  }
  if (quant.pre.enabled && !IsInput(slot)) {
    return SlotError(slot, ".pre: outlier clamping is for Xf and Xw");
  }
  if (quant.pre.enabled && !(quant.pre.alpha >= 0.5 && quant.pre.alpha <= 1.0)) {
    return SlotError(slot, StrFormat(".pre.occ.alpha is %g; expected 0.5 to 1", quant.pre.alpha));
  }
  return OkStatus();
}

Json SlotToJson(const Quant& quant) {
  Json json = Json::Object();
  if (quant.source == Source::kReuse) return json.Set("source", "reuse");
  json.Set("elem", ElemName(quant.elem));
  if (!quant.has_scale()) return json;
  json.Set("block", BlockName(quant.block));
  json.Set("scale", ScaleName(quant.scale, quant.scale_max));
  if (quant.round != Round::kEven) json.Set("round", RoundName(quant.round));
  if (quant.pre.enabled) {
    static constexpr const char* kComp[] = {"none", "e4m3", "bf16"};
    Json occ = Json::Object();
    occ.Set("alpha", quant.pre.alpha);
    occ.Set("scope", quant.pre.scope == OccScope::kTensor ? "tensor" : "token");
    occ.Set("comp", kComp[static_cast<int>(quant.pre.comp)]);
    json.Set("pre", Json::Object({{"occ", occ}}));
  }
  return json;
}

}  // namespace

const Quant& LinearRecipe::Resolved(Slot s) const {
  return slot(s).source == Source::kReuse ? slot(ReuseTarget(s)) : slot(s);
}

bool LinearRecipe::SharesCodes(Slot s) const {
  const Slot target = ReuseTarget(s);
  if (target == s) return false;
  if (slot(s).source == Source::kReuse) return true;
  return slot(s) == slot(target) && !slot(s).stochastic();
}

LinearRecipe Recipe::LinearForBlock(int index, int count) const {
  const bool excluded = index < bf16_blocks_first || index >= count - bf16_blocks_last;
  return excluded ? LinearRecipe{} : linear;
}

bool Recipe::rounds_to_bf16() const {
  for (const Quant& quant : linear.slots) {
    if (quant.source == Source::kHp && quant.elem != Elem::kF32) return true;
  }
  return false;
}

Status ValidateRecipe(const Recipe& recipe) {
  for (int i = 0; i < kSlotCount; ++i) {
    const Slot slot = static_cast<Slot>(i);
    RETURN_IF_ERROR(ValidateSlot(slot, recipe.linear.slot(slot)));
  }
  const WeightEstimator& estimator = recipe.linear.weight_estimator;
  if (!estimator.dge()) return OkStatus();
  if (recipe.linear.slot(Slot::kWf).elem != Elem::kE2M1) {
    return InvalidArgumentError(
        "recipe field linear.estW: dge is the derivative of E2M1 rounding, so linear.Wf.elem must "
        "be e2m1; it is " +
        ElemName(recipe.linear.slot(Slot::kWf).elem));
  }
  if (!(estimator.k >= 1 && estimator.clip > 0)) {
    return InvalidArgumentError(
        StrFormat("recipe field linear.estW.dge: k = %g, clip = %g; expected k >= 1 and clip > 0",
                  estimator.k, estimator.clip));
  }
  return OkStatus();
}

Json RecipeToJson(const Recipe& recipe) {
  Json linear = Json::Object();
  for (int i = 0; i < kSlotCount; ++i) {
    const Slot slot = static_cast<Slot>(i);
    linear.Set(SlotName(slot), SlotToJson(recipe.linear.slot(slot)));
  }
  const WeightEstimator& estimator = recipe.linear.weight_estimator;
  if (estimator.dge()) {
    Json dge = Json::Object({{"k", estimator.k}, {"clip", estimator.clip}, {"outside", 0}});
    linear.Set("estW", Json::Object({{"dge", dge}}));
  } else {
    linear.Set("estW", "ste");
  }
  linear.Set("estX", "ste");
  Json json = Json::Object();
  json.Set("name", recipe.name);
  if (!recipe.summary.empty()) json.Set("summary", recipe.summary);
  json.Set("linear", linear);
  json.Set("bf16_blocks",
           Json::Object({{"first", recipe.bf16_blocks_first}, {"last", recipe.bf16_blocks_last}}));
  json.Set("state", Json::Object({{"m", "fp32"}, {"v", "fp32"}, {"master", "fp32"}}));
  json.Set("comm", "fp32");
  return json;
}

}  // namespace nibble
