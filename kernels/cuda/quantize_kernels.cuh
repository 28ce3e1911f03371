// SPDX-License-Identifier: Apache-2.0
//
// Kernels of Quantize and Dequantize for one FP32 scale per tensor, row or column.
//
// Purpose: measure, scales, encode, each over rows; folding divides by another operand's scales on
// the way. Equal bit for bit to the CPU: maxima and counts do not depend on an order, outliers are
// written in ascending columns. Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/quantize_parts.cuh"
#include "kernels/cuda/row_stats.h"
#include "kernels/cuda/values.cuh"
#include "kernels/formats/occ.h"
#include "kernels/formats/scales.h"

namespace nibble::cuda {

// fold[i] = what element i of the sum is divided by: the scale of row i of the other operand's
// codes, or its only one; +Inf for a row of zero codes without outliers, whose scale says nothing.
// `offsets` of its residual or nullptr. Blocks by row.
__global__ void FoldKernel(const float* enc, bool per_row, const uint8_t* codes,
                           const int32_t* offsets, int64_t rows, int64_t row_bytes,
                           uint8_t magnitude_bits, float* fold) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float value = enc[per_row ? row : 0];
    int32_t nonzero = 1;
    if (per_row && value == 1.0f) {  // of a group of zeros
      nonzero = offsets != nullptr && offsets[row] != offsets[row + 1] ? 1 : 0;
      for (int64_t i = threadIdx.x; i < row_bytes; i += kThreads) {
        nonzero |= (codes[row * row_bytes + i] & magnitude_bits) != 0 ? 1 : 0;
      }
    }
    nonzero = BlockMax(nonzero);
    if (threadIdx.x == 0) fold[row] = nonzero != 0 ? value : formats::BitsFloat(0x7F800000u);
  }
}

template <typename Values>
__global__ void MeasureRowsKernel(Values x, Fold fold, int64_t rows, int64_t cols,
                                  RowStats* stats) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float low = stats[row].low;
    const float high = stats[row].high;
    uint32_t amax = 0, residual = 0;
    int32_t count = 0;
    for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
      const float value = fold.Apply(x.At(row * cols + i), row, i);
      const float clamped = formats::OccClamp(value, low, high);
      amax = formats::AmaxUpdate(amax, clamped);
      residual = formats::AmaxUpdate(residual, value - clamped);
      count += static_cast<int32_t>(value < low) + static_cast<int32_t>(value > high);
    }
    const uint32_t row_amax = BlockMax(amax);
    const uint32_t row_residual = BlockMax(residual);
    const int32_t row_count = BlockSum(count);
    if (threadIdx.x == 0) {
      stats[row].amax_bits = row_amax;
      stats[row].residual_amax_bits = row_residual;
      stats[row].residual_count = row_count;
    }
  }
}

inline constexpr int kStripColumns = 32;

// columns[c] = max over rows; grid (strips of 32 columns, chunks of rows). columns starts as zeros.
template <typename Values>
__global__ void MeasureColumnsKernel(Values x, Fold fold, const RowStats* stats, int64_t rows,
                                     int64_t cols, uint32_t* columns) {
  __shared__ uint32_t shared[kThreads];
  constexpr int kLanes = kThreads / kStripColumns;
  const int64_t col =
      static_cast<int64_t>(blockIdx.x) * kStripColumns + threadIdx.x % kStripColumns;
  const int64_t chunk = (rows + gridDim.y - 1) / gridDim.y;
  const int64_t first = chunk * blockIdx.y;
  const int64_t last = first + chunk < rows ? first + chunk : rows;
  uint32_t amax = 0;
  for (int64_t row = first + threadIdx.x / kStripColumns; col < cols && row < last; row += kLanes) {
    const float value = fold.Apply(x.At(row * cols + col), row, col);
    amax = formats::AmaxUpdate(amax, formats::OccClamp(value, stats[row].low, stats[row].high));
  }
  shared[threadIdx.x] = amax;
  __syncthreads();
  if (threadIdx.x >= kStripColumns || col >= cols) return;
  for (int lane = 1; lane < kLanes; ++lane) {
    const uint32_t other = shared[lane * kStripColumns + threadIdx.x];
    amax = other > amax ? other : amax;
  }
  atomicMax(&columns[col], amax);  // of bits: the order does not matter
}

struct ScaleTask {
  ScaleRule rule;
  float max;
  ScaleAxis axis;
  int64_t rows, cols;
  const RowStats* stats;
  const uint32_t* columns;  // of kColumn
  float* enc;
  OccComp comp;
  int32_t* offsets;  // nullptr without outliers
  QuantizeCounters* counters;
};

// offsets[i] = residuals of the rows before i: each thread sums a run of rows, then writes it.
__device__ inline int32_t SetOffsets(const ScaleTask& t) {
  __shared__ int32_t sums[kThreads];
  const int64_t run = (t.rows + kThreads - 1) / kThreads;
  const int64_t first = threadIdx.x * run < t.rows ? threadIdx.x * run : t.rows;
  const int64_t last = first + run < t.rows ? first + run : t.rows;
  int32_t sum = 0;
  for (int64_t row = first; row < last; ++row) sum += t.stats[row].residual_count;
  __syncthreads();
  sums[threadIdx.x] = sum;
  __syncthreads();
  int32_t next = 0, total = 0;
  for (int i = 0; i < kThreads; ++i) {
    if (i < static_cast<int>(threadIdx.x)) next += sums[i];
    total += sums[i];
  }
  for (int64_t row = first; row < last; ++row) {
    t.offsets[row] = next;
    next += t.stats[row].residual_count;
  }
  if (threadIdx.x == 0) t.offsets[t.rows] = total;
  return total;
}

// One block: scales of all groups, running offsets of the outliers, totals.
__global__ void ScalesKernel(ScaleTask t) {
  uint32_t tensor = 0, residual = 0;
  int32_t nonfinite = 0;
  const auto finite = [](uint32_t bits) { return formats::IsFinite(formats::BitsFloat(bits)); };
  for (int64_t row = threadIdx.x; row < t.rows; row += kThreads) {
    const uint32_t bits = t.stats[row].amax_bits;
    tensor = bits > tensor ? bits : tensor;
    const uint32_t r = t.stats[row].residual_amax_bits;
    residual = r > residual ? r : residual;
    if (t.axis != ScaleAxis::kRow) continue;
    t.enc[row] = EncOf(t.rule, t.max, bits);
    nonfinite += finite(bits) ? 0 : 1;
  }
  if (t.axis == ScaleAxis::kColumn) {
    for (int64_t col = threadIdx.x; col < t.cols; col += kThreads) {
      t.enc[col] = EncOf(t.rule, t.max, t.columns[col]);
      nonfinite += finite(t.columns[col]) ? 0 : 1;
    }
  }
  tensor = BlockMax(tensor);
  residual = BlockMax(residual);
  nonfinite = BlockSum(nonfinite);
  const int32_t count = t.offsets != nullptr ? SetOffsets(t) : 0;
  if (threadIdx.x != 0) return;
  if (t.axis == ScaleAxis::kTensor) {
    t.enc[0] = EncOf(t.rule, t.max, tensor);
    nonfinite = finite(tensor) ? 0 : 1;
  }
  if (t.offsets != nullptr) nonfinite += finite(residual) ? 0 : 1;
  const float residual_enc = t.comp == OccComp::kE4M3
                                 ? formats::ScaleP2(formats::BitsFloat(residual), formats::kE4M3Max)
                                 : 1.0f;
  *t.counters = {count, nonfinite, residual_enc};
}

// Scales of rows or columns without outliers, as many threads as scales. counters: zeros before.
struct VectorScalesOp {
  ScaleRule rule;
  float max;
  const RowStats* stats;    // of rows, or
  const uint32_t* columns;  // of columns; nullptr: rows
  float* enc;
  QuantizeCounters* counters;
  __device__ void operator()(int64_t i) const {
    const uint32_t bits = columns != nullptr ? columns[i] : stats[i].amax_bits;
    enc[i] = EncOf(rule, max, bits);
    if (!formats::IsFinite(formats::BitsFloat(bits))) atomicAdd(&counters->nonfinite_amax, 1);
  }
};

struct EncodeTask {
  Elem elem;
  Round round;
  ScaleRule scale;
  OccComp comp;
  RandomSource random;
  ScaleAxis axis;
  bool turned;  // the random stream counts down the columns
  int64_t rows, cols, code_row_bytes;
  Fold fold;
  const RowStats* stats;
  float* enc;
  uint8_t* codes;  // nullptr: not kept
  float* decoded;  // nullptr: not wanted; may be x
  const QuantizeCounters* counters;
  const int32_t* offsets;
  int32_t* columns;
  void* values;
};

// Stores an outlier; what the decoded element becomes, which is `decoded` without it.
__device__ inline float StoreResidual(const EncodeTask& t, int32_t at, int64_t col, float value,
                                      float clamped, float enc, float grid, float decoded) {
  t.columns[at] = static_cast<int32_t>(col);
  const float residual = value - clamped;
  if (t.comp == OccComp::kE4M3) {
    const uint8_t code = formats::EncodeE4M3(residual * t.counters->residual_enc);
    static_cast<uint8_t*>(t.values)[at] = code;
    return decoded + formats::DecodeE4M3(code) / t.counters->residual_enc;
  }
  if (t.comp == OccComp::kWide || t.comp == OccComp::kWideE4M3) {
    // In half units, less the code of the clamped value.
    const float code = formats::WideCode(value * enc * 2.0f, t.comp == OccComp::kWideE4M3);
    const float wide = fminf(fmaxf(code - grid * 2.0f, -127.0f), 127.0f);
    static_cast<int8_t*>(t.values)[at] = static_cast<int8_t>(wide);
    return DecodeGrid(t.scale, enc, grid + wide * 0.5f);
  }
  const float rounded = formats::RoundBf16(residual);
  static_cast<float*>(t.values)[at] = rounded;
  return decoded + rounded;
}

// Position of this thread's outlier among those of the block's columns, in column order.
__device__ inline int32_t OutlierRank(bool outlier, int32_t* total) {
  __shared__ int32_t warp_counts[kWarps];
  const unsigned mask = __ballot_sync(0xFFFFFFFFu, outlier);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  __syncthreads();
  if (lane == 0) warp_counts[warp] = __popc(mask);
  __syncthreads();
  int32_t before = 0;
  *total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += warp_counts[w];
    *total += warp_counts[w];
  }
  return before + __popc(mask & ((1u << lane) - 1u));
}

// The code of one element; for E2M1 the even thread of a pair packs the byte, so every thread of
// the warp calls it.
__device__ inline void StoreRowCode(const EncodeTask& t, bool live, int64_t row, int64_t col,
                                    float grid) {
  if (t.codes == nullptr) return;
  const unsigned code = CodeOf(t.elem, grid);
  const unsigned neighbour = __shfl_down_sync(0xFFFFFFFFu, code, 1);
  uint8_t* row_codes = t.codes + row * t.code_row_bytes;
  if (t.elem != Elem::kE2M1) {
    if (live) row_codes[col] = static_cast<uint8_t>(code);
  } else if (live && col % 2 == 0) {
    const unsigned odd = col + 1 < t.cols ? neighbour : 0u;
    row_codes[col / 2] = formats::PackE2M1(static_cast<uint8_t>(code), static_cast<uint8_t>(odd));
  }
}

// One block per row, kThreads columns at a time.
template <typename Values>
__global__ void EncodeRowsKernel(EncodeTask t, Values x) {
  for (int64_t row = blockIdx.x; row < t.rows; row += gridDim.x) {
    const float low = t.stats[row].low;
    const float high = t.stats[row].high;
    int32_t next = t.offsets != nullptr ? t.offsets[row] : 0;
    for (int64_t first = 0; first < t.cols; first += kThreads) {
      const int64_t col = first + threadIdx.x;
      const bool live = col < t.cols;
      const float enc = live ? EncAt(t.axis, t.enc, row, col) : 1.0f;
      const float source = live ? x.At(row * t.cols + col) : 0.0f;
      const float value = live ? t.fold.Apply(source, row, col) : 0.0f;
      const float clamped = formats::OccClamp(value, low, high);
      const int64_t position = t.turned ? col * t.rows + row : row * t.cols + col;
      const float grid = RoundToGrid(t.elem, t.round, t.random, position, clamped * enc);
      StoreRowCode(t, live, row, col, grid);
      float decoded = DecodeGrid(t.scale, enc, grid);
      if (t.offsets != nullptr) {
        const bool outlier = live && (value < low || value > high);
        int32_t total = 0;
        const int32_t rank = OutlierRank(outlier, &total);
        if (outlier) {
          decoded = StoreResidual(t, next + rank, col, value, clamped, enc, grid, decoded);
        }
        next += total;
      }
      if (live && t.decoded != nullptr) {
        t.decoded[row * t.cols + col] = t.fold.Undo(decoded, row, col);
      }
    }
  }
}

// Codes as Dequantize and the products read them.
struct StoredCodes {
  Elem elem;
  ScaleRule scale;
  ScaleAxis axis;
  int64_t rows, cols, code_row_bytes;
  const uint8_t* codes;
  const float* enc;

  __device__ float Grid(int64_t row, int64_t col) const {
    const uint8_t* row_codes = codes + row * code_row_bytes;
    if (elem != Elem::kE2M1) return GridOf(elem, row_codes[col]);
    const uint8_t pair = row_codes[col / 2];
    return formats::DecodeE2M1(col % 2 == 0 ? pair & 15u : pair >> 4);
  }
  __device__ float Decode(int64_t row, int64_t col, float grid) const {
    return DecodeGrid(scale, EncAt(axis, enc, row, col), grid);
  }
};

struct DecodeOp {
  StoredCodes x;
  Fold fold;
  float* decoded;
  __device__ void operator()(int64_t i) const {
    const int64_t row = i / x.cols;
    const int64_t col = i % x.cols;
    decoded[i] = fold.Undo(x.Decode(row, col, x.Grid(row, col)), row, col);
  }
};

struct AddResidualOp {
  StoredCodes x;
  OccComp comp;
  const QuantizeCounters* counters;
  const int32_t *offsets, *columns;
  const void* values;
  float* decoded;
  __device__ void operator()(int64_t row) const {
    for (int32_t i = offsets[row]; i < offsets[row + 1]; ++i) {
      const int64_t col = columns[i];
      float* const target = decoded + row * x.cols + col;
      if (comp == OccComp::kWide || comp == OccComp::kWideE4M3) {
        const float wide = static_cast<float>(static_cast<const int8_t*>(values)[i]) * 0.5f;
        *target = x.Decode(row, col, x.Grid(row, col) + wide);
      } else if (comp == OccComp::kE4M3) {
        *target +=
            formats::DecodeE4M3(static_cast<const uint8_t*>(values)[i]) / counters->residual_enc;
      } else {
        *target += static_cast<const float*>(values)[i];
      }
    }
  }
};

}  // namespace nibble::cuda
