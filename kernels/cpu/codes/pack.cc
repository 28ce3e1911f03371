// SPDX-License-Identifier: Apache-2.0
//
// Packing: eight stored rows at a time, expanded to bytes in the first cache, outliers added,
// scattered into panels.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/codes/gemm.h"

namespace nibble::cpu::codes {
namespace {

constexpr int64_t kSegment = 1024;  // columns at a time: 8 KiB with eight rows
constexpr int64_t kJobRows = 8;
constexpr int64_t kJobsPerChunk = 4;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

struct Packer {
  const KernelSet& kernels;
  const CodeOperand& operand;
  const PanelLayout& layout;
  const PackedCodes& packed;
  uint8_t* out;

  // Codes [first, first + count) of a stored row, zeros to `padded`; moves the outlier cursor on.
  void FillRow(int64_t row, int64_t first, int64_t padded, int32_t* cursor, int8_t* line) const {
    const QuantizedTensor& x = *operand.tensor;
    const int64_t count =
        row < x.rows ? std::clamp<int64_t>(x.cols - first, 0, std::min(padded, kSegment)) : 0;
    if (count > 0) {
      const uint8_t* codes = operand.codes() + row * operand.row_bytes();
      if (operand.table.values == nullptr) {
        std::memcpy(line, codes + first, static_cast<size_t>(count));
      } else {
        kernels.expand(codes + first / 2, operand.table.values, count, line);
      }
    }
    std::memset(line + count, 0, static_cast<size_t>(padded - count));
    if (!operand.wide || row >= x.rows) return;
    const int32_t* offsets = static_cast<const int32_t*>(x.residual_offsets.data());
    const int32_t* columns = static_cast<const int32_t*>(x.residual_columns.data());
    const int8_t* values = static_cast<const int8_t*>(x.residual_values.data());
    for (; *cursor < offsets[row + 1] && columns[*cursor] < first + count; ++*cursor) {
      int8_t* code = line + columns[*cursor] - first;
      *code = static_cast<int8_t>(*code + values[*cursor]);
    }
  }

  // Stored rows [8 job, 8 job + 8).
  void Run(int64_t job) const {
    alignas(64) int8_t block[kJobRows * kSegment];
    const QuantizedTensor& x = *operand.tensor;
    const int64_t first_row = job * kJobRows;
    int32_t cursors[kJobRows] = {};
    if (operand.wide) {
      const int32_t* offsets = static_cast<const int32_t*>(x.residual_offsets.data());
      for (int64_t r = 0; r < kJobRows; ++r) {
        if (first_row + r < x.rows) cursors[r] = offsets[first_row + r];
      }
    }
    const bool along = operand.contraction_along_cols;
    const int64_t width = along ? packed.depth : packed.panels * packed.lanes;
    for (int64_t first = 0; first < width; first += kSegment) {
      const int64_t count = std::min(kSegment, width - first);
      for (int64_t r = 0; r < kJobRows; ++r) {
        FillRow(first_row + r, first, count, &cursors[r], block + r * kSegment);
      }
      if (along) {
        kernels.scatter_along(block, kSegment, count, layout, packed.panel_bytes, first_row, first,
                              out);
      } else {
        kernels.scatter_across(block, kSegment, count, layout, packed.panel_bytes, first, first_row,
                               out);
      }
    }
  }
};

// Padded sizes and room for panels and biases.
Status Shape(Backend& backend, const Variant& variant, const CodeGemm& gemm, PackSide side,
             PackedCodes* out) {
  const bool left = side == PackSide::kLeft;
  const PanelLayout& layout = left ? variant.left : variant.right;
  const int64_t extent = left ? gemm.rows : gemm.cols;
  const bool grouped = variant.group_tile != nullptr;
  out->lanes = layout.lanes;
  out->depth = RoundUp(gemm.depth, grouped ? gemm.group : variant.depth_multiple);
  // Whole jobs of eight rows.
  out->panels = RoundUp(extent, std::max(layout.lanes, 8)) / layout.lanes;
  out->panel_bytes = out->depth * layout.lanes * layout.code_bytes();
  out->spans = grouped ? out->depth / gemm.group
                       : (variant.span == 0 ? 1 : CeilDiv(out->depth, variant.span));
  out->bias_at = RoundUp(out->panels * out->panel_bytes, 64);
  return out->memory.Reserve(backend, out->bias_at + out->panels * out->spans * out->lanes * 4);
}

void Biases(const Variant& variant, const CodeGemm& gemm, PackSide side, PackedCodes* out,
            int64_t panel) {
  const bool left = side == PackSide::kLeft;
  const auto bias = left ? variant.left_bias : variant.right_bias;
  const int64_t cell = (left ? variant.left : variant.right).code_bytes() * out->lanes;
  int64_t span = variant.group_tile != nullptr ? gemm.group : variant.span;
  if (span == 0) span = out->depth;
  int32_t* to = const_cast<int32_t*>(out->bias(panel));
  for (int64_t s = 0; s < out->spans; ++s) {
    bias(out->panel(panel) + s * span * cell, std::min(span, out->depth - s * span),
         to + s * out->lanes);
  }
}

}  // namespace

Status PackCodes(Backend& backend, ThreadPool& pool, const KernelSet& kernels,
                 const Variant& variant, const CodeGemm& gemm, PackSide side, PackedCodes* out) {
  RETURN_IF_ERROR(Shape(backend, variant, gemm, side, out));
  const bool left = side == PackSide::kLeft;
  const CodeOperand& operand = left ? gemm.left : gemm.right;
  const Packer packer{kernels, operand, left ? variant.left : variant.right, *out,
                      static_cast<uint8_t*>(out->memory.data())};
  const int64_t rows = operand.contraction_along_cols ? out->panels * out->lanes : out->depth;
  pool.RunRanges(rows / kJobRows, kJobsPerChunk, [&](int64_t first, int64_t last, int) {
    for (int64_t job = first; job < last; ++job) packer.Run(job);
  });
  if ((left ? variant.left_bias : variant.right_bias) != nullptr) {
    pool.RunRanges(out->panels, kJobsPerChunk, [&](int64_t first, int64_t last, int) {
      for (int64_t panel = first; panel < last; ++panel) Biases(variant, gemm, side, out, panel);
    });
  }
  return OkStatus();
}

}  // namespace nibble::cpu::codes
