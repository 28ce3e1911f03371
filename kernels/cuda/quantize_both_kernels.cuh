// SPDX-License-Identifier: Apache-2.0
//
// dY quantized twice in one pass each over memory: for the input gradient by row, for the weight
// gradient by column, whichever scales and folds the two have.
//
// Purpose: 4 bytes read to measure, 4 read and 2 written to encode, where two calls of Quantize
// read four times. The bits are those of two calls: maxima of bits do not depend on an order.
// Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/quantize_parts.cuh"
#include "kernels/cuda/row_stats.h"
#include "kernels/formats/scales.h"

namespace nibble::cuda {

inline constexpr int kMeasureRows = 32;  // of a tile kThreads wide

struct MeasureSide {
  Fold fold;
  ScaleAxis axis;
  RowStats* stats;    // amax_bits of each row, zero before; of kTensor and kRow
  uint32_t* columns;  // zero before; of kColumn

  __device__ void Row(float value, bool live, int64_t row, int64_t col, uint32_t* column) const {
    const uint32_t bits = live ? formats::AmaxUpdate(0, fold.Apply(value, row, col)) : 0u;
    if (axis == ScaleAxis::kColumn) {
      *column = bits > *column ? bits : *column;
      return;
    }
    const uint32_t largest = __reduce_max_sync(0xFFFFFFFFu, bits);
    if (threadIdx.x % 32 == 0) atomicMax(&stats[row].amax_bits, largest);
  }
  __device__ void Column(int64_t col, uint32_t column) const {
    if (axis == ScaleAxis::kColumn) atomicMax(&columns[col], column);
  }
};

// Grid (tiles of kThreads columns, tiles of kMeasureRows rows).
__global__ void MeasureBothKernel(const float* x, int64_t rows, int64_t cols, MeasureSide first,
                                  MeasureSide second) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool live = col < cols;
  const int64_t tiles = (rows + kMeasureRows - 1) / kMeasureRows;
  uint32_t first_column = 0, second_column = 0;
  for (int64_t tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
    const int64_t begin = tile * kMeasureRows;
    const int64_t end = begin + kMeasureRows < rows ? begin + kMeasureRows : rows;
    for (int64_t row = begin; row < end; ++row) {
      const float value = live ? formats::RoundBf16(x[row * cols + col]) : 0.0f;
      first.Row(value, live, row, col, &first_column);
      second.Row(value, live, row, col, &second_column);
    }
  }
  if (!live) return;
  first.Column(col, first_column);
  second.Column(col, second_column);
}

inline constexpr int kTogether = 4;  // neighbours one thread encodes; divides cols

struct EncodeSide {
  Elem elem;
  Round round;
  RandomSource random;
  bool turned;
  ScaleAxis axis;
  Fold fold;
  const float* enc;
  uint8_t* codes;
  int64_t code_row_bytes;

  __device__ void Encode(const float (&values)[kTogether], int64_t row, int64_t col, int64_t rows,
                         int64_t cols) const {
    uint8_t code[kTogether];
    for (int i = 0; i < kTogether; ++i) {
      const int64_t position = turned ? (col + i) * rows + row : row * cols + col + i;
      const float scaled = fold.Apply(values[i], row, col + i) * EncAt(axis, enc, row, col + i);
      code[i] = CodeOf(elem, RoundToGrid(elem, round, random, position, scaled));
    }
    uint8_t* const row_codes = codes + row * code_row_bytes;
    if (elem == Elem::kE2M1) {
      row_codes[col / 2] = formats::PackE2M1(code[0], code[1]);
      row_codes[col / 2 + 1] = formats::PackE2M1(code[2], code[3]);
      return;
    }
    // One store; the row begins on a multiple of four bytes.
    *reinterpret_cast<uint32_t*>(row_codes + col) =
        static_cast<uint32_t>(code[0]) | static_cast<uint32_t>(code[1]) << 8 |
        static_cast<uint32_t>(code[2]) << 16 | static_cast<uint32_t>(code[3]) << 24;
  }
};

// A grid-stride loop over groups of kTogether neighbours.
__global__ void EncodeBothKernel(const float* x, int64_t rows, int64_t cols, EncodeSide first,
                                 EncodeSide second) {
  const int64_t groups = rows * cols / kTogether;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < groups;
       i += stride) {
    const int64_t row = i * kTogether / cols;
    const int64_t col = i * kTogether % cols;
    float values[kTogether];
    for (int k = 0; k < kTogether; ++k) values[k] = formats::RoundBf16(x[i * kTogether + k]);
    first.Encode(values, row, col, rows, cols);
    second.Encode(values, row, col, rows, cols);
  }
}

}  // namespace nibble::cuda
