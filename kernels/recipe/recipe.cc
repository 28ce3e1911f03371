// SPDX-License-Identifier: Apache-2.0
//
// Which slot serves which, and which linear recipe a layer takes.
#include "kernels/recipe/recipe.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/strings.h"

namespace nibble {

Slot ReuseTarget(Slot slot) {
  switch (slot) {
    case Slot::kWd:
      return Slot::kWf;
    case Slot::kGw:
      return Slot::kGd;
    case Slot::kXw:
      return Slot::kXf;
    default:
      return slot;
  }
}

const Quant& LinearRecipe::Resolved(Slot s) const {
  return slot(s).source == Source::kReuse ? slot(ReuseTarget(s)) : slot(s);
}

bool LinearRecipe::SharesCodes(Slot s) const {
  const Slot target = ReuseTarget(s);
  if (target == s) return false;
  if (slot(s).source == Source::kReuse) return true;
  const Quant& quant = slot(s);
  const bool along_contraction = quant.block == Block::kGroup || quant.rotation.size > 0;
  return quant == slot(target) && !quant.stochastic() && !quant.fold && !along_contraction;
}

bool LinearRecipe::HasSharedFactor() const {
  const Quant& quant = slot(Slot::kWf);
  return weight_estimator.kind != Estimator::kSte &&
         weight_estimator.max_gradient == MaxGradient::kIgnore && !quant.stochastic() &&
         quant.rotation.size == 0 && quant.split == Split::kNone;
}

bool Recipe::KeepsBf16(int index, int count) const {
  int last = bf16_blocks_last;
  if (bf16_share_last > 0) {
    const int share = static_cast<int>(std::lround(bf16_share_last * count));
    last = std::max({last, share, 1});
  }
  return index < bf16_blocks_first || index >= count - last;
}

const LinearRecipe& Recipe::LinearFor(LinearKind kind, int index, int count, int stage) const {
  static const LinearRecipe bf16;
  if (KeepsBf16(index, count)) return bf16;
  if (stage >= 0) return stages[static_cast<size_t>(stage)].linear;
  const LinearRecipe* found = &linear;
  for (const Override& override : overrides) {
    const auto position = [count](int block) {
      return block >= 0 ? block : std::max(0, count + block);
    };
    if ((override.kinds >> static_cast<int>(kind) & 1u) == 0) continue;
    if (index < position(override.first_block) || index > position(override.last_block)) continue;
    found = &override.linear;
  }
  return *found;
}

bool Recipe::rounds_to_bf16() const {
  for (const Quant& quant : linear.slots) {
    if (quant.source == Source::kHp && quant.elem != Elem::kF32) return true;
  }
  return false;
}

Status CheckRecipeShape(const LinearRecipe& linear, int64_t tokens, int64_t in, int64_t out) {
  const auto check = [](Slot slot, const char* dimension, int64_t size, int64_t divisor,
                        const char* why) {
    if (divisor <= 1 || size == 0 || size % divisor == 0) return OkStatus();
    return InvalidArgumentError(StrFormat(
        "recipe slot %s breaks the rule 'divisible': %s = %lld is not a multiple of %lld (%s); "
        "change the size or the recipe's block",
        SlotName(slot), dimension, static_cast<long long>(size), static_cast<long long>(divisor),
        why));
  };
  constexpr int64_t kOuterGroup = 128;
  for (int i = 0; i < kSlotCount; ++i) {
    const Slot slot = static_cast<Slot>(i);
    const Quant& quant = linear.slot(slot);
    if (quant.source == Source::kReuse) continue;
    const char* name = i < 2 ? "in (K)" : i < 4 ? "out (N)" : "tokens (T)";
    const int64_t depth = i < 2 ? in : i < 4 ? out : tokens;
    if (quant.block == Block::kGroup) {
      RETURN_IF_ERROR(check(slot, name, depth, quant.group, "block"));
    }
    if (quant.block == Block::kTile) {
      const bool weight = slot == Slot::kWf || slot == Slot::kWd;
      const bool gradient = slot == Slot::kGd || slot == Slot::kGw;
      RETURN_IF_ERROR(check(slot, weight ? "out (N)" : "tokens (T)", weight ? out : tokens,
                            quant.group, "block"));
      RETURN_IF_ERROR(
          check(slot, gradient ? "out (N)" : "in (K)", gradient ? out : in, quant.group, "block"));
    }
    RETURN_IF_ERROR(check(slot, name, depth, quant.rotation.size, "xform"));
    RETURN_IF_ERROR(check(slot, name, depth, quant.correction_group, "correction of eden"));
    if (quant.outer == Outer::k128) {
      RETURN_IF_ERROR(check(slot, name, depth, kOuterGroup, "outer"));
    }
    if (quant.split == Split::kChannels) {
      RETURN_IF_ERROR(check(slot, "in (K)", in, kOuterGroup, "split of channels"));
    }
  }
  return OkStatus();
}

}  // namespace nibble
