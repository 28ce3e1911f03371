// SPDX-License-Identifier: Apache-2.0
#include "kernels/executable.h"

#include <string>

namespace nibble {
namespace {

Status NoKernel(const std::string& what) {
  return UnimplementedError(what + " has no kernel in this build");
}

}  // namespace

Status CheckExecutable(const Quant& quant) {
  if (quant.split == Split::kMean && quant.split_elem != Elem::kBf16 &&
      quant.split_elem != Elem::kF32) {
    return NoKernel("split mean in " + ElemName(quant.split_elem));
  }
  return OkStatus();
}

Status CheckExecutable(const LinearRecipe& linear) {
  for (int i = 0; i < kSlotCount; ++i) {
    const Slot slot = static_cast<Slot>(i);
    const Status status = CheckExecutable(linear.slot(slot));
    if (!status.ok()) {
      return UnimplementedError(std::string(SlotName(slot)) + ": " + status.message());
    }
  }
  const WeightEstimator& estimator = linear.weight_estimator;
  if (estimator.max_gradient == MaxGradient::kSoftmax) {
    return NoKernel("estMax: a softmax in the forward scale");
  }
  return OkStatus();
}

Status CheckExecutable(const Recipe& recipe) {
  RETURN_IF_ERROR(CheckExecutable(recipe.linear));
  for (const Override& override : recipe.overrides) {
    RETURN_IF_ERROR(CheckExecutable(override.linear));
  }
  for (const Stage& stage : recipe.stages) {
    RETURN_IF_ERROR(CheckExecutable(stage.linear));
  }
  return OkStatus();
}

std::vector<std::string> ExecutableRecipeNames() {
  std::vector<std::string> names;
  for (const std::string& name : BuiltInRecipeNames()) {
    const Result<Recipe> recipe = FindRecipe(name);
    if (recipe.ok() && CheckExecutable(*recipe).ok()) names.push_back(name);
  }
  return names;
}

}  // namespace nibble
