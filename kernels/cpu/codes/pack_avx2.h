// SPDX-License-Identifier: Apache-2.0
//
// Packing with 256-bit shuffles, for every x86 set from AVX2 on.
//
// Purpose: nibbles to bytes by table look-up; rows to panels by 8 x 8 transposes of four-byte cells
// (contraction along the rows) or byte and word interleaves (across them). Both end in the same
// two vectors, `low` and `high`: codes k..k+3 and k+4..k+7 of eight neighbouring lanes.
// Internal linkage: each set compiles its own copy. Thread-safety: pure functions.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/codes/loops.h"
#include "kernels/cpu/codes/unroll.h"

namespace nibble::cpu::codes {
namespace {

void ExpandAvx2(const uint8_t* nibbles, const int8_t* table, int64_t count, int8_t* out) {
  const __m256i values =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  const __m128i mask = _mm_set1_epi8(15);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(nibbles + i / 2));
    const __m128i even = _mm_and_si128(bytes, mask);
    const __m128i odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
    const __m256i codes =
        _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_shuffle_epi8(values, codes));
  }
  ExpandLoop(nibbles + i / 2, table, count - i, out + i);
}

[[gnu::always_inline]] inline void Store(uint8_t* to, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
}
[[gnu::always_inline]] inline void StoreHalves(uint8_t* low, uint8_t* high, __m256i value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm256_castsi256_si128(value));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm256_extracti128_si256(value, 1));
}

// Four codes of eight lanes as two steps of 16-bit pairs.
[[gnu::always_inline]] inline void StoreWords(uint8_t* to, int64_t step_bytes, __m256i cells) {
  const __m256i pairs = _mm256_shuffle_epi8(
      cells, _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8,
                              9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  const __m256i steps = _mm256_permute4x64_epi64(pairs, _MM_SHUFFLE(3, 1, 2, 0));
  Store(to, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(steps)));
  Store(to + step_bytes, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(steps, 1)));
}

// Where eight lanes go. A panel of four lanes takes half of them, the next panel the rest.
template <PanelOrder order>
[[gnu::always_inline]] inline void StoreCells(__m256i low, __m256i high, int lanes, int offset,
                                              int64_t panel_bytes, int64_t lane, int64_t k,
                                              uint8_t* out) {
  uint8_t* panel = out + lane / lanes * panel_bytes;
  const int64_t inside = lane % lanes;
  const PanelLayout layout{order, lanes, offset};
  uint8_t* to = panel + layout.At(k, inside);
  const __m256i added = _mm256_set1_epi8(static_cast<char>(offset));
  if constexpr (order == PanelOrder::kQuads) {
    low = _mm256_add_epi8(low, added);
    high = _mm256_add_epi8(high, added);
    if (lanes == 4) {
      StoreHalves(to, to + panel_bytes, low);
      StoreHalves(to + 16, to + panel_bytes + 16, high);
    } else {
      Store(to, low);
      Store(to + lanes * 4, high);
    }
  } else if constexpr (order == PanelOrder::kWinogradRight) {
    Store(to - 32, high);
    Store(to, low);
  } else if constexpr (order == PanelOrder::kWords) {
    if (lanes == 4) {
      alignas(32) uint8_t steps[4][32];
      StoreWords(steps[0], 32, low);
      StoreWords(steps[2], 32, high);
      for (int step = 0; step < 4; ++step) {
        std::memcpy(to + step * 16, steps[step], 16);
        std::memcpy(to + panel_bytes + step * 16, steps[step] + 16, 16);
      }
    } else {
      StoreWords(to, lanes * 4, low);
      StoreWords(to + lanes * 8, lanes * 4, high);
    }
  } else {
    low = _mm256_add_epi8(low, added);
    if (order == PanelOrder::kOctets) high = _mm256_add_epi8(high, added);
    const __m256i first = _mm256_unpacklo_epi32(low, high);   // lanes 0 1 | 4 5
    const __m256i second = _mm256_unpackhi_epi32(low, high);  // lanes 2 3 | 6 7
    Store(to, _mm256_permute2x128_si256(first, second, 0x20));
    Store(lanes == 4 ? to + panel_bytes : to + 32, _mm256_permute2x128_si256(first, second, 0x31));
  }
}

template <PanelOrder order>
int64_t Along(const int8_t* source, int64_t stride, int64_t count, const PanelLayout& layout,
              int64_t panel_bytes, int64_t first_lane, int64_t first, uint8_t* out) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    __m256i row[8], pair[8], quad[8];
    Unroll<8>([&](auto r) NIBBLE_INLINE_LAMBDA {
      row[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + r * stride + i));
    });
    Unroll<4>([&](auto r) NIBBLE_INLINE_LAMBDA {
      pair[2 * r] = _mm256_unpacklo_epi32(row[2 * r], row[2 * r + 1]);
      pair[2 * r + 1] = _mm256_unpackhi_epi32(row[2 * r], row[2 * r + 1]);
    });
    // quad[4 h + c]: rows 4h..4h+3 of cell c (low half) and cell c + 4 (high half).
    Unroll<2>([&](auto h) NIBBLE_INLINE_LAMBDA {
      quad[4 * h + 0] = _mm256_unpacklo_epi64(pair[4 * h], pair[4 * h + 2]);
      quad[4 * h + 1] = _mm256_unpackhi_epi64(pair[4 * h], pair[4 * h + 2]);
      quad[4 * h + 2] = _mm256_unpacklo_epi64(pair[4 * h + 1], pair[4 * h + 3]);
      quad[4 * h + 3] = _mm256_unpackhi_epi64(pair[4 * h + 1], pair[4 * h + 3]);
    });
    Unroll<2>([&](auto c) NIBBLE_INLINE_LAMBDA {
      StoreCells<order>(_mm256_permute2x128_si256(quad[2 * c], quad[4 + 2 * c], 0x20),
                        _mm256_permute2x128_si256(quad[2 * c + 1], quad[5 + 2 * c], 0x20),
                        layout.lanes, layout.offset, panel_bytes, first_lane, first + i + 8 * c,
                        out);
      StoreCells<order>(_mm256_permute2x128_si256(quad[2 * c], quad[4 + 2 * c], 0x31),
                        _mm256_permute2x128_si256(quad[2 * c + 1], quad[5 + 2 * c], 0x31),
                        layout.lanes, layout.offset, panel_bytes, first_lane,
                        first + i + 16 + 8 * c, out);
    });
  }
  return i;
}

template <PanelOrder order>
int64_t Across(const int8_t* source, int64_t stride, int64_t count, const PanelLayout& layout,
               int64_t panel_bytes, int64_t first_lane, int64_t first, uint8_t* out) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    __m256i cells[2][4];  // of eight lanes each
    Unroll<2>([&](auto h) NIBBLE_INLINE_LAMBDA {
      const int8_t* rows = source + 4 * h * stride + i;
      __m256i row[4];
      Unroll<4>([&](auto r) NIBBLE_INLINE_LAMBDA {
        row[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + r * stride));
      });
      const __m256i low01 = _mm256_unpacklo_epi8(row[0], row[1]);
      const __m256i high01 = _mm256_unpackhi_epi8(row[0], row[1]);
      const __m256i low23 = _mm256_unpacklo_epi8(row[2], row[3]);
      const __m256i high23 = _mm256_unpackhi_epi8(row[2], row[3]);
      const __m256i q0 = _mm256_unpacklo_epi16(low01, low23);    // lanes 0-3 | 16-19
      const __m256i q1 = _mm256_unpackhi_epi16(low01, low23);    // 4-7 | 20-23
      const __m256i q2 = _mm256_unpacklo_epi16(high01, high23);  // 8-11 | 24-27
      const __m256i q3 = _mm256_unpackhi_epi16(high01, high23);  // 12-15 | 28-31
      cells[h][0] = _mm256_permute2x128_si256(q0, q1, 0x20);
      cells[h][1] = _mm256_permute2x128_si256(q2, q3, 0x20);
      cells[h][2] = _mm256_permute2x128_si256(q0, q1, 0x31);
      cells[h][3] = _mm256_permute2x128_si256(q2, q3, 0x31);
    });
    Unroll<4>([&](auto c) NIBBLE_INLINE_LAMBDA {
      StoreCells<order>(cells[0][c], cells[1][c], layout.lanes, layout.offset, panel_bytes,
                        first_lane + i + 8 * c, first, out);
    });
  }
  return i;
}

void ScatterAlongAvx2(const int8_t* source, int64_t stride, int64_t count,
                      const PanelLayout& layout, int64_t panel_bytes, int64_t first_lane,
                      int64_t first, uint8_t* out) {
  int64_t done = 0;
  const auto run = [&](auto function) {
    done = function(source, stride, count, layout, panel_bytes, first_lane, first, out);
  };
  switch (layout.order) {
    case PanelOrder::kQuads:
      run(Along<PanelOrder::kQuads>);
      break;
    case PanelOrder::kOctets:
      run(Along<PanelOrder::kOctets>);
      break;
    case PanelOrder::kWinogradLeft:
      run(Along<PanelOrder::kWinogradLeft>);
      break;
    case PanelOrder::kWinogradRight:
      run(Along<PanelOrder::kWinogradRight>);
      break;
    case PanelOrder::kWords:
      run(Along<PanelOrder::kWords>);
      break;
  }
  ScatterAlongLoop(source + done, stride, count - done, layout, panel_bytes, first_lane,
                   first + done, out);
}

void ScatterAcrossAvx2(const int8_t* source, int64_t stride, int64_t count,
                       const PanelLayout& layout, int64_t panel_bytes, int64_t first_lane,
                       int64_t first, uint8_t* out) {
  int64_t done = 0;
  const auto run = [&](auto function) {
    done = function(source, stride, count, layout, panel_bytes, first_lane, first, out);
  };
  switch (layout.order) {
    case PanelOrder::kQuads:
      run(Across<PanelOrder::kQuads>);
      break;
    case PanelOrder::kOctets:
      run(Across<PanelOrder::kOctets>);
      break;
    case PanelOrder::kWinogradLeft:
      run(Across<PanelOrder::kWinogradLeft>);
      break;
    case PanelOrder::kWinogradRight:
      run(Across<PanelOrder::kWinogradRight>);
      break;
    case PanelOrder::kWords:
      run(Across<PanelOrder::kWords>);
      break;
  }
  ScatterAcrossLoop(source + done, stride, count - done, layout, panel_bytes, first_lane + done,
                    first, out);
}

}  // namespace
}  // namespace nibble::cpu::codes
