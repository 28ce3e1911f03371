// SPDX-License-Identifier: Apache-2.0
//
// dY quantized twice in one pass each over memory: for the input gradient by row, for the weight
// gradient by column, whichever scales and folds the two have; or both gradients of a SwiGLU so,
// formed while they are measured.
//
// Purpose: per element 4 bytes read to measure, 4 read and 2 written to encode, where two calls of
// Quantize read four times. Gradients of a SwiGLU: 12 read and 4 written (both as BF16, where gate
// was) to form and measure the pair, 4 read and 4 written to encode it: 24 bytes where SwiGLU's
// backward pass and two such quantizations take 40; 20 where gate and up rest as BF16, which their
// gradients replace. The bits are those of single calls: maxima of
// bits do not depend on an order. Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/elementwise_ops.cuh"
#include "kernels/cuda/quantize_parts.cuh"
#include "kernels/cuda/row_stats.h"
#include "kernels/cuda/values.cuh"
#include "kernels/formats/scales.h"

namespace nibble::cuda {

// Where the elements come from: kTensors of them at each place. Fetch loads, Values makes BF16
// values of what was loaded; Together does both for four neighbours.
template <typename From>
struct OneTensor {
  static constexpr int kTensors = 1;
  From x;

  using Raw = float;
  __device__ Raw Fetch(int64_t i) const { return x.At(i); }
  __device__ void Values(int64_t, const Raw& raw, float (&values)[1]) const { values[0] = raw; }
  __device__ void Together(int64_t i, float (&values)[1][4]) const {
    const Four four = x.Together(i);
#pragma unroll
    for (int k = 0; k < 4; ++k) values[0][k] = formats::FromBf16(four.x[k]);
  }
};

// dgate and dup of a SwiGLU, formed from gate and up of type In, which they replace as BF16: FP32
// gate by both, two numbers in the place of one; or BF16 gate and up each by its own.
template <typename In>
struct SwiGluGradients {
  static constexpr int kTensors = 2;
  const float* dout;
  In *gate, *up;

  struct Raw {
    float dout, gate, up;
  };
  __device__ Raw Fetch(int64_t i) const { return {dout[i], Get(gate, i), Get(up, i)}; }
  __device__ void Values(int64_t i, const Raw& raw, float (&values)[2]) const {
    const SwiGluGradient gradient = SwiGluGradientOf(raw.dout, raw.gate, raw.up);
    const uint16_t low = formats::ToBf16(gradient.gate), high = formats::ToBf16(gradient.up);
    Replace(gate, up, i, low, high);
    values[0] = formats::FromBf16(low);
    values[1] = formats::FromBf16(high);
  }

 private:
  __device__ static void Replace(float* gate, const float*, int64_t i, uint16_t low,
                                 uint16_t high) {
    gate[i] = formats::BitsFloat(static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16);
  }
  __device__ static void Replace(uint16_t* gate, uint16_t* up, int64_t i, uint16_t low,
                                 uint16_t high) {
    gate[i] = low;
    up[i] = high;
  }
};
// What SwiGluGradients<float> left.
struct GradientPairs {
  static constexpr int kTensors = 2;
  const float* pairs;

  __device__ void Together(int64_t i, float (&values)[2][4]) const {
    const FourFloats four = *reinterpret_cast<const FourFloats*>(pairs + i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint32_t pair = formats::FloatBits(four.x[k]);
      values[0][k] = formats::BitsFloat(pair << 16);
      values[1][k] = formats::BitsFloat(pair & 0xFFFF0000u);
    }
  }
};
// What SwiGluGradients<uint16_t> left.
struct TwoTensors {
  static constexpr int kTensors = 2;
  const uint16_t *first, *second;

  __device__ void Together(int64_t i, float (&values)[2][4]) const {
    const FourFloats a = GetPack<4>(first, i), b = GetPack<4>(second, i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      values[0][k] = a.x[k];
      values[1][k] = b.x[k];
    }
  }
};

inline constexpr int kMeasureRows = 32;  // of a tile kThreads wide
inline constexpr int kMeasureBatch = 4;  // rows whose loads are under way together

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

// Two quantizations of each tensor.
template <typename Source>
struct MeasureSides {
  MeasureSide of[Source::kTensors][2];
};

// Grid (tiles of kThreads columns, tiles of kMeasureRows rows).
template <typename Source>
__global__ void MeasureBothKernel(Source x, int64_t rows, int64_t cols,
                                  MeasureSides<Source> sides) {
  constexpr int kTensors = Source::kTensors;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool live = col < cols;
  const int64_t tiles = (rows + kMeasureRows - 1) / kMeasureRows;
  uint32_t columns[kTensors][2] = {};
  for (int64_t tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
    const int64_t begin = tile * kMeasureRows;
    const int64_t end = begin + kMeasureRows < rows ? begin + kMeasureRows : rows;
    for (int64_t first = begin; first < end; first += kMeasureBatch) {
      typename Source::Raw raw[kMeasureBatch] = {};
#pragma unroll
      for (int k = 0; k < kMeasureBatch; ++k) {
        if (live && first + k < end) raw[k] = x.Fetch((first + k) * cols + col);
      }
#pragma unroll
      for (int k = 0; k < kMeasureBatch; ++k) {
        const int64_t row = first + k;
        if (row >= end) break;  // the same for the whole block
        float values[kTensors] = {};
        if (live) x.Values(row * cols + col, raw[k], values);
#pragma unroll
        for (int i = 0; i < kTensors; ++i) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            sides.of[i][side].Row(values[i], live, row, col, &columns[i][side]);
          }
        }
      }
    }
  }
  if (!live) return;
#pragma unroll
  for (int i = 0; i < kTensors; ++i) {
#pragma unroll
    for (int side = 0; side < 2; ++side) sides.of[i][side].Column(col, columns[i][side]);
  }
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
#pragma unroll
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

template <typename Source>
struct EncodeSides {
  EncodeSide of[Source::kTensors][2];
};

// A grid-stride loop over groups of kTogether neighbours.
template <typename Source>
__global__ void EncodeBothKernel(Source x, int64_t rows, int64_t cols, EncodeSides<Source> sides) {
  const int64_t groups = rows * cols / kTogether;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < groups;
       i += stride) {
    const int64_t row = i * kTogether / cols;
    const int64_t col = i * kTogether % cols;
    float values[Source::kTensors][kTogether];
    x.Together(i * kTogether, values);
#pragma unroll
    for (int tensor = 0; tensor < Source::kTensors; ++tensor) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        sides.of[tensor][side].Encode(values[tensor], row, col, rows, cols);
      }
    }
  }
}

}  // namespace nibble::cuda
