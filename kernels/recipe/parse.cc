// SPDX-License-Identifier: Apache-2.0
//
// JSON -> Recipe. Every axis has two word lists: what this release builds, and what is a known
// method but absent (refused with UNIMPLEMENTED, so that a typo and a gap read differently).
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/strings.h"
#include "kernels/recipe/recipe.h"

namespace nibble {
namespace {

using Words = std::vector<std::string>;

const Words kSlotKeys = {"elem", "block", "scale",  "round", "xform",
                         "pre",  "post",  "source", "mask",  "window"};

std::string Listed(const Words& words) { return StrJoin(words, ", "); }

// The word's index in `built`; UNIMPLEMENTED for one of `absent`, else INVALID_ARGUMENT.
Result<int> PickWord(const std::string& field, const Json& value, const Words& built,
                     const Words& absent) {
  if (!value.is_string()) {
    return InvalidArgumentError("recipe field " + field + " is " + value.Dump() +
                                "; expected one of: " + Listed(built));
  }
  const std::string& word = value.AsString();
  const auto found = std::find(built.begin(), built.end(), word);
  if (found != built.end()) return static_cast<int>(found - built.begin());
  if (std::find(absent.begin(), absent.end(), word) != absent.end()) {
    return UnimplementedError("recipe field " + field + ": '" + word +
                              "' is not built in this release; built: " + Listed(built));
  }
  return InvalidArgumentError(UnknownNameMessage("value of recipe field " + field, word, built));
}

Status CheckKeys(const std::string& where, const Json& json, const Words& known) {
  if (!json.is_object()) {
    return InvalidArgumentError("recipe field " + where + " is " + json.Dump() +
                                "; expected an object with: " + Listed(known));
  }
  for (const Json::Member& member : json.members()) {
    if (std::find(known.begin(), known.end(), member.first) == known.end()) {
      return InvalidArgumentError(
          UnknownNameMessage("recipe field in " + where, member.first, known));
    }
  }
  return OkStatus();
}

Result<double> ReadNumber(const std::string& field, const Json& value, double low, double high) {
  const double number = value.AsDouble(std::nan(""));
  if (!value.is_number() || !(number >= low && number <= high)) {
    return InvalidArgumentError(StrFormat("recipe field %s is %s; expected a number from %g to %g",
                                          field.c_str(), value.Dump().c_str(), low, high));
  }
  return number;
}

// "p2(448)" -> rule and F; without parentheses F is the element's largest value.
Status ReadScale(const std::string& field, const Json& value, Quant* quant) {
  static const Words kBuilt = {"f32", "p2", "cur"};
  static const Words kAbsent = {"e8f", "e8u", "nv", "qst", "a34", "u53", "dly", "fold", "eden"};
  if (!value.is_string()) {
    return InvalidArgumentError("recipe field " + field + " is " + value.Dump() +
                                "; expected text such as f32(6), p2(448), cur(448) or cur(448,p2)");
  }
  const std::string& text = value.AsString();
  const size_t open = text.find('(');
  ASSIGN_OR_RETURN(const int word, PickWord(field, Json(text.substr(0, open)), kBuilt, kAbsent));
  quant->scale = word == 0 ? ScaleRule::kF32 : word == 1 ? ScaleRule::kP2 : ScaleRule::kCurrent;
  quant->scale_max = ElemMax(quant->elem);
  if (open == std::string::npos) return OkStatus();
  std::string inside = text.substr(open + 1);
  bool good = !inside.empty() && inside.back() == ')';
  if (good) inside.pop_back();
  const std::vector<std::string> parts = StrSplit(inside, ',');
  const Result<double> max = ParseDouble(StrTrim(parts[0]));
  good = good && max.ok() && std::isfinite(*max) && *max > 0 && parts.size() <= 2;
  if (good && parts.size() == 2) {
    good = word == 2 && StrTrim(parts[1]) == "p2";
    quant->scale = ScaleRule::kCurrentP2;
  }
  if (!good) {
    return InvalidArgumentError("recipe field " + field + " is '" + text +
                                "'; expected f32(F), p2(F), cur(F) or cur(F,p2) with F > 0");
  }
  quant->scale_max = static_cast<float>(*max);
  return OkStatus();
}

Status ReadOcc(const std::string& field, const Json& json, Occ* occ) {
  RETURN_IF_ERROR(CheckKeys(field, json, {"alpha", "scope", "comp"}));
  occ->enabled = true;
  if (const Json* alpha = json.Find("alpha")) {
    ASSIGN_OR_RETURN(occ->alpha, ReadNumber(field + ".alpha", *alpha, 0.5, 1.0));
  }
  if (const Json* scope = json.Find("scope")) {
    ASSIGN_OR_RETURN(const int word, PickWord(field + ".scope", *scope, {"tensor", "token"}, {}));
    occ->scope = static_cast<OccScope>(word);
  }
  if (const Json* comp = json.Find("comp")) {
    ASSIGN_OR_RETURN(const int word,
                     PickWord(field + ".comp", *comp, {"none", "e4m3", "bf16"}, {}));
    occ->comp = static_cast<OccComp>(word);
  }
  return OkStatus();
}

Status ReadPre(const std::string& field, const Json& json, Occ* occ) {
  if (json.is_string()) {
    return PickWord(field, json, {"none"}, {"occ"}).status();
  }
  RETURN_IF_ERROR(CheckKeys(field, json, {"occ"}));
  if (const Json* settings = json.Find("occ")) return ReadOcc(field + ".occ", *settings, occ);
  return OkStatus();
}

// Axes of which this release builds only the neutral value.
Status CheckNeutralAxes(const std::string& where, const Json& json) {
  if (const Json* xform = json.Find("xform")) {
    RETURN_IF_ERROR(
        PickWord(where + ".xform", *xform, {"none"}, {"H32", "H128", "R16", "R32", "R128", "Rb"})
            .status());
  }
  if (const Json* post = json.Find("post")) {
    RETURN_IF_ERROR(PickWord(where + ".post", *post, {"none"}, {"e4m3_p2"}).status());
  }
  if (const Json* mask = json.Find("mask")) {
    RETURN_IF_ERROR(PickWord(where + ".mask", *mask, {"none"}, {"lt6", "trust"}).status());
  }
  if (const Json* window = json.Find("window")) {
    ASSIGN_OR_RETURN(const double length, ReadNumber(where + ".window", *window, 1, 65536));
    if (length != 1) {
      return UnimplementedError("recipe field " + where + ".window: an amax history of " +
                                window->Dump() + " is not built in this release; built: 1");
    }
  }
  return OkStatus();
}

bool IsBlockShape(const std::string& word) {
  const size_t x = word.find('x');
  return x != std::string::npos && ParseInt(word.substr(0, x)).ok() &&
         ParseInt(word.substr(x + 1)).ok();
}

Status ReadBlock(const std::string& field, const Json& value, Block* block) {
  Words absent = {"ich"};
  if (value.is_string() && IsBlockShape(value.AsString())) absent.push_back(value.AsString());
  ASSIGN_OR_RETURN(const int word, PickWord(field, value, {"tensor", "tok", "och"}, absent));
  *block = static_cast<Block>(word);
  return OkStatus();
}

Status ReadSlot(const std::string& where, const Json& json, Quant* quant) {
  RETURN_IF_ERROR(CheckKeys(where, json, kSlotKeys));
  if (const Json* source = json.Find("source")) {
    ASSIGN_OR_RETURN(const int word,
                     PickWord(where + ".source", *source, {"hp", "reuse"}, {"requant"}));
    quant->source = static_cast<Source>(word);
  }
  if (quant->source == Source::kReuse) {
    if (json.members().size() == 1) return OkStatus();
    return InvalidArgumentError("recipe field " + where +
                                ": a slot with source reuse takes everything from the slot it "
                                "reuses; remove its other fields");
  }
  const Json* elem = json.Find("elem");
  if (elem == nullptr) {
    return InvalidArgumentError("recipe field " + where + ".elem is missing; expected one of: " +
                                "fp32, bf16, e4m3, e5m2, e2m1");
  }
  ASSIGN_OR_RETURN(const int word,
                   PickWord(where + ".elem", *elem, {"fp32", "bf16", "e4m3", "e5m2", "e2m1"},
                            {"int4c", "int8", "e1m2", "e3m0"}));
  quant->elem = static_cast<Elem>(word);
  if (const Json* block = json.Find("block")) {
    RETURN_IF_ERROR(ReadBlock(where + ".block", *block, &quant->block));
  }
  if (const Json* scale = json.Find("scale")) {
    RETURN_IF_ERROR(ReadScale(where + ".scale", *scale, quant));
  }
  if (const Json* round = json.Find("round")) {
    ASSIGN_OR_RETURN(
        const int rule,
        PickWord(where + ".round", *round, {"even", "half_up", "away", "zero", "sr24", "te8"}, {}));
    quant->round = static_cast<Round>(rule);
  }
  if (const Json* pre = json.Find("pre")) {
    RETURN_IF_ERROR(ReadPre(where + ".pre", *pre, &quant->pre));
  }
  return CheckNeutralAxes(where, json);
}

Status ReadWeightEstimator(const Json& json, WeightEstimator* estimator) {
  if (json.is_string()) {
    return PickWord("linear.estW", json, {"ste"}, {"masked", "spline", "sigmoid"}).status();
  }
  RETURN_IF_ERROR(CheckKeys("linear.estW", json, {"dge"}));
  const Json* dge = json.Find("dge");
  if (dge == nullptr) {
    return InvalidArgumentError("recipe field linear.estW is {}; expected \"ste\" or {\"dge\":..}");
  }
  RETURN_IF_ERROR(CheckKeys("linear.estW.dge", *dge, {"k", "clip", "outside"}));
  estimator->kind = Estimator::kDge;
  if (const Json* k = dge->Find("k")) {
    ASSIGN_OR_RETURN(estimator->k, ReadNumber("linear.estW.dge.k", *k, 1, 100));
  }
  if (const Json* clip = dge->Find("clip")) {
    ASSIGN_OR_RETURN(estimator->clip, ReadNumber("linear.estW.dge.clip", *clip, 1e-3, 1e4));
  }
  if (const Json* outside = dge->Find("outside")) {
    if (!outside->is_number() || outside->AsDouble() != 0) {
      return UnimplementedError("recipe field linear.estW.dge.outside: " + outside->Dump() +
                                " is not built in this release; built: 0");
    }
  }
  return OkStatus();
}

Status ReadLinear(const Json& json, LinearRecipe* linear) {
  RETURN_IF_ERROR(CheckKeys("linear", json, {"Xf", "Wf", "Gd", "Wd", "Gw", "Xw", "estW", "estX"}));
  for (int i = 0; i < kSlotCount; ++i) {
    const std::string name = SlotName(static_cast<Slot>(i));
    const Json* slot = json.Find(name);
    if (slot == nullptr) {
      return InvalidArgumentError("recipe field linear." + name +
                                  " is missing; all six slots are needed: Xf, Wf, Gd, Wd, Gw, Xw");
    }
    RETURN_IF_ERROR(ReadSlot("linear." + name, *slot, &linear->slots[static_cast<size_t>(i)]));
  }
  if (const Json* estimator = json.Find("estW")) {
    RETURN_IF_ERROR(ReadWeightEstimator(*estimator, &linear->weight_estimator));
  }
  if (const Json* estimator = json.Find("estX")) {
    RETURN_IF_ERROR(PickWord("linear.estX", *estimator, {"ste"}, {"masked", "dge"}).status());
  }
  return OkStatus();
}

// Optimizer state and gradient communication: FP32 only in this release.
Status CheckState(const Json& json) {
  if (const Json* state = json.Find("state")) {
    RETURN_IF_ERROR(CheckKeys("state", *state, {"m", "v", "master"}));
    for (const Json::Member& member : state->members()) {
      RETURN_IF_ERROR(PickWord("state." + member.first, member.second, {"fp32"},
                               {"e4m3", "e5m2", "fp16", "bf16"})
                          .status());
    }
  }
  if (const Json* comm = json.Find("comm")) {
    RETURN_IF_ERROR(PickWord("comm", *comm, {"fp32"}, {"bf16", "e4m3", "e4m3_presum"}).status());
  }
  return OkStatus();
}

Status ReadBlocks(const Json& json, Recipe* recipe) {
  constexpr int kMaxBlocks = 1024;
  RETURN_IF_ERROR(CheckKeys("bf16_blocks", json, {"first", "last"}));
  for (const Json::Member& member : json.members()) {
    const std::string field = "bf16_blocks." + member.first;
    ASSIGN_OR_RETURN(const double count, ReadNumber(field, member.second, 0, kMaxBlocks));
    if (!member.second.is_int()) {
      return InvalidArgumentError("recipe field " + field + " is " + member.second.Dump() +
                                  "; expected a whole number");
    }
    (member.first == "first" ? recipe->bf16_blocks_first : recipe->bf16_blocks_last) =
        static_cast<int>(count);
  }
  return OkStatus();
}

}  // namespace

Result<Recipe> ParseRecipe(const Json& json) {
  RETURN_IF_ERROR(
      CheckKeys("recipe", json, {"name", "summary", "linear", "bf16_blocks", "state", "comm"}));
  Recipe recipe;
  const Json& name = json["name"];
  recipe.name = name.AsString();
  const auto is_name_char = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  };
  constexpr size_t kMaxNameLength = 64;
  if (recipe.name.empty() || recipe.name.size() > kMaxNameLength ||
      !std::all_of(recipe.name.begin(), recipe.name.end(), is_name_char)) {
    return InvalidArgumentError("recipe field name is " + name.Dump() +
                                "; expected 1 to 64 letters, digits, '_', '-' or '.'");
  }
  if (const Json* summary = json.Find("summary")) {
    if (!summary->is_string()) {
      return InvalidArgumentError("recipe field summary is " + summary->Dump() + "; expected text");
    }
    recipe.summary = summary->AsString();
  }
  const Json* linear = json.Find("linear");
  if (linear == nullptr) {
    return InvalidArgumentError("recipe field linear is missing; it holds the six slots");
  }
  RETURN_IF_ERROR(ReadLinear(*linear, &recipe.linear));
  if (const Json* blocks = json.Find("bf16_blocks")) RETURN_IF_ERROR(ReadBlocks(*blocks, &recipe));
  RETURN_IF_ERROR(CheckState(json));
  RETURN_IF_ERROR(ValidateRecipe(recipe));
  return recipe;
}

Result<Recipe> ParseRecipeText(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, Json::Parse(text));
  return ParseRecipe(json);
}

Result<Recipe> RecipeFromField(const Json& name_or_object) {
  if (name_or_object.is_string()) return FindRecipe(name_or_object.AsString());
  if (name_or_object.is_object()) return ParseRecipe(name_or_object);
  return InvalidArgumentError("recipe is " + name_or_object.Dump() + "; expected a name (" +
                              StrJoin(BuiltInRecipeNames(), ", ") +
                              ") or an object with name and linear");
}

}  // namespace nibble
