// SPDX-License-Identifier: Apache-2.0
//
// Hadamard rotations along either axis and gradient masks. A block rotates one group in shared
// memory, butterflies in the order of formats::HadamardInPlace, so the bits are the CPU's.
//
// Thread-safety: kernels, ordered by their stream.
#pragma once

#include <cstdint>

#include "kernels/formats/hadamard.h"

namespace nibble::cuda {

struct RotationTask {
  int size;
  bool inverse;
  float factor;
  uint32_t negative[formats::kMaxRotation / 32];  // one bit per coordinate
  // Coordinates of a group lie `step` apart, groups of a line size * step, lines `lane`.
  int64_t groups, lines, step, lane;
  const float* x;
  float* out;
};

__global__ void RotateKernel(RotationTask t) {
  __shared__ float values[formats::kMaxRotation];
  const int i = threadIdx.x;
  const float sign = (t.negative[i / 32] >> (i % 32) & 1u) != 0 ? -1.0f : 1.0f;
  for (int64_t job = blockIdx.x; job < t.groups * t.lines; job += gridDim.x) {
    const int64_t start = job / t.groups * t.lane + (job % t.groups * t.size + i) * t.step;
    __syncthreads();
    values[i] = t.inverse ? t.x[start] : t.x[start] * sign;
    for (int half = 1; half < t.size; half *= 2) {
      __syncthreads();
      const float mine = values[i];
      const float other = values[i ^ half];
      __syncthreads();
      values[i] = (i & half) == 0 ? mine + other : other - mine;
    }
    t.out[start] = values[i] * (t.inverse ? t.factor * sign : t.factor);
  }
}

struct ApplyMaskOp {
  const uint8_t* mask;
  float* x;
  __device__ void operator()(int64_t i) const {
    if (mask[i] == 0) x[i] = 0.0f;
  }
};

// On the host: where groups lie; signs and tensors are the caller's to fill in.
inline RotationTask RotationTaskOf(int size, bool inverse, bool by_rows, int64_t rows,
                                   int64_t cols) {
  RotationTask task{};
  task.size = size;
  task.inverse = inverse;
  task.factor = formats::RotationFactor(size);
  task.groups = (by_rows ? rows : cols) / size;
  task.lines = by_rows ? cols : rows;
  task.step = by_rows ? cols : 1;
  task.lane = by_rows ? 1 : cols;
  return task;
}

}  // namespace nibble::cuda
