// SPDX-License-Identifier: Apache-2.0
#include "kernels/recipe/product_path.h"

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

const char* WhyDecoded(const LinearRecipe& recipe, Slot left, Slot right) {
  const bool folded = recipe.Resolved(left).fold;
  const char* why = WhyNotCodes(recipe, left, false, false);
  if (why == nullptr) why = WhyNotCodes(recipe, right, true, folded);
  if (why == nullptr) {
    why = WhyNotGroups(GroupAlong(recipe, left), folded ? 0 : GroupAlong(recipe, right));
  }
  return why;
}

bool MultipliesCodes(const LinearRecipe& recipe, Slot left, Slot right, bool (*takes)(Elem)) {
  return WhyDecoded(recipe, left, right) == nullptr && takes(recipe.Resolved(left).elem) &&
         takes(recipe.Resolved(right).elem);
}

bool CpuMultipliesCodes(Elem elem) { return elem == Elem::kE2M1 || elem == Elem::kInt8; }

}  // namespace nibble
