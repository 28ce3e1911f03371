// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding, half-split.
//
// Purpose: angles come from a table that is made once, since a sine and a power in double cost more
// than the memory of the pair they turn. Thread-safety: kernels, ordered by their stream.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/values.cuh"

namespace nibble::cuda {

// table (positions, head_dim): cosines of the pairs' angles, then their sines, computed in double
// as the CPU's table is. One thread for each pair.
struct RopeTableOp {
  double theta;
  int64_t head_dim;
  float* table;
  __device__ void operator()(int64_t i) const {
    const int64_t half = head_dim / 2;
    const int64_t position = i / half, pair = i % half;
    const double exponent = -2.0 * static_cast<double>(pair) / static_cast<double>(head_dim);
    const double angle = static_cast<double>(position) * pow(theta, exponent);
    table[position * head_dim + pair] = static_cast<float>(cos(angle));
    table[position * head_dim + half + pair] = static_cast<float>(sin(angle));
  }
};

template <typename Out>
struct RopeTask {
  const float* x;
  Out* out;            // may be x
  const float* table;  // of positions from 0 on
  int64_t rows, seq, offset;
  int heads, head_dim;
  float sign;  // -1: the inverse
};

// A block takes a row of all heads; kPack: pairs a thread turns at a time, neighbours of one head.
template <int kPack, typename Out>
__global__ void RopeKernel(RopeTask<Out> p) {
  const int half = p.head_dim / 2;
  const int64_t width = static_cast<int64_t>(p.heads) * p.head_dim;
  for (int64_t t = blockIdx.x; t < p.rows; t += gridDim.x) {
    const float* const cosines = p.table + (t % p.seq + p.offset) * p.head_dim;
    for (int j = static_cast<int>(threadIdx.x) * kPack; j < p.heads * half; j += kThreads * kPack) {
      const int pair = j % half;
      const int64_t at = t * width + j / half * p.head_dim + pair;
      const auto a = GetPack<kPack>(p.x, at), b = GetPack<kPack>(p.x, at + half);
      const auto cosine = GetPack<kPack>(cosines, pair);
      const auto sine = GetPack<kPack>(cosines, half + pair);
      Pack<float, kPack> first, second;
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const float turn = p.sign * sine.x[k];
        first.x[k] = a.x[k] * cosine.x[k] - b.x[k] * turn;
        second.x[k] = b.x[k] * cosine.x[k] + a.x[k] * turn;
      }
      PutPack(p.out, at, first);
      PutPack(p.out, at + half, second);
    }
  }
}

}  // namespace nibble::cuda
