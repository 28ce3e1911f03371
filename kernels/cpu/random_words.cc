// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/random_words.h"

#include <cstring>

#include "kernels/cpu/vector_math.h"
#include "kernels/formats/philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 believes that its own AVX-512 headers use a value before it is set.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace nibble::cpu {
namespace {

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;

void GroupsScalar(const RandomStream& s, uint64_t first, uint64_t stride, int64_t groups,
                  uint32_t* words) {
  for (int64_t i = 0; i < groups; ++i) {
    const formats::PhiloxWords w =
        formats::RandomGroup(s.seed, s.step, s.stream, first + static_cast<uint64_t>(i) * stride);
    for (int l = 0; l < 4; ++l) words[4 * i + l] = w.word[l];
  }
}

#if defined(__x86_64__)

// Four counters, one per 64-bit lane: each of their words sits in the low half of a lane of its own
// vector, and what the upper halves hold never matters, because the multiplication reads the low
// halves only.
struct Counters4 {
  __m256i c0, c1, c2, c3;
};

// One round. In this order and these registers: left to itself GCC spills the three sets that have
// to be under way for the multiplier never to wait.
__attribute__((target("avx2"), always_inline)) inline void RoundAvx2(__m256i m0, __m256i m1,
                                                                     const __m256i* key0,
                                                                     const __m256i* key1,
                                                                     Counters4* c) {
  __m256i p0, p1;
  __asm__(
      "vpmuludq %[m0], %[c0], %[p0]\n\t"
      "vpmuludq %[m1], %[c2], %[p1]\n\t"
      "vpxor %[key0], %[c1], %[c1]\n\t"
      "vpxor %[key1], %[c3], %[c3]\n\t"
      "vpsrlq $32, %[p1], %[c0]\n\t"
      "vpsrlq $32, %[p0], %[c2]\n\t"
      "vpxor %[c1], %[c0], %[c0]\n\t"
      "vpxor %[c3], %[c2], %[c2]"
      : [c0] "+x"(c->c0), [c1] "+x"(c->c1), [c2] "+x"(c->c2), [c3] "+x"(c->c3), [p0] "=&x"(p0),
        [p1] "=&x"(p1)
      : [m0] "x"(m0), [m1] "x"(m1), [key0] "m"(*key0), [key1] "m"(*key1));
  c->c1 = p1;
  c->c3 = p0;
}

__attribute__((target("avx2"))) void GroupsAvx2(const RandomStream& s, uint64_t first,
                                                uint64_t stride, int64_t groups, uint32_t* words) {
  constexpr int kSets = 3, kCounters = 4;
  const __m256i m0 = _mm256_set1_epi64x(kMultiplier0), m1 = _mm256_set1_epi64x(kMultiplier1);
  __m256i key0[kRounds], key1[kRounds];
  for (uint32_t i = 0; i < kRounds; ++i) {
    key0[i] = _mm256_set1_epi64x(static_cast<uint32_t>(s.seed) + i * kWeyl0);
    key1[i] = _mm256_set1_epi64x(static_cast<uint32_t>(s.seed >> 32) + i * kWeyl1);
  }
  // Words 2 and 3 of every counter are the same before the first round: so is what they become.
  const __m256i product = _mm256_mul_epu32(_mm256_set1_epi64x(s.step), m1);
  const __m256i first_c0 = _mm256_xor_si256(_mm256_srli_epi64(product, 32), key0[0]);
  const __m256i first_c2 = _mm256_xor_si256(_mm256_set1_epi64x(s.stream), key1[0]);
  const auto step = static_cast<int64_t>(stride);
  const __m256i hop = _mm256_set1_epi64x(kCounters * step);
  __m256i group = _mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(first)),
                                   _mm256_set_epi64x(3 * step, 2 * step, step, 0));
  for (int64_t done = 0; done < groups; done += kSets * kCounters) {
    Counters4 c[kSets];
#pragma GCC unroll 3
    for (int v = 0; v < kSets; ++v) {
      const __m256i p0 = _mm256_mul_epu32(group, m0);
      c[v] = {_mm256_xor_si256(first_c0, _mm256_srli_epi64(group, 32)), product,
              _mm256_xor_si256(first_c2, _mm256_srli_epi64(p0, 32)), p0};
      group = _mm256_add_epi64(group, hop);
    }
#pragma GCC unroll 9
    for (int round = 1; round < kRounds; ++round) {
#pragma GCC unroll 3
      for (int v = 0; v < kSets; ++v) RoundAvx2(m0, m1, key0 + round, key1 + round, c + v);
    }
#pragma GCC unroll 3
    for (int v = 0; v < kSets; ++v) {
      const int64_t at = done + v * kCounters;
      if (at >= groups) break;
      const __m256i w01 = _mm256_blend_epi32(c[v].c0, _mm256_slli_epi64(c[v].c1, 32), 0xAA);
      const __m256i w23 = _mm256_blend_epi32(c[v].c2, _mm256_slli_epi64(c[v].c3, 32), 0xAA);
      const __m256i low = _mm256_unpacklo_epi64(w01, w23);
      const __m256i high = _mm256_unpackhi_epi64(w01, w23);
      const __m256i results[2] = {_mm256_permute2x128_si256(low, high, 0x20),
                                  _mm256_permute2x128_si256(low, high, 0x31)};
      if (groups - at >= kCounters) {
        std::memcpy(words + 4 * at, results, sizeof results);
      } else {
        std::memcpy(words + 4 * at, results, static_cast<size_t>(groups - at) * 4 * sizeof *words);
      }
    }
  }
}

__attribute__((target("avx512f"))) void GroupsAvx512(const RandomStream& s, uint64_t first,
                                                     uint64_t stride, int64_t groups,
                                                     uint32_t* words) {
  constexpr int kSets = 4, kCounters = 8;
  const __m512i m0 = _mm512_set1_epi64(kMultiplier0), m1 = _mm512_set1_epi64(kMultiplier1);
  const auto step = static_cast<int64_t>(stride);
  const __m512i ramp =
      _mm512_set_epi64(7 * step, 6 * step, 5 * step, 4 * step, 3 * step, 2 * step, step, 0);
  const __m512i upper = _mm512_set1_epi64(static_cast<int64_t>(0xFFFFFFFF00000000u));
  // Two words of a counter from the one vector, two from the other: 4 counters, then 4 more.
  const __m512i order_low = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
  const __m512i order_high = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
  for (int64_t done = 0; done < groups; done += kSets * kCounters) {
    __m512i c0[kSets], c1[kSets], c2[kSets], c3[kSets];
    for (int v = 0; v < kSets; ++v) {
      const uint64_t g = first + static_cast<uint64_t>(done + v * kCounters) * stride;
      c0[v] = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(g)), ramp);
      c1[v] = _mm512_srli_epi64(c0[v], 32);
      c2[v] = _mm512_set1_epi64(s.step);
      c3[v] = _mm512_set1_epi64(s.stream);
    }
    uint32_t key0 = static_cast<uint32_t>(s.seed), key1 = static_cast<uint32_t>(s.seed >> 32);
    for (int round = 0; round < kRounds; ++round) {
      const __m512i k0 = _mm512_set1_epi64(key0), k1 = _mm512_set1_epi64(key1);
      for (int v = 0; v < kSets; ++v) {
        const __m512i p0 = _mm512_mul_epu32(c0[v], m0), p1 = _mm512_mul_epu32(c2[v], m1);
        c0[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[v], k0, 0x96);
        c2[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[v], k1, 0x96);
        c1[v] = p1;
        c3[v] = p0;
      }
      key0 += kWeyl0;
      key1 += kWeyl1;
    }
    for (int v = 0; v < kSets; ++v) {
      const int64_t at = done + v * kCounters;
      if (at >= groups) break;
      // Upper halves from the shifted odd words (0xCA: where the mask is set the first, else the
      // second).
      const __m512i w01 =
          _mm512_ternarylogic_epi64(upper, _mm512_slli_epi64(c1[v], 32), c0[v], 0xCA);
      const __m512i w23 =
          _mm512_ternarylogic_epi64(upper, _mm512_slli_epi64(c3[v], 32), c2[v], 0xCA);
      const __m512i low = _mm512_permutex2var_epi64(w01, order_low, w23);
      const __m512i high = _mm512_permutex2var_epi64(w01, order_high, w23);
      if (groups - at >= kCounters) {
        _mm512_storeu_si512(words + 4 * at, low);
        _mm512_storeu_si512(words + 4 * at + 16, high);
      } else {
        uint32_t tail[4 * kCounters];
        _mm512_storeu_si512(tail, low);
        _mm512_storeu_si512(tail + 16, high);
        for (int64_t i = 0; i < 4 * (groups - at); ++i) words[4 * at + i] = tail[i];
      }
    }
  }
}

#endif

using Groups = void (*)(const RandomStream&, uint64_t, uint64_t, int64_t, uint32_t*);

Groups BestGroups() {
#if defined(__x86_64__)
  if (UsedCpuFeatures().avx512) return GroupsAvx512;
  if (UsedCpuFeatures().avx2) return GroupsAvx2;
#endif
  return GroupsScalar;
}

}  // namespace

void RandomGroups(const RandomStream& stream, uint64_t first, uint64_t stride, int64_t groups,
                  uint32_t* words) {
  static const Groups kGroups = BestGroups();
  kGroups(stream, first, stride, groups, words);
}

const uint32_t* RandomRun(const RandomStream& stream, uint64_t first, int64_t n, uint32_t* words) {
  const uint64_t offset = first % 4;
  RandomGroups(stream, first / 4, 1, (n + static_cast<int64_t>(offset) + 3) / 4, words);
  return words + offset;
}

}  // namespace nibble::cpu
