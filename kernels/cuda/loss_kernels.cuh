// SPDX-License-Identifier: Apache-2.0
//
// Softmax cross-entropy: two reads of the logits and one write of the gradient, in their place or
// elsewhere as BF16.
// Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/values.cuh"
#include "kernels/formats/bits.h"

namespace nibble::cuda {

// The largest of some numbers, and the sum of exp(number - largest).
struct MaxSum {
  float max, sum;

  // Four numbers, of which `live` count. NaN is no maximum, but stays in the sum.
  __device__ void Add(const Pack<float, 4>& four, int64_t live) {
    float largest = max;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < live) largest = fmaxf(largest, four.x[k]);
    }
    float together = largest > max ? sum * expf(max - largest) : sum;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < live) together += expf(four.x[k] - largest);
    }
    max = largest;
    sum = together;
  }
};
__device__ inline MaxSum Join(const MaxSum& a, const MaxSum& b) {
  const float max = a.max > b.max ? a.max : b.max;
  return {max, a.sum * expf(a.max - max) + b.sum * expf(b.max - max)};
}

// body(pack, at) for the packs of this thread in a row, kAhead of them loaded before the first is
// used.
template <bool kWhole, typename Body>
__device__ inline void ForPacks(const float* row, int64_t vocabulary, Body body) {
  constexpr int kAhead = 4;
  constexpr int64_t kStride = kThreads * 4;
  int64_t at = threadIdx.x * 4;
  for (; at + (kAhead - 1) * kStride < vocabulary; at += kAhead * kStride) {
    Pack<float, 4> packs[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t here = at + k * kStride;
      packs[k] = LoadSome<kWhole>(row + here, vocabulary - here);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) body(packs[k], at + k * kStride);
  }
  for (; at < vocabulary; at += kStride) body(LoadSome<kWhole>(row + at, vocabulary - at), at);
}

// One block per row, four logits a load: in whole packs, or those there are. A row whose target is
// no token has no loss and no gradient.
template <bool kWhole, typename Gradient>
__global__ void CrossEntropyKernel(const float* logits, const int32_t* targets, int64_t rows,
                                   int64_t vocabulary, float gradient_scale, Gradient* gradients,
                                   float* losses) {
  const auto live = [&](int64_t at) { return kWhole ? 4 : vocabulary - at; };
  for (int64_t t = blockIdx.x; t < rows; t += gridDim.x) {
    const float* row = logits + t * vocabulary;
    Gradient* const out = gradients == nullptr ? nullptr : gradients + t * vocabulary;
    const int32_t target = targets[t];
    if (target < 0 || target >= vocabulary) {  // the same for the whole block
      if (threadIdx.x == 0) losses[t] = 0.0f;
      if (out != nullptr) {
        for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) Put(out, i, 0.0f);
      }
      continue;
    }
    MaxSum mine{-formats::kLargestFloat, 0.0f};
    ForPacks<kWhole>(row, vocabulary,
                     [&](const Pack<float, 4>& four, int64_t at) { mine.Add(four, live(at)); });
    const MaxSum all = BlockCombine(mine, Join);
    if (threadIdx.x == 0) losses[t] = (all.max - row[target]) + logf(all.sum);
    if (out == nullptr) continue;
    __syncthreads();  // row[target] has been read
    const float factor = gradient_scale / all.sum;
    ForPacks<kWhole>(row, vocabulary, [&](const Pack<float, 4>& four, int64_t at) {
      Pack<Gradient, 4> pack;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float share = expf(four.x[k] - all.max) * factor;
        Put(pack.x, k, at + k == target ? share - gradient_scale : share);
      }
      StoreSome<kWhole>(pack, live(at), out + at);
    });
  }
}

}  // namespace nibble::cuda
