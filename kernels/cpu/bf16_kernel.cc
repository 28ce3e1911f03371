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

// Four slots of one lane.
NIBBLE_BF16_TARGET inline __m128 LoadPairs(const float* x) {
  return (__m128)_mm256_cvtneps_pbh(_mm256_loadu_ps(x));
}

constexpr int64_t kTurnDepth = 16;  // one cache line of each lane, used up before the next

// A full panel whose lanes are rows of memory, four lanes by four slots at a time (widths are
// multiples of four). Returns the depths done: a multiple of eight.
NIBBLE_BF16_TARGET int64_t TurnPanel(const PanelSource& s, int64_t depth, int64_t width,
                                     float* out) {
  const int64_t whole = depth / 8 * 8;
  for (int64_t block = 0; block < whole; block += kTurnDepth) {
    const int64_t end = std::min(whole, block + kTurnDepth);
    for (int64_t lane = 0; lane < width; lane += 4) {
      const float* rows = s.x + lane * s.lane_stride;
      for (int64_t i = width; i < width + 4; ++i) {
        __builtin_prefetch(rows + i * s.lane_stride + block);  // the panel after this one
      }
      for (int64_t k = block; k < end; k += 8) {
        __m128 a = LoadPairs(rows + k);
        __m128 b = LoadPairs(rows + s.lane_stride + k);
        __m128 c = LoadPairs(rows + 2 * s.lane_stride + k);
        __m128 d = LoadPairs(rows + 3 * s.lane_stride + k);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        float* to = out + k / 2 * width + lane;
        _mm_storeu_ps(to, a);
        _mm_storeu_ps(to + width, b);
        _mm_storeu_ps(to + 2 * width, c);
        _mm_storeu_ps(to + 3 * width, d);
      }
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
