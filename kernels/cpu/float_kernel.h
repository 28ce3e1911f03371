// SPDX-License-Identifier: Apache-2.0
//
// FloatKernel: the register tile of FP32 products, and the panels it reads.
//
// Purpose: GEMM and attention multiply packed panels with one inner kernel per instruction set.
// Every element of a product is one chain of fused multiply-adds in ascending depth, so neither the
// size of the register tile nor the way a product is cut into tiles changes a bit: results are the
// same with AVX2 and AVX-512, and for any number of threads.
// Panels: `width` lanes side by side, depth by depth: panel[k * width + lane]. Unused lanes of the
// last panel are zero. Thread-safety: pure functions.
#pragma once

#include <cstdint>

namespace nibble::cpu {

struct FloatKernel {
  const char* name;  // instruction set
  int64_t rows;      // lanes of a left panel, one broadcast each
  int64_t cols;      // lanes of a right panel, whole vectors
  // c (rows x cols, row stride ldc) = sum over k of left[k] right[k]^T, plus c when `accumulate`.
  // right is 64-byte aligned.
  void (*run)(int64_t depth, const float* left, const float* right, bool accumulate, float* c,
              int64_t ldc);
};

inline constexpr int64_t kMostKernelRows = 12;
inline constexpr int64_t kMostKernelCols = 32;

// The widest kernel this CPU runs; nullptr where there is none (no AVX2 with FMA).
const FloatKernel* BestFloatKernel();
// All kernels this CPU runs, widest first, ended by nullptr.
const FloatKernel* const* FloatKernels();

// Where a panel's numbers come from: lane l at depth k is x[l * lane_stride + k * depth_stride];
// one of the strides is 1.
struct PanelSource {
  const float* x = nullptr;
  int64_t lane_stride = 1;
  int64_t depth_stride = 1;
  bool bf16 = false;  // round to BF16 on the way
};

// Packs lanes [0, lanes) at depths [0, depth) into ceil(lanes / width) panels that begin
// `panel_stride` floats apart. width: a multiple of 2, at least 4.
void PackPanels(const PanelSource& source, int64_t lanes, int64_t depth, int64_t width,
                int64_t panel_stride, float* out);

// c (rows x cols of the tile that exist) like FloatKernel::run; a part of a tile goes through a
// buffer on the stack.
void RunTile(const FloatKernel& kernel, int64_t depth, const float* left, const float* right,
             bool accumulate, int64_t rows, int64_t cols, float* c, int64_t ldc);

}  // namespace nibble::cpu
