// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/vector_scan.h"

#include "kernels/cpu/code_loops.h"
#include "kernels/cpu/vector_math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 believes that its own AVX-512 headers use a value before it is set.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace nibble::cpu {
namespace {

// Above the rounding to BF16 and of the product together: relative, and among subnormal numbers.
constexpr float kQuotientSlack = 1.0f + 0x1p-7f;
constexpr float kSubnormalSlack = 0x1p-126f;

int64_t OutsideTail(const float* x, int64_t first, int64_t n, float low, float high, int64_t count,
                    uint16_t* positions) {
  for (int64_t i = first; i < n; ++i) {
    positions[count] = static_cast<uint16_t>(i);
    count += x[i] >= low && x[i] <= high ? 0 : 1;
  }
  return count;
}
int64_t OutsideScalar(const float* x, int64_t n, float low, float high, uint16_t* positions) {
  return OutsideTail(x, 0, n, low, high, 0, positions);
}
void ColumnsScalar(const float* x, float fold, float, uint32_t* amax, int64_t n) {
  FoldedColumnAmax(x, fold, amax, n);
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) int64_t OutsideAvx2(const float* x, int64_t n, float low,
                                                    float high, uint16_t* positions) {
  const __m256 lows = _mm256_set1_ps(low), highs = _mm256_set1_ps(high);
  int64_t count = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 value = _mm256_loadu_ps(x + i);
    const __m256 outside = _mm256_or_ps(_mm256_cmp_ps(value, lows, _CMP_NGE_UQ),
                                        _mm256_cmp_ps(value, highs, _CMP_NLE_UQ));
    auto mask = static_cast<unsigned>(_mm256_movemask_ps(outside));
    for (; mask != 0; mask &= mask - 1) {
      positions[count++] = static_cast<uint16_t>(i + __builtin_ctz(mask));
    }
  }
  return OutsideTail(x, i, n, low, high, count, positions);
}

__attribute__((target("avx2"))) void ColumnsAvx2(const float* x, float fold, float reciprocal,
                                                 uint32_t* amax, int64_t n) {
  const __m256 factor = _mm256_set1_ps(reciprocal * kQuotientSlack);
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 a = _mm256_and_ps(_mm256_loadu_ps(x + i), magnitude);
    const __m256 bound = _mm256_mul_ps(_mm256_add_ps(a, _mm256_set1_ps(kSubnormalSlack)), factor);
    const __m256 best = _mm256_loadu_ps(reinterpret_cast<const float*>(amax + i));
    if (_mm256_movemask_ps(_mm256_cmp_ps(bound, best, _CMP_NLE_UQ)) != 0) {
      FoldedColumnAmax(x + i, fold, amax + i, 8);
    }
  }
  FoldedColumnAmax(x + i, fold, amax + i, n - i);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2"))) int64_t OutsideAvx512(
    const float* x, int64_t n, float low, float high, uint16_t* positions) {
  const __m512 lows = _mm512_set1_ps(low), highs = _mm512_set1_ps(high);
  const __m256i ramp = _mm256_set_epi16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  int64_t count = 0, i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 value = _mm512_loadu_ps(x + i);
    const __mmask16 mask = static_cast<__mmask16>(_mm512_cmp_ps_mask(value, lows, _CMP_NGE_UQ) |
                                                  _mm512_cmp_ps_mask(value, highs, _CMP_NLE_UQ));
    const __m256i at = _mm256_add_epi16(ramp, _mm256_set1_epi16(static_cast<int16_t>(i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(positions + count),
                        _mm256_maskz_compress_epi16(mask, at));
    count += __builtin_popcount(mask);
  }
  return OutsideTail(x, i, n, low, high, count, positions);
}

__attribute__((target("avx512f"))) void ColumnsAvx512(const float* x, float fold, float reciprocal,
                                                      uint32_t* amax, int64_t n) {
  const __m512 factor = _mm512_set1_ps(reciprocal * kQuotientSlack);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 a = _mm512_abs_ps(_mm512_loadu_ps(x + i));
    const __m512 bound = _mm512_mul_ps(_mm512_add_ps(a, _mm512_set1_ps(kSubnormalSlack)), factor);
    if (_mm512_cmp_ps_mask(bound, _mm512_loadu_ps(amax + i), _CMP_NLE_UQ) != 0) {
      FoldedColumnAmax(x + i, fold, amax + i, 16);
    }
  }
  FoldedColumnAmax(x + i, fold, amax + i, n - i);
}

#endif

struct Scans {
  int64_t (*outside)(const float*, int64_t, float, float, uint16_t*) = OutsideScalar;
  void (*columns)(const float*, float, float, uint32_t*, int64_t) = ColumnsScalar;
};

Scans BestScans() {
  Scans scans;
#if defined(__x86_64__)
  if (UsedCpuFeatures().avx2) scans = {OutsideAvx2, ColumnsAvx2};
  if (UsedCpuFeatures().avx512) scans.columns = ColumnsAvx512;
  if (UsedCpuFeatures().avx512_vbmi2) scans.outside = OutsideAvx512;
#endif
  return scans;
}

const Scans& Chosen() {
  static const Scans kScans = BestScans();
  return kScans;
}

}  // namespace

int64_t PositionsOutside(const float* x, int64_t n, float low, float high, uint16_t* positions) {
  return Chosen().outside(x, n, low, high, positions);
}

void FoldedColumnAmaxFast(const float* x, float fold, float reciprocal, uint32_t* amax, int64_t n) {
  Chosen().columns(x, fold, reciprocal, amax, n);
}

}  // namespace nibble::cpu
