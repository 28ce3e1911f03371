// SPDX-License-Identifier: Apache-2.0
//
// RowStats: what the passes of Quantize know about one row. Value type, in device memory.
#pragma once

#include <cstdint>

namespace nibble::cuda {

struct RowStats {
  float low;  // clamping bounds
  float high;
  uint32_t amax_bits;
  uint32_t residual_amax_bits;
  int32_t residual_count;
};

}  // namespace nibble::cuda
