// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/lab_args.h"

#include <vector>

#include "base/strings.h"
#include "kernels/recipe/yaml/yaml_json.h"

namespace nibble {

namespace {
constexpr int64_t kDefaultSeed = 1234;
constexpr int64_t kMaxSeed = int64_t{1} << 62;
constexpr int64_t kMaxStep = 0xffffffff;
}  // namespace

Result<Recipe> LoadRecipe(const std::string& name_or_path) {
  bool is_path = name_or_path == "-" || name_or_path.find('/') != std::string::npos;
  for (const char* ending : {".json", ".yaml", ".yml"}) is_path |= name_or_path.ends_with(ending);
  return is_path ? ReadRecipeFile(name_or_path) : FindRecipe(name_or_path);
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
