// SPDX-License-Identifier: Apache-2.0
//
// Codes on their way to a tensor core: E2M1, INT8, E4M3 or E5M2 values carried as FP8 bytes or as
// BF16, transposed where the product sums over the rows.
//
// Purpose: a product on codes runs at the rate of a wider unit without a rounding of its own. Every
// E2M1 value is an E4M3 value; every integer up to 127 in half units, every E4M3 and E5M2 value is
// a BF16 value. Wide outliers replace their element. Thread-safety: kernels, ordered by their
// stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/formats/bf16.h"

namespace nibble::cuda {

struct CarriedCodes {
  Elem elem;
  int64_t rows, cols, code_row_bytes;
  const uint8_t* codes;

  // In units of the element: INT8 is an integer, the others are values.
  __device__ float Value(int64_t row, int64_t col) const {
    const uint8_t* row_codes = codes + row * code_row_bytes;
    if (elem == Elem::kInt8) return static_cast<float>(static_cast<int8_t>(row_codes[col]));
    if (elem != Elem::kE2M1) return GridOf(elem, row_codes[col]);
    const uint8_t pair = row_codes[col / 2];
    return formats::DecodeE2M1(col % 2 == 0 ? pair & 15u : pair >> 4);
  }
};

// What carries a value; exact for the values a caller hands over.
struct AsE4M3 {
  using Stored = uint8_t;
  __device__ static Stored Of(float value) { return formats::E4M3CodeOfGridValue(value); }
};
struct AsE5M2 {
  using Stored = uint8_t;
  __device__ static Stored Of(float value) { return formats::E5M2CodeOfGridValue(value); }
};
struct AsBf16 {
  using Stored = uint16_t;
  __device__ static Stored Of(float value) { return formats::ToBf16(value); }
};

struct AsF32 {
  using Stored = float;
  __device__ static Stored Of(float value) { return value; }
};

inline constexpr int kCarryTile = 32;  // a tile is square; kThreads / 32 rows of it at a time

// out (rows, cols), or (cols, rows) when transposed. Grid (column tiles, row tiles).
template <typename Carrier>
__global__ void CarryKernel(CarriedCodes x, bool transposed, typename Carrier::Stored* out) {
  __shared__ typename Carrier::Stored tile[kCarryTile][kCarryTile + 2];
  const int64_t row_tiles = (x.rows + kCarryTile - 1) / kCarryTile;
  const int lane = threadIdx.x % kCarryTile;
  for (int64_t row_tile = blockIdx.y; row_tile < row_tiles; row_tile += gridDim.y) {
    const int64_t first_row = row_tile * kCarryTile;
    const int64_t first_col = static_cast<int64_t>(blockIdx.x) * kCarryTile;
    __syncthreads();
    for (int i = threadIdx.x / kCarryTile; i < kCarryTile; i += kThreads / kCarryTile) {
      const int64_t row = first_row + i;
      const int64_t col = first_col + lane;
      if (row >= x.rows || col >= x.cols) continue;
      const typename Carrier::Stored stored = Carrier::Of(x.Value(row, col));
      if (transposed) {
        tile[i][lane] = stored;
      } else {
        out[row * x.cols + col] = stored;
      }
    }
    if (!transposed) continue;  // the same for the whole block
    __syncthreads();
    for (int i = threadIdx.x / kCarryTile; i < kCarryTile; i += kThreads / kCarryTile) {
      const int64_t row = first_row + lane;
      const int64_t col = first_col + i;
      if (row < x.rows && col < x.cols) out[col * x.rows + row] = tile[lane][i];
    }
  }
}

// Outliers of a CSR residual by row, after CarryKernel.
struct CarriedResidual {
  OccComp comp;
  const int32_t *offsets, *columns;
  const void* values;
};

// kWide: the element becomes its code plus the wide one. Others: the residual itself, unscaled, in
// an `out` that is zero elsewhere.
template <typename Carrier>
struct CarryOutliersOp {
  CarriedCodes x;
  CarriedResidual residual;
  bool transposed;
  typename Carrier::Stored* out;
  __device__ void operator()(int64_t row) const {
    for (int32_t i = residual.offsets[row]; i < residual.offsets[row + 1]; ++i) {
      const int64_t col = residual.columns[i];
      float value = 0;
      if (residual.comp == OccComp::kWide) {
        const auto wide = static_cast<float>(static_cast<const int8_t*>(residual.values)[i]);
        value = x.Value(row, col) + 0.5f * wide;
      } else if (residual.comp == OccComp::kE4M3) {
        value = formats::DecodeE4M3(static_cast<const uint8_t*>(residual.values)[i]);
      } else {
        value = static_cast<const float*>(residual.values)[i];
      }
      out[transposed ? col * x.rows + row : row * x.cols + col] = Carrier::Of(value);
    }
  }
};

// What one operand's side of the sums is multiplied by: fl(1 / enc), or 1 for folded scales.
struct OuterScaleOp {
  const float* enc;  // nullptr: 1
  bool by_element;
  float* scales;
  __device__ void operator()(int64_t i) const {
    scales[i] = enc == nullptr ? 1.0f : 1.0f / enc[by_element ? i : 0];
  }
};

// out = fl(fl(S * a) * b) [+ out].
struct OuterProductOp {
  const float* sums;
  int64_t cols;
  const float *scales_a, *scales_b;
  bool accumulate;
  float* out;
  __device__ void operator()(int64_t i) const {
    const float value = (sums[i] * scales_a[i / cols]) * scales_b[i % cols];
    out[i] = accumulate ? out[i] + value : value;
  }
};

}  // namespace nibble::cuda
