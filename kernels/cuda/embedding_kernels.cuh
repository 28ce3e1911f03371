// SPDX-License-Identifier: Apache-2.0
//
// The embedding's gradient: tokens ordered by id, then each id's rows summed in ascending order.
//
// Purpose: every row of the gradient is read once, whatever the vocabulary. Positions come from
// counting, which needs no order of its own: tokens^2 comparisons of integers, few beside the
// products of a step. Thread-safety: kernels, ordered by their stream.
#pragma once

#include <cstdint>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/four.cuh"

namespace nibble::cuda {

// place[t] += how many tokens of some runs come before t, by id and among equals by position. Grid
// (tokens by kThreads, shares of the runs). place starts as zeros.
__global__ void RankTokensKernel(const int32_t* ids, int64_t tokens, int32_t* place) {
  __shared__ int32_t run[kThreads];
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads;
  const int64_t t = block + threadIdx.x;
  const int32_t id = t < tokens ? ids[t] : 0;
  int32_t count = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.y) * kThreads; first < tokens;
       first += static_cast<int64_t>(gridDim.y) * kThreads) {
    __syncthreads();
    if (first + threadIdx.x < tokens) run[threadIdx.x] = ids[first + threadIdx.x];
    __syncthreads();
    const int n = tokens - first < kThreads ? static_cast<int>(tokens - first) : kThreads;
    // Equal ids of this run that come before t.
    const int earlier = first < block ? n : (first == block ? static_cast<int>(threadIdx.x) : 0);
    for (int i = 0; i < n; ++i) {
      count += run[i] < id || (run[i] == id && i < earlier) ? 1 : 0;
    }
  }
  if (t < tokens) atomicAdd(&place[t], count);  // integers: the order does not matter
}

struct OrderTokensOp {
  const int32_t* place;
  int32_t* order;
  __device__ void operator()(int64_t t) const { order[place[t]] = static_cast<int32_t>(t); }
};

struct EmbeddingTask {
  const int32_t *ids, *order;
  const float* dout;
  int64_t tokens, vocabulary, width;
  float* dtable;
};

inline constexpr int kTokensAhead = 4;  // whose rows are on their way at once

// A block owns a strip of 4 kThreads columns of one id, found at the id's first place in the order.
// Ids that are none add nothing. Grid (strips, places). kFour: rows are whole fours.
template <bool kFour>
__global__ void EmbeddingBackwardKernel(EmbeddingTask t) {
  const int64_t column = 4 * (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
  if (column >= t.width) return;
  const int64_t live = t.width - column;
  for (int64_t place = blockIdx.y; place < t.tokens; place += gridDim.y) {
    const int32_t id = t.ids[t.order[place]];
    if (id < 0 || id >= t.vocabulary) continue;
    if (place > 0 && t.ids[t.order[place - 1]] == id) continue;
    auto sum = LoadSome<kFour>(t.dtable + id * t.width + column, live);
    bool more = true;
    for (int64_t first = place; more; first += kTokensAhead) {
      Pack<float, 4> rows[kTokensAhead];
      bool same[kTokensAhead];
#pragma unroll
      for (int k = 0; k < kTokensAhead; ++k) {
        const int32_t token = t.order[first + k < t.tokens ? first + k : place];
        same[k] = first + k < t.tokens && t.ids[token] == id;
        // Loaded either way, so that no load waits for a sum; beyond the last, a row at hand.
        const int64_t row = same[k] ? token : t.order[place];
        rows[k] = LoadSome<kFour>(t.dout + row * t.width + column, live);
      }
#pragma unroll
      for (int k = 0; k < kTokensAhead; ++k) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sum.x[c] = same[k] ? sum.x[c] + rows[k].x[c] : sum.x[c];
      }
      more = same[kTokensAhead - 1];
    }
    StoreSome<kFour>(sum, live, t.dtable + id * t.width + column);
  }
}

}  // namespace nibble::cuda
