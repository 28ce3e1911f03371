// SPDX-License-Identifier: Apache-2.0
//
// What the two Arm sets share: FP32 group sums of a 4 x 16 tile.
//
// Purpose: products of a group go through memory once, as 32-bit sums in row order; conversion,
// two multiplications and one addition follow, none fused. Internal linkage. Thread-safety: pure.
#pragma once

#include <arm_neon.h>

#include "kernels/cpu/codes/loops.h"
#include "kernels/cpu/codes/unroll.h"

namespace nibble::cpu::codes {
namespace {

constexpr int kRows = 4;
constexpr int kCols = 16;
constexpr int kVectors = kRows * kCols / 4;

// sums += float(products) * (left * right), four columns at a time.
[[gnu::always_inline]] inline void AddGroup(const int32_t* products, const float* left,
                                            const float* right, float* sums) {
  Unroll<kVectors>([&](auto i) NIBBLE_INLINE_LAMBDA {
    const float32x4_t factor = vmulq_f32(vdupq_n_f32(left[i / 4]), vld1q_f32(right + i % 4 * 4));
    const float32x4_t term = vmulq_f32(vcvtq_f32_s32(vld1q_s32(products + i * 4)), factor);
    vst1q_f32(sums + i * 4, vaddq_f32(vld1q_f32(sums + i * 4), term));
  });
}

// A group tile from the set's own tile of 32-bit sums.
template <void (*tile)(const TileArgs&)>
void GroupTile(const GroupTileArgs& args) {
  if (!args.resume) std::memset(args.tile, 0, kRows * kCols * sizeof(float));
  alignas(16) int32_t products[kRows * kCols];
  for (int64_t g = 0; g < args.groups; ++g) {
    tile({args.left + g * args.group * kRows, args.right + g * args.group * kCols, nullptr, nullptr,
          args.group, false, products});
    AddGroup(products, args.left_factor + g * args.left_stride,
             args.right_factor + g * args.right_stride, args.tile);
  }
}

}  // namespace
}  // namespace nibble::cpu::codes
