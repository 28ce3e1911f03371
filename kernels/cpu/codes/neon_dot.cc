// SPDX-License-Identifier: Apache-2.0
//
// Arm DOTPROD: SDOT adds four products of signed bytes to each 32-bit lane.
//
// Signed by signed, so there is no offset and no bias, and codes may use the full 8-bit range.
// Tile 4 x 16: 16 accumulators, 4 right vectors, one vector with the cells of all four rows.
#include "kernels/cpu/codes/neon.h"

namespace nibble::cpu::codes {
namespace {

[[gnu::always_inline]] inline int8x16_t Load(const uint8_t* p) {
  return vreinterpretq_s8_u8(vld1q_u8(p));
}

void Tile(const TileArgs& args) {
  int32x4_t sums[kVectors];
  const uint8_t* left = args.left;
  const uint8_t* right = args.right;
  Unroll<kVectors>([&](auto i) NIBBLE_INLINE_LAMBDA {
    sums[i] = args.resume ? vld1q_s32(args.tile + i * 4) : vdupq_n_s32(0);
  });
  for (int64_t k = 0; k < args.depth; k += 4, left += kRows * 4, right += kCols * 4) {
    const int8x16_t rows = Load(left);
    Unroll<4>([&](auto j) NIBBLE_INLINE_LAMBDA {
      const int8x16_t cols = Load(right + j * 16);
      sums[j] = vdotq_laneq_s32(sums[j], cols, rows, 0);
      sums[4 + j] = vdotq_laneq_s32(sums[4 + j], cols, rows, 1);
      sums[8 + j] = vdotq_laneq_s32(sums[8 + j], cols, rows, 2);
      sums[12 + j] = vdotq_laneq_s32(sums[12 + j], cols, rows, 3);
    });
  }
  Unroll<kVectors>([&](auto i) NIBBLE_INLINE_LAMBDA { vst1q_s32(args.tile + i * 4, sums[i]); });
}

constexpr PanelLayout kLeft{PanelOrder::kQuads, kRows, 0};
constexpr PanelLayout kRight{PanelOrder::kQuads, kCols, 0};
constexpr Variant kOuter[] = {
    {127, 127, kLeft, kRight, 8, 0, 1280, nullptr, nullptr, Tile, nullptr},
};
constexpr Variant kGrouped[] = {
    {127, 127, kLeft, kRight, 8, 0, 1280, nullptr, nullptr, nullptr, GroupTile<Tile>},
};

}  // namespace

const KernelSet& NeonDotKernels() {
  static constexpr KernelSet kSet{"neondot",
                                  kOuter,
                                  1,
                                  kGrouped,
                                  1,
                                  ExpandLoop,
                                  ScatterAlongLoop,
                                  ScatterAcrossLoop,
                                  FinishTile<int32_t, kRows, kCols>,
                                  FinishTile<float, kRows, kCols>,
                                  CorrectLoop};
  return kSet;
}

}  // namespace nibble::cpu::codes
