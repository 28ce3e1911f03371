// SPDX-License-Identifier: Apache-2.0
//
// Hadamard rotation of one group: butterflies in the natural (Sylvester) order.
//
// Purpose: y = (x .* d) H_n / sqrt(n), H_1 = 1, H_2n = [[H, H], [H, -H]], n a power of two. FP32
// additions in butterfly order, then one FP32 multiplication. Thread-safety: pure functions.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/formats/bits.h"

namespace nibble::formats {

inline constexpr int kMaxRotation = 256;

// The sixteen signs of Transformer Engine's NVFP4 recipe, repeated.
NIBBLE_HD inline float FixedSign(int index) {
  // + + + - + - - - - - - + - + - -, bit i set where sign i is negative.
  constexpr uint32_t kNegative = 0xD7E8u;
  return ((kNegative >> (index & 15)) & 1u) != 0 ? -1.0f : 1.0f;
}

// 1 / sqrt(n): what rotated values are multiplied by. Host.
inline float RotationFactor(int n) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
}

// x H_n in place, not normalised, for `lanes` neighbours at once: coordinate i of lane l is at
// x[i * lanes + l]. Precondition: n is a power of two.
template <int lanes>
NIBBLE_HD inline void HadamardInPlace(float* x, int n) {
  for (int half = 1; half < n; half *= 2) {
    for (int start = 0; start < n; start += 2 * half) {
      for (int i = start * lanes; i < (start + half) * lanes; ++i) {
        const float sum = x[i] + x[i + half * lanes];
        x[i + half * lanes] = x[i] - x[i + half * lanes];
        x[i] = sum;
      }
    }
  }
}

}  // namespace nibble::formats
