// SPDX-License-Identifier: Apache-2.0
//
// FloatKernel: the register tile of FP32 products, and the panels it reads.
//
// Purpose: GEMM and attention multiply packed panels with one inner kernel per instruction set.
// Every element of a product is one chain of multiply-adds in ascending depth, so neither the size
// of the register tile nor the way a product is cut into tiles changes a bit: results are the same
// for any number of threads and for every kernel that fuses (AVX2, AVX-512, Arm).
// Panels: `width` lanes side by side, depth by depth: panel[k * width + lane]. Unused lanes of the
// last panel are zero. Thread-safety: pure functions.
#pragma once

#include <cstdint>

namespace nibble::cpu {

// Where a panel's numbers come from: lane l at depth k is x[l * lane_stride + k * depth_stride];
// one of the strides is 1.
struct PanelSource {
  const float* x = nullptr;
  int64_t lane_stride = 1;
  int64_t depth_stride = 1;
  bool bf16 = false;  // round to BF16 on the way
};

struct FloatKernel {
  const char* name;  // instruction set
  bool fused;        // sums are chains of fused multiply-adds; else product and sum are rounded
  int64_t rows;      // lanes of a left panel, one broadcast each
  int64_t cols;      // lanes of a right panel, whole vectors: a multiple of 16
  // c (rows x cols, row stride ldc) = sum over k of left[k] right[k]^T, plus c when `accumulate`.
  // right is 64-byte aligned.
  using Run = void (*)(int64_t depth, const float* left, const float* right, bool accumulate,
                       float* c, int64_t ldc);
  Run run;
  // The same with a left operand that lies as `run` leaves a tile of ldc == cols: lane i at depth k
  // is left[i * cols + k].
  Run run_tile;  // nullptr where slots hold pairs
  // Depths in one slot of a panel: 2 where BF16 pairs share the four bytes (bf16_kernel.h). `depth`
  // of run counts slots, that of pack numbers; an odd depth ends with a zero.
  int64_t slot_depth;
  using Pack = void (*)(const PanelSource& source, int64_t lanes, int64_t depth, int64_t width,
                        int64_t panel_stride, float* out);
  Pack pack;  // PackPanels for this kernel's slots
};

inline constexpr int64_t kMostKernelRows = 12;
inline constexpr int64_t kMostKernelCols = 32;

// All kernels this CPU runs, widest first, ended by nullptr; the last is plain C++ and always
// there.
const FloatKernel* const* FloatKernels();
inline const FloatKernel& BestFloatKernel() { return *FloatKernels()[0]; }

// Packs lanes [0, lanes) at depths [0, depth) into ceil(lanes / width) panels that begin
// `panel_stride` floats apart. width: a multiple of 2, at least 4.
void PackPanels(const PanelSource& source, int64_t lanes, int64_t depth, int64_t width,
                int64_t panel_stride, float* out);

// out[c * out_stride + r] = x[r * stride + c] for r < rows, c < cols.
void TransposeInto(const float* x, int64_t stride, int64_t rows, int64_t cols, float* out,
                   int64_t out_stride);

// c (rows x cols, as many as exist of the tile) by kernel.run or kernel.run_tile; a part of a tile
// goes through a buffer on the stack.
void RunTile(const FloatKernel& kernel, FloatKernel::Run run, int64_t depth, const float* left,
             const float* right, bool accumulate, int64_t rows, int64_t cols, float* c,
             int64_t ldc);

}  // namespace nibble::cpu
