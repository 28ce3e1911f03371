// SPDX-License-Identifier: Apache-2.0
//
// Recipe -> JSON, defaults of a slot omitted.
#include <string>

#include "base/strings.h"
#include "kernels/recipe/words.h"

namespace nibble {
namespace {

using recipe_words::Words;

template <typename Enum>
Json WordOf(const Words& words, Enum value) {
  return Json(words[static_cast<size_t>(value)]);
}

void SetPre(const Occ& occ, Json* json) {
  if (!occ.enabled) return;
  Json settings = Json::Object();
  settings.Set("alpha", occ.alpha);
  settings.Set("scope", WordOf(recipe_words::OccScopes(), occ.scope));
  settings.Set("comp", WordOf(recipe_words::OccComps(), occ.comp));
  json->Set("pre", Json::Object({{"occ", settings}}));
}

void SetSplit(const Quant& quant, Json* json) {
  if (quant.split == Split::kNone) return;
  Json settings = Json::Object();
  if (quant.split == Split::kChannels) {
    // The decimal a person wrote, not the float's neighbour in double.
    settings.Set("share", ParseDouble(recipe_words::FloatText(quant.split_share)).value());
  }
  settings.Set("elem", ElemName(quant.split_elem));
  if (quant.split_from > 0) settings.Set("from_step", quant.split_from);
  if (quant.split_window > 0) settings.Set("window", quant.split_window);
  const char* part = quant.split == Split::kMean ? "mean" : "channels";
  json->Set("split", Json::Object({{part, settings}}));
}

Json SlotToJson(Slot slot, const Quant& quant) {
  Json json = Json::Object();
  if (quant.source == Source::kReuse) return json.Set("source", "reuse");
  if (quant.source == Source::kRequant) json.Set("source", "requant");
  json.Set("elem", ElemName(quant.elem));
  if (quant.rotation.size > 0) json.Set("xform", RotationName(quant.rotation));
  if (!quant.has_scale()) return json;
  json.Set("block", BlockName(quant.block, quant.group));
  json.Set("scale", ScaleName(quant));
  if (quant.scale_round != recipe_words::DefaultScaleRound(quant.scale)) {
    json.Set("scale_round", WordOf(recipe_words::ScaleRounds(), quant.scale_round));
  }
  if (quant.outer != Outer::kTensor) json.Set("outer", WordOf(recipe_words::Outers(), quant.outer));
  if (quant.window != recipe_words::DefaultWindow(quant.scale)) json.Set("window", quant.window);
  if (quant.hold > 1) json.Set("hold", quant.hold);
  if (quant.round != Round::kEven) json.Set("round", RoundName(quant.round));
  if (quant.alternatives.enabled()) {
    json.Set("alternatives", AlternativesName(quant.alternatives));
  }
  SetPre(quant.pre, &json);
  SetSplit(quant, &json);
  if (quant.recast_e4m3) json.Set("post", "e4m3_p2");
  if (quant.mask != Mask::kNone) json.Set("mask", WordOf(recipe_words::Masks(), quant.mask));
  if (quant.fold) json.Set("fold", slot == Slot::kGd ? "sw" : "sx");
  if (quant.fallback_error > 0) json.Set("fallback_error", quant.fallback_error);
  return json;
}

Json EstimatorToJson(const WeightEstimator& estimator) {
  Json settings = Json::Object();
  switch (estimator.kind) {
    case Estimator::kSte:
      return Json("ste");
    case Estimator::kSpline:
      return Json("spline");
    case Estimator::kDge:
      settings.Set("k", estimator.k);
      settings.Set("clip", estimator.clip);
      settings.Set("outside", estimator.extrapolate ? Json("extrapolate") : Json(0));
      return Json::Object({{"dge", settings}});
    case Estimator::kPower:
      settings.Set("k", estimator.k);
      return Json::Object({{"power", settings}});
    case Estimator::kSigmoid:
      settings.Set("temperature", estimator.temperature);
      return Json::Object({{"sigmoid", settings}});
  }
  return Json();
}

Json LinearToJson(const LinearRecipe& recipe) {
  Json json = Json::Object();
  for (int i = 0; i < kSlotCount; ++i) {
    const Slot slot = static_cast<Slot>(i);
    json.Set(SlotName(slot), SlotToJson(slot, recipe.slot(slot)));
  }
  json.Set("estW", EstimatorToJson(recipe.weight_estimator));
  json.Set("estX", "ste");
  if (recipe.weight_estimator.max_gradient != MaxGradient::kIgnore) {
    json.Set("estMax", recipe_words::MaxGradientName(recipe.weight_estimator));
  }
  return json;
}

Json OverrideToJson(const Override& override) {
  Json kinds = Json::Array();
  for (int i = 0; i < kLinearKinds; ++i) {
    if ((override.kinds >> i & 1u) != 0) kinds.Append(LinearKindName(static_cast<LinearKind>(i)));
  }
  return Json::Object({{"kinds", kinds},
                       {"blocks", Json::Array({override.first_block, override.last_block})},
                       {"linear", LinearToJson(override.linear)}});
}

Json WeightRuleToJson(const WeightRule& rule) {
  Json settings = Json::Object({{"from_share", rule.from_share},
                                {"period", rule.period},
                                {"window", rule.window},
                                {"ratio", rule.ratio}});
  return Json::Object({{"oscireset", settings}});
}

}  // namespace

Json RecipeToJson(const Recipe& recipe) {
  Json json = Json::Object();
  json.Set("name", recipe.name);
  if (!recipe.summary.empty()) json.Set("summary", recipe.summary);
  json.Set("linear", LinearToJson(recipe.linear));
  if (!recipe.overrides.empty()) {
    Json list = Json::Array();
    for (const Override& override : recipe.overrides) list.Append(OverrideToJson(override));
    json.Set("overrides", list);
  }
  if (!recipe.stages.empty()) {
    Json list = Json::Array();
    for (const Stage& stage : recipe.stages) {
      list.Append(Json::Object({{"from_share", stage.from_share},
                                {"noise_multiple", stage.noise_multiple},
                                {"linear", LinearToJson(stage.linear)}}));
    }
    json.Set("stages", list);
  }
  if (recipe.weight_rule.enabled) json.Set("weight_rule", WeightRuleToJson(recipe.weight_rule));
  Json blocks =
      Json::Object({{"first", recipe.bf16_blocks_first}, {"last", recipe.bf16_blocks_last}});
  if (recipe.bf16_share_last > 0) blocks.Set("last_share", recipe.bf16_share_last);
  json.Set("bf16_blocks", blocks);
  const Words& states = recipe_words::StateElems();
  json.Set("state", Json::Object({{"m", WordOf(states, recipe.state.m)},
                                  {"v", WordOf(states, recipe.state.v)},
                                  {"master", WordOf(states, recipe.state.master)}}));
  json.Set("comm", WordOf(recipe_words::Communications(), recipe.communication));
  return json;
}

}  // namespace nibble
