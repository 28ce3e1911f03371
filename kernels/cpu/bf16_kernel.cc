// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/bf16_kernel.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/cpu_features.h"
#include "kernels/formats/bf16.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble::cpu {

#if defined(__x86_64__)
namespace {

#define NIBBLE_BF16_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

constexpr int kRows = 12, kCols = 32;

// 12 x 32: 24 accumulators of the 32 registers. depth counts slots.
NIBBLE_BF16_TARGET void RunPairs(int64_t depth, const float* left, const float* right,
                                 bool accumulate, float* c, int64_t ldc) {
  __m512 low[kRows], high[kRows];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    low[i] = _mm512_setzero_ps();
    high[i] = _mm512_setzero_ps();
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + 16, 1);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const __m512bh r0 = (__m512bh)_mm512_load_ps(right);
    const __m512bh r1 = (__m512bh)_mm512_load_ps(right + 16);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const __m512bh l = (__m512bh)_mm512_set1_ps(left[i]);
      low[i] = _mm512_dpbf16_ps(low[i], l, r0);
      high[i] = _mm512_dpbf16_ps(high[i], l, r1);
    }
    left += kRows;
    right += kCols;
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    float* row = c + i * ldc;
    if (accumulate) {
      low[i] = _mm512_add_ps(_mm512_loadu_ps(row), low[i]);
      high[i] = _mm512_add_ps(_mm512_loadu_ps(row + 16), high[i]);
    }
    _mm512_storeu_ps(row, low[i]);
    _mm512_storeu_ps(row + 16, high[i]);
  }
}

constexpr int64_t kCopySlots = 4;  // pairs of rows that stay in L1 while they are dealt out

// Full panels of `width` lanes (12 or 32) that are neighbours in memory.
NIBBLE_BF16_TARGET void CopyPanels(const PanelSource& s, int64_t panels, int64_t depth,
                                   int64_t width, int64_t panel_stride, float* out) {
  const int64_t slots = (depth + 1) / 2;
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * 16);
  const __m512i interleave = _mm512_load_si512(order);
  for (int64_t block = 0; block < slots; block += kCopySlots) {
    const int64_t end = std::min(slots, block + kCopySlots);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const float* from = s.x + panel * width + 2 * block * s.depth_stride;
      float* to = out + panel * panel_stride + block * width;
      for (int64_t k = block; k < end; ++k, from += 2 * s.depth_stride, to += width) {
        const bool both = 2 * k + 1 < depth;
        for (int64_t lane = 0; lane < width; lane += 16) {
          const auto lanes =
              static_cast<__mmask16>((1u << std::min<int64_t>(16, width - lane)) - 1);
          const __m512 even = _mm512_maskz_loadu_ps(lanes, from + lane);
          const __m512 odd = both ? _mm512_maskz_loadu_ps(lanes, from + s.depth_stride + lane)
                                  : _mm512_setzero_ps();
          const auto halves = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
          _mm512_mask_storeu_epi32(to + lane, lanes, _mm512_permutexvar_epi16(interleave, halves));
        }
      }
    }
  }
}

constexpr int64_t kTurnDepth = 16;  // one cache line of each lane: eight slots

// kTurnDepth depths of four lanes, turned so that lanes are neighbours.
NIBBLE_BF16_TARGET inline void TurnFour(const float* rows, int64_t stride, float* to,
                                        int64_t width) {
  const auto a = (__m256)_mm512_cvtneps_pbh(_mm512_loadu_ps(rows));
  const auto b = (__m256)_mm512_cvtneps_pbh(_mm512_loadu_ps(rows + stride));
  const auto c = (__m256)_mm512_cvtneps_pbh(_mm512_loadu_ps(rows + 2 * stride));
  const auto d = (__m256)_mm512_cvtneps_pbh(_mm512_loadu_ps(rows + 3 * stride));
  // Slots 0 and 4, 1 and 5, .. in the halves of a register.
  const __m256d ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
  const __m256d ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
  const __m256d cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
  const __m256d cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
  const __m256 slots[4] = {_mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low)),
                           _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low)),
                           _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high)),
                           _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high))};
  for (int64_t s = 0; s < 4; ++s) {
    _mm_storeu_ps(to + s * width, _mm256_castps256_ps128(slots[s]));
    _mm_storeu_ps(to + (s + 4) * width, _mm256_extractf128_ps(slots[s], 1));
  }
}

// A full panel whose lanes are rows of memory (widths are multiples of four). Returns the depths
// done: a multiple of kTurnDepth.
NIBBLE_BF16_TARGET int64_t TurnPanel(const PanelSource& s, int64_t depth, int64_t width,
                                     float* out) {
  const int64_t whole = depth / kTurnDepth * kTurnDepth;
  for (int64_t k = 0; k < whole; k += kTurnDepth) {
    for (int64_t lane = 0; lane < width; lane += 4) {
      const float* rows = s.x + lane * s.lane_stride + k;
      for (int64_t i = width; i < width + 4; ++i) {
        __builtin_prefetch(rows + i * s.lane_stride);  // the panel after this one
      }
      TurnFour(rows, s.lane_stride, out + k / 2 * width + lane, width);
    }
  }
  return whole;
}

uint32_t Bf16Bits(float x) { return std::bit_cast<uint32_t>(formats::RoundBf16(x)) >> 16; }

// Lanes of one panel at depths from `first` (even) on, number by number; absent ones are zero.
void PackSlowly(const PanelSource& s, int64_t lanes, int64_t first, int64_t depth, int64_t width,
                float* out) {
  for (int64_t k = first; k < depth; k += 2) {
    for (int64_t lane = 0; lane < width; ++lane) {
      uint32_t pair = 0;
      if (lane < lanes) {
        const float* from = s.x + lane * s.lane_stride + k * s.depth_stride;
        pair = Bf16Bits(*from);
        if (k + 1 < depth) pair |= Bf16Bits(from[s.depth_stride]) << 16;
      }
      std::memcpy(out + k / 2 * width + lane, &pair, sizeof pair);
    }
  }
}

void PackPairs(const PanelSource& source, int64_t lanes, int64_t depth, int64_t width,
               int64_t panel_stride, float* out) {
  const int64_t full = lanes / width;
  int64_t packed = 0;  // panels
  if (source.lane_stride == 1) {
    CopyPanels(source, full, depth, width, panel_stride, out);
    packed = full;
  }
  for (; packed * width < lanes; ++packed) {
    PanelSource panel = source;
    panel.x += packed * width * source.lane_stride;
    float* to = out + packed * panel_stride;
    int64_t done = 0;
    if (packed < full && source.depth_stride == 1) done = TurnPanel(panel, depth, width, to);
    PackSlowly(panel, std::min(width, lanes - packed * width), done, depth, width, to);
  }
}

constexpr FloatKernel kPairs{"AVX512_BF16", true, kRows, kCols, RunPairs, nullptr, 2, PackPairs};

}  // namespace

const FloatKernel* Bf16PairKernel() { return HostCpuFeatures().avx512_bf16 ? &kPairs : nullptr; }

#else

const FloatKernel* Bf16PairKernel() { return nullptr; }

#endif

}  // namespace nibble::cpu
