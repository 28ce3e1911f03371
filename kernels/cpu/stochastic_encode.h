// SPDX-License-Identifier: Apache-2.0
//
// Stochastic rounding of folded gradients straight to packed codes.
//
// Purpose: the hottest loop of the folded recipes. A value is specified as y = fl(fl(bf16(x) /
// fold)
// * enc); here y' = bf16(x) * fl(reciprocal * enc), five roundings away. Where that leaves the
// rounding undecided the caller is told, so what is returned is always the specified result, on
// every instruction set. Thread-safety: pure functions on the caller's memory.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/recipe/recipe.h"

namespace nibble::cpu {

// Codes (E2M1 packed, INT8) of n values scaled by columns[i] * row, one of the two fl(1 / fold),
// the other enc, both of ordinary size (code_loops.h). `words`: of each element. False: a draw came
// too close to its threshold, or a value is not a number, and `codes` mean nothing.
bool EncodeSr24Fast(Elem elem, const float* x, const float* columns, float row,
                    const uint32_t* words, uint8_t* codes, int64_t n);

// Every form of it that runs on this machine, for tests: the last one is what runs.
using StochasticEncoder = bool (*)(Elem elem, const float* x, const float* columns, float row,
                                   const uint32_t* words, uint8_t* codes, int64_t n);
std::vector<StochasticEncoder> UsableStochasticEncoders();

}  // namespace nibble::cpu
