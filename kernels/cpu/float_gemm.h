// SPDX-License-Identifier: Apache-2.0
//
// FloatGemm: blocked FP32 matrix product on packed panels.
//
// Purpose: the training step's dense products. Both operands are packed once per block by the whole
// pool and then shared by every tile; rounding to BF16 happens while packing.
// Numerics: out[i][j] = sum over blocks of kDepthBlock depths, in order, of one chain of fused
// multiply-adds each: a function of the operands alone, whatever the kernel, tiles and threads.
// Thread-safety: one caller per pool. Ownership: borrows everything; `left_panels` and
// `right_panels` hold kPanelFloats each, 64-byte aligned, and grow with nothing.
#pragma once

#include <cstdint>

#include "kernels/cpu/float_kernel.h"
#include "kernels/cpu/thread_pool.h"

namespace nibble::cpu {

inline constexpr int64_t kDepthBlock = 512;
// Packed operands of one block, in floats: 6 MiB each, so that both stay in a last-level cache.
inline constexpr int64_t kPanelFloats = int64_t{3} << 19;

struct FloatProduct {
  int64_t rows = 0, cols = 0, depth = 0;
  PanelSource left;   // lanes are rows of the result
  PanelSource right;  // lanes are its columns
  bool accumulate = false;
  float* out = nullptr;  // (rows, cols), row stride `stride`
  int64_t stride = 0;
};

void FloatGemm(const FloatKernel& kernel, ThreadPool& pool, const FloatProduct& product,
               float* left_panels, float* right_panels);

}  // namespace nibble::cpu
