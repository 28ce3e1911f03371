// SPDX-License-Identifier: Apache-2.0
//
// FP32 numbers as BF16 in memory. Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bf16.h"

namespace nibble::cuda {

struct ToBf16Op {
  const float* x;
  uint16_t* out;
  __device__ void operator()(int64_t i) const { out[i] = formats::ToBf16(x[i]); }
};

}  // namespace nibble::cuda
