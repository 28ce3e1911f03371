// SPDX-License-Identifier: Apache-2.0
//
// One element on the device: rounding to a grid, codes, decoding. The arithmetic is
// kernels/formats; this file only chooses among its functions.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/grids.h"
#include "kernels/formats/philox.h"
#include "kernels/recipe/recipe.h"

namespace nibble::cuda {

struct RandomSource {
  uint64_t seed;
  uint32_t step, stream;
};

__device__ inline float RoundE2M1By(Round round, const RandomSource& random, int64_t element,
                                    float y) {
  const uint64_t i = static_cast<uint64_t>(element);
  switch (round) {
    case Round::kEven:
      return formats::RoundE2M1Even(y);
    case Round::kHalfUp:
      return formats::RoundE2M1(y, formats::TieRule::kHalfUp);
    case Round::kAway:
      return formats::RoundE2M1(y, formats::TieRule::kAway);
    case Round::kZero:
      return formats::RoundE2M1(y, formats::TieRule::kZero);
    case Round::kSr24:
      return formats::RoundE2M1Sr24(
          y, formats::RandomWord(random.seed, random.step, random.stream, i));
    case Round::kTe8:
      return formats::RoundE2M1Te8(y,
                                   formats::RandomByte(random.seed, random.step, random.stream, i));
  }
  return y;
}

__device__ inline float RoundInt8By(Round round, const RandomSource& random, int64_t element,
                                    float y) {
  const uint64_t i = static_cast<uint64_t>(element);
  if (round == Round::kSr24) {
    return formats::RoundSr24<formats::Int8Grid>(
        y, formats::RandomWord(random.seed, random.step, random.stream, i));
  }
  return formats::RoundNearest<formats::Int8Grid>(y, formats::TieRule::kEven);
}

__device__ inline float RoundToGrid(Elem elem, Round round, const RandomSource& random,
                                    int64_t element, float y) {
  switch (elem) {
    case Elem::kE2M1:
      return RoundE2M1By(round, random, element, y);
    case Elem::kE4M3:
      return formats::RoundE4M3(y);
    case Elem::kE5M2:
      return formats::RoundE5M2(y);
    case Elem::kInt8:
      return RoundInt8By(round, random, element, y);
    default:
      return formats::RoundBf16(y);
  }
}

__device__ inline uint8_t CodeOf(Elem elem, float grid) {
  switch (elem) {
    case Elem::kE2M1:
      return formats::E2M1CodeOfGridValue(grid);
    case Elem::kE4M3:
      return formats::E4M3CodeOfGridValue(grid);
    case Elem::kInt8:
      return formats::Int8CodeOfGridValue(grid);
    default:
      return formats::E5M2CodeOfGridValue(grid);
  }
}

__device__ inline float GridOf(Elem elem, uint8_t code) {
  switch (elem) {
    case Elem::kE2M1:
      return formats::DecodeE2M1(code);
    case Elem::kE4M3:
      return formats::DecodeE4M3(code);
    case Elem::kInt8:
      return formats::DecodeInt8(code);
    default:
      return formats::DecodeE5M2(code);
  }
}

// What a grid value means under a scale: f32 divides by enc, the others multiply by fl(1/enc).
__device__ inline float DecodeGrid(ScaleRule scale, float enc, float grid) {
  if (scale == ScaleRule::kNone) return grid;
  return scale == ScaleRule::kF32 ? grid / enc : grid * (1.0f / enc);
}

}  // namespace nibble::cuda
