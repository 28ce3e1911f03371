// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear_product.h"

#include <algorithm>

namespace nibble {
namespace {

// Groups that the backends' kernels for codes take.
constexpr int kGroupStep = 8, kLargestGroup = 128;

// The slot that was quantized for `slot`.
Slot HolderOf(const LinearRecipe& recipe, Slot slot) {
  if (!recipe.SharesCodes(slot)) return slot;
  return slot == Slot::kWd ? Slot::kWf : (slot == Slot::kXw ? Slot::kXf : Slot::kGd);
}

// How the scales of a slot's codes lie along the sum of its product: one scale serves it all, or
// each group of neighbours has its own, or every term.
enum class ScaleAlong : uint8_t { kConstant, kGroups, kVaries };

ScaleAlong AlongTheSum(const LinearRecipe& recipe, Slot slot) {
  const auto constant = [](bool yes) { return yes ? ScaleAlong::kConstant : ScaleAlong::kVaries; };
  const Slot holder = HolderOf(recipe, slot);
  switch (recipe.slot(holder).block) {
    case Block::kTensor:
      return ScaleAlong::kConstant;
    case Block::kToken:  // a row of X or dY
      return constant(slot == Slot::kXf || slot == Slot::kGd);
    case Block::kOutputChannel:  // a row of W, a column of dY
      return constant(slot == Slot::kWf || slot == Slot::kGw);
    case Block::kInputChannel:  // a column of W or X
      return constant(slot == Slot::kWd || slot == Slot::kXw);
    case Block::kGroup:  // along the contraction of the slot that was quantized
      return holder == slot ? ScaleAlong::kGroups : ScaleAlong::kVaries;
    case Block::kTile:
      return ScaleAlong::kGroups;
  }
  return ScaleAlong::kVaries;
}

// Elements of the sum per scale; 0: all of them.
int GroupAlong(const LinearRecipe& recipe, Slot slot) {
  if (AlongTheSum(recipe, slot) != ScaleAlong::kGroups) return 0;
  return recipe.slot(HolderOf(recipe, slot)).group;
}

bool Residual(const Quant& quant) {
  return quant.pre.enabled &&
         (quant.pre.comp == OccComp::kE4M3 || quant.pre.comp == OccComp::kBf16);
}

// Why the operand's codes cannot enter the product; nullptr when they can. `folded`: without
// scales.
const char* WhyNotCodes(const LinearRecipe& recipe, Slot slot, bool right, bool folded) {
  const Quant& quant = recipe.slot(HolderOf(recipe, slot));
  if (!quant.has_scale()) return "an operand is not quantized";
  if (quant.recast_e4m3) return "an operand is cast to E4M3 after its codes";
  if (quant.split != Split::kNone) return "part of an operand is split off";
  if (quant.fallback_error > 0) return "an operand may fall back to BF16";
  if (folded && Residual(quant)) return "an outlier residual has a scale that cannot be folded";
  if (right && Residual(quant)) return "an outlier residual belongs to the right operand";
  if (!folded && AlongTheSum(recipe, slot) == ScaleAlong::kVaries) {
    return "a scale varies along the sum";
  }
  return nullptr;
}

// Of the groups along the sum of both operands; 0: none.
const char* WhyNotGroups(int left, int right) {
  if (left > 0 && right > 0 && left != right) return "the operands' groups differ in size";
  const int group = std::max(left, right);
  if (group % kGroupStep != 0 || group > kLargestGroup) {
    return "groups on codes are multiples of 8 up to 128";
  }
  return nullptr;
}

}  // namespace

ProductForm FormOf(const Backend& backend, const LinearRecipe& recipe, const LinearProduct& product,
                   int64_t rows, int64_t cols, int64_t depth) {
  const Quant& left = recipe.Resolved(product.left);
  const Quant& right = recipe.Resolved(product.right);
  ProductForm form;
  if (!left.has_scale() && !right.has_scale()) {
    form.reason = "no operand is quantized";
    form.support = backend.Supports({Op::kGemm, left.elem, right.elem, rows, cols, depth});
    return form;
  }
  form.support = backend.Supports({Op::kQuantizedGemm, left.elem, right.elem, rows, cols, depth});
  form.reason = WhyNotCodes(recipe, product.left, false, false);
  if (form.reason == nullptr) form.reason = WhyNotCodes(recipe, product.right, true, left.fold);
  if (form.reason == nullptr) {
    form.reason = WhyNotGroups(GroupAlong(recipe, product.left),
                               left.fold ? 0 : GroupAlong(recipe, product.right));
  }
  if (form.reason == nullptr && form.support != Support::kFast) {
    form.reason = "the backend has no kernel for these formats";
  }
  form.on_codes = form.reason == nullptr;
  if (form.on_codes) form.reason = "";
  if (!form.on_codes && form.support == Support::kFast) form.support = Support::kReference;
  return form;
}

Status Multiply(LinearWorkspace& workspace, const LinearRecipe& recipe,
                const LinearProduct& product, const ProductForm& form, SlotOperand& left,
                SlotOperand& right, bool accumulate, TensorView out) {
  Backend& backend = workspace.backend();
  if (form.on_codes) {
    QuantizedGemmParams params;
    params.transpose_a = product.transpose_left;
    params.transpose_b = product.transpose_right;
    params.fold_b = recipe.Resolved(product.left).fold;
    params.accumulate = accumulate;
    params.path = workspace.path();
    return backend.QuantizedGemm(params, left.codes(), right.codes(), out);
  }
  ASSIGN_OR_RETURN(const ConstTensorView a, left.Decoded(workspace));
  ASSIGN_OR_RETURN(const ConstTensorView b, right.Decoded(workspace));
  return backend.Gemm(GemmMode::kF32, a, product.transpose_left, b, product.transpose_right,
                      accumulate, out);
}

}  // namespace nibble
