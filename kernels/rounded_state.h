// SPDX-License-Identifier: Apache-2.0
//
// How a rounded optimizer state and master weight are stored (arXiv 2310.18313): one definition for
// every backend, host and device.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bf16.h"
#include "kernels/formats/bits.h"
#include "kernels/formats/fp16.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/scales.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

// Scale of a tensor with this largest magnitude: a power of two for kE4M3 and kF16, else 1.
// `previous` stays when amax says nothing.
inline float StoredScale(StateElem elem, float amax, float previous) {
  if (elem == StateElem::kE4M3) return formats::ScaleP2(amax, formats::kE4M3Max, previous);
  if (elem == StateElem::kF16) return formats::ScaleP2(amax, formats::kF16Max, previous);
  return 1.0f;
}

// The value of a weight stored as `elem` under `scale`. `word`: the element's random number, of
// stochastic rounding only.
NIBBLE_HD inline float RoundedWeight(StateElem elem, float x, float scale, uint32_t word) {
  switch (elem) {
    case StateElem::kF32:
      return x;
    case StateElem::kBf16:
      return formats::RoundBf16(x);
    case StateElem::kBf16Sr:
      return formats::FromBf16(formats::StochasticBf16(x, word));
    case StateElem::kF16:
      return formats::RoundF16(x * scale) / scale;
    case StateElem::kE4M3:
      break;
  }
  return formats::RoundE4M3(x * scale) / scale;
}

}  // namespace nibble
