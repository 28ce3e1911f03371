// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding, half-split. Thread-safety: pure functions of their pair.
#pragma once

#include <cstdint>

#include "kernels/cuda/values.cuh"

namespace nibble::cuda {

// The angle in double, as the CPU's table holds it.
template <typename Out>
struct RopeOp {
  const float* x;
  Out* out;
  int64_t seq, heads, head_dim, offset;
  double theta;
  float sign;
  __device__ void operator()(int64_t i) const {
    const int64_t half = head_dim / 2;
    const int64_t pair = i % half;
    const int64_t head = i / half % heads;
    const int64_t t = i / half / heads;
    const double exponent = -2.0 * static_cast<double>(pair) / static_cast<double>(head_dim);
    const double angle = static_cast<double>(t % seq + offset) * pow(theta, exponent);
    const float cosine = static_cast<float>(cos(angle));
    const float sine = sign * static_cast<float>(sin(angle));
    const int64_t first = (t * heads + head) * head_dim + pair;
    const float a = x[first];
    const float b = x[first + half];
    Put(out, first, a * cosine - b * sine);
    Put(out, first + half, b * cosine + a * sine);
  }
};

}  // namespace nibble::cuda
