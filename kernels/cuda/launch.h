// SPDX-License-Identifier: Apache-2.0
//
// Launch helpers of the CUDA kernels: error mapping, grids, block reductions in a fixed order.
//
// Thread-safety: pure functions; device functions are for one block. Compiled by nvcc only, without
// multiply-add contraction, so that the formats give the CPU's bits.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "base/status.h"
#include "kernels/cuda/cuda_status.h"

namespace nibble::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int64_t kLargestGrid = 65535;

// The error of the launch just made, if any.
inline Status LaunchStatus(const char* what) { return CudaStatus(cudaGetLastError(), what); }

// Blocks of kThreads for a grid-stride loop over n elements.
inline unsigned GridFor(int64_t n) {
  return static_cast<unsigned>(std::clamp<int64_t>((n + kThreads - 1) / kThreads, 1, kLargestGrid));
}
// One block per row; rows beyond the grid are taken by stride.
inline unsigned GridForRows(int64_t rows) {
  return static_cast<unsigned>(std::clamp<int64_t>(rows, 1, kLargestGrid));
}

// op(i) for i in [0, n): one kernel for every elementwise operation.
template <typename Op>
__global__ void ForEachKernel(int64_t n, Op op) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += stride) {
    op(i);
  }
}
template <typename Op>
Status ForEach(cudaStream_t stream, const char* what, int64_t n, Op op) {
  if (n == 0) return OkStatus();
  ForEachKernel<<<GridFor(n), kThreads, 0, stream>>>(n, op);
  return LaunchStatus(what);
}

// The combination of `value` over all kThreads threads, the same in every thread. The tree is
// fixed, so equal inputs give equal bits. Contains barriers: every thread of the block must call
// it.
template <typename T, typename Combine>
__device__ T BlockCombine(T value, Combine combine) {
  __shared__ T shared[kThreads];
  __syncthreads();
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) {
      shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
    __syncthreads();
  }
  return shared[0];
}
template <typename T>
__device__ T BlockSum(T value) {
  return BlockCombine(value, [](T a, T b) { return a + b; });
}
template <typename T>
__device__ T BlockMax(T value) {
  return BlockCombine(value, [](T a, T b) { return a > b ? a : b; });
}

}  // namespace nibble::cuda
