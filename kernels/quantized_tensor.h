// SPDX-License-Identifier: Apache-2.0
//
// QuantizedTensor: codes, scales and outlier residual of one operand, as they rest in memory.
//
// Purpose: what a layer keeps between forward and backward instead of a high-precision copy.
// Thread-safety: thread-compatible. Ownership: owns device buffers of one backend, which only
// Backend::Quantize grows and fills.
// Layout: codes (rows, cols) row-major; E2M1 two per byte, even index in the low nibble, each row
// starting on a byte; FP8 and INT8 one byte; BF16 two bytes. Scale groups are numbered row-major:
// the tensor, each row or column, (rows, ceil(cols / group)) along columns, (cols, ceil(rows /
// group)) along rows, (ceil(rows / group), ceil(cols / group)) for tiles. Residual (outlier
// compensation): CSR by row, columns ascending.
#pragma once

#include <cstdint>

#include "kernels/recipe/recipe.h"
#include "kernels/tensor.h"

namespace nibble {

// The axis a GEMM sums over, of a (rows, cols) matrix.
enum class Axis : uint8_t { kCols, kRows };

// What a Quantize counts, as it lies in the memory of a backend that does not wait for its device.
struct QuantizeCounters {
  int32_t residual_count = 0;
  int32_t nonfinite_amax = 0;
  float residual_enc = 1;
};

struct QuantizedTensor {
  int64_t rows = 0;
  int64_t cols = 0;
  Elem elem = Elem::kBf16;
  Block block = Block::kTensor;
  int group = 0;
  Axis contraction = Axis::kCols;
  ScaleRule scale = ScaleRule::kNone;
  OccComp comp = OccComp::kNone;

  // Another one after every Quantize of a backend that keeps what it derives from codes; 0: none.
  uint64_t version = 0;
  Buffer codes;
  bool has_codes = false;  // false after a Quantize that was asked for the decoded form only
  // Multiplier before rounding, one per scale group; decoding divides by it (cur: multiplies by
  // fl(1/enc)).
  Buffer enc;
  // Group formats only. scale_codes: one byte per group (E8M0, E4M3 or UE5M3); group_scale: its
  // FP32 value as decoding multiplies by it; outer_scale: FP32, one for the tensor or one per
  // 1x128.
  // Then decoded = fl(fl(fl(code * group_scale) * outer_scale) / outer_divisor), and the plain
  // multiplier of a code is group_scale * outer_scale / outer_divisor.
  Buffer scale_codes;
  Buffer group_scale;
  Buffer outer_scale;
  bool has_group_scale = false;
  Outer outer = Outer::kTensor;
  float outer_divisor = 1;
  // post e4m3_p2: the codes are E4M3, of the decoded values times this; enc stays the first
  // quantization's. 0: no recast.
  float recast_enc = 0;
  // Folded operands only: what x was divided by, one per element of the contraction axis; +Inf
  // where the other operand's codes are all zero and nothing of x can matter.
  Buffer fold;
  bool folded = false;
  // One byte per element, 1 where the gradient passes.
  Buffer mask;
  bool has_mask = false;

  // Residual x - clamp(x): offsets (rows + 1) i32, columns (nnz) i32, values as E4M3 codes (u8)
  // with one scale, or FP32, or (wide) i8 half units to add to the element's code.
  Buffer residual_offsets;
  Buffer residual_columns;
  Buffer residual_values;
  int64_t residual_count = 0;
  float residual_enc = 1;
  // Wide codes: no code with its residual exceeds this; a quantizer that knows better than the
  // largest i8 lets narrower kernels multiply.
  int wide_max = kWideLimit;
  static constexpr int kWideLimit = 127;

  // Scale groups whose amax was NaN or Inf in the last Quantize.
  int64_t nonfinite_amax = 0;

  // Until Backend::ReadCounters, when counting: the numbers lie in `counters`, one
  // QuantizeCounters; residual_count is the most there can be, nonfinite_amax 0, residual_enc 1.
  Buffer counters;
  bool counting = false;

  // Which stored elements share a scale. kOutputChannel is a row of W and, where the contraction
  // runs over the rows, a column of dY.
  bool per_column() const {
    return block == Block::kInputChannel ||
           (block == Block::kOutputChannel && contraction == Axis::kRows);
  }
  bool per_row() const {
    return !per_column() && (block == Block::kToken || block == Block::kOutputChannel);
  }
  int64_t scale_count() const;
  // Second-level scales: 1, or one per 128 neighbours of a line of groups.
  int64_t outer_count() const;
  // Lines of groups are the columns, not the rows, of the matrix.
  bool along_rows() const {
    return per_column() || (block == Block::kGroup && contraction == Axis::kRows);
  }
  int64_t code_row_bytes() const;
  // Bytes the present content needs (not the capacity): codes, scale codes and second-level scales
  // (FP32 copies of group scales, which follow from the codes, apart), mask, residual.
  int64_t size_bytes() const;
};

// How well a quantized operand stands for its source.
struct QuantizationHealth {
  int64_t elements = 0;
  double underflow_share = 0;   // nonzero in, zero out
  double saturation_share = 0;  // |x * enc| above the largest code, residual apart
  double mse = 0;               // mean squared error
  double snr_db = 0;            // 10 log10(sum x^2 / sum err^2); capped at kMaxSnrDb
  double cosine = 1;            // between x and decoded; 1 for two zero tensors
  double scale_min = 0;         // of enc
  double scale_max = 0;
  double source_norm = 0;  // sqrt(sum x^2)
  double noise_norm = 0;   // sqrt(sum err^2)
  int64_t size_bytes = 0;  // bytes held by the quantized copy
  int64_t nonfinite_amax = 0;
};
inline constexpr double kMaxSnrDb = 300.0;

}  // namespace nibble
