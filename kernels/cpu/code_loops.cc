// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/code_loops.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/pack_codes_avx2.h"
#include "kernels/cpu/quantize_loops.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/occ.h"

namespace nibble::cpu {
namespace {

constexpr float kInt8Max = 127.0f;

NIBBLE_LOOP void ScaleRow(const float* x, float low, float high, float enc, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    y[i] = formats::OccClamp(formats::RoundBf16(x[i]), low, high) * enc;
  }
}
NIBBLE_LOOP void ScalePlainRow(const float* x, float enc, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = formats::RoundBf16(x[i]) * enc;
}
NIBBLE_LOOP void ScaleColumns(const float* x, float low, float high, const float* enc, float* y,
                              int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    y[i] = formats::OccClamp(formats::RoundBf16(x[i]), low, high) * enc[i];
  }
}
NIBBLE_LOOP void FoldColumnsRow(const float* x, const float* fold, float enc, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = formats::RoundBf16(x[i]) / fold[i] * enc;
}
NIBBLE_LOOP void FoldRowColumns(const float* x, float fold, const float* enc, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = formats::RoundBf16(x[i]) / fold * enc[i];
}
NIBBLE_LOOP void FoldRowRow(const float* x, float fold, float enc, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = formats::RoundBf16(x[i]) / fold * enc;
}

NIBBLE_LOOP uint32_t FoldedAmaxLanes(const float* x, const float* fold, int64_t n) {
  uint32_t lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      lanes[l] = formats::AmaxUpdate(lanes[l], formats::RoundBf16(x[i + l]) / fold[i + l]);
    }
  }
  for (; i < n; ++i) lanes[0] = formats::AmaxUpdate(lanes[0], formats::RoundBf16(x[i]) / fold[i]);
  for (int l = 1; l < kLanes; ++l) lanes[0] = lanes[l] > lanes[0] ? lanes[l] : lanes[0];
  return lanes[0];
}
NIBBLE_LOOP void ColumnAmaxClamped(const float* x, float low, float high, uint32_t* amax,
                                   int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    amax[i] = formats::AmaxUpdate(amax[i], formats::OccClamp(formats::RoundBf16(x[i]), low, high));
  }
}
NIBBLE_LOOP void ColumnAmaxFolded(const float* x, float fold, uint32_t* amax, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    amax[i] = formats::AmaxUpdate(amax[i], formats::RoundBf16(x[i]) / fold);
  }
}

NIBBLE_LOOP void E2M1Even(const float* y, uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = formats::E2M1CodeOfGridValue(formats::RoundE2M1Even(y[i]));
  }
}

#if defined(__x86_64__)
// Where a range's step is s, the code is |y| / s to the nearest whole number, ties to even, plus
// what lies before the range: 0, 2 and 4. The smallest of the three is that of the range y is in.
__attribute__((target("avx2"), always_inline)) inline __m256i E2M1EvenEight(const float* from) {
  const __m256 y = _mm256_loadu_ps(from);
  // Of a NaN the minimum is the other operand, and no sign.
  const __m256 a = _mm256_min_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), y), _mm256_set1_ps(6.0f));
  const __m256i low = _mm256_cvtps_epi32(_mm256_add_ps(a, a));
  const __m256i middle = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(2));
  const __m256i high = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(a, _mm256_set1_ps(0.5f))),
                                        _mm256_set1_epi32(4));
  const __m256 number = _mm256_and_ps(y, _mm256_cmp_ps(y, y, _CMP_ORD_Q));
  const __m256i sign =
      _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(number), 28), _mm256_set1_epi32(8));
  return _mm256_or_si256(_mm256_min_epi32(_mm256_min_epi32(low, middle), high), sign);
}

// Whole blocks of 32, packed two to a byte; returns the elements done.
__attribute__((target("avx2"))) int64_t E2M1EvenAvx2(const float* y, uint8_t* codes, int64_t n) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m128i bytes = PackE2M1Codes(E2M1EvenEight(y + i), E2M1EvenEight(y + i + 8),
                                        E2M1EvenEight(y + i + 16), E2M1EvenEight(y + i + 24));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i / 2), bytes);
  }
  return i;
}
#endif

// RoundE2M1Sr24 without the way back to a value. Below 2 a code counts halves, from 2 on ones and
// from 4 on twos, two codes to an octave: the code is the number of whole steps under the magnitude
// plus two for each octave begun.
NIBBLE_LOOP void E2M1Sr24(const float* y, const uint32_t* words, uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float a = formats::E2M1Saturate(y[i]);
    const float steps = a * (a < 2.0f ? 2.0f : (a < 4.0f ? 1.0f : 0.5f));
    const int32_t below = static_cast<int32_t>(steps);
    const float fraction = steps - static_cast<float>(below);
    const float draw = static_cast<float>(static_cast<int32_t>(words[i] >> 8)) * 0x1p-24f;
    const int32_t up = draw < fraction ? 1 : 0;
    const int32_t octaves = (a >= 2.0f ? 2 : 0) + (a >= 4.0f ? 2 : 0);
    const uint32_t sign = formats::E2M1Sign(y[i]) >> 28;
    codes[i] = static_cast<uint8_t>(static_cast<uint32_t>(below + up + octaves) | sign);
  }
}

// min(|y|, 127); 127 for NaN, which counts as positive.
inline float Int8Saturate(float y) {
  const float a = formats::Magnitude(y);
  return a <= kInt8Max ? a : kInt8Max;
}
inline int32_t WithSign(int32_t magnitude, float y) {
  return formats::E2M1Sign(y) != 0 ? -magnitude : magnitude;
}
NIBBLE_LOOP void Int8Even(const float* y, uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    // Adding 1.5 * 2^23 rounds to an integer, ties to even.
    const float rounded = (Int8Saturate(y[i]) + 12582912.0f) - 12582912.0f;
    codes[i] = static_cast<uint8_t>(WithSign(static_cast<int32_t>(rounded), y[i]));
  }
}
NIBBLE_LOOP void Int8Sr24(const float* y, const uint32_t* words, uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float a = Int8Saturate(y[i]);
    const int32_t below = static_cast<int32_t>(a);
    const float fraction = a - static_cast<float>(below);
    const float draw = static_cast<float>(static_cast<int32_t>(words[i] >> 8)) * 0x1p-24f;
    const int32_t up = draw < fraction ? 1 : 0;
    codes[i] = static_cast<uint8_t>(WithSign(below + up, y[i]));
  }
}

NIBBLE_LOOP uint32_t ReciprocalAmax(const float* x, const float* reciprocals, int64_t n) {
  uint32_t lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      lanes[l] = formats::AmaxUpdate(lanes[l], formats::RoundBf16(x[i + l]) * reciprocals[i + l]);
    }
  }
  for (; i < n; ++i) {
    lanes[0] = formats::AmaxUpdate(lanes[0], formats::RoundBf16(x[i]) * reciprocals[i]);
  }
  for (int l = 1; l < kLanes; ++l) lanes[0] = lanes[l] > lanes[0] ? lanes[l] : lanes[0];
  return lanes[0];
}

NIBBLE_LOOP void PackPairs(const uint8_t* codes, uint8_t* packed, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    packed[i] = static_cast<uint8_t>(codes[2 * i] | (codes[2 * i + 1] << 4));
  }
}

NIBBLE_LOOP void SplitLoop(const uint32_t* words, uint32_t* p0, uint32_t* p1, uint32_t* p2,
                           uint32_t* p3, int64_t n) {
  NIBBLE_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    p0[i] = words[4 * i];
    p1[i] = words[4 * i + 1];
    p2[i] = words[4 * i + 2];
    p3[i] = words[4 * i + 3];
  }
}

}  // namespace

void ScaleSegment(const Scaling& s, const float* x, float* y, int64_t n) {
  if (!s.folded) {
    if (s.enc_by_column != nullptr)
      return Cloned<ScaleColumns>(x, s.low, s.high, s.enc_by_column, y, n);
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    if (s.low == -kInfinity && s.high == kInfinity) return Cloned<ScalePlainRow>(x, s.enc, y, n);
    return Cloned<ScaleRow>(x, s.low, s.high, s.enc, y, n);
  }
  if (s.fold_by_column != nullptr) return Cloned<FoldColumnsRow>(x, s.fold_by_column, s.enc, y, n);
  if (s.enc_by_column != nullptr) return Cloned<FoldRowColumns>(x, s.fold, s.enc_by_column, y, n);
  Cloned<FoldRowRow>(x, s.fold, s.enc, y, n);
}

uint32_t FoldedAmax(const float* x, const float* fold, int64_t n) {
  return Cloned<FoldedAmaxLanes>(x, fold, n);
}

void ColumnAmax(const float* x, float low, float high, uint32_t* amax, int64_t n) {
  Cloned<ColumnAmaxClamped>(x, low, high, amax, n);
}
void FoldedColumnAmax(const float* x, float fold, uint32_t* amax, int64_t n) {
  Cloned<ColumnAmaxFolded>(x, fold, amax, n);
}

void SplitLanes(const uint32_t* words, uint32_t* planes, int64_t stride, int64_t n) {
  Cloned<SplitLoop>(words, planes, planes + stride, planes + 2 * stride, planes + 3 * stride, n);
}

bool EncodesDirectly(const Quant& quant) {
  return (quant.elem == Elem::kE2M1 || quant.elem == Elem::kInt8) &&
         (quant.round == Round::kEven || quant.round == Round::kSr24);
}

void EncodeCodes(const Quant& quant, const float* y, const uint32_t* words, uint8_t* codes,
                 int64_t n) {
  const bool random = quant.round == Round::kSr24;
  if (quant.elem == Elem::kInt8) {
    return random ? Cloned<Int8Sr24>(y, words, codes, n) : Cloned<Int8Even>(y, codes, n);
  }
  uint8_t wide[kSegment];
  if (random) {
    Cloned<E2M1Sr24>(y, words, wide, n);
  } else {
#if defined(__x86_64__)
    static const bool kAvx2 = UsedCpuFeatures().avx2;
    const int64_t done = kAvx2 ? E2M1EvenAvx2(y, codes, n) : 0;
    y += done;
    codes += done / 2;
    n -= done;
#endif
    Cloned<E2M1Even>(y, wide, n);
  }
  Cloned<PackPairs>(wide, codes, n / 2);
  if (n % 2 != 0) codes[n / 2] = wide[n - 1];
}

bool Reciprocable(const float* fold, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const bool ordinary = fold[i] >= 1.0f / kLargestReciprocable && fold[i] <= kLargestReciprocable;
    if (!ordinary && fold[i] != std::numeric_limits<float>::infinity()) return false;
  }
  return true;
}

bool EncsAreOrdinary(const float* enc, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (!(enc[i] >= 1.0f / kLargestFastEnc && enc[i] <= kLargestFastEnc)) return false;
  }
  return true;
}

uint32_t FoldedAmaxFast(const float* x, const float* fold, const float* reciprocals, int64_t n) {
  constexpr int64_t kParts = 64;
  // Of a product against a quotient, both ways.
  constexpr float kSlack = 1.0f - 0x1p-21f;
  uint32_t amax = 0;
  for (int64_t first = 0; first < n; first += kParts * kSegment) {
    const int64_t parts = (std::min(n - first, kParts * kSegment) + kSegment - 1) / kSegment;
    uint32_t largest[kParts];
    uint32_t all = 0;
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t at = first + p * kSegment;
      largest[p] = Cloned<ReciprocalAmax>(x + at, reciprocals + at, std::min(kSegment, n - at));
      all = std::max(all, largest[p]);
    }
    // Small or infinite products say little: then every part is divided. Bits order as magnitudes.
    const float threshold = formats::BitsFloat(all) * kSlack;
    const bool ordinary = threshold > 0x1p-100f && formats::IsFinite(threshold);
    const uint32_t least = ordinary ? formats::FloatBits(threshold) : 0u;
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t at = first + p * kSegment;
      if (largest[p] < least) continue;
      amax = std::max(amax, Cloned<FoldedAmaxLanes>(x + at, fold + at, std::min(kSegment, n - at)));
    }
  }
  return amax;
}

}  // namespace nibble::cpu
