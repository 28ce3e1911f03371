// SPDX-License-Identifier: Apache-2.0
#include "kernels/executable.h"

#include <string>

namespace nibble {
namespace {

Status NoKernel(const std::string& what) {
  return UnimplementedError(what + " has no kernel in this build");
}

// What the quantizers do but the layers do not yet ask for.
Status CheckLayer(const Quant& quant) {
  if (quant.window > 1) return NoKernel("an amax history");
  if (quant.rotation.size > 0) return NoKernel("xform " + RotationName(quant.rotation));
  if (quant.mask != Mask::kNone) return NoKernel("mask");
  if (quant.fallback_error > 0) return NoKernel("fallback_error");
  if (quant.source == Source::kRequant) return NoKernel("source requant");
  return OkStatus();
}

}  // namespace

Status CheckExecutable(const Quant& quant) {
  if (quant.source == Source::kReuse) return OkStatus();
  if (quant.split != Split::kNone) return NoKernel("split");
  return OkStatus();
}

Status CheckExecutable(const LinearRecipe& linear) {
  for (int i = 0; i < kSlotCount; ++i) {
    const Slot slot = static_cast<Slot>(i);
    Status status = CheckExecutable(linear.slot(slot));
    if (status.ok()) status = CheckLayer(linear.slot(slot));
    if (!status.ok()) {
      return UnimplementedError(std::string(SlotName(slot)) + ": " + status.message());
    }
  }
  const WeightEstimator& estimator = linear.weight_estimator;
  if (estimator.kind != Estimator::kSte && !estimator.dge()) {
    return NoKernel("estW: this surrogate gradient");
  }
  if (estimator.extrapolate) return NoKernel("estW: dge.outside extrapolate");
  if (estimator.max_gradient != MaxGradient::kIgnore) return NoKernel("estMax");
  return OkStatus();
}

Status CheckExecutable(const Recipe& recipe) {
  RETURN_IF_ERROR(CheckExecutable(recipe.linear));
  const auto absent = [](const char* what) {
    return UnimplementedError(std::string(what) + " is not executed in this build");
  };
  for (const Override& override : recipe.overrides) {
    RETURN_IF_ERROR(CheckExecutable(override.linear));
  }
  if (!recipe.stages.empty()) return absent("stages");
  if (recipe.weight_rule.enabled) return absent("weight_rule");
  if (!(recipe.state == StatePrecision{})) return absent("optimizer state other than fp32");
  if (recipe.communication != Communication::kF32) return absent("comm other than fp32");
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
