// SPDX-License-Identifier: Apache-2.0
//
// Codes on their way to a tensor core: E2M1, INT8, E4M3 or E5M2 values carried as FP8 bytes or as
// BF16, transposed where the product sums over the rows; and scales of small groups as
// block-scaled products read them.
//
// Purpose: a product on codes runs at the rate of a wider unit without a rounding of its own. Every
// E2M1 value is an E4M3 value; every integer up to 127 in half units, every E4M3 and E5M2 value is
// a BF16 value, and so is an E2M1 or E4M3 value times an E8M0, E4M3 or UE5M3 scale. Wide outliers
// replace their element. Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/group_parts.cuh"
#include "kernels/cuda/values.cuh"
#include "kernels/formats/bf16.h"
#include "kernels/formats/scale_layout.h"

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

// Elements of small groups: alone where the scales travel beside them, times their group's scale
// where that is a value the carrier has, decoded in full where it is not.
struct CarriedGroups {
  enum class Form : uint8_t { kElement, kScaled, kDecoded };
  StoredGroups x;
  Form form;
  int64_t rows, cols;

  __device__ float Value(int64_t row, int64_t col) const {
    if (form == Form::kDecoded) return x.Decode(row, col);
    const float grid = x.Grid(row, col);
    if (form == Form::kElement) return grid;
    const int64_t group = x.GroupAt(row, col);
    return x.has_group_scale ? grid * x.group_scale[group]
                             : DecodeGrid(x.scale, x.enc[group], grid);
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
template <typename Carrier, typename Values>
__global__ void CarryKernel(Values x, bool transposed, typename Carrier::Stored* out) {
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

// Codes of E2M1, two to a byte along the rows, as two to a byte along the columns: out (cols, rows
// / 2), rows even. Grid (column tiles, row tiles).
__global__ void TurnPairsKernel(const uint8_t* codes, int64_t rows, int64_t cols,
                                int64_t code_row_bytes, uint8_t* out) {
  __shared__ uint8_t tile[kCarryTile][kCarryTile + 4];
  const int64_t first_col = static_cast<int64_t>(blockIdx.x) * kCarryTile;
  const int lane = threadIdx.x % kCarryTile;
  for (int64_t first_row = static_cast<int64_t>(blockIdx.y) * kCarryTile; first_row < rows;
       first_row += static_cast<int64_t>(gridDim.y) * kCarryTile) {
    __syncthreads();
    for (int i = threadIdx.x / kCarryTile; i < kCarryTile; i += kThreads / kCarryTile) {
      const int64_t row = first_row + i, col = first_col + lane;
      if (row >= rows || col >= cols) continue;
      const uint8_t pair = codes[row * code_row_bytes + col / 2];
      tile[i][lane] = static_cast<uint8_t>(col % 2 == 0 ? pair & 15u : pair >> 4);
    }
    __syncthreads();
    constexpr int kPairs = kCarryTile / 2;
    for (int i = threadIdx.x; i < kCarryTile * kPairs; i += kThreads) {
      const int64_t row = first_row + i % kPairs * 2, col = first_col + i / kPairs;
      if (row >= rows || col >= cols) continue;
      const int line = i / kPairs;
      out[col * (rows / 2) + row / 2] =
          formats::PackE2M1(tile[i % kPairs * 2][line], tile[i % kPairs * 2 + 1][line]);
    }
  }
}

// The scale of every block of an operand where a block-scaled product looks for it; `out` starts as
// zeros. Lines are rows, or columns when the operand is transposed.
struct BlockScaleOp {
  StoredGroups x;
  const uint8_t* scale_codes;  // nullptr: `unit` for all
  uint8_t unit;
  bool transposed;
  int64_t blocks;  // of a line
  int64_t block;   // elements
  uint8_t* out;
  __device__ void operator()(int64_t i) const {
    const int64_t line = i / blocks, position = i % blocks * block;
    uint8_t code = unit;
    if (scale_codes != nullptr) {
      code = scale_codes[transposed ? x.GroupAt(position, line) : x.GroupAt(line, position)];
    }
    out[formats::BlockScaleOffset(line, i % blocks, blocks)] = code;
  }
};

// Outliers of a CSR residual by row, after CarryKernel.
struct CarriedResidual {
  OccComp comp;
  const int32_t *offsets, *columns;
  const void* values;
};

// Neighbouring threads that share a row's outliers.
inline constexpr int kOutlierLanes = 32;

// Wide: the element becomes its code plus the wide one. Others: the residual itself, unscaled, in
// an `out` that is zero elsewhere. Thread i takes every kOutlierLanes-th outlier of row
// i / kOutlierLanes.
template <typename Carrier>
struct CarryOutliersOp {
  CarriedCodes x;
  CarriedResidual residual;
  bool transposed;
  typename Carrier::Stored* out;
  __device__ void operator()(int64_t thread) const {
    const int64_t row = thread / kOutlierLanes;
    const auto lane = static_cast<int32_t>(thread % kOutlierLanes);
    const int32_t end = residual.offsets[row + 1];
    for (int32_t i = residual.offsets[row] + lane; i < end; i += kOutlierLanes) {
      const int64_t col = residual.columns[i];
      float value = 0;
      if (residual.comp == OccComp::kWide || residual.comp == OccComp::kWideE4M3) {
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

// The same of scaled groups: their second level; 1 without one.
struct OuterLevelOp {
  const float* outer;  // nullptr: none
  float divisor;
  float* scales;
  __device__ void operator()(int64_t i) const {
    scales[i] = outer == nullptr ? 1.0f : outer[0] / divisor;
  }
};

// out (rows, cols) = fl(fl(S * a) * b) [+ out], as FP32 or BF16.
template <typename Out>
struct OuterProduct {
  const float* sums;
  int64_t rows, cols;
  const float *scales_a, *scales_b;
  bool accumulate;
  Out* out;
};

// A block takes a row, a thread kPack neighbours at a time.
template <int kPack, typename Out>
__global__ void OuterProductKernel(OuterProduct<Out> p) {
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const float scale = p.scales_a[row];
    for (int64_t col = static_cast<int64_t>(threadIdx.x) * kPack; col < p.cols;
         col += kThreads * kPack) {
      const int64_t at = row * p.cols + col;
      auto value = GetPack<kPack>(p.sums, at);
      const auto by_column = GetPack<kPack>(p.scales_b, col);
      Pack<float, kPack> before{};
      if (p.accumulate) before = GetPack<kPack>(p.out, at);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        value.x[k] = (value.x[k] * scale) * by_column.x[k];
        if (p.accumulate) value.x[k] = before.x[k] + value.x[k];
      }
      PutPack(p.out, at, value);
    }
  }
}

}  // namespace nibble::cuda
