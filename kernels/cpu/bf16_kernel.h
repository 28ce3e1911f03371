// SPDX-License-Identifier: Apache-2.0
//
// Bf16Kernel: the register tile of products of BF16 numbers on AVX512_BF16.
//
// Purpose: GEMMs that round their operands to BF16 pack pairs of BF16 numbers and multiply two
// depths per lane and instruction (vdpbf16ps), twice the rate of FP32.
// Numerics: operands are rounded to nearest even while they are packed; sums are FP32 in ascending
// order of depth pairs, so the number of threads changes no bit. Within a pair the instruction
// defines order and rounding, and it takes denormals for zero: results differ in the last bits from
// those of FloatKernels() and stay within 4 depth 2^-24 sum |a b| of the exact sum.
// Panels: as PackPanels, one pair per slot: slot s of a lane holds depths 2 s (low half) and 2 s +
// 1. Thread-safety: pure functions.
#pragma once

#include "kernels/cpu/float_kernel.h"

namespace nibble::cpu {

// The kernel of BF16 pairs; nullptr on a CPU without AVX512_BF16.
const FloatKernel* Bf16PairKernel();

}  // namespace nibble::cpu
