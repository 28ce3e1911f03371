// SPDX-License-Identifier: Apache-2.0
//
// RMSNorm, with the residual sum before it or without, and its backward.
//
// Purpose: a block takes a row, four neighbours a load, and keeps what it has read in registers for
// the second half of the work, up to kFours * 4 * kThreads numbers; longer rows are read again. The
// sum of squares has a fixed tree, the same with and without the residual sum. Thread-safety:
// kernels, ordered by their stream.
#pragma once

#include <cstdint>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/values.cuh"

namespace nibble::cuda {

// Numbers of a row that the threads of a block keep.
template <int kFours>
inline constexpr int64_t kNormHeld = static_cast<int64_t>(kFours) * 4 * kThreads;

// Where pack k of this thread begins in its row.
__device__ inline int64_t NormPack(int64_t k) { return (k * kThreads + threadIdx.x) * 4; }

// The part of a row that registers do not hold, four by four.
template <int kFours, typename Body>
__device__ inline void ForNormRest(int64_t width, Body body) {
  for (int64_t at = kNormHeld<kFours> + threadIdx.x * 4; at < width; at += kThreads * 4) body(at);
}

__device__ inline float Squares(const FourFloats& four) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) sum += four.x[j] * four.x[j];
  return sum;
}
__device__ inline FourFloats SumOf(const FourFloats& a, const FourFloats& b) {
  FourFloats sum;
#pragma unroll
  for (int j = 0; j < 4; ++j) sum.x[j] = a.x[j] + b.x[j];
  return sum;
}

// Rows of x (rows, width), or of x + b, which also go to sum; sum may be x or b. Out: float, or
// uint16_t for the BF16 that a quantizer takes.
template <typename Out>
struct NormTask {
  const float *x, *b;  // b: nullptr without a residual sum
  const float* weight;
  float epsilon;
  int64_t rows, width;
  float* sum;
  Out* out;
  float* rstd;

  template <bool kWhole>
  __device__ FourFloats Load(int64_t row, int64_t at) const {
    const FourFloats a = LoadSome<kWhole>(x + row + at, width - at);
    return b == nullptr ? a : SumOf(a, LoadSome<kWhole>(b + row + at, width - at));
  }
  template <bool kWhole>
  __device__ void Finish(int64_t row, int64_t at, const FourFloats& four, float scale) const {
    const FourFloats w = LoadSome<kWhole>(weight + at, width - at);
    Pack<Out, 4> pack;
#pragma unroll
    for (int j = 0; j < 4; ++j) Put(pack.x, j, (four.x[j] * scale) * w.x[j]);
    StoreSome<kWhole>(pack, width - at, out + row + at);
  }
};

// 4 bytes read and 4 written per element, or with a sum 8 and 8; 2 less with BF16 out.
template <int kFours, bool kWhole, typename Out>
__global__ void RmsNormKernel(NormTask<Out> p) {
  for (int64_t t = blockIdx.x; t < p.rows; t += gridDim.x) {
    const int64_t row = t * p.width;
    FourFloats held[kFours] = {};
#pragma unroll
    for (int k = 0; k < kFours; ++k) {
      if (NormPack(k) < p.width) held[k] = p.template Load<kWhole>(row, NormPack(k));
    }
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kFours; ++k) {
      squares += Squares(held[k]);
      if (p.b != nullptr && NormPack(k) < p.width) {
        StoreSome<kWhole>(held[k], p.width - NormPack(k), p.sum + row + NormPack(k));
      }
    }
    ForNormRest<kFours>(p.width, [&](int64_t at) {
      const FourFloats four = p.template Load<kWhole>(row, at);
      if (p.b != nullptr) StoreSome<kWhole>(four, p.width - at, p.sum + row + at);
      squares += Squares(four);
    });
    const float mean = BlockSum(squares) / static_cast<float>(p.width);
    const float scale = 1.0f / sqrtf(mean + p.epsilon);
    if (threadIdx.x == 0) p.rstd[t] = scale;
#pragma unroll
    for (int k = 0; k < kFours; ++k) {
      if (NormPack(k) < p.width) p.template Finish<kWhole>(row, NormPack(k), held[k], scale);
    }
    const float* const again = p.b == nullptr ? p.x : p.sum;
    ForNormRest<kFours>(p.width, [&](int64_t at) {
      p.template Finish<kWhole>(row, at, LoadSome<kWhole>(again + row + at, p.width - at), scale);
    });
  }
}

inline constexpr int64_t kNormChunkRows = 16;  // of a block, and of a partial sum of dweight

// dx, which may be dout, and dweight's partial sums, (chunks, width).
struct NormGradientTask {
  const float *dout, *x, *weight, *rstd;
  int64_t rows, width;
  bool accumulate;
  float *dx, *partials;

  // dx[t] = rstd (dout weight - x projection) at `at`; returns the part of dweight.
  template <bool kWhole>
  __device__ FourFloats Finish(int64_t row, int64_t at, const FourFloats& g,
                               const FourFloats& value, float scale, float projection) const {
    const FourFloats w = LoadSome<kWhole>(weight + at, width - at);
    FourFloats gradient, part;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      part.x[j] = g.x[j] * (value.x[j] * scale);
      gradient.x[j] = scale * (g.x[j] * w.x[j] - value.x[j] * projection);
    }
    if (accumulate) gradient = SumOf(LoadSome<kWhole>(dx + row + at, width - at), gradient);
    StoreSome<kWhole>(gradient, width - at, dx + row + at);
    return part;
  }
  // sum(dout weight x) at `at`.
  template <bool kWhole>
  __device__ float Projected(int64_t at, const FourFloats& g, const FourFloats& value) const {
    const FourFloats w = LoadSome<kWhole>(weight + at, width - at);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += (g.x[j] * w.x[j]) * value.x[j];
    return sum;
  }
};

// One pass: 8 bytes read and 4 written per element, 12 and 4 when accumulating.
template <int kFours, bool kWhole>
__global__ void RmsNormBackwardKernel(NormGradientTask p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kNormChunkRows;
  const int64_t last = first + kNormChunkRows < p.rows ? first + kNormChunkRows : p.rows;
  float* const partials = p.partials + static_cast<int64_t>(blockIdx.x) * p.width;
  FourFloats parts[kFours] = {};
  for (int64_t t = first; t < last; ++t) {
    const int64_t row = t * p.width;
    FourFloats g[kFours] = {}, value[kFours] = {};
#pragma unroll
    for (int k = 0; k < kFours; ++k) {
      const int64_t at = NormPack(k);
      if (at >= p.width) continue;
      g[k] = LoadSome<kWhole>(p.dout + row + at, p.width - at);
      value[k] = LoadSome<kWhole>(p.x + row + at, p.width - at);
    }
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kFours; ++k) {
      if (NormPack(k) < p.width) {
        sum += p.template Projected<kWhole>(NormPack(k), g[k], value[k]);
      }
    }
    const auto load = [&](const float* from, int64_t at) {
      return LoadSome<kWhole>(from + row + at, p.width - at);
    };
    ForNormRest<kFours>(p.width, [&](int64_t at) {
      sum += p.template Projected<kWhole>(at, load(p.dout, at), load(p.x, at));
    });
    const float scale = p.rstd[t];
    const float projection = BlockSum(sum) * scale * scale / static_cast<float>(p.width);
#pragma unroll
    for (int k = 0; k < kFours; ++k) {
      const int64_t at = NormPack(k);
      if (at >= p.width) continue;
      parts[k] =
          SumOf(parts[k], p.template Finish<kWhole>(row, at, g[k], value[k], scale, projection));
    }
    ForNormRest<kFours>(p.width, [&](int64_t at) {
      const FourFloats part =
          p.template Finish<kWhole>(row, at, load(p.dout, at), load(p.x, at), scale, projection);
      const int64_t live = p.width - at;
      StoreSome<kWhole>(t == first ? part : SumOf(LoadSome<kWhole>(partials + at, live), part),
                        live, partials + at);
    });
  }
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const int64_t at = NormPack(k);
    if (at < p.width) StoreSome<kWhole>(parts[k], p.width - at, partials + at);
  }
}

inline constexpr int kFoldColumns = 32;  // of a block
inline constexpr int kFoldLanes = kThreads / kFoldColumns;

// dweight += the partial sums: every eighth by one thread, then those in order.
__global__ void FoldPartialsKernel(const float* partials, int64_t chunks, int64_t width,
                                   float* dweight) {
  __shared__ float sums[kFoldLanes][kFoldColumns];
  const int column_here = threadIdx.x % kFoldColumns;
  const int lane = threadIdx.x / kFoldColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kFoldColumns + column_here;
  float sum = 0;
  if (column < width) {
    for (int64_t c = lane; c < chunks; c += kFoldLanes) sum += partials[c * width + column];
  }
  sums[lane][column_here] = sum;
  __syncthreads();
  if (lane != 0 || column >= width) return;
  float total = dweight[column];
  for (int l = 0; l < kFoldLanes; ++l) total += sums[l][column_here];
  dweight[column] = total;
}

}  // namespace nibble::cuda
