// SPDX-License-Identifier: Apache-2.0
//
// Launch helpers of the CUDA kernels: error mapping, grids, the elementwise kernel.
//
// Thread-safety: pure functions. Compiled by nvcc only, without multiply-add contraction, so that
// the formats give the CPU's bits.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "base/status.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_status.h"

namespace nibble::cuda {

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

}  // namespace nibble::cuda
