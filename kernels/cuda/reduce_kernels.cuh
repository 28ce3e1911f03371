// SPDX-License-Identifier: Apache-2.0
//
// Sums of a tensor or of its squares, by chunks. Thread-safety: kernels, ordered by their stream.
#pragma once

#include <cstdint>

#include "kernels/cuda/block.cuh"

namespace nibble::cuda {

// Elements per block: fixed, so the order of the sum is, too.
inline constexpr int64_t kSumChunk = 16384;

__global__ void SumKernel(const float* x, int64_t n, bool squared, double* partials) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSumChunk;
  const int64_t last = first + kSumChunk < n ? first + kSumChunk : n;
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    const double value = static_cast<double>(x[i]);
    sum += squared ? value * value : value;
  }
  const double total = BlockSum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

}  // namespace nibble::cuda
