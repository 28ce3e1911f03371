// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of Quantize share: which elements have one scale, and folding. Thread-safety:
// pure functions.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/formats/bits.h"
#include "kernels/formats/scales.h"

namespace nibble::cuda {

// Small groups: the kernels of group_kernels.cuh.
inline bool IsGrouped(Block block) { return block == Block::kGroup || block == Block::kTile; }

// Which stored elements share a scale.
enum class ScaleAxis : uint8_t { kTensor, kRow, kColumn };

// What elements are divided by before they are scaled; nullptr: nothing.
struct Fold {
  const float* by_row = nullptr;
  const float* by_column = nullptr;

  __device__ float Apply(float value, int64_t row, int64_t col) const {
    if (by_row != nullptr) return value / by_row[row];
    return by_column != nullptr ? value / by_column[col] : value;
  }
  // What a folded value is multiplied by to be x again.
  __device__ float Undo(float decoded, int64_t row, int64_t col) const {
    if (by_row == nullptr && by_column == nullptr) return decoded;
    const float fold = by_row != nullptr ? by_row[row] : by_column[col];
    return decoded * (formats::IsFinite(fold) ? fold : 0.0f);
  }
};

// On the host: how a quantized tensor answers.
inline ScaleAxis AxisOf(const QuantizedTensor& x) {
  if (x.per_column()) return ScaleAxis::kColumn;
  return x.per_row() ? ScaleAxis::kRow : ScaleAxis::kTensor;
}

// Empty unless x is folded.
inline Fold FoldOf(const QuantizedTensor& x) {
  Fold fold;
  const auto* values = static_cast<const float*>(x.fold.data());
  if (x.folded) (x.contraction == Axis::kRows ? fold.by_row : fold.by_column) = values;
  return fold;
}

__device__ inline float EncAt(ScaleAxis axis, const float* enc, int64_t row, int64_t col) {
  return enc[axis == ScaleAxis::kTensor ? 0 : (axis == ScaleAxis::kRow ? row : col)];
}

// The multiplier of a group whose amax has these bits.
__device__ inline float EncOf(ScaleRule rule, float max, uint32_t amax_bits) {
  const float amax = formats::BitsFloat(amax_bits);
  switch (rule) {
    case ScaleRule::kF32:
      return formats::ScaleF32(amax, max);
    case ScaleRule::kP2:
      return formats::ScaleP2(amax, max);
    case ScaleRule::kCurrent:
      return formats::ScaleCurrent(amax, max, false);
    case ScaleRule::kCurrentP2:
      return formats::ScaleCurrent(amax, max, true);
    default:
      return 1.0f;
  }
}

}  // namespace nibble::cuda
