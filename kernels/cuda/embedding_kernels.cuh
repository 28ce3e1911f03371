// SPDX-License-Identifier: Apache-2.0
//
// The embedding's gradient. Thread-safety: kernels, ordered by their stream.
#pragma once

#include <cstdint>

namespace nibble::cuda {

inline constexpr int kVocabularyShards = 64;  // blocks that share one group of embedding columns

// A thread owns one column of one shard of the vocabulary, so each sum runs in ascending token
// order and no two threads add to one element.
__global__ void EmbeddingBackwardKernel(const int32_t* ids, const float* dout, int64_t tokens,
                                        int64_t vocabulary, int64_t width, float* dtable) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= width) return;
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t id = ids[t];
    if (id < 0 || id >= vocabulary) continue;
    if (id % kVocabularyShards != static_cast<int32_t>(blockIdx.y)) continue;
    dtable[id * width + column] += dout[t * width + column];
  }
}

}  // namespace nibble::cuda
