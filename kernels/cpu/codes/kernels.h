// SPDX-License-Identifier: Apache-2.0
//
// The inner loops of a GEMM on codes, one set per instruction set.
//
// Purpose: the driver (gemm.h) packs operands into panels, cuts the work and calls these through
// pointers; nothing outside the file of an instruction set needs its compiler flags. Every set
// gives the same sums: they are integers, and FP32 group sums are added in one order.
// Panels: `lanes` rows of op(a) (columns of op(b)) side by side, the contraction going on in steps.
// Padding lanes and padding depth hold code 0, so they add nothing.
// Thread-safety: pure functions on the caller's memory.
#pragma once

#include <cstdint>

namespace nibble::cpu::codes {

// Where code (k, lane) stands in a panel. Each but kWords holds one byte per code.
//   kQuads          [k / 4][lane][k % 4]
//   kOctets         [k / 8][lane][k % 8]
//   kWinogradLeft   as kOctets; `offset` goes to the first four of eight only
//   kWinogradRight  [k / 8][lane / 8][1 - k / 4 % 2][lane % 8][k % 4]: second four first
//   kWords          [k / 2][lane][k % 2], 16-bit
enum class PanelOrder : uint8_t { kQuads, kOctets, kWinogradLeft, kWinogradRight, kWords };

struct PanelLayout {
  PanelOrder order;
  int lanes;
  int offset;  // added to every code

  int code_bytes() const { return order == PanelOrder::kWords ? 2 : 1; }
  // Byte offset of code (k, lane).
  int64_t At(int64_t k, int64_t lane) const {
    switch (order) {
      case PanelOrder::kQuads:
        return (k / 4 * lanes + lane) * 4 + k % 4;
      case PanelOrder::kOctets:
      case PanelOrder::kWinogradLeft:
        return (k / 8 * lanes + lane) * 8 + k % 8;
      case PanelOrder::kWinogradRight:
        return k / 8 * lanes * 8 + lane / 8 * 64 + (1 - k / 4 % 2) * 32 + lane % 8 * 4 + k % 4;
      case PanelOrder::kWords:
        return ((k / 2 * lanes + lane) * 2 + k % 2) * 2;
    }
    return 0;
  }
  int OffsetAt(int64_t k) const {
    return order == PanelOrder::kWinogradLeft && k % 8 >= 4 ? 0 : offset;
  }
};

// One tile of left.lanes x right.lanes sums over `depth` codes of both panels (a multiple of the
// variant's depth_multiple). Biases: 4 bytes per lane and span, preloaded into the accumulators.
struct TileArgs {
  const uint8_t* left;
  const uint8_t* right;
  const int32_t* left_bias;
  const int32_t* right_bias;
  int64_t depth;
  bool resume;    // continue the sums in `tile`
  int32_t* tile;  // row-major
};

// The same with one scale per group: tile += float(S_g) * (left_factor * right_factor).
struct GroupTileArgs {
  const uint8_t* left;
  const uint8_t* right;
  const int32_t* right_bias;  // per group
  int64_t groups;
  int64_t group;  // codes per group
  const float* left_factor;
  const float* right_factor;
  int64_t left_stride;  // from one group's factors to the next
  int64_t right_stride;
  bool resume;
  float* tile;
  const int32_t* left_bias = nullptr;  // per group
};

// From sums to results, as operand.h defines them.
struct FinishArgs {
  int64_t rows, cols;  // of the tile that exist
  int64_t stride;      // of the tile
  const float* left_scale;
  const float* right_scale;
  const float* correction;  // (rows, correction_stride) or nullptr
  int64_t correction_stride;
  bool accumulate;
  float* out;
  int64_t out_stride;
  // (rows, correction_stride), to be added to the tile.
  const int32_t* outlier_sums = nullptr;
};

// c of operand.h for rows of the left operand against right panels side by side: the outliers of
// each row, ascending columns.
struct CorrectionArgs {
  const uint8_t* panel;  // the first
  int64_t panel_bytes;
  int64_t panels;
  PanelLayout layout;
  int64_t rows;
  const int32_t* offsets;  // (rows + 1), into the outliers: columns, values, cells
  const int32_t* columns;
  const float* values;
  const int32_t* cells;  // layout.At(column, 0)
  const float* factor;   // group factors of the panels' lanes, nullptr without groups
  int64_t factor_stride;
  int64_t group;
  float* c;  // (rows, panels * lanes), overwritten
};

// What an outlier exceeds its plain code by, and the right codes that it meets.
struct CodeOutlier {
  int32_t cell;        // layout.At(k, 0) of the four bytes that hold k
  uint32_t magnitude;  // in the byte of k
  uint32_t sign;       // +-1 in both 16-bit halves
};

// Sums of outliers times right codes for rows of the left operand against right panels side by
// side, in layouts of four-byte cells without offset.
struct OutlierArgs {
  const uint8_t* panel;  // the first
  int64_t panel_bytes;
  int64_t panels;
  PanelLayout layout;
  int64_t rows;
  const int32_t* offsets;  // (rows + 1), into the outliers
  const CodeOutlier* outliers;
  int32_t* sums;  // (rows, panels * lanes), overwritten
};

// A way to form the sums, for codes up to a bound on each side.
struct Variant {
  int left_max, right_max;
  PanelLayout left, right;
  int depth_multiple;  // panels are padded to it
  int span;            // codes per bias entry; 0: all of them (or a group)
  int depth_block;     // codes taken at a time, so that the right panel stays in the first cache
  // Negated bias of one span of a panel; nullptr: none is needed.
  void (*left_bias)(const uint8_t* panel, int64_t depth, int32_t* bias);
  void (*right_bias)(const uint8_t* panel, int64_t depth, int32_t* bias);
  void (*tile)(const TileArgs& args);
  void (*group_tile)(const GroupTileArgs& args);  // exactly one of tile, group_tile
};

struct KernelSet {
  const char* name;
  const Variant* outer;  // first that fits wins; the last one fits everything
  int outer_count;
  const Variant* grouped;
  int grouped_count;

  // nibbles -> table values; reads (count + 1) / 2 bytes.
  void (*expand)(const uint8_t* nibbles, const int8_t* table, int64_t count, int8_t* out);
  // Eight rows of `source` (rows `stride` apart) are lanes first_lane.. of the packed operand,
  // columns the codes k = first.. of it; count is a multiple of 8.
  void (*scatter_along)(const int8_t* source, int64_t stride, int64_t count,
                        const PanelLayout& layout, int64_t panel_bytes, int64_t first_lane,
                        int64_t first, uint8_t* out);
  // Eight rows are codes k = first.., columns the lanes first_lane..; count is a multiple of 4.
  void (*scatter_across)(const int8_t* source, int64_t stride, int64_t count,
                         const PanelLayout& layout, int64_t panel_bytes, int64_t first_lane,
                         int64_t first, uint8_t* out);
  void (*finish)(const int32_t* tile, const FinishArgs& args);
  void (*finish_groups)(const float* tile, const FinishArgs& args);
  void (*correct)(const CorrectionArgs& args);
  // nullptr: wide outliers always enter the codes.
  void (*outlier_sums)(const OutlierArgs& args) = nullptr;
  // A whole tile of a transposed product (gemm.h), outlier sums included; with outlier_sums.
  void (*finish_transposed)(const int32_t* tile, const FinishArgs& args) = nullptr;
};

// Sets of this build; those of another architecture do not exist.
const KernelSet& BaselineKernels();
#if defined(__x86_64__)
const KernelSet& Avx2Kernels();
const KernelSet& AvxVnniKernels();
const KernelSet& Vnni256Kernels();  // the code of AvxVnni in AVX-512VL encoding
const KernelSet& Avx512VnniKernels();
#elif defined(__aarch64__)
const KernelSet& NeonDotKernels();
const KernelSet& NeonI8mmKernels();
#endif

// Largest tile of any set, for buffers on the stack.
inline constexpr int kMaxLeftLanes = 8;
inline constexpr int kMaxRightLanes = 32;
// Scale vectors are padded to a multiple of this many entries: whole panels of 4, 8, 16, 24 and 32
// lanes.
inline constexpr int64_t kScalePadding = 192;

}  // namespace nibble::cpu::codes
