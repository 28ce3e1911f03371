// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/group_scales.h"

namespace nibble::cpu {

RunDecoder DecoderOf(const QuantizedTensor& x, int64_t group, int64_t outer) {
  formats::GroupScale scale{static_cast<const float*>(x.enc.data())[group], 1.0f, 0};
  float outer_scale = 1.0f;
  if (x.has_group_scale) {
    scale.scale = static_cast<const float*>(x.group_scale.data())[group];
    outer_scale = static_cast<const float*>(x.outer_scale.data())[outer];
  }
  return DecoderOf(x.scale, x.has_group_scale, scale, outer_scale, x.outer_divisor);
}

}  // namespace nibble::cpu
