// SPDX-License-Identifier: Apache-2.0
//
// Arm I8MM: SMMLA multiplies two rows by two columns of eight signed bytes.
//
// One instruction gives a 2 x 2 block of 32-bit sums over eight codes of depth; signed by signed,
// no offset, no bias. Tile 4 x 16: 2 x 8 blocks, turned into rows when the depth is done.
#include "kernels/cpu/codes/neon.h"

namespace nibble::cpu::codes {
namespace {

constexpr int kPairs = kCols / 2;

[[gnu::always_inline]] inline int8x16_t Load(const uint8_t* p) {
  return vreinterpretq_s8_u8(vld1q_u8(p));
}

void Tile(const TileArgs& args) {
  // Block (r, c) holds rows 2r, 2r + 1 by columns 2c, 2c + 1.
  int32x4_t blocks[2 * kPairs];
  const uint8_t* left = args.left;
  const uint8_t* right = args.right;
  Unroll<2 * kPairs>([&](auto i) NIBBLE_INLINE_LAMBDA {
    const int32_t* tile = args.tile + i / kPairs * 2 * kCols + i % kPairs * 2;
    blocks[i] = args.resume ? vcombine_s32(vld1_s32(tile), vld1_s32(tile + kCols)) : vdupq_n_s32(0);
  });
  for (int64_t k = 0; k < args.depth; k += 8, left += kRows * 8, right += kCols * 8) {
    const int8x16_t rows0 = Load(left), rows1 = Load(left + 16);
    Unroll<kPairs>([&](auto c) NIBBLE_INLINE_LAMBDA {
      const int8x16_t cols = Load(right + c * 16);
      blocks[c] = vmmlaq_s32(blocks[c], rows0, cols);
      blocks[kPairs + c] = vmmlaq_s32(blocks[kPairs + c], rows1, cols);
    });
  }
  Unroll<2 * kPairs>([&](auto i) NIBBLE_INLINE_LAMBDA {
    int32_t* tile = args.tile + i / kPairs * 2 * kCols + i % kPairs * 2;
    vst1_s32(tile, vget_low_s32(blocks[i]));
    vst1_s32(tile + kCols, vget_high_s32(blocks[i]));
  });
}

constexpr PanelLayout kLeft{PanelOrder::kOctets, kRows, 0};
constexpr PanelLayout kRight{PanelOrder::kOctets, kCols, 0};
constexpr Variant kOuter[] = {
    {127, 127, kLeft, kRight, 8, 0, 1280, nullptr, nullptr, Tile, nullptr},
};
constexpr Variant kGrouped[] = {
    {127, 127, kLeft, kRight, 8, 0, 1280, nullptr, nullptr, nullptr, GroupTile<Tile>},
};

}  // namespace

const KernelSet& NeonI8mmKernels() {
  static constexpr KernelSet kSet{"neoni8mm",
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
