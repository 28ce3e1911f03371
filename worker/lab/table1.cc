// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/table1.h"

#include <array>

#include "kernels/linear_operand.h"
#include "worker/train/health.h"

namespace nibble {
namespace {

constexpr size_t kKinds = 4;
constexpr std::array<const char*, kKinds> kKindNames = {"query, key, value", "attention output",
                                                        "gate, up", "down"};

std::array<ConstTensorView, kKinds> LinearInputs(const BlockViews& views) {
  return {views.attention_in, views.attention_out, views.mlp_in, views.mlp_hidden};
}

LinearRecipe RecipeOf(const OutlierTreatment& treatment, Block block) {
  LinearRecipe recipe;
  Quant& x = recipe.slots[static_cast<size_t>(Slot::kXf)];
  x.elem = Elem::kE2M1;
  x.block = block;
  x.scale = ScaleRule::kF32;
  x.scale_max = ElemMax(Elem::kE2M1);
  x.pre.enabled = treatment.clamp;
  x.pre.alpha = treatment.alpha;
  x.pre.scope = OccScope::kTensor;
  x.pre.comp = treatment.compensate ? OccComp::kE4M3 : OccComp::kNone;
  return recipe;
}

}  // namespace

const std::vector<OutlierTreatment>& OutlierTreatments() {
  static const std::vector<OutlierTreatment> rows = {
      {"direct", false, 1, false, .9219, .1055, 8.31},
      {"clamp .999", true, .999, false, .9883, .0366, 14.25},
      {"clamp .999, compensated", true, .999, true, .9961, .0245, 15.31},
      {"clamp .99, compensated", true, .99, true, 1, .0099, 18.38},
      {"clamp .97, compensated", true, .97, true, 1, .0068, 20.88}};
  return rows;
}

Result<std::vector<Table1Row>> MeasureTable1(Backend* backend, const Model& model, Block block) {
  const int layers = static_cast<int>(model.options().model.layers);
  for (int layer = 0; layer < layers; ++layer) {
    for (int kind = 0; kind < kLinearKinds; ++kind) {
      const LinearRecipe& linear =
          model.options().recipe.LinearFor(static_cast<LinearKind>(kind), layer, layers);
      if (LinearInput::BorrowsSource(linear)) continue;
      return FailedPreconditionError("recipe '" + model.options().recipe.name +
                                     "' does not keep the inputs of linear layers; use bf16");
    }
  }
  LinearWorkspace workspace(backend);
  std::vector<Table1Row> rows;
  for (const OutlierTreatment& treatment : OutlierTreatments()) {
    const LinearRecipe recipe = RecipeOf(treatment, block);
    std::array<HealthSum, kKinds> sums;
    HealthSum all;
    for (const TransformerBlock& transformer : model.blocks()) {
      const auto inputs = LinearInputs(transformer.views());
      for (size_t kind = 0; kind < kKinds; ++kind) {
        SlotOperand operand;
        OperandForms forms;
        forms.health = true;
        RETURN_IF_ERROR(
            operand.Make(workspace, recipe, Slot::kXf, 0, {}, nullptr, forms, inputs[kind]));
        sums[kind].Add(operand.health());
        all.Add(operand.health());
      }
    }
    for (size_t kind = 0; kind < kKinds; ++kind) {
      rows.push_back({treatment.name, kKindNames[kind], sums[kind].Record(0, "", false)});
    }
    rows.push_back({treatment.name, "all", all.Record(0, "", false)});
  }
  return rows;
}

}  // namespace nibble
