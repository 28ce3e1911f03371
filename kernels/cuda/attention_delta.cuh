// SPDX-License-Identifier: Apache-2.0
//
// The inner products that attention's backward pass begins with.
//
// Thread-safety: a kernel, ordered by its stream.
#pragma once

#include <cstdint>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/values.cuh"

namespace nibble::cuda {

// Out: float or uint16_t, what attention's result rests as.
template <typename Out>
struct DeltaTask {
  int64_t rows;  // queries times heads
  int64_t seq;
  int heads, head_dim;
  const float* dout;
  const Out* out;
  float* delta;      // (batch * heads, seq)
  uint16_t* narrow;  // nullptr, or dout as BF16
};

// delta = dout . out for each query and head: a warp takes one, in the order of memory.
template <typename Out>
__global__ void DeltaKernel(DeltaTask<Out> p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; row < p.rows;
       row += stride) {
    float sum = 0;
    for (int64_t i = row * p.head_dim + lane; i < (row + 1) * p.head_dim; i += 32) {
      const float gradient = p.dout[i];
      sum += gradient * Get(p.out, i);
      if (p.narrow != nullptr) Put(p.narrow, i, gradient);
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, apart);
    if (lane != 0) continue;
    const int64_t token = row / p.heads, head = row % p.heads;
    p.delta[(token / p.seq * p.heads + head) * p.seq + token % p.seq] = sum;
  }
}

}  // namespace nibble::cuda
