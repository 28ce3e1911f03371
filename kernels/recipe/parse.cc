// SPDX-License-Identifier: Apache-2.0
//
// JSON -> Recipe: everything around the linear part.
#include "kernels/recipe/parse.h"

#include <algorithm>
#include <string>

#include "base/strings.h"

namespace nibble {
namespace {

using recipe_words::CheckKeys;
using recipe_words::Pick;
using recipe_words::ReadLinear;
using recipe_words::ReadNumber;
using recipe_words::ReadWhole;
using recipe_words::Words;

constexpr int kMaxBlocks = 1024;

Status ReadName(const Json& json, Recipe* recipe) {
  const Json& name = json["name"];
  recipe->name = name.AsString();
  const auto is_name_char = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  };
  constexpr size_t kMaxNameLength = 64;
  if (recipe->name.empty() || recipe->name.size() > kMaxNameLength ||
      !std::all_of(recipe->name.begin(), recipe->name.end(), is_name_char)) {
    return InvalidArgumentError("recipe field name is " + name.Dump() +
                                "; expected 1 to 64 letters, digits, '_', '-' or '.'");
  }
  const Json* summary = json.Find("summary");
  if (summary == nullptr) return OkStatus();
  if (!summary->is_string()) {
    return InvalidArgumentError("recipe field summary is " + summary->Dump() + "; expected text");
  }
  recipe->summary = summary->AsString();
  return OkStatus();
}

Status ReadBlocks(const Json& json, Recipe* recipe) {
  RETURN_IF_ERROR(CheckKeys("bf16_blocks", json, {"first", "last", "last_share"}));
  for (const Json::Member& member : json.members()) {
    const std::string field = "bf16_blocks." + member.first;
    if (member.first == "last_share") {
      ASSIGN_OR_RETURN(recipe->bf16_share_last, ReadNumber(field, member.second, 0, 1));
      continue;
    }
    ASSIGN_OR_RETURN(const int count, ReadWhole(field, member.second, 0, kMaxBlocks));
    (member.first == "first" ? recipe->bf16_blocks_first : recipe->bf16_blocks_last) = count;
  }
  return OkStatus();
}

Status ReadState(const Json& json, StatePrecision* state) {
  RETURN_IF_ERROR(CheckKeys("state", json, {"m", "v", "master"}));
  for (const Json::Member& member : json.members()) {
    ASSIGN_OR_RETURN(const int word,
                     Pick("state." + member.first, member.second, recipe_words::StateElems()));
    StateElem& target = member.first == "m"   ? state->m
                        : member.first == "v" ? state->v
                                              : state->master;
    target = static_cast<StateElem>(word);
  }
  return OkStatus();
}

Status ReadOverride(const std::string& where, const Json& json, Override* out) {
  RETURN_IF_ERROR(CheckKeys(where, json, {"kinds", "blocks", "linear"}));
  const Json& kinds = json["kinds"];
  if (!kinds.is_array() || kinds.size() == 0) {
    return InvalidArgumentError(
        "recipe field " + where + ".kinds is " + kinds.Dump() +
        "; expected a list of: " + StrJoin(recipe_words::LinearKinds(), ", "));
  }
  for (const Json& kind : kinds.items()) {
    ASSIGN_OR_RETURN(const int word, Pick(where + ".kinds", kind, recipe_words::LinearKinds()));
    out->kinds |= 1u << word;
  }
  if (const Json* blocks = json.Find("blocks")) {
    if (!blocks->is_array() || blocks->size() != 2) {
      return InvalidArgumentError("recipe field " + where + ".blocks is " + blocks->Dump() +
                                  "; expected [first, last], negative numbers from the end");
    }
    ASSIGN_OR_RETURN(out->first_block,
                     ReadWhole(where + ".blocks[0]", blocks->At(0), -kMaxBlocks, kMaxBlocks));
    ASSIGN_OR_RETURN(out->last_block,
                     ReadWhole(where + ".blocks[1]", blocks->At(1), -kMaxBlocks, kMaxBlocks));
  }
  return ReadLinear(where + ".linear", json["linear"], &out->linear);
}

Status ReadStage(const std::string& where, const Json& json, Stage* out) {
  RETURN_IF_ERROR(CheckKeys(where, json, {"from_share", "noise_multiple", "linear"}));
  if (const Json* share = json.Find("from_share")) {
    ASSIGN_OR_RETURN(out->from_share, ReadNumber(where + ".from_share", *share, 0, 1));
  }
  if (const Json* multiple = json.Find("noise_multiple")) {
    ASSIGN_OR_RETURN(out->noise_multiple, ReadNumber(where + ".noise_multiple", *multiple, 0, 1e6));
  }
  return ReadLinear(where + ".linear", json["linear"], &out->linear);
}

// "none" or {"oscireset": {...}}.
Status ReadWeightRule(const Json& json, WeightRule* rule) {
  if (json.is_string()) return Pick("weight_rule", json, {"none"}).status();
  RETURN_IF_ERROR(CheckKeys("weight_rule", json, {"oscireset"}));
  const std::string where = "weight_rule.oscireset";
  const Json& settings = json["oscireset"];
  RETURN_IF_ERROR(CheckKeys(where, settings, {"from_share", "period", "window", "ratio"}));
  rule->enabled = true;
  if (const Json* share = settings.Find("from_share")) {
    ASSIGN_OR_RETURN(rule->from_share, ReadNumber(where + ".from_share", *share, 0, 1));
  }
  if (const Json* period = settings.Find("period")) {
    ASSIGN_OR_RETURN(rule->period, ReadWhole(where + ".period", *period, 1, 1 << 30));
  }
  if (const Json* window = settings.Find("window")) {
    ASSIGN_OR_RETURN(rule->window, ReadWhole(where + ".window", *window, 1, 1 << 30));
  }
  if (const Json* ratio = settings.Find("ratio")) {
    ASSIGN_OR_RETURN(rule->ratio, ReadNumber(where + ".ratio", *ratio, 1, 1e6));
  }
  return OkStatus();
}

// Calls `read(where, item, &element)` for each item of the list.
template <typename T, typename Read>
Status ReadList(const char* field, const Json& json, std::vector<T>* out, Read read) {
  if (!json.is_array()) {
    return InvalidArgumentError(std::string("recipe field ") + field + " is " + json.Dump() +
                                "; expected a list");
  }
  for (size_t i = 0; i < json.size(); ++i) {
    out->emplace_back();
    RETURN_IF_ERROR(read(StrFormat("%s[%zu]", field, i), json.At(i), &out->back()));
  }
  return OkStatus();
}

Status ReadAround(const Json& json, Recipe* recipe) {
  if (const Json* list = json.Find("overrides")) {
    RETURN_IF_ERROR(ReadList("overrides", *list, &recipe->overrides, ReadOverride));
  }
  if (const Json* list = json.Find("stages")) {
    RETURN_IF_ERROR(ReadList("stages", *list, &recipe->stages, ReadStage));
  }
  if (const Json* rule = json.Find("weight_rule")) {
    RETURN_IF_ERROR(ReadWeightRule(*rule, &recipe->weight_rule));
  }
  if (const Json* blocks = json.Find("bf16_blocks")) RETURN_IF_ERROR(ReadBlocks(*blocks, recipe));
  if (const Json* state = json.Find("state")) RETURN_IF_ERROR(ReadState(*state, &recipe->state));
  if (const Json* comm = json.Find("comm")) {
    ASSIGN_OR_RETURN(const int word, Pick("comm", *comm, recipe_words::Communications()));
    recipe->communication = static_cast<Communication>(word);
  }
  return OkStatus();
}

}  // namespace

Result<Recipe> ParseRecipe(const Json& json) {
  RETURN_IF_ERROR(CheckKeys("recipe", json,
                            {"name", "summary", "linear", "overrides", "stages", "weight_rule",
                             "bf16_blocks", "state", "comm"}));
  Recipe recipe;
  RETURN_IF_ERROR(ReadName(json, &recipe));
  const Json* linear = json.Find("linear");
  if (linear == nullptr) {
    return InvalidArgumentError(
        "recipe field linear is missing; it holds the six slots, or names a built-in row");
  }
  RETURN_IF_ERROR(ReadLinear("linear", *linear, &recipe.linear));
  RETURN_IF_ERROR(ReadAround(json, &recipe));
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
