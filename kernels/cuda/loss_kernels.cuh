// SPDX-License-Identifier: Apache-2.0
//
// Softmax cross-entropy: two reads and one write of the logits, the gradient in their place.
// Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/formats/bits.h"

namespace nibble::cuda {

// The largest of some numbers, and the sum of exp(number - largest).
struct MaxSum {
  float max, sum;

  __device__ void Add(float value) {
    if (value > max) {
      sum = sum * expf(max - value) + 1.0f;
      max = value;
    } else {
      sum += expf(value - max);  // NaN comes here, and stays
    }
  }
};
__device__ inline MaxSum Join(const MaxSum& a, const MaxSum& b) {
  const float max = a.max > b.max ? a.max : b.max;
  return {max, a.sum * expf(a.max - max) + b.sum * expf(b.max - max)};
}

// One block per row. A row whose target is no token has no loss and no gradient.
__global__ void CrossEntropyKernel(float* logits, const int32_t* targets, int64_t rows,
                                   int64_t vocabulary, float gradient_scale, bool write_gradient,
                                   float* losses) {
  for (int64_t t = blockIdx.x; t < rows; t += gridDim.x) {
    float* row = logits + t * vocabulary;
    const int32_t target = targets[t];
    if (target < 0 || target >= vocabulary) {  // the same for the whole block
      if (threadIdx.x == 0) losses[t] = 0.0f;
      if (write_gradient) {
        for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) row[i] = 0.0f;
      }
      continue;
    }
    MaxSum mine{-formats::kLargestFloat, 0.0f};
    for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) mine.Add(row[i]);
    const MaxSum all = BlockCombine(mine, Join);
    if (threadIdx.x == 0) losses[t] = (all.max - row[target]) + logf(all.sum);
    if (!write_gradient) continue;
    __syncthreads();  // row[target] has been read
    const float factor = gradient_scale / all.sum;
    for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) {
      const float share = expf(row[i] - all.max) * factor;
      row[i] = i == target ? share - gradient_scale : share;
    }
  }
}

}  // namespace nibble::cuda
