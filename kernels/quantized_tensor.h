// SPDX-License-Identifier: Apache-2.0
//
// QuantizedTensor: codes, scales and outlier residual of one operand, as they rest in memory.
//
// Purpose: what a layer keeps between forward and backward instead of a high-precision copy.
// Thread-safety: thread-compatible. Ownership: owns device buffers of one backend, which only
// Backend::Quantize grows and fills.
// Layout: codes (rows, cols) row-major; E2M1 two per byte, even index in the low nibble, each row
// starting on a byte; FP8 one byte; BF16 two bytes. enc: one FP32 per scale group: the whole
// tensor, or each row. Residual (outlier compensation): CSR by row, columns ascending.
#pragma once

#include <cstdint>

#include "kernels/recipe/recipe.h"
#include "kernels/tensor.h"

namespace nibble {

struct QuantizedTensor {
  int64_t rows = 0;
  int64_t cols = 0;
  Elem elem = Elem::kBf16;
  Block block = Block::kTensor;
  ScaleRule scale = ScaleRule::kNone;
  OccComp comp = OccComp::kNone;

  Buffer codes;
  bool has_codes = false;  // false after a Quantize that was asked for the decoded form only
  Buffer enc;  // multiplier before rounding; decoding divides by it (cur: multiplies by fl(1/enc))

  // Residual x - clamp(x): offsets (rows + 1) i32, columns (nnz) i32, values as E4M3 codes (u8)
  // with one scale, or FP32.
  Buffer residual_offsets;
  Buffer residual_columns;
  Buffer residual_values;
  int64_t residual_count = 0;
  float residual_enc = 1;

  // Scale groups whose amax was NaN or Inf in the last Quantize.
  int64_t nonfinite_amax = 0;

  bool per_row() const { return block != Block::kTensor; }
  int64_t scale_count() const { return per_row() ? rows : 1; }
  int64_t code_row_bytes() const;
  // Bytes the present content needs (not the capacity): codes + scales + residual.
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
