// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/lab_args.h"

#include <vector>

#include "base/files.h"
#include "base/strings.h"

namespace nibble {

namespace {
constexpr int64_t kMaxRecipeBytes = 1 << 20;
constexpr int64_t kDefaultSeed = 1234;
constexpr int64_t kMaxSeed = int64_t{1} << 62;
constexpr int64_t kMaxStep = 0xffffffff;
}  // namespace

Result<Recipe> LoadRecipe(const std::string& name_or_path) {
  const bool is_path =
      name_or_path.find('/') != std::string::npos || name_or_path.ends_with(".json");
  if (!is_path) return FindRecipe(name_or_path);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(name_or_path, kMaxRecipeBytes));
  const Result<Json> json = Json::Parse(text);
  if (!json.ok()) return json.status().WithContext(name_or_path);
  Result<Recipe> recipe = ParseRecipe((*json)["recipe"].is_object() ? (*json)["recipe"] : *json);
  if (!recipe.ok()) return recipe.status().WithContext(name_or_path);
  return recipe;
}

Result<Slot> ParseSlot(const std::string& name) {
  std::vector<std::string> names;
  for (int i = 0; i < kSlotCount; ++i) {
    names.emplace_back(SlotName(static_cast<Slot>(i)));
    if (name == names.back()) return static_cast<Slot>(i);
  }
  return InvalidArgumentError(UnknownNameMessage("slot", name, names));
}

Result<LinearStep> ParseLinearStep(const Args& args) {
  ASSIGN_OR_RETURN(const int64_t seed, args.Integer("seed", kDefaultSeed, 0, kMaxSeed));
  ASSIGN_OR_RETURN(const int64_t number, args.Integer("step", 0, 0, kMaxStep));
  LinearStep step;
  step.seed = static_cast<uint64_t>(seed);
  step.step = static_cast<uint32_t>(number);
  return step;
}

}  // namespace nibble
