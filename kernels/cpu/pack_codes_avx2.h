// SPDX-License-Identifier: Apache-2.0
//
// 32-bit codes to bytes and nibbles with AVX2, for the loops that round.
//
// Purpose: one way to pack for stochastic and even rounding. Callers are compiled for AVX2 or carry
// its target attribute. Thread-safety: pure functions.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

namespace nibble::cpu {

// E2M1 codes of 32 elements, eight to each c, two to a byte.
__attribute__((target("avx2"), always_inline)) inline __m128i PackE2M1Codes(__m256i c0, __m256i c1,
                                                                            __m256i c2,
                                                                            __m256i c3) {
  const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(c0, c1), _mm256_packs_epi32(c2, c3));
  const __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x1001));
  const __m256i halves = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(pairs, pairs),
                                                     _mm256_setr_epi32(0, 1, 4, 5, 0, 1, 4, 5));
  // Two bytes of each c in the first half, two more in the second.
  return _mm_shuffle_epi8(_mm256_castsi256_si128(halves),
                          _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
}

// INT8 codes of 32 elements as bytes.
__attribute__((target("avx2"), always_inline)) inline __m256i PackInt8Codes(__m256i c0, __m256i c1,
                                                                            __m256i c2,
                                                                            __m256i c3) {
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(c0, c1), _mm256_packs_epi32(c2, c3));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

}  // namespace nibble::cpu
#endif
