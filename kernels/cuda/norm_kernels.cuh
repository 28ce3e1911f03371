// SPDX-License-Identifier: Apache-2.0
//
// RMSNorm, alone and with the residual sum before it, and its backward. A block takes a row; its
// sum of squares has a fixed tree, the same in both kernels, so they give the same bits. Out:
// float, or uint16_t for the BF16 that a quantizer takes.
//
// Thread-safety: kernels, ordered by their stream.
#pragma once

#include <cstdint>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/values.cuh"

namespace nibble::cuda {

__device__ inline float InverseRms(float squares, int64_t width, float epsilon) {
  const float mean = BlockSum(squares) / static_cast<float>(width);
  return 1.0f / sqrtf(mean + epsilon);
}

template <typename Out>
__global__ void RmsNormKernel(const float* x, const float* weight, float epsilon, int64_t rows,
                              int64_t width, Out* out, float* rstd) {
  for (int64_t t = blockIdx.x; t < rows; t += gridDim.x) {
    const float* row = x + t * width;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < width; i += kThreads) sum += row[i] * row[i];
    const float scale = InverseRms(sum, width, epsilon);
    if (threadIdx.x == 0) rstd[t] = scale;
    for (int64_t i = threadIdx.x; i < width; i += kThreads) {
      Put(out, t * width + i, (row[i] * scale) * weight[i]);
    }
  }
}

inline constexpr int kNormHeld = 16;  // numbers of a row that a thread keeps in registers

// sum = a + b, 8 bytes read and 8 (out as BF16: 6) written per element: what a row's threads have
// added they keep for the second half, up to kNormHeld each. sum may be a or b.
template <typename Out>
__global__ void AddRmsNormKernel(const float* a, const float* b, const float* weight, float epsilon,
                                 int64_t rows, int64_t width, float* sum, Out* out, float* rstd) {
  for (int64_t t = blockIdx.x; t < rows; t += gridDim.x) {
    float held[kNormHeld];
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kNormHeld; ++k) {
      const int64_t i = static_cast<int64_t>(k) * kThreads + threadIdx.x;
      if (i >= width) break;
      held[k] = a[t * width + i] + b[t * width + i];
      sum[t * width + i] = held[k];
      squares += held[k] * held[k];
    }
    for (int64_t i = kNormHeld * kThreads + threadIdx.x; i < width; i += kThreads) {
      const float value = a[t * width + i] + b[t * width + i];
      sum[t * width + i] = value;
      squares += value * value;
    }
    const float scale = InverseRms(squares, width, epsilon);
    if (threadIdx.x == 0) rstd[t] = scale;
#pragma unroll
    for (int k = 0; k < kNormHeld; ++k) {
      const int64_t i = static_cast<int64_t>(k) * kThreads + threadIdx.x;
      if (i >= width) break;
      Put(out, t * width + i, (held[k] * scale) * weight[i]);
    }
    for (int64_t i = kNormHeld * kThreads + threadIdx.x; i < width; i += kThreads) {
      Put(out, t * width + i, (sum[t * width + i] * scale) * weight[i]);
    }
  }
}

inline constexpr int64_t kNormChunkRows = 64;  // rows per partial sum of dweight

// projection[t] = rstd^2 / width * sum(dout * weight * x).
__global__ void RmsNormProjectionKernel(const float* dout, const float* x, const float* weight,
                                        const float* rstd, int64_t rows, int64_t width,
                                        float* projections) {
  for (int64_t t = blockIdx.x; t < rows; t += gridDim.x) {
    const float* g = dout + t * width;
    const float* row = x + t * width;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < width; i += kThreads) sum += (g[i] * weight[i]) * row[i];
    const float dot = BlockSum(sum);
    const float scale = rstd[t];
    if (threadIdx.x == 0) projections[t] = dot * scale * scale / static_cast<float>(width);
  }
}

// dweight partials of one chunk of rows, then dx of those rows: dx may be dout, so the sums come
// first. A thread owns columns.
__global__ void RmsNormApplyKernel(const float* dout, const float* x, const float* weight,
                                   const float* rstd, const float* projections, int64_t rows,
                                   int64_t width, bool accumulate, float* dx, float* partials) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kNormChunkRows;
  const int64_t last = first + kNormChunkRows < rows ? first + kNormChunkRows : rows;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    float partial = 0;
    for (int64_t t = first; t < last; ++t) {
      const float g = dout[t * width + i];
      const float value = x[t * width + i];
      const float scale = rstd[t];
      partial += g * (value * scale);
      const float gradient = scale * (g * weight[i] - value * projections[t]);
      float& target = dx[t * width + i];
      target = accumulate ? target + gradient : gradient;
    }
    partials[static_cast<int64_t>(blockIdx.x) * width + i] = partial;
  }
}

struct FoldPartialsOp {
  const float* partials;
  int64_t chunks, width;
  float* dweight;
  __device__ void operator()(int64_t i) const {
    float sum = dweight[i];
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partials[chunk * width + i];
    dweight[i] = sum;
  }
};

}  // namespace nibble::cuda
