// SPDX-License-Identifier: Apache-2.0
//
// FloatGemm: blocked matrix product on packed panels, FP32 or BF16 pairs.
//
// Purpose: the training step's dense products. The right operand is packed block by block by the
// whole pool and shared by all; each thread packs the rows of the left operand it works on.
// Rounding to BF16 happens while packing. Numerics: out[i][j] = sum over blocks of kDepthBlock
// depths, in order, of one chain of fused multiply-adds each: a function of the operands alone,
// whatever the tiles and threads, and the same for every fused kernel
// of FP32. With the pairs of bf16_kernel.h a block holds twice the depths and the chain is of
// vdpbf16ps. Thread-safety: one caller per pool. Ownership: borrows
// everything.
#pragma once

#include <cstdint>

#include "kernels/cpu/float_kernel.h"
#include "kernels/cpu/thread_pool.h"

namespace nibble::cpu {

inline constexpr int64_t kDepthBlock = 512;  // slots of a panel (FloatKernel::slot_depth)
// Packed right operand of one block, in floats: 6 MiB, to stay in a last-level cache.
inline constexpr int64_t kRightFloats = int64_t{3} << 19;
inline constexpr int64_t kLeftFloats = 96 * kDepthBlock;  // of one thread

struct FloatProduct {
  int64_t rows = 0, cols = 0, depth = 0;
  PanelSource left;   // lanes are rows of the result
  PanelSource right;  // lanes are its columns
  bool accumulate = false;
  float* out = nullptr;  // (rows, cols), row stride `stride`
  int64_t stride = 0;
};

// left_panels: kLeftFloats for each thread of the pool; right_panels: kRightFloats, 64-byte
// aligned.
void FloatGemm(const FloatKernel& kernel, ThreadPool& pool, const FloatProduct& product,
               float* left_panels, float* right_panels);

}  // namespace nibble::cpu
