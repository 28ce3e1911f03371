// SPDX-License-Identifier: Apache-2.0
//
// Kernels of the weight rule oscireset.
//
// Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/formats/bits.h"

namespace nibble::cuda {

// path += |x - previous|, then previous = x.
struct AddPathOp {
  const float* x;
  float *previous, *path;
  __device__ void operator()(int64_t i) const {
    path[i] += formats::Magnitude(x[i] - previous[i]);
    previous[i] = x[i];
  }
};

// Elements whose quantized path is `ratio` times their own move take their quantized value.
__global__ void ResetOscillatingKernel(float ratio, int64_t size, const float* path,
                                       const float* quantized_path, const float* quantized,
                                       float* weight, unsigned long long* count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  int32_t mine = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size;
       i += stride) {
    const float moved = quantized_path[i];
    if (!(moved > 0 && moved >= ratio * path[i])) continue;
    weight[i] = quantized[i];
    ++mine;
  }
  mine = BlockSum(mine);
  if (threadIdx.x == 0) atomicAdd(count, static_cast<unsigned long long>(mine));
}

}  // namespace nibble::cuda
