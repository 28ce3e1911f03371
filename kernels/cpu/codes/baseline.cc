// SPDX-License-Identifier: Apache-2.0
//
// Baseline: portable C++ on 16-bit pairs, for a machine without any of the other sets.
//
// Codes up to 127: a pair of products is at most 2 * 127 * 127 = 32258 and is added to a 32-bit
// sum at once. Tile 4 x 16.
#include "kernels/cpu/codes/loops.h"

namespace nibble::cpu::codes {
namespace {

constexpr int kRows = 4;
constexpr int kCols = 16;

inline void AddProducts(const uint8_t* left, const uint8_t* right, int64_t depth, int32_t* sums) {
  int16_t a[2 * kRows], b[2 * kCols];
  for (int64_t k = 0; k < depth; k += 2) {
    std::memcpy(a, left + k * kRows * 2, sizeof(a));
    std::memcpy(b, right + k * kCols * 2, sizeof(b));
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kCols; ++j) {
        sums[i * kCols + j] += a[2 * i] * b[2 * j] + a[2 * i + 1] * b[2 * j + 1];
      }
    }
  }
}

void Tile(const TileArgs& args) {
  int32_t sums[kRows * kCols] = {};
  AddProducts(args.left, args.right, args.depth, sums);
  for (int i = 0; i < kRows * kCols; ++i) {
    args.tile[i] = args.resume ? args.tile[i] + sums[i] : sums[i];
  }
}

void GroupTile(const GroupTileArgs& args) {
  float sums[kRows * kCols] = {};
  if (args.resume) std::memcpy(sums, args.tile, sizeof(sums));
  for (int64_t g = 0; g < args.groups; ++g) {
    int32_t products[kRows * kCols] = {};
    AddProducts(args.left + g * args.group * kRows * 2, args.right + g * args.group * kCols * 2,
                args.group, products);
    const float* left = args.left_factor + g * args.left_stride;
    const float* right = args.right_factor + g * args.right_stride;
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kCols; ++j) {
        sums[i * kCols + j] += static_cast<float>(products[i * kCols + j]) * (left[i] * right[j]);
      }
    }
  }
  std::memcpy(args.tile, sums, sizeof(sums));
}

constexpr PanelLayout kLeft{PanelOrder::kWords, kRows, 0};
constexpr PanelLayout kRight{PanelOrder::kWords, kCols, 0};
constexpr Variant kOuter[] = {
    {127, 127, kLeft, kRight, 8, 0, 768, nullptr, nullptr, Tile, nullptr},
};
constexpr Variant kGrouped[] = {
    {127, 127, kLeft, kRight, 8, 0, 768, nullptr, nullptr, nullptr, GroupTile},
};
constexpr KernelSet kSet{"baseline",
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

}  // namespace

const KernelSet& BaselineKernels() { return kSet; }

}  // namespace nibble::cpu::codes
