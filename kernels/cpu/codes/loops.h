// SPDX-License-Identifier: Apache-2.0
//
// Loops that every instruction set compiles with its own flags: epilogue, outlier correction,
// portable packing.
//
// Purpose: plain C++ the compiler vectorises. Everything has internal linkage: a copy compiled for
// a newer instruction set must never be the one an older machine runs.
// Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/codes/kernels.h"
#include "kernels/cpu/codes/unroll.h"

namespace nibble::cpu::codes {
namespace {

template <typename Sum>
[[gnu::noinline]] void FinishLoop(const Sum* __restrict tile, const FinishArgs& args) {
  const int64_t cols = args.cols;
  const float* __restrict right = args.right_scale;
  for (int64_t i = 0; i < args.rows; ++i) {
    const Sum* __restrict in = tile + i * args.stride;
    float* __restrict out = args.out + i * args.out_stride;
    const float left = args.left_scale[i];
    if (args.correction != nullptr) {
      const float* __restrict c = args.correction + i * args.correction_stride;
      if (args.accumulate) {
        for (int64_t j = 0; j < cols; ++j) {
          out[j] += (static_cast<float>(in[j]) * left + c[j]) * right[j];
        }
      } else {
        for (int64_t j = 0; j < cols; ++j) {
          out[j] = (static_cast<float>(in[j]) * left + c[j]) * right[j];
        }
      }
    } else if (args.accumulate) {
      for (int64_t j = 0; j < cols; ++j) out[j] += static_cast<float>(in[j]) * left * right[j];
    } else {
      for (int64_t j = 0; j < cols; ++j) out[j] = static_cast<float>(in[j]) * left * right[j];
    }
  }
}

// Most tiles are whole and overwrite their results; constant bounds make that case short.
template <typename Sum, int rows, int cols>
void FinishTile(const Sum* tile, const FinishArgs& args) {
  if (args.rows != rows || args.cols != cols || args.accumulate) {
    FinishLoop(tile, args);
    return;
  }
  const float* __restrict right = args.right_scale;
  const float* __restrict left = args.left_scale;
  float* __restrict out = args.out;
  const Sum* __restrict in = tile;
  if (args.correction != nullptr) {
    const float* __restrict c = args.correction;
    for (int i = 0; i < rows; ++i, in += cols, out += args.out_stride) {
      for (int j = 0; j < cols; ++j) {
        out[j] = (static_cast<float>(in[j]) * left[i] + c[j]) * right[j];
      }
      c += args.correction_stride;
    }
    return;
  }
  for (int i = 0; i < rows; ++i, in += cols, out += args.out_stride) {
    for (int j = 0; j < cols; ++j) out[j] = static_cast<float>(in[j]) * left[i] * right[j];
  }
}

// Integer codes of all lanes at depth k, offset taken off.
inline void PanelCodes(const uint8_t* panel, const PanelLayout& layout, int64_t k, float* codes) {
  if (layout.order == PanelOrder::kWords) {
    for (int lane = 0; lane < layout.lanes; ++lane) {
      int16_t code;
      std::memcpy(&code, panel + layout.At(k, lane), sizeof(code));
      codes[lane] = static_cast<float>(code - layout.offset);
    }
    return;
  }
  const bool blocks = layout.order == PanelOrder::kWinogradRight;
  if (layout.order != PanelOrder::kQuads && !blocks) {
    for (int lane = 0; lane < layout.lanes; ++lane) {
      const int8_t code = static_cast<int8_t>(panel[layout.At(k, lane)]);
      codes[lane] = static_cast<float>(code - layout.OffsetAt(k));
    }
    return;
  }
  // Runs of four-byte cells: the byte of k moves to the top, an arithmetic shift brings it back.
  const int shift = 24 - 8 * static_cast<int>(k % 4);
  for (int lane = 0; lane < layout.lanes; lane += 8) {
    const uint8_t* cells = panel + layout.At(k / 4 * 4, lane);
    uint32_t words[8];
    std::memcpy(words, cells, sizeof(words));
    for (int i = 0; i < 8; ++i) {
      const int32_t code = static_cast<int32_t>(words[i] << shift) >> 24;
      codes[lane + i] = static_cast<float>(code - layout.offset);
    }
  }
}

[[maybe_unused]] void CorrectLoop(const CorrectionArgs& args) {
  const int lanes = args.layout.lanes;
  float codes[kMaxRightLanes];
  for (int64_t row = 0; row < args.rows; ++row) {
    for (int64_t p = 0; p < args.panels; ++p) {
      float sum[kMaxRightLanes] = {};
      for (int64_t r = args.offsets[row]; r < args.offsets[row + 1]; ++r) {
        const int64_t k = args.columns[r];
        const float value = args.values[r];
        PanelCodes(args.panel + p * args.panel_bytes, args.layout, k, codes);
        if (args.factor != nullptr) {
          const float* factor = args.factor + k / args.group * args.factor_stride + p * lanes;
          for (int lane = 0; lane < lanes; ++lane) codes[lane] *= factor[lane];
        }
        for (int lane = 0; lane < lanes; ++lane) sum[lane] += value * codes[lane];
      }
      float* c = args.c + (row * args.panels + p) * lanes;
      for (int lane = 0; lane < lanes; ++lane) c[lane] = sum[lane];
    }
  }
}

using Words8 = int32_t __attribute__((vector_size(32)));
using Codes8 = float __attribute__((vector_size(32)));
using Words16 = int32_t __attribute__((vector_size(64)));
using Codes16 = float __attribute__((vector_size(64)));

// Byte `at` of every four-byte cell, sign-extended: moved to the top, then back.
template <typename Words>
struct ShiftCells {
  explicit ShiftCells(int64_t at) : shift(24 - 8 * static_cast<int>(at)) {}
  [[gnu::always_inline]] Words operator()(Words cells) const { return (cells << shift) >> 24; }
  int shift;
};

// Panels [first, first + panels) of `vectors` vectors each: their sums stay in registers while a
// row's outliers pass. A byte's place in its cell is that of its offset.
template <typename Words, typename Codes, typename PickByte, int vectors, int panels, bool factors>
void CorrectPanels(const CorrectionArgs& args, int64_t first) {
  constexpr int width = sizeof(Words) / 4;
  constexpr int64_t lanes = width * vectors;
  const int64_t stride = args.layout.order == PanelOrder::kQuads ? width * 4 : 64;
  const int64_t panel_bytes = args.panel_bytes;
  const uint8_t* panel = args.panel + first * panel_bytes;
  const float* values = args.values;
  const int32_t* places = args.cells;
  float* c = args.c + first * lanes;
  int64_t r = args.offsets[0];
  for (int64_t row = 0; row < args.rows; ++row, c += args.panels * lanes) {
    const int64_t end = args.offsets[row + 1];
    Codes sums[vectors * panels];
    Unroll<vectors * panels>([&](auto v) NIBBLE_INLINE_LAMBDA { sums[v] = Codes{}; });
    for (; r < end; ++r) {
      const float value = values[r];
      const int64_t place = places[r];
      const PickByte pick(place % 4);
      const uint8_t* cells = panel + (place & ~int64_t{3});
      const float* factor = nullptr;
      if constexpr (factors) {
        factor = args.factor + args.columns[r] / args.group * args.factor_stride + first * lanes;
      }
      Unroll<vectors * panels>([&](auto v) NIBBLE_INLINE_LAMBDA {
        Words words;
        std::memcpy(&words, cells + v / vectors * panel_bytes + v % vectors * stride,
                    sizeof(words));
        Codes codes = __builtin_convertvector(pick(words), Codes);
        if constexpr (factors) {
          Codes f;
          std::memcpy(&f, factor + v * width, sizeof(f));
          codes *= f;
        }
        sums[v] += codes * value;
      });
    }
    Unroll<vectors * panels>(
        [&](auto v) NIBBLE_INLINE_LAMBDA { std::memcpy(c + v * width, &sums[v], sizeof(Codes)); });
  }
}

template <typename Words, typename Codes, typename PickByte, int vectors, int panels, bool factors>
void CorrectAllPanels(const CorrectionArgs& args) {
  int64_t first = 0;
  for (; first + panels <= args.panels; first += panels) {
    CorrectPanels<Words, Codes, PickByte, vectors, panels, factors>(args, first);
  }
  for (; first < args.panels; ++first) {
    CorrectPanels<Words, Codes, PickByte, vectors, 1, factors>(args, first);
  }
}

// CorrectLoop for panels of `vectors` vectors of four-byte cells without offset, `panels` of them
// at a time. PickByte: as ShiftCells.
template <typename Words, typename Codes, typename PickByte, int vectors, int panels>
[[maybe_unused]] void CorrectVectors(const CorrectionArgs& args) {
  constexpr int width = sizeof(Words) / 4;
  const bool cells = args.layout.order == PanelOrder::kQuads ||
                     (args.layout.order == PanelOrder::kWinogradRight && width == 8);
  if (!cells || args.layout.offset != 0 || args.layout.lanes != width * vectors) {
    CorrectLoop(args);
  } else if (args.factor == nullptr) {
    CorrectAllPanels<Words, Codes, PickByte, vectors, panels, false>(args);
  } else {
    CorrectAllPanels<Words, Codes, PickByte, vectors, panels, true>(args);
  }
}

inline void PutCode(const PanelLayout& layout, int64_t panel_bytes, int64_t lane, int64_t k,
                    int code, uint8_t* out) {
  uint8_t* at = out + lane / layout.lanes * panel_bytes + layout.At(k, lane % layout.lanes);
  const int value = code + layout.OffsetAt(k);
  if (layout.order == PanelOrder::kWords) {
    const int16_t word = static_cast<int16_t>(value);
    std::memcpy(at, &word, sizeof(word));
  } else {
    *at = static_cast<uint8_t>(value);
  }
}

[[maybe_unused]] void ExpandLoop(const uint8_t* nibbles, const int8_t* table, int64_t count,
                                 int8_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = table[(nibbles[i / 2] >> (i % 2 * 4)) & 15];
}

[[maybe_unused]] void ScatterAlongLoop(const int8_t* source, int64_t stride, int64_t count,
                                       const PanelLayout& layout, int64_t panel_bytes,
                                       int64_t first_lane, int64_t first, uint8_t* out) {
  for (int64_t lane = 0; lane < 8; ++lane) {
    for (int64_t i = 0; i < count; ++i) {
      PutCode(layout, panel_bytes, first_lane + lane, first + i, source[lane * stride + i], out);
    }
  }
}

[[maybe_unused]] void ScatterAcrossLoop(const int8_t* source, int64_t stride, int64_t count,
                                        const PanelLayout& layout, int64_t panel_bytes,
                                        int64_t first_lane, int64_t first, uint8_t* out) {
  for (int64_t k = 0; k < 8; ++k) {
    for (int64_t i = 0; i < count; ++i) {
      PutCode(layout, panel_bytes, first_lane + i, first + k, source[k * stride + i], out);
    }
  }
}

}  // namespace
}  // namespace nibble::cpu::codes
