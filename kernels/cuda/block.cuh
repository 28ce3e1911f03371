// SPDX-License-Identifier: Apache-2.0
//
// Threads of a block together: its size, reductions in a fixed order.
//
// Thread-safety: device functions for one block. This header, and the kernels in .cuh files that
// include nothing else of CUDA, compile for the device and for the emulator of tests/ops.
#pragma once

#include <cstdint>

namespace nibble::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;

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
