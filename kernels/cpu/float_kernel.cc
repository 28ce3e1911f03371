// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/float_kernel.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_features.h"
#include "kernels/formats/bf16.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble::cpu {
namespace {

#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
constexpr bool kFusedByDefault = true;
inline float MultiplyAdd(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
constexpr bool kFusedByDefault = false;
inline float MultiplyAdd(float a, float b, float c) { return c + a * b; }
#endif

constexpr int kPlainRows = 4, kPlainCols = 16;

template <int kLaneStride, int kDepthStride>
void RunPlain(int64_t depth, const float* left, const float* right, bool accumulate, float* c,
              int64_t ldc) {
  float sums[kPlainRows][kPlainCols] = {};
  for (int64_t k = 0; k < depth; ++k, left += kDepthStride, right += kPlainCols) {
    for (int i = 0; i < kPlainRows; ++i) {
      const float l = left[i * kLaneStride];
      for (int j = 0; j < kPlainCols; ++j) sums[i][j] = MultiplyAdd(l, right[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kPlainRows; ++i) {
    float* row = c + i * ldc;
    for (int j = 0; j < kPlainCols; ++j) row[j] = accumulate ? row[j] + sums[i][j] : sums[i][j];
  }
}

constexpr FloatKernel kPlain{"portable",
                             kFusedByDefault,
                             kPlainRows,
                             kPlainCols,
                             RunPlain<1, kPlainRows>,
                             RunPlain<kPlainCols, 1>,
                             1,
                             PackPanels};

#if defined(__x86_64__)

// 6 x 16: 12 accumulators, two right vectors and one broadcast in the 16 registers of AVX2.
template <int kLaneStride, int kDepthStride>
__attribute__((target("avx2,fma"))) void RunAvx2(int64_t depth, const float* left,
                                                 const float* right, bool accumulate, float* c,
                                                 int64_t ldc) {
  constexpr int kRows = 6;
  __m256 low[kRows], high[kRows];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    low[i] = _mm256_setzero_ps();
    high[i] = _mm256_setzero_ps();
    __builtin_prefetch(c + i * ldc, 1);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const __m256 r0 = _mm256_load_ps(right);
    const __m256 r1 = _mm256_load_ps(right + 8);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m256 l = _mm256_broadcast_ss(left + i * kLaneStride);
      low[i] = _mm256_fmadd_ps(l, r0, low[i]);
      high[i] = _mm256_fmadd_ps(l, r1, high[i]);
    }
    left += kDepthStride;
    right += 16;
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    float* row = c + i * ldc;
    if (accumulate) {
      low[i] = _mm256_add_ps(_mm256_loadu_ps(row), low[i]);
      high[i] = _mm256_add_ps(_mm256_loadu_ps(row + 8), high[i]);
    }
    _mm256_storeu_ps(row, low[i]);
    _mm256_storeu_ps(row + 8, high[i]);
  }
}

// 12 x 32: 24 accumulators of the 32 registers.
template <int kLaneStride, int kDepthStride>
__attribute__((target("avx512f"))) void RunAvx512(int64_t depth, const float* left,
                                                  const float* right, bool accumulate, float* c,
                                                  int64_t ldc) {
  constexpr int kRows = 12;
  __m512 low[kRows], high[kRows];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    low[i] = _mm512_setzero_ps();
    high[i] = _mm512_setzero_ps();
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + 16, 1);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const __m512 r0 = _mm512_load_ps(right);
    const __m512 r1 = _mm512_load_ps(right + 16);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const __m512 l = _mm512_set1_ps(left[i * kLaneStride]);
      low[i] = _mm512_fmadd_ps(l, r0, low[i]);
      high[i] = _mm512_fmadd_ps(l, r1, high[i]);
    }
    left += kDepthStride;
    right += 32;
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

constexpr FloatKernel kAvx2{"AVX2", true, 6, 16, RunAvx2<1, 6>, RunAvx2<16, 1>, 1, PackPanels};
constexpr FloatKernel kAvx512{"AVX-512",        true, 12,        32, RunAvx512<1, 12>,
                              RunAvx512<32, 1>, 1,    PackPanels};

// formats::RoundBf16 of four numbers.
inline __m128 Round(__m128 x) {
  const __m128i bits = _mm_castps_si128(x);
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
  const __m128i upper = _mm_set1_epi32(static_cast<int>(0xFFFF0000u));
  const __m128i rounded =
      _mm_and_si128(_mm_add_epi32(_mm_add_epi32(bits, _mm_set1_epi32(0x7FFF)), odd), upper);
  const __m128i quiet = _mm_or_si128(_mm_and_si128(bits, upper), _mm_set1_epi32(0x00400000));
  const __m128i nan = _mm_castps_si128(_mm_cmpunord_ps(x, x));
  return _mm_castsi128_ps(_mm_or_si128(_mm_and_si128(nan, quiet), _mm_andnot_si128(nan, rounded)));
}

template <bool kRound>
inline __m128 Load(const float* x) {
  const __m128 value = _mm_loadu_ps(x);
  return kRound ? Round(value) : value;
}

// Four lanes at four depths, turned so that lanes are neighbours.
template <bool kRound>
inline void TurnFour(const float* x, int64_t lane_stride, float* out, int64_t width) {
  __m128 a = Load<kRound>(x);
  __m128 b = Load<kRound>(x + lane_stride);
  __m128 c = Load<kRound>(x + 2 * lane_stride);
  __m128 d = Load<kRound>(x + 3 * lane_stride);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(out, a);
  _mm_storeu_ps(out + width, b);
  _mm_storeu_ps(out + 2 * width, c);
  _mm_storeu_ps(out + 3 * width, d);
}

constexpr int64_t kTurnDepth = 16;  // one cache line of each lane, used up before the next

// A full panel whose lanes are rows of memory. Groups of four lanes; the last overlaps the one
// before when the width is not a multiple of four. Returns the depths done: a multiple of four.
template <bool kRound>
int64_t TurnPanel(const PanelSource& s, int64_t depth, int64_t width, float* out) {
  const int64_t whole = depth / 4 * 4;
  for (int64_t block = 0; block < whole; block += kTurnDepth) {
    const int64_t end = std::min(whole, block + kTurnDepth);
    for (int64_t group = 0; group < width; group += 4) {
      const int64_t lane = std::min(group, width - 4);
      for (int64_t i = lane + width; i < lane + width + 4; ++i) {
        __builtin_prefetch(s.x + i * s.lane_stride + block);  // the panel after this one
      }
      for (int64_t k = block; k < end; k += 4) {
        TurnFour<kRound>(s.x + lane * s.lane_stride + k, s.lane_stride, out + k * width + lane,
                         width);
      }
    }
  }
  return whole;
}

constexpr int64_t kCopyDepth = 8;  // rows of memory that stay in L1 while they are dealt out

// Full panels whose lanes are neighbours in memory.
template <int kWidth, bool kRound>
void CopyPanels(const PanelSource& s, int64_t panels, int64_t depth, int64_t panel_stride,
                float* out) {
  for (int64_t block = 0; block < depth; block += kCopyDepth) {
    const int64_t end = std::min(depth, block + kCopyDepth);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const float* from = s.x + panel * kWidth + block * s.depth_stride;
      float* to = out + panel * panel_stride + block * kWidth;
      for (int64_t k = block; k < end; ++k, from += s.depth_stride, to += kWidth) {
        __m128 part[(kWidth + 3) / 4];
        for (int lane = 0; lane < kWidth; lane += 4) {
          part[lane / 4] = Load<kRound>(from + std::min(lane, kWidth - 4));
        }
        for (int lane = 0; lane < kWidth; lane += 4) {
          _mm_storeu_ps(to + std::min(lane, kWidth - 4), part[lane / 4]);
        }
      }
    }
  }
}

// Returns the panels done: none when the width is not one of a kernel.
int64_t CopyFullPanels(const PanelSource& s, int64_t panels, int64_t depth, int64_t width,
                       int64_t panel_stride, float* out) {
  switch (width) {
    case 6:
      (s.bf16 ? CopyPanels<6, true> : CopyPanels<6, false>)(s, panels, depth, panel_stride, out);
      return panels;
    case 12:
      (s.bf16 ? CopyPanels<12, true> : CopyPanels<12, false>)(s, panels, depth, panel_stride, out);
      return panels;
    case 16:
      (s.bf16 ? CopyPanels<16, true> : CopyPanels<16, false>)(s, panels, depth, panel_stride, out);
      return panels;
    case 32:
      (s.bf16 ? CopyPanels<32, true> : CopyPanels<32, false>)(s, panels, depth, panel_stride, out);
      return panels;
    default:
      return 0;
  }
}

#endif

// Lanes of one panel at depths from `first` on, number by number.
void PackSlowly(const PanelSource& s, int64_t lanes, int64_t first, int64_t depth, int64_t width,
                float* out) {
  std::fill(out + first * width, out + depth * width, 0.0f);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const float* from = s.x + lane * s.lane_stride;
    for (int64_t k = first; k < depth; ++k) out[k * width + lane] = from[k * s.depth_stride];
  }
  if (!s.bf16) return;
  for (int64_t i = first * width; i < depth * width; ++i) out[i] = formats::RoundBf16(out[i]);
}

}  // namespace

const FloatKernel* const* FloatKernels() {
#if defined(__x86_64__)
  static const FloatKernel* const kAll[] = {&kAvx512, &kAvx2, &kPlain, nullptr};
  if (UsedCpuFeatures().avx512) return kAll;
  if (UsedCpuFeatures().avx2) return kAll + 1;
  return kAll + 2;
#else
  static const FloatKernel* const kAll[] = {&kPlain, nullptr};
  return kAll;
#endif
}

void PackPanels(const PanelSource& source, int64_t lanes, int64_t depth, int64_t width,
                int64_t panel_stride, float* out) {
  [[maybe_unused]] const int64_t full = lanes / width;
  int64_t packed = 0;  // panels
#if defined(__x86_64__)
  if (source.lane_stride == 1) {
    packed = CopyFullPanels(source, full, depth, width, panel_stride, out);
  }
#endif
  for (; packed * width < lanes; ++packed) {
    PanelSource panel = source;
    panel.x += packed * width * source.lane_stride;
    float* to = out + packed * panel_stride;
    int64_t done = 0;
#if defined(__x86_64__)
    if (packed < full && source.depth_stride == 1) {
      done = (source.bf16 ? TurnPanel<true> : TurnPanel<false>)(panel, depth, width, to);
    }
#endif
    PackSlowly(panel, std::min(width, lanes - packed * width), done, depth, width, to);
  }
}

void TransposeInto(const float* x, int64_t stride, int64_t rows, int64_t cols, float* out,
                   int64_t out_stride) {
  int64_t whole_rows = 0, whole_cols = 0;
#if defined(__x86_64__)
  whole_rows = rows / 4 * 4;
  whole_cols = cols / 4 * 4;
  for (int64_t c = 0; c < whole_cols; c += 4) {
    for (int64_t r = 0; r < whole_rows; r += 4) {
      TurnFour<false>(x + r * stride + c, stride, out + c * out_stride + r, out_stride);
    }
  }
#endif
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = c < whole_cols ? whole_rows : 0; r < rows; ++r) {
      out[c * out_stride + r] = x[r * stride + c];
    }
  }
}

void RunTile(const FloatKernel& kernel, FloatKernel::Run run, int64_t depth, const float* left,
             const float* right, bool accumulate, int64_t rows, int64_t cols, float* c,
             int64_t ldc) {
  if (rows >= kernel.rows && cols >= kernel.cols) {
    run(depth, left, right, accumulate, c, ldc);
    return;
  }
  alignas(64) float tile[kMostKernelRows * kMostKernelCols];
  const int64_t wide = std::min(cols, kernel.cols);
  const int64_t high = std::min(rows, kernel.rows);
  run(depth, left, right, false, tile, kernel.cols);
  for (int64_t i = 0; i < high; ++i) {
    for (int64_t j = 0; j < wide; ++j) {
      const float value = tile[i * kernel.cols + j];
      c[i * ldc + j] = accumulate ? c[i * ldc + j] + value : value;
    }
  }
}

}  // namespace nibble::cpu
