// SPDX-License-Identifier: Apache-2.0
//
// Decoding of one group of a stored tensor; the formulas are kernels/group_rules.h's.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/group_rules.h"
#include "kernels/quantized_tensor.h"
#include "kernels/recipe/recipe.h"

namespace nibble::cpu {

// Decoding of one group of a quantized tensor.
RunDecoder DecoderOf(const QuantizedTensor& x, int64_t group, int64_t outer);

}  // namespace nibble::cpu
