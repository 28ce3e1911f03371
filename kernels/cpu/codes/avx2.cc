// SPDX-License-Identifier: Apache-2.0
//
// AVX2: vpmaddubsw multiplies 32 unsigned by signed bytes and adds neighbours to 16-bit lanes.
//
// Tiles are 4 x 16. Four ways to form the sums:
//
// 1. Byte-Winograd, one side within 12 (E2M1 in half units), the other within M <= 78: E2M1 itself
//    or E2M1 with wide outliers. S. Winograd's inner product trades half the products for sums:
//    with e = codes 0..3 and o = codes 4..7 of eight,
//      (a_e + b_o) (a_o + b_e) = a_e b_e + a_o b_o + a_e a_o + b_o b_e,
//    one vpmaddubsw for eight codes of depth. With c = M + 12, u = (a_e + c) + b_o is unsigned, v =
//    a_o + b_e signed; the last two terms, with the c, are biases of a row and of a column:
//      sum of u v = sum a b + sum a_o (a_e + c) + sum b_e (b_o + c).
//    Proof that nothing overflows. 0 <= u <= 2 c <= 180 and |v| <= c, so a pair of products is at
//    most 2 * 2 c * c <= 32400 in magnitude (M = 78), below the saturation of vpmaddubsw at 32767;
//    so are those of the biases, whose unsigned factor is at most M + c <= 168 and whose signed one
//    is at most M <= 78: 2 * 168 * 78 = 26208. All further 16-bit arithmetic is modulo 2^16, so
//    only the last value of a lane has to fit: the lane starts at minus its biases and ends at the
//    sum of its true products, four per eight codes of depth, each at most 12 M in magnitude. That
//    bounds the codes between two widenings to 32 bits (vpmaddwd with ones), kWinogradSpan<M>:
//      M = 12: 448 codes are 56 steps, 4 * 144 * 56 = 32256 <= 32767 (57 could reach 32832);
//      M = 24: 224 are 28, 4 * 288 * 28 = 32256;  M = 40: 136 are 17, 4 * 480 * 17 = 32640;
//      M = 78: 64 are 8, 4 * 936 * 8 = 29952.
//    Groups of a multiple of 64 up to 448 take this form too, M = 12, one group a span.
// 2. Offset, both within 12, for other groups: u = a + 12 in [0, 24], |pair| <= 2 * 24 * 12 = 576.
// A lane
//    starts at minus 12 times its right codes, ends at its true products, two per four codes: a
//    group of kOffsetSpan = 448 ends at 2 * 144 * 112 = 32256 at most.
// 3. Mixed, one side within 12, the other within 127 (INT8 gradients, wide outliers): u = a + 12
//    and |pair| <= 2 * 24 * 127 = 6096; five steps reach 30480 <= 32767 without modulo arithmetic,
//    then they are widened. The bias is taken off the 32-bit sums.
// 4. Words, both within 127: 16-bit codes and vpmaddwd, |pair| <= 2 * 127 * 127, 32-bit sums.
#include <immintrin.h>

#include <iterator>

#include "kernels/cpu/codes/loops.h"
#include "kernels/cpu/codes/pack_avx2.h"
#include "kernels/cpu/codes/unroll.h"

namespace nibble::cpu::codes {
namespace {

constexpr int kRows = 4;
constexpr int kCols = 16;
constexpr int kTiles = 2 * kRows;  // vectors of eight columns
constexpr int kOffsetSpan = 448;
constexpr int kOffset = 12;
constexpr int kE2M1Max = 12;
// Of codes within `most` and E2M1: what makes the left ones unsigned, and the codes of a span.
template <int most>
constexpr int kWinogradOffset = most + kE2M1Max;
template <int most>
constexpr int kWinogradSpan = 32767 / (4 * kE2M1Max * most) * 8;
static_assert(kWinogradSpan<12> == 448 && kWinogradSpan<24> == 224 && kWinogradSpan<40> == 136 &&
              kWinogradSpan<78> == 64);
constexpr int kWinogradDepth = 1360;  // of a block, roughly: 21 KiB of a right panel
static_assert(kScalePadding % kCols == 0 && kScalePadding % kRows == 0);
constexpr int kMixedSteps = 5;

[[gnu::always_inline]] inline __m256i Load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
[[gnu::always_inline]] inline void Put(void* p, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), value);
}
[[gnu::always_inline]] inline __m256i Broadcast(const uint8_t* p) {
  return _mm256_set1_epi32(LoadWord(p));
}
[[gnu::always_inline]] inline __m256i Widen(__m256i sums) {
  return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}

// Keeps a value in a register: without it GCC loads right vectors again for every row.
[[gnu::always_inline]] inline void Pin(__m256i& value) { __asm__ volatile("" : "+x"(value)); }

// sum += product in 16-bit lanes, in place and in this order: left to itself GCC rotates the
// accumulators of a loop through extra registers, one move for each addition.
[[gnu::always_inline]] inline void AddInPlace(__m256i& sum, __m256i product) {
  __asm__ volatile("vpaddw %1, %0, %0" : "+x"(sum) : "x"(product));
}

// The same in 32-bit lanes.
[[gnu::always_inline]] inline void AddWideInPlace(__m256i& sum, __m256i product) {
  __asm__ volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
}

// Sums still in 16-bit lanes into `tile`.
[[gnu::always_inline]] inline void PutSums(const TileArgs& args, bool resume,
                                           const __m256i (&sums)[kTiles]) {
  Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA {
    int32_t* tile = args.tile + i * 8;
    const __m256i wide = Widen(sums[i]);
    Put(tile, resume ? _mm256_add_epi32(Load(tile), wide) : wide);
  });
}

void WinogradLeftBias(const uint8_t* panel, int64_t depth, int32_t* bias) {
  __m128i sums = _mm_setzero_si128();
  for (int64_t k = 0; k < depth; k += 8, panel += kRows * 8) {
    const __m256i rows = Load(panel);
    // a_e + c of the four rows, then a_o.
    const __m256i halves =
        _mm256_permutevar8x32_epi32(rows, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    sums = _mm_add_epi16(sums, _mm_maddubs_epi16(_mm256_castsi256_si128(halves),
                                                 _mm256_extracti128_si256(halves, 1)));
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bias), _mm_sub_epi16(_mm_setzero_si128(), sums));
}

template <int most>
void WinogradRightBias(const uint8_t* panel, int64_t depth, int32_t* bias) {
  __m256i sum0 = _mm256_setzero_si256(), sum1 = sum0;
  const __m256i offset = _mm256_set1_epi8(kWinogradOffset<most>);
  for (int64_t k = 0; k < depth; k += 8, panel += kCols * 8) {
    sum0 = _mm256_add_epi16(
        sum0, _mm256_maddubs_epi16(_mm256_add_epi8(Load(panel), offset), Load(panel + 32)));
    sum1 = _mm256_add_epi16(
        sum1, _mm256_maddubs_epi16(_mm256_add_epi8(Load(panel + 64), offset), Load(panel + 96)));
  }
  const __m256i zero = _mm256_setzero_si256();
  Put(bias, _mm256_sub_epi16(zero, sum0));
  Put(bias + 8, _mm256_sub_epi16(zero, sum1));
}

// Sums of a span in 16-bit lanes; the panels move on.
[[gnu::always_inline]] inline void WinogradSums(const uint8_t*& left, const uint8_t*& right,
                                                const int32_t* left_bias, const int32_t* right_bias,
                                                int64_t depth, __m256i (&sums)[kTiles]) {
  Unroll<kRows>([&](auto r) NIBBLE_INLINE_LAMBDA {
    const __m256i row = _mm256_set1_epi32(left_bias[r]);
    sums[2 * r] = _mm256_add_epi16(row, Load(right_bias));
    sums[2 * r + 1] = _mm256_add_epi16(row, Load(right_bias + 8));
  });
  for (int64_t step = 0; step < depth; step += 8, left += kRows * 8, right += kCols * 8) {
    __m256i o0 = Load(right), e0 = Load(right + 32);
    __m256i o1 = Load(right + 64), e1 = Load(right + 96);
    Pin(o0);
    Pin(e0);
    Pin(o1);
    Pin(e1);
    Unroll<kRows>([&](auto r) NIBBLE_INLINE_LAMBDA {
      const __m256i ae = Broadcast(left + r * 8);
      const __m256i ao = Broadcast(left + r * 8 + 4);
      __m256i u0 = _mm256_add_epi8(ae, o0), v0 = _mm256_add_epi8(ao, e0);
      __m256i product = _mm256_maddubs_epi16(u0, v0);
      AddInPlace(sums[2 * r], product);
      u0 = _mm256_add_epi8(ae, o1);
      v0 = _mm256_add_epi8(ao, e1);
      product = _mm256_maddubs_epi16(u0, v0);
      AddInPlace(sums[2 * r + 1], product);
    });
  }
}

template <int most>
void WinogradTile(const TileArgs& args) {
  constexpr int kSpan = kWinogradSpan<most>;
  const uint8_t* left = args.left;
  const uint8_t* right = args.right;
  const int32_t* left_bias = args.left_bias;
  const int32_t* right_bias = args.right_bias;
  bool resume = args.resume;
  for (int64_t k = 0; k < args.depth; k += kSpan) {
    const int64_t depth = args.depth - k < kSpan ? args.depth - k : kSpan;
    __m256i sums[kTiles];
    WinogradSums(left, right, left_bias, right_bias, depth, sums);
    PutSums(args, resume, sums);
    resume = true;
    left_bias += kRows;
    right_bias += kCols;
  }
}

// Adds the sums of a group, 16-bit lanes, to the FP32 sums, which wait in memory while integer ones
// fill the registers.
[[gnu::always_inline]] inline void AddGroup(const __m256i (&sums)[kTiles], const float* left_factor,
                                            const float* right_factor, float* tile) {
  const __m256 factor0 = _mm256_loadu_ps(right_factor);
  const __m256 factor1 = _mm256_loadu_ps(right_factor + 8);
  Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA {
    const __m256 factor =
        _mm256_mul_ps(_mm256_set1_ps(left_factor[i / 2]), i % 2 == 0 ? factor0 : factor1);
    const __m256 term = _mm256_mul_ps(_mm256_cvtepi32_ps(Widen(sums[i])), factor);
    _mm256_storeu_ps(tile + i * 8, _mm256_add_ps(_mm256_loadu_ps(tile + i * 8), term));
  });
}

void WinogradGroupTile(const GroupTileArgs& args) {
  if (!args.resume) std::memset(args.tile, 0, kTiles * 8 * sizeof(float));
  const uint8_t* left = args.left;
  const uint8_t* right = args.right;
  for (int64_t g = 0; g < args.groups; ++g) {
    __m256i sums[kTiles];
    WinogradSums(left, right, args.left_bias + g * kRows, args.right_bias + g * kCols, args.group,
                 sums);
    AddGroup(sums, args.left_factor + g * args.left_stride,
             args.right_factor + g * args.right_stride, args.tile);
  }
}

// Minus 12 times the codes, in the 16-bit lanes they are summed in.
void OffsetBias(const uint8_t* panel, int64_t depth, int32_t* bias) {
  __m256i sum0 = _mm256_setzero_si256(), sum1 = sum0;
  const __m256i offset = _mm256_set1_epi8(kOffset);
  for (int64_t k = 0; k < depth; k += 4, panel += kCols * 4) {
    sum0 = _mm256_add_epi16(sum0, _mm256_maddubs_epi16(offset, Load(panel)));
    sum1 = _mm256_add_epi16(sum1, _mm256_maddubs_epi16(offset, Load(panel + 32)));
  }
  const __m256i zero = _mm256_setzero_si256();
  Put(bias, _mm256_sub_epi16(zero, sum0));
  Put(bias + 8, _mm256_sub_epi16(zero, sum1));
}

void OffsetGroupTile(const GroupTileArgs& args) {
  if (!args.resume) std::memset(args.tile, 0, kTiles * 8 * sizeof(float));
  const uint8_t* left = args.left;
  const uint8_t* right = args.right;
  const int32_t* bias = args.right_bias;
  const float* left_factor = args.left_factor;
  const float* right_factor = args.right_factor;
  for (int64_t g = 0; g < args.groups; ++g) {
    __m256i products[kTiles];
    Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA { products[i] = Load(bias + i % 2 * 8); });
    for (int64_t k = 0; k < args.group; k += 4, left += kRows * 4, right += kCols * 4) {
      __m256i b0 = Load(right), b1 = Load(right + 32);
      Pin(b0);
      Pin(b1);
      Unroll<kRows>([&](auto r) NIBBLE_INLINE_LAMBDA {
        const __m256i a = Broadcast(left + r * 4);
        AddInPlace(products[2 * r], _mm256_maddubs_epi16(a, b0));
        AddInPlace(products[2 * r + 1], _mm256_maddubs_epi16(a, b1));
      });
    }
    AddGroup(products, left_factor, right_factor, args.tile);
    bias += kCols;
    left_factor += args.left_stride;
    right_factor += args.right_stride;
  }
}

// Minus 12 times the sum of a lane's codes, eight lanes at a time; of four lanes, two steps.
template <int lanes>
void MixedBias(const uint8_t* panel, int64_t depth, int32_t* bias) {
  static_assert(lanes == 4 || lanes == kCols);
  constexpr int kVectors = lanes == 4 ? 1 : kCols / 8;
  __m256i sums[kVectors] = {};
  for (int64_t bytes = depth * lanes; bytes > 0; bytes -= kVectors * 32, panel += kVectors * 32) {
    Unroll<kVectors>([&](auto v) NIBBLE_INLINE_LAMBDA {
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), Load(panel + v * 32));
      sums[v] = _mm256_sub_epi32(sums[v], _mm256_madd_epi16(pairs, _mm256_set1_epi16(kOffset)));
    });
  }
  if constexpr (lanes == 4) {
    const __m128i both =
        _mm_add_epi32(_mm256_castsi256_si128(sums[0]), _mm256_extracti128_si256(sums[0], 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bias), both);
  } else {
    Unroll<kVectors>([&](auto v) NIBBLE_INLINE_LAMBDA { Put(bias + v * 8, sums[v]); });
  }
}

// Products of one step with the unsigned operand first.
template <bool unsigned_left>
[[gnu::always_inline]] inline __m256i Mixed(__m256i a, __m256i b) {
  return unsigned_left ? _mm256_maddubs_epi16(a, b) : _mm256_maddubs_epi16(b, a);
}

template <bool unsigned_left>
void MixedTile(const TileArgs& args) {
  const uint8_t* left = args.left;
  const uint8_t* right = args.right;
  if (!args.resume) {
    Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA {
      Put(args.tile + i * 8, unsigned_left ? Load(args.right_bias + i % 2 * 8)
                                           : _mm256_set1_epi32(args.left_bias[i / 2]));
    });
  }
  const auto run = [&](auto steps) NIBBLE_INLINE_LAMBDA {
    __m256i sums[kTiles];
    Unroll<steps>([&](auto step) NIBBLE_INLINE_LAMBDA {
      __m256i b0 = Load(right + step * kCols * 4), b1 = Load(right + step * kCols * 4 + 32);
      Pin(b0);
      Pin(b1);
      Unroll<kRows>([&](auto r) NIBBLE_INLINE_LAMBDA {
        const __m256i a = Broadcast(left + step * kRows * 4 + r * 4);
        const __m256i p0 = Mixed<unsigned_left>(a, b0), p1 = Mixed<unsigned_left>(a, b1);
        if constexpr (step == 0) {
          sums[2 * r] = p0;
          sums[2 * r + 1] = p1;
        } else {
          AddInPlace(sums[2 * r], p0);
          AddInPlace(sums[2 * r + 1], p1);
        }
      });
    });
    PutSums(args, true, sums);
    left += steps * kRows * 4;
    right += steps * kCols * 4;
  };
  int64_t step = args.depth / 4;
  for (; step >= kMixedSteps; step -= kMixedSteps) {
    run(std::integral_constant<int, kMixedSteps>{});
  }
  for (; step > 0; --step) run(std::integral_constant<int, 1>{});
}

[[gnu::always_inline]] inline void AddWords(const uint8_t* left, const uint8_t* right,
                                            int64_t depth, __m256i* sums) {
  for (int64_t k = 0; k < depth; k += 2, left += kRows * 4, right += kCols * 4) {
    __m256i b0 = Load(right), b1 = Load(right + 32);
    Pin(b0);
    Pin(b1);
    Unroll<kRows>([&](auto r) NIBBLE_INLINE_LAMBDA {
      const __m256i a = Broadcast(left + r * 4);
      AddWideInPlace(sums[2 * r], _mm256_madd_epi16(a, b0));
      AddWideInPlace(sums[2 * r + 1], _mm256_madd_epi16(a, b1));
    });
  }
}

void WordsTile(const TileArgs& args) {
  __m256i sums[kTiles];
  Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA {
    sums[i] = args.resume ? Load(args.tile + i * 8) : _mm256_setzero_si256();
  });
  AddWords(args.left, args.right, args.depth, sums);
  Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA { Put(args.tile + i * 8, sums[i]); });
}

void WordsGroupTile(const GroupTileArgs& args) {
  if (!args.resume) {
    Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA {
      _mm256_storeu_ps(args.tile + i * 8, _mm256_setzero_ps());
    });
  }
  for (int64_t g = 0; g < args.groups; ++g) {
    __m256i sums[kTiles];
    Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA { sums[i] = _mm256_setzero_si256(); });
    AddWords(args.left + g * args.group * kRows * 2, args.right + g * args.group * kCols * 2,
             args.group, sums);
    const float* left = args.left_factor + g * args.left_stride;
    const float* right = args.right_factor + g * args.right_stride;
    Unroll<kTiles>([&](auto i) NIBBLE_INLINE_LAMBDA {
      float* tile = args.tile + i * 8;
      const __m256 factor =
          _mm256_mul_ps(_mm256_set1_ps(left[i / 2]), _mm256_loadu_ps(right + i % 2 * 8));
      _mm256_storeu_ps(tile, _mm256_add_ps(_mm256_loadu_ps(tile),
                                           _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), factor)));
    });
  }
}

// Panels [first, first + panels). Any byte times any other, one product to a 16-bit lane.
template <int panels>
void OutlierPanels(const OutlierArgs& args, int64_t first) {
  const int64_t stride = args.layout.order == PanelOrder::kQuads ? 32 : 64;
  const int64_t panel_bytes = args.panel_bytes;
  const uint8_t* panel = args.panel + first * panel_bytes;
  int32_t* out = args.sums + first * kCols;
  int64_t r = args.offsets[0];
  for (int64_t row = 0; row < args.rows; ++row, out += args.panels * kCols) {
    const int64_t end = args.offsets[row + 1];
    __m256i sums[2 * panels];
    Unroll<2 * panels>([&](auto v) NIBBLE_INLINE_LAMBDA { sums[v] = _mm256_setzero_si256(); });
    for (; r < end; ++r) {
      const CodeOutlier& o = args.outliers[r];
      const __m256i magnitude = _mm256_set1_epi32(static_cast<int>(o.magnitude));
      const __m256i sign = _mm256_set1_epi32(static_cast<int>(o.sign));
      const uint8_t* cells = panel + o.cell;
      Unroll<2 * panels>([&](auto v) NIBBLE_INLINE_LAMBDA {
        const __m256i codes = Load(cells + v / 2 * panel_bytes + v % 2 * stride);
        const __m256i product = _mm256_maddubs_epi16(magnitude, codes);
        sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(product, sign));
      });
    }
    Unroll<2 * panels>([&](auto v) NIBBLE_INLINE_LAMBDA { Put(out + v * 8, sums[v]); });
  }
}

void OutlierSums(const OutlierArgs& args) {
  int64_t first = 0;
  for (; first + 4 <= args.panels; first += 4) OutlierPanels<4>(args, first);
  for (; first < args.panels; ++first) OutlierPanels<1>(args, first);
}

// Columns 8 half .. of the tile become rows of the result, four numbers each.
void FinishTransposed(const int32_t* tile, const FinishArgs& args) {
  Unroll<2>([&](auto half) NIBBLE_INLINE_LAMBDA {
    constexpr int col = half * 8;
    __m256 y[kRows];
    Unroll<kRows>([&](auto r) NIBBLE_INLINE_LAMBDA {
      __m256i sums = Load(tile + r * kCols + col);
      if (args.outlier_sums != nullptr) {
        sums = _mm256_add_epi32(sums, Load(args.outlier_sums + r * args.correction_stride + col));
      }
      const __m256 scaled =
          _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_loadu_ps(args.right_scale + col));
      y[r] = _mm256_mul_ps(scaled, _mm256_set1_ps(args.left_scale[r]));
    });
    const __m256 a = _mm256_unpacklo_ps(y[0], y[1]), b = _mm256_unpackhi_ps(y[0], y[1]);
    const __m256 c = _mm256_unpacklo_ps(y[2], y[3]), d = _mm256_unpackhi_ps(y[2], y[3]);
    // Columns j and j + 4.
    const __m256 turned[4] = {_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xEE),
                              _mm256_shuffle_ps(b, d, 0x44), _mm256_shuffle_ps(b, d, 0xEE)};
    Unroll<8>([&](auto j) NIBBLE_INLINE_LAMBDA {
      float* out = args.out + (col + j) * args.out_stride;
      __m128 line =
          j < 4 ? _mm256_castps256_ps128(turned[j % 4]) : _mm256_extractf128_ps(turned[j % 4], 1);
      if (args.accumulate) line = _mm_add_ps(_mm_loadu_ps(out), line);
      _mm_storeu_ps(out, line);
    });
  });
}

constexpr PanelLayout kQuadsLeft{PanelOrder::kQuads, kRows, 0};
constexpr PanelLayout kQuadsRight{PanelOrder::kQuads, kCols, 0};
constexpr PanelLayout kOffsetLeft{PanelOrder::kQuads, kRows, kOffset};
constexpr PanelLayout kOffsetRight{PanelOrder::kQuads, kCols, kOffset};
constexpr PanelLayout kWordsLeft{PanelOrder::kWords, kRows, 0};
constexpr PanelLayout kWordsRight{PanelOrder::kWords, kCols, 0};
// Codes within `most` on the sides that may be wider than E2M1.
template <int most>
constexpr Variant Winograd(bool wide_left, bool wide_right) {
  constexpr int kSpan = kWinogradSpan<most>;
  return {wide_left ? most : kE2M1Max,
          wide_right ? most : kE2M1Max,
          {PanelOrder::kWinogradLeft, kRows, kWinogradOffset<most>},
          {PanelOrder::kWinogradRight, kCols, 0},
          8,
          kSpan,
          kWinogradDepth / kSpan * kSpan,
          WinogradLeftBias,
          WinogradRightBias<most>,
          WinogradTile<most>,
          nullptr};
}
constexpr Variant kOuter[] = {
    Winograd<12>(false, false),
    Winograd<24>(true, false),
    Winograd<24>(false, true),
    Winograd<40>(true, false),
    Winograd<40>(false, true),
    Winograd<78>(true, false),
    Winograd<78>(false, true),
    {12, 127, kOffsetLeft, kQuadsRight, 8, 0, 1280, nullptr, MixedBias<kCols>, MixedTile<true>,
     nullptr},
    {127, 12, kQuadsLeft, kOffsetRight, 8, 0, 1280, MixedBias<kRows>, nullptr, MixedTile<false>,
     nullptr},
    {127, 127, kWordsLeft, kWordsRight, 8, 0, 640, nullptr, nullptr, WordsTile, nullptr},
};
constexpr Variant kGrouped[] = {
    // Whole 64s: smaller groups spend more on loading two biases than the form saves.
    {12,
     12,
     {PanelOrder::kWinogradLeft, kRows, kWinogradOffset<12>},
     {PanelOrder::kWinogradRight, kCols, 0},
     64,
     kWinogradSpan<12>,
     1280,
     WinogradLeftBias,
     WinogradRightBias<12>,
     nullptr,
     WinogradGroupTile},
    {12, 12, kOffsetLeft, kQuadsRight, 8, kOffsetSpan, 1280, nullptr, OffsetBias, nullptr,
     OffsetGroupTile},
    {127, 127, kWordsLeft, kWordsRight, 8, 0, 640, nullptr, nullptr, nullptr, WordsGroupTile},
};
constexpr KernelSet kSet{"avx2",
                         kOuter,
                         std::size(kOuter),
                         kGrouped,
                         std::size(kGrouped),
                         ExpandAvx2,
                         ScatterAlongAvx2,
                         ScatterAcrossAvx2,
                         FinishTile<int32_t, kRows, kCols>,
                         FinishTile<float, kRows, kCols>,
                         CorrectVectors<Words8, Codes8, ShiftCells<Words8>, 2, 4>,
                         OutlierSums,
                         FinishTransposed};

}  // namespace

const KernelSet& Avx2Kernels() { return kSet; }

}  // namespace nibble::cpu::codes
