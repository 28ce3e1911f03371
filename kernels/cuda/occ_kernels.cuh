// SPDX-License-Identifier: Apache-2.0
//
// Exact quantiles: the histogram of a tensor's BF16 order keys and the values of two ranks; or
// those of each row, by radix selection on the keys, high byte first.
//
// Purpose: a tensor is read once; counts gather in shared memory, 16 bits each, and reach global
// memory once per chunk. Integers: the order does not matter. Thread-safety: kernels, ordered by
// their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/row_stats.h"
#include "kernels/cuda/values.cuh"
#include "kernels/formats/bf16.h"

namespace nibble::cuda {

inline constexpr int kKeys = 65536;
inline constexpr int kHistogramThreads = 1024;
inline constexpr int64_t kHistogramChunk = 61440;  // below 2^16: no counter overflows
inline constexpr int kHistogramBytes = kKeys * 2;
inline constexpr int kCountBatch = 4;

// counts[key] += occurrences among n values; dynamic shared memory of kHistogramBytes.
template <typename Values>
__global__ void __launch_bounds__(kHistogramThreads)
    CountKeysKernel(Values x, int64_t n, unsigned* counts) {
  auto* pairs = static_cast<unsigned*>(SharedMemory());  // key 2 i in the low half of pairs[i]
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kHistogramChunk;
  for (int64_t first = blockIdx.x * kHistogramChunk; first < n; first += stride) {
    for (int i = threadIdx.x; i < kKeys / 2; i += kHistogramThreads) pairs[i] = 0;
    __syncthreads();
    const int64_t last = first + kHistogramChunk < n ? first + kHistogramChunk : n;
    const auto count = [pairs](uint16_t bits) {
      const unsigned key = formats::Bf16OrderKey(bits);
      atomicAdd(&pairs[key / 2], 1u << (key % 2 * 16));
    };
    // A chunk begins on a multiple of four; loads of a batch are under way together.
    constexpr int64_t kStep = 4 * kHistogramThreads;
    for (int64_t i = first + 4 * threadIdx.x; i + 3 < last; i += kCountBatch * kStep) {
      Four batch[kCountBatch];
#pragma unroll
      for (int b = 0; b < kCountBatch; ++b) {
        if (i + b * kStep + 3 < last) batch[b] = x.Together(i + b * kStep);
      }
#pragma unroll
      for (int b = 0; b < kCountBatch; ++b) {
        if (i + b * kStep + 3 >= last) break;
        for (const uint16_t bits : batch[b].x) count(bits);
      }
    }
    const int64_t rest = last - last % 4 + threadIdx.x;
    if (rest < last) count(x.Bits(rest));
    __syncthreads();
    for (int i = threadIdx.x; i < kKeys / 2; i += kHistogramThreads) {
      const unsigned pair = pairs[i];
      if ((pair & 0xFFFFu) != 0) atomicAdd(&counts[2 * i], pair & 0xFFFFu);
      if (pair >> 16 != 0) atomicAdd(&counts[2 * i + 1], pair >> 16);
    }
    __syncthreads();
  }
}

inline constexpr int kStepKeys = 128;  // that a warp reads at once, four in a lane
inline constexpr int kKeySteps = kKeys / kStepKeys;

// One block: the values of two ranks, to every row. Reads the histogram once and the two steps that
// hold the ranks again.
__global__ void TensorBoundsKernel(const unsigned* counts, int64_t low_rank, int64_t high_rank,
                                   int64_t rows, RowStats* stats) {
  __shared__ unsigned sums[kKeySteps];
  __shared__ int64_t starts[kKeySteps + 1];
  __shared__ unsigned chosen[2][kStepKeys];
  __shared__ int steps[2];
  __shared__ float bounds[2];
  const int thread = static_cast<int>(threadIdx.x);
  for (int step = thread / 32; step < kKeySteps; step += kWarps) {
    const auto four =
        *reinterpret_cast<const Pack<unsigned, 4>*>(counts + step * kStepKeys + thread % 32 * 4);
    const unsigned sum =
        __reduce_add_sync(0xFFFFFFFFu, four.x[0] + four.x[1] + four.x[2] + four.x[3]);
    if (thread % 32 == 0) sums[step] = sum;
  }
  __syncthreads();
  for (int step = thread; step <= kKeySteps; step += kThreads) {
    int64_t before = 0;
    for (int i = 0; i < step; ++i) before += sums[i];
    starts[step] = before;
  }
  __syncthreads();
  const auto holds = [](int64_t before, int64_t count, int64_t rank) {
    return before <= rank && rank < before + count;
  };
  for (int step = thread; step < kKeySteps; step += kThreads) {
    if (holds(starts[step], sums[step], low_rank)) steps[0] = step;
    if (holds(starts[step], sums[step], high_rank)) steps[1] = step;
  }
  __syncthreads();
  const int side = thread / kStepKeys, place = thread % kStepKeys;
  const int key = steps[side] * kStepKeys + place;
  const unsigned mine = counts[key];
  chosen[side][place] = mine;
  __syncthreads();
  int64_t before = starts[steps[side]];
  for (int i = 0; i < place; ++i) before += chosen[side][i];
  if (holds(before, mine, side == 0 ? low_rank : high_rank)) {
    bounds[side] = formats::FromBf16(formats::Bf16FromOrderKey(static_cast<uint16_t>(key)));
  }
  __syncthreads();
  for (int64_t row = thread; row < rows; row += kThreads) {
    stats[row].low = bounds[0];
    stats[row].high = bounds[1];
  }
}
static_assert(kThreads == 2 * kStepKeys);

// Where shared memory is too small for CountKeysKernel.
template <typename Values>
struct CountKeysOp {
  Values x;
  unsigned* counts;
  __device__ void operator()(int64_t i) const {
    atomicAdd(&counts[formats::Bf16OrderKey(x.Bits(i))], 1u);
  }
};

// The key of rank `rank` among a row that begins at `row`: 256 bins of the high byte, then of the
// low byte.
template <typename Values>
__device__ uint16_t SelectKey(Values x, int64_t row, int64_t cols, int64_t rank) {
  __shared__ unsigned bins[256];
  __shared__ int chosen;
  __shared__ int64_t left;
  int high = 0;
  for (int pass = 0; pass < 2; ++pass) {
    __syncthreads();
    bins[threadIdx.x] = 0;
    if (threadIdx.x == 0 && pass == 0) left = rank;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
      const uint16_t key = formats::Bf16OrderKey(x.Bits(row + i));
      if (pass == 0) {
        atomicAdd(&bins[key >> 8], 1u);
      } else if (key >> 8 == high) {
        atomicAdd(&bins[key & 255], 1u);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = 0;
      while (bin < 255 && left >= static_cast<int64_t>(bins[bin])) left -= bins[bin++];
      chosen = bin;
    }
    __syncthreads();
    if (pass == 0) high = chosen;
  }
  return static_cast<uint16_t>(high << 8 | chosen);
}

template <typename Values>
__global__ void TokenBoundsKernel(Values x, int64_t rows, int64_t cols, int64_t low_rank,
                                  int64_t high_rank, RowStats* stats) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const uint16_t low = SelectKey(x, row * cols, cols, low_rank);
    const uint16_t high = SelectKey(x, row * cols, cols, high_rank);
    if (threadIdx.x == 0) {
      stats[row].low = formats::FromBf16(formats::Bf16FromOrderKey(low));
      stats[row].high = formats::FromBf16(formats::Bf16FromOrderKey(high));
    }
    __syncthreads();
  }
}

}  // namespace nibble::cuda
