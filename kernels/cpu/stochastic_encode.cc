// SPDX-License-Identifier: Apache-2.0
//
// Both formats place |y'| on a line p where codes are whole numbers: INT8 p = a; E2M1 the smallest
// of 2a, a + 2 and a/2 + 4, for its three step widths. The rounded code is floor(p + 1 - draw),
// draw in [0, 1): up iff draw < the fractional part. It is decided unless p + 1 - draw lies as near
// to a whole number as the errors of y' (5 * 2^-24 of p) and of the sum could carry it.
#include "kernels/cpu/stochastic_encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/pack_codes_avx2.h"
#include "kernels/formats/bf16.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 believes that its own AVX-512 headers use a value before it is set.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace nibble::cpu {
namespace {

constexpr float kE2M1Max = 6.0f, kInt8Max = 127.0f;
// p <= 7: errors below 2^-19 and 2^-21. p <= 127: below 2^-14 and 2^-17.
constexpr float kE2M1Doubt = 0x1p-18f, kInt8Doubt = 0x1p-13f;

// Code of one value, INT8 as a byte; -1: undecided.
int OneCode(Elem elem, float x, float factor, uint32_t word) {
  const float y = formats::RoundBf16(x) * factor;
  if (formats::IsNan(y)) return -1;
  const bool e2m1 = elem == Elem::kE2M1;
  const float a = std::min(formats::Magnitude(y), e2m1 ? kE2M1Max : kInt8Max);
  const float place = e2m1 ? std::min(std::min(a + a, a + 2.0f), a * 0.5f + 4.0f) : a;
  const float draw = static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
  const float sum = (place + 1.0f) - draw;
  if (std::fabs(sum - std::nearbyint(sum)) < (e2m1 ? kE2M1Doubt : kInt8Doubt)) return -1;
  const int code = static_cast<int>(sum);
  const bool negative = (formats::FloatBits(y) & formats::kSignBit) != 0;
  if (e2m1) return code | (negative ? 8 : 0);
  return (negative ? -code : code) & 0xFF;
}

bool EncodeScalar(Elem elem, const float* x, const float* columns, float row, const uint32_t* words,
                  uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const int code = OneCode(elem, x[i], columns[i] * row, words[i]);
    if (code < 0) return false;
    if (elem == Elem::kInt8) {
      codes[i] = static_cast<uint8_t>(code);
    } else if (i % 2 == 0) {
      codes[i / 2] = static_cast<uint8_t>(code);
    } else {
      codes[i / 2] = static_cast<uint8_t>(codes[i / 2] | (code << 4));
    }
  }
  return true;
}

#if defined(__x86_64__)

#define NIBBLE_AVX2 __attribute__((target("avx2,fma"), always_inline)) inline
#define NIBBLE_AVX512 __attribute__((target("avx512f,avx512dq"), always_inline)) inline

// Scaled values of eight elements. Rounding may carry a NaN into a number.
NIBBLE_AVX2 __m256 Scaled8(const float* x, const float* columns, __m256 row) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_and_si256(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd),
                       _mm256_set1_epi32(static_cast<int>(0xFFFF0000u)));
  const __m256 factor = _mm256_mul_ps(_mm256_loadu_ps(columns), row);
  return _mm256_mul_ps(_mm256_castsi256_ps(rounded), factor);
}
// What the codes of one lane after another leave undecided: the least distance, with the doubt
// added and 8 bits up, of 2^24 (p + 1 - draw) from a multiple of 2^24; whether an x was no number.
struct Undecided8 {
  __m256i least;
  __m256 nan;
};
constexpr int kE2M1Doubt24 = static_cast<int>(kE2M1Doubt * 0x1p24f);
constexpr int kInt8Doubt24 = static_cast<int>(kInt8Doubt * 0x1p24f);

// floor(p + 1 - draw) from 2^24 p, a whole number, which its conversion and all that follows keep
// exact. The doubt is left in the sum: it changes undecided codes only.
NIBBLE_AVX2 __m256i Floor8(__m256 place24, const float* x, const uint32_t* words, int doubt24,
                           Undecided8* undecided) {
  const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  const __m256i rest = _mm256_sub_epi32(_mm256_cvtps_epi32(place24), _mm256_srli_epi32(word, 8));
  const __m256i sum = _mm256_add_epi32(rest, _mm256_set1_epi32((1 << 24) + doubt24));
  undecided->least = _mm256_min_epu32(undecided->least, _mm256_slli_epi32(sum, 8));
  undecided->nan = _mm256_fmadd_ps(_mm256_loadu_ps(x), _mm256_setzero_ps(), undecided->nan);
  return _mm256_srli_epi32(sum, 24);
}
NIBBLE_AVX2 bool Decided(const Undecided8& undecided, int doubt24) {
  const __m256i limit = _mm256_set1_epi32(doubt24 << 9);
  const __m256i near = _mm256_cmpeq_epi32(_mm256_max_epu32(undecided.least, limit), limit);
  const __m256 nan = _mm256_cmp_ps(undecided.nan, undecided.nan, _CMP_UNORD_Q);
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_castsi256_ps(near), nan)) == 0;
}

NIBBLE_AVX2 __m256i E2M1Eight(const float* x, const float* columns, __m256 rows,
                              const uint32_t* words, Undecided8* undecided) {
  const __m256 y = Scaled8(x, columns, rows);
  const __m256 a =
      _mm256_min_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), y), _mm256_set1_ps(kE2M1Max));
  const __m256 low = _mm256_mul_ps(a, _mm256_set1_ps(0x1p25f));
  const __m256 middle = _mm256_fmadd_ps(a, _mm256_set1_ps(0x1p24f), _mm256_set1_ps(0x1p25f));
  const __m256 high = _mm256_fmadd_ps(a, _mm256_set1_ps(0x1p23f), _mm256_set1_ps(0x1p26f));
  const __m256 place = _mm256_min_ps(_mm256_min_ps(low, middle), high);
  const __m256i magnitude = Floor8(place, x, words, kE2M1Doubt24, undecided);
  const __m256i sign =
      _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(y), 28), _mm256_set1_epi32(8));
  return _mm256_or_si256(magnitude, sign);
}

__attribute__((target("avx2,fma"))) bool E2M1Avx2(const float* x, const float* columns, float row,
                                                  const uint32_t* words, uint8_t* codes,
                                                  int64_t n) {
  const __m256 rows = _mm256_set1_ps(row);
  Undecided8 undecided = {_mm256_set1_epi32(-1), _mm256_setzero_ps()};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    __m256i c[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      c[v] = E2M1Eight(x + i + 8 * v, columns + i + 8 * v, rows, words + i + 8 * v, &undecided);
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i / 2),
                     PackE2M1Codes(c[0], c[1], c[2], c[3]));
  }
  const __m256i none = _mm256_setzero_si256();
  for (; i < n; i += 8) {
    const __m256i code = E2M1Eight(x + i, columns + i, rows, words + i, &undecided);
    const int32_t bytes = _mm_cvtsi128_si32(PackE2M1Codes(code, none, none, none));
    std::memcpy(codes + i / 2, &bytes, sizeof(bytes));
  }
  return Decided(undecided, kE2M1Doubt24);
}

NIBBLE_AVX2 __m256i Int8Eight(const float* x, const float* columns, __m256 rows,
                              const uint32_t* words, Undecided8* undecided) {
  const __m256 y = Scaled8(x, columns, rows);
  const __m256 a =
      _mm256_min_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), y), _mm256_set1_ps(kInt8Max));
  const __m256i magnitude =
      Floor8(_mm256_mul_ps(a, _mm256_set1_ps(0x1p24f)), x, words, kInt8Doubt24, undecided);
  const __m256i negative = _mm256_srai_epi32(_mm256_castps_si256(y), 31);
  return _mm256_sub_epi32(_mm256_xor_si256(magnitude, negative), negative);
}

__attribute__((target("avx2,fma"))) bool Int8Avx2(const float* x, const float* columns, float row,
                                                  const uint32_t* words, uint8_t* codes,
                                                  int64_t n) {
  const __m256 rows = _mm256_set1_ps(row);
  Undecided8 undecided = {_mm256_set1_epi32(-1), _mm256_setzero_ps()};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    __m256i c[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      c[v] = Int8Eight(x + i + 8 * v, columns + i + 8 * v, rows, words + i + 8 * v, &undecided);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i),
                        PackInt8Codes(c[0], c[1], c[2], c[3]));
  }
  const __m256i none = _mm256_setzero_si256();
  for (; i < n; i += 8) {
    const __m256i code = Int8Eight(x + i, columns + i, rows, words + i, &undecided);
    const __m256i bytes = PackInt8Codes(code, none, none, none);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + i), _mm256_castsi256_si128(bytes));
  }
  return Decided(undecided, kInt8Doubt24);
}

bool EncodeAvx2(Elem elem, const float* x, const float* columns, float row, const uint32_t* words,
                uint8_t* codes, int64_t n) {
  const int64_t whole = n / 8 * 8;
  const bool e2m1 = elem == Elem::kE2M1;
  const bool decided = e2m1 ? E2M1Avx2(x, columns, row, words, codes, whole)
                            : Int8Avx2(x, columns, row, words, codes, whole);
  return decided && EncodeScalar(elem, x + whole, columns + whole, row, words + whole,
                                 codes + (e2m1 ? whole / 2 : whole), n - whole);
}

NIBBLE_AVX512 __m512 Scaled16(const float* x, const float* columns, __m512 row) {
  const __m512i bits = _mm512_loadu_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_and_si512(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd),
                       _mm512_set1_epi32(static_cast<int>(0xFFFF0000u)));
  const __m512 factor = _mm512_mul_ps(_mm512_loadu_ps(columns), row);
  return _mm512_mul_ps(_mm512_castsi512_ps(rounded), factor);
}
NIBBLE_AVX512 __m512 Draw16(__m512 place_and_one, const uint32_t* words) {
  const __m512 draw = _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_loadu_si512(words), 8));
  return _mm512_fnmadd_ps(draw, _mm512_set1_ps(0x1p-24f), place_and_one);
}
NIBBLE_AVX512 unsigned Doubt16(__m512 sum, const float* x, __m512 y, float doubt) {
  const __m512 whole = _mm512_roundscale_ps(sum, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 distance = _mm512_abs_ps(_mm512_sub_ps(sum, whole));
  const __m512 value = _mm512_loadu_ps(x);
  return static_cast<unsigned>(_mm512_cmp_ps_mask(distance, _mm512_set1_ps(doubt), _CMP_LT_OQ)) |
         static_cast<unsigned>(_mm512_cmp_ps_mask(value, y, _CMP_UNORD_Q));
}

__attribute__((target("avx512f,avx512dq"))) bool E2M1Avx512(const float* x, const float* columns,
                                                            float row, const uint32_t* words,
                                                            uint8_t* codes, int64_t n) {
  const __m512 rows = _mm512_set1_ps(row);
  unsigned doubt = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 y = Scaled16(x + i, columns + i, rows);
    const __m512 a = _mm512_min_ps(_mm512_abs_ps(y), _mm512_set1_ps(kE2M1Max));
    const __m512 low = _mm512_fmadd_ps(a, _mm512_set1_ps(2.0f), _mm512_set1_ps(1.0f));
    const __m512 middle = _mm512_add_ps(a, _mm512_set1_ps(3.0f));
    const __m512 high = _mm512_fmadd_ps(a, _mm512_set1_ps(0.5f), _mm512_set1_ps(5.0f));
    const __m512 sum = Draw16(_mm512_min_ps(_mm512_min_ps(low, middle), high), words + i);
    doubt |= Doubt16(sum, x + i, y, kE2M1Doubt);
    const __m512i sign =
        _mm512_and_si512(_mm512_srli_epi32(_mm512_castps_si512(y), 28), _mm512_set1_epi32(8));
    const __m512i code = _mm512_or_si512(_mm512_cvttps_epi32(sum), sign);
    const __m512i pairs = _mm512_or_si512(code, _mm512_srli_epi64(code, 28));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + i / 2), _mm512_cvtepi64_epi8(pairs));
  }
  return doubt == 0;
}

__attribute__((target("avx512f,avx512dq"))) bool Int8Avx512(const float* x, const float* columns,
                                                            float row, const uint32_t* words,
                                                            uint8_t* codes, int64_t n) {
  const __m512 rows = _mm512_set1_ps(row);
  unsigned doubt = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 y = Scaled16(x + i, columns + i, rows);
    const __m512 a = _mm512_min_ps(_mm512_abs_ps(y), _mm512_set1_ps(kInt8Max));
    const __m512 sum = Draw16(_mm512_add_ps(a, _mm512_set1_ps(1.0f)), words + i);
    doubt |= Doubt16(sum, x + i, y, kInt8Doubt);
    const __m512i negative = _mm512_srai_epi32(_mm512_castps_si512(y), 31);
    const __m512i code =
        _mm512_sub_epi32(_mm512_xor_si512(_mm512_cvttps_epi32(sum), negative), negative);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(code));
  }
  return doubt == 0;
}

bool EncodeAvx512(Elem elem, const float* x, const float* columns, float row, const uint32_t* words,
                  uint8_t* codes, int64_t n) {
  const int64_t whole = n / 16 * 16;
  const bool e2m1 = elem == Elem::kE2M1;
  const bool decided = e2m1 ? E2M1Avx512(x, columns, row, words, codes, whole)
                            : Int8Avx512(x, columns, row, words, codes, whole);
  return decided && EncodeScalar(elem, x + whole, columns + whole, row, words + whole,
                                 codes + (e2m1 ? whole / 2 : whole), n - whole);
}

#undef NIBBLE_AVX2
#undef NIBBLE_AVX512

#endif

}  // namespace

std::vector<StochasticEncoder> UsableStochasticEncoders() {
  std::vector<StochasticEncoder> usable = {EncodeScalar};
#if defined(__x86_64__)
  if (UsedCpuFeatures().avx2) usable.push_back(EncodeAvx2);
  if (UsedCpuFeatures().avx512) usable.push_back(EncodeAvx512);
#endif
  return usable;
}

bool EncodeSr24Fast(Elem elem, const float* x, const float* columns, float row,
                    const uint32_t* words, uint8_t* codes, int64_t n) {
  static const StochasticEncoder kEncoder = UsableStochasticEncoders().back();
  return kEncoder(elem, x, columns, row, words, codes, n);
}

}  // namespace nibble::cpu
