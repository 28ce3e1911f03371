// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 VNNI: vpdpbusd adds four products of unsigned by signed bytes to each 32-bit lane.
//
// Left codes carry +128, which makes them unsigned; 128 times the sum of the right codes is the
// bias of a column, taken off by the accumulators' first value. Nothing saturates (vpdpbusd wraps),
// so codes may use the full 8-bit range and wide outliers cost nothing. |S| < 2^31 is the caller's
// promise (DescribeCodeGemm); sums on the way may wrap, the result modulo 2^32 is right.
// Tile 8 x 32: 16 accumulators, 2 right vectors, one broadcast.
#include <immintrin.h>

#include "kernels/cpu/codes/loops.h"
#include "kernels/cpu/codes/pack_avx2.h"
#include "kernels/cpu/codes/unroll.h"

namespace nibble::cpu::codes {
namespace {

constexpr int kRows = 8;
constexpr int kCols = 32;
constexpr int kOffset = 128;
static_assert(kScalePadding % kCols == 0 && kScalePadding % kRows == 0);
constexpr int kLeftStep = kRows * 4;
constexpr int kRightStep = kCols * 4;

[[gnu::always_inline]] inline __m512i Broadcast(const uint8_t* p) {
  return _mm512_set1_epi32(LoadWord(p));
}

// As _mm512_cvtepi32_ps, whose header GCC 12 warns about.
[[gnu::always_inline]] inline __m512 Floats(__m512i integers) {
  using Integers = int32_t __attribute__((vector_size(64)));
  return __builtin_convertvector(reinterpret_cast<Integers>(integers), __m512);
}

void Bias(const uint8_t* panel, int64_t depth, int32_t* bias) {
  __m512i sum0 = _mm512_setzero_si512(), sum1 = sum0;
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(kOffset));
  for (int64_t k = 0; k < depth; k += 4, panel += kRightStep) {
    sum0 = _mm512_dpbusd_epi32(sum0, offset, _mm512_loadu_si512(panel));
    sum1 = _mm512_dpbusd_epi32(sum1, offset, _mm512_loadu_si512(panel + 64));
  }
  const __m512i zero = _mm512_setzero_si512();
  _mm512_storeu_si512(bias, _mm512_sub_epi32(zero, sum0));
  _mm512_storeu_si512(bias + 16, _mm512_sub_epi32(zero, sum1));
}

void Tile(const TileArgs& args) {
  __m512i sums[2 * kRows];
  const uint8_t* left = args.left;
  const uint8_t* right = args.right;
  Unroll<2 * kRows>([&](auto i) NIBBLE_INLINE_LAMBDA {
    sums[i] = _mm512_loadu_si512(args.resume ? args.tile + i * 16 : args.right_bias + i % 2 * 16);
  });
  for (int64_t k = 0; k < args.depth; k += 4, left += kLeftStep, right += kRightStep) {
    const __m512i b0 = _mm512_loadu_si512(right);
    const __m512i b1 = _mm512_loadu_si512(right + 64);
    Unroll<kRows>([&](auto r) NIBBLE_INLINE_LAMBDA {
      const __m512i a = Broadcast(left + r * 4);
      sums[2 * r] = _mm512_dpbusd_epi32(sums[2 * r], a, b0);
      sums[2 * r + 1] = _mm512_dpbusd_epi32(sums[2 * r + 1], a, b1);
    });
  }
  Unroll<2 * kRows>([&](auto i)
                        NIBBLE_INLINE_LAMBDA { _mm512_storeu_si512(args.tile + i * 16, sums[i]); });
}

// Rows half by half: 16 FP32 sums, 8 integer sums, 2 right vectors and a broadcast in 32 registers.
constexpr int kHalf = kRows / 2;

void GroupTile(const GroupTileArgs& args) {
  __m512 sums[2 * kRows];
  const uint8_t* left = args.left;
  const uint8_t* right = args.right;
  const int32_t* bias = args.right_bias;
  const float* left_factor = args.left_factor;
  const float* right_factor = args.right_factor;
  Unroll<2 * kRows>([&](auto i) NIBBLE_INLINE_LAMBDA {
    sums[i] = args.resume ? _mm512_loadu_ps(args.tile + i * 16) : _mm512_setzero_ps();
  });
  for (int64_t g = 0; g < args.groups; ++g) {
    const __m512 factor0 = _mm512_loadu_ps(right_factor);
    const __m512 factor1 = _mm512_loadu_ps(right_factor + 16);
    Unroll<2>([&](auto half) NIBBLE_INLINE_LAMBDA {
      __m512i products[2 * kHalf];
      Unroll<2 * kHalf>([&](auto i) NIBBLE_INLINE_LAMBDA {
        products[i] = _mm512_loadu_si512(bias + i % 2 * 16);
      });
      const uint8_t* l = left + half * kHalf * 4;
      const uint8_t* r = right;
      for (int64_t k = 0; k < args.group; k += 4, l += kLeftStep, r += kRightStep) {
        const __m512i b0 = _mm512_loadu_si512(r);
        const __m512i b1 = _mm512_loadu_si512(r + 64);
        Unroll<kHalf>([&](auto i) NIBBLE_INLINE_LAMBDA {
          const __m512i a = Broadcast(l + i * 4);
          products[2 * i] = _mm512_dpbusd_epi32(products[2 * i], a, b0);
          products[2 * i + 1] = _mm512_dpbusd_epi32(products[2 * i + 1], a, b1);
        });
      }
      Unroll<kHalf>([&](auto i) NIBBLE_INLINE_LAMBDA {
        constexpr int row = half * kHalf + i;
        const __m512 factor = _mm512_set1_ps(left_factor[row]);
        sums[2 * row] = _mm512_add_ps(
            sums[2 * row], _mm512_mul_ps(Floats(products[2 * i]), _mm512_mul_ps(factor, factor0)));
        sums[2 * row + 1] = _mm512_add_ps(
            sums[2 * row + 1],
            _mm512_mul_ps(Floats(products[2 * i + 1]), _mm512_mul_ps(factor, factor1)));
      });
    });
    left += args.group * kRows;
    right += args.group * kCols;
    bias += kCols;
    left_factor += args.left_stride;
    right_factor += args.right_stride;
  }
  Unroll<2 * kRows>([&](auto i)
                        NIBBLE_INLINE_LAMBDA { _mm512_storeu_ps(args.tile + i * 16, sums[i]); });
}

// Byte `at` of every four-byte cell: the product with a one at that place.
struct DotCells {
  explicit DotCells(int64_t at) : one(_mm512_set1_epi32(1 << (8 * at))) {}
  [[gnu::always_inline]] Words16 operator()(Words16 cells) const {
    return reinterpret_cast<Words16>(
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), one, reinterpret_cast<__m512i>(cells)));
  }
  __m512i one;
};

constexpr PanelLayout kLeft{PanelOrder::kQuads, kRows, kOffset};
constexpr PanelLayout kRight{PanelOrder::kQuads, kCols, 0};
// A right panel of 768 codes is 24 KiB.
constexpr Variant kOuter[] = {
    {127, 127, kLeft, kRight, 8, 0, 768, nullptr, Bias, Tile, nullptr},
};
constexpr Variant kGrouped[] = {
    {127, 127, kLeft, kRight, 8, 0, 768, nullptr, Bias, nullptr, GroupTile},
};
constexpr KernelSet kSet{"avx512vnni",
                         kOuter,
                         1,
                         kGrouped,
                         1,
                         ExpandAvx2,
                         ScatterAlongAvx2,
                         ScatterAcrossAvx2,
                         FinishTile<int32_t, kRows, kCols>,
                         FinishTile<float, kRows, kCols>,
                         CorrectVectors<Words16, Codes16, DotCells, 2, 4>};

}  // namespace

const KernelSet& Avx512VnniKernels() { return kSet; }

}  // namespace nibble::cpu::codes
