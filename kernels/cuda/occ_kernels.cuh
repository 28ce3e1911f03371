// SPDX-License-Identifier: Apache-2.0
//
// The histogram behind exact tensor quantiles: how often each BF16 order key occurs.
//
// Purpose: one read of x; counts gather in shared memory, 16 bits each, and reach global memory
// once per chunk. Integers: the order does not matter. Thread-safety: kernels, ordered by their
// stream.
#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/formats/bf16.h"

namespace nibble::cuda {

inline constexpr int kKeys = 65536;
inline constexpr int kHistogramThreads = 1024;
inline constexpr int64_t kHistogramChunk = 61440;  // below 2^16: no counter overflows
inline constexpr int kHistogramBytes = kKeys * 2;

// counts[key] += occurrences; dynamic shared memory of kHistogramBytes.
__global__ void __launch_bounds__(kHistogramThreads)
    CountKeysKernel(const float* x, int64_t n, unsigned* counts) {
  auto* pairs = static_cast<unsigned*>(SharedMemory());  // key 2 i in the low half of pairs[i]
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kHistogramChunk;
  for (int64_t first = blockIdx.x * kHistogramChunk; first < n; first += stride) {
    for (int i = threadIdx.x; i < kKeys / 2; i += kHistogramThreads) pairs[i] = 0;
    __syncthreads();
    const int64_t last = first + kHistogramChunk < n ? first + kHistogramChunk : n;
    for (int64_t i = first + threadIdx.x; i < last; i += kHistogramThreads) {
      const unsigned key = formats::Bf16OrderKey(formats::ToBf16(x[i]));
      atomicAdd(&pairs[key / 2], 1u << (key % 2 * 16));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kKeys / 2; i += kHistogramThreads) {
      const unsigned pair = pairs[i];
      if ((pair & 0xFFFFu) != 0) atomicAdd(&counts[2 * i], pair & 0xFFFFu);
      if (pair >> 16 != 0) atomicAdd(&counts[2 * i + 1], pair >> 16);
    }
    __syncthreads();
  }
}

}  // namespace nibble::cuda
