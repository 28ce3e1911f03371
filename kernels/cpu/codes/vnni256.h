// SPDX-License-Identifier: Apache-2.0
//
// vpdpbusd on 256-bit vectors, for AVX-VNNI and for AVX-512VL VNNI: one source, two encodings.
//
// As avx512_vnni.cc: left codes carry +128, 128 times the right codes is the bias of a column,
// nothing saturates. Tile 4 x 24: 12 accumulators, so that five cycles of latency at two per cycle
// are covered, 3 right vectors, one broadcast: 16 registers.
// The including file defines NIBBLE_DPBUSD(sum, u8, s8). Internal linkage. Thread-safety: pure.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/codes/loops.h"
#include "kernels/cpu/codes/pack_avx2.h"
#include "kernels/cpu/codes/unroll.h"

namespace nibble::cpu::codes {
namespace {

constexpr int kRows = 4;
constexpr int kVectors = 3;
constexpr int kCols = 8 * kVectors;
constexpr int kTiles = kRows * kVectors;
constexpr int kOffset = 128;
static_assert(kScalePadding % kCols == 0 && kScalePadding % kRows == 0);

[[gnu::always_inline]] inline __m256i Load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
[[gnu::always_inline]] inline void Put(void* p, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), value);
}

void Bias(const uint8_t* panel, int64_t depth, int32_t* bias) {
  __m256i sums[kVectors];
  const __m256i offset = _mm256_set1_epi8(static_cast<char>(kOffset));
  Unroll<kVectors>([&](auto i) NIBBLE_INLINE_LAMBDA { sums[i] = _mm256_setzero_si256(); });
  for (int64_t k = 0; k < depth; k += 4, panel += kCols * 4) {
    Unroll<kVectors>([&](auto i) NIBBLE_INLINE_LAMBDA {
      sums[i] = NIBBLE_DPBUSD(sums[i], offset, Load(panel + i * 32));
    });
  }
  Unroll<kVectors>([&](auto i) NIBBLE_INLINE_LAMBDA {
    Put(bias + i * 8, _mm256_sub_epi32(_mm256_setzero_si256(), sums[i]));
  });
}

void Tile(const TileArgs& args) {
  __m256i sums[kTiles];
  const uint8_t* left = args.left;
  const uint8_t* right = args.right;
  Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA {
    sums[i] = Load(args.resume ? args.tile + i * 8 : args.right_bias + i % kVectors * 8);
  });
  for (int64_t k = 0; k < args.depth; k += 4, left += kRows * 4, right += kCols * 4) {
    const __m256i b0 = Load(right), b1 = Load(right + 32), b2 = Load(right + 64);
    Unroll<kRows>([&](auto r) NIBBLE_INLINE_LAMBDA {
      const __m256i a = _mm256_set1_epi32(LoadWord(left + r * 4));
      sums[3 * r] = NIBBLE_DPBUSD(sums[3 * r], a, b0);
      sums[3 * r + 1] = NIBBLE_DPBUSD(sums[3 * r + 1], a, b1);
      sums[3 * r + 2] = NIBBLE_DPBUSD(sums[3 * r + 2], a, b2);
    });
  }
  Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA { Put(args.tile + i * 8, sums[i]); });
}

// The FP32 sums wait in memory while 12 integer sums of a group fill the registers.
void GroupTile(const GroupTileArgs& args) {
  if (!args.resume) std::memset(args.tile, 0, kTiles * 8 * sizeof(float));
  const uint8_t* left = args.left;
  const uint8_t* right = args.right;
  const int32_t* bias = args.right_bias;
  const float* left_factor = args.left_factor;
  const float* right_factor = args.right_factor;
  for (int64_t g = 0; g < args.groups; ++g) {
    __m256i products[kTiles];
    Unroll<kTiles>([&](auto i)
                       NIBBLE_INLINE_LAMBDA { products[i] = Load(bias + i % kVectors * 8); });
    for (int64_t k = 0; k < args.group; k += 4, left += kRows * 4, right += kCols * 4) {
      const __m256i b0 = Load(right), b1 = Load(right + 32), b2 = Load(right + 64);
      Unroll<kRows>([&](auto r) NIBBLE_INLINE_LAMBDA {
        const __m256i a = _mm256_set1_epi32(LoadWord(left + r * 4));
        products[3 * r] = NIBBLE_DPBUSD(products[3 * r], a, b0);
        products[3 * r + 1] = NIBBLE_DPBUSD(products[3 * r + 1], a, b1);
        products[3 * r + 2] = NIBBLE_DPBUSD(products[3 * r + 2], a, b2);
      });
    }
    Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA {
      float* tile = args.tile + i * 8;
      const __m256 factor = _mm256_mul_ps(_mm256_set1_ps(left_factor[i / kVectors]),
                                          _mm256_loadu_ps(right_factor + i % kVectors * 8));
      const __m256 term = _mm256_mul_ps(_mm256_cvtepi32_ps(products[i]), factor);
      _mm256_storeu_ps(tile, _mm256_add_ps(_mm256_loadu_ps(tile), term));
    });
    bias += kCols;
    left_factor += args.left_stride;
    right_factor += args.right_stride;
  }
}

// Byte `at` of every four-byte cell: the product with a one at that place.
struct DotCells {
  explicit DotCells(int64_t at) : one(_mm256_set1_epi32(1 << (8 * at))) {}
  [[gnu::always_inline]] Words8 operator()(Words8 cells) const {
    return reinterpret_cast<Words8>(
        NIBBLE_DPBUSD(_mm256_setzero_si256(), one, reinterpret_cast<__m256i>(cells)));
  }
  __m256i one;
};

constexpr PanelLayout kLeft{PanelOrder::kQuads, kRows, kOffset};
constexpr PanelLayout kRight{PanelOrder::kQuads, kCols, 0};
constexpr Variant kOuter[] = {
    {127, 127, kLeft, kRight, 8, 0, 1024, nullptr, Bias, Tile, nullptr},
};
constexpr Variant kGrouped[] = {
    {127, 127, kLeft, kRight, 8, 0, 1024, nullptr, Bias, nullptr, GroupTile},
};

}  // namespace
}  // namespace nibble::cpu::codes
