// SPDX-License-Identifier: Apache-2.0
//
// GroupQuant: a quantizer by small scale groups in one line, for tables of cases.
// Thread-safety: pure function.
#pragma once

#include "kernels/recipe/recipe.h"

namespace nibble {

inline Quant GroupQuant(Elem elem, Block block, int group, ScaleRule scale, float max,
                        Round round = Round::kEven) {
  Quant quant;
  quant.elem = elem;
  quant.block = block;
  quant.group = group;
  quant.scale = scale;
  quant.scale_max = max;
  quant.round = round;
  return quant;
}

}  // namespace nibble
