// SPDX-License-Identifier: Apache-2.0
//
// A GEMM on integer codes as its kernels see it: operands, tables, scale vectors.
//
// Purpose: everything about recipes (blocks, scale rules, folding, outliers) is settled here once;
// reference and fast path read the same description and differ only in how they form the sums.
// Definition, per element, with S the exact integer sum of code products:
//   outer scales   y = fl(float(S) * left_scale[m])
//   groups         y = fl(sum * left_scale[m]), sum = fl(sum + fl(float(S_g) * fl(lg * rg))) over
//                  groups g in ascending order, from 0, lg and rg the operands' group factors
//   residual       y = fl(y + c), c = fl(c + fl(r * w)) over the outliers r of row m in ascending
//                  columns, from 0, w the right operand's integer code (times rg with groups)
//   result         out = fl(y * right_scale[n]), or fl(out + that) when accumulating
// float(S) rounds to nearest even. Scales: fl(unit / enc), unit when folded or without a scale.
// Thread-safety: pure functions. Ownership: an operand borrows its tensor.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/quantized_tensor.h"

namespace nibble::cpu::codes {

// Element codes as integers: value = unit * integer.
struct CodeTable {
  const int8_t* values;  // of the 16 nibbles; nullptr: one byte per code, two's complement
  int max_code;          // largest magnitude
  float unit;
};
// nullptr when the format has no such form.
const CodeTable* CodeTableOf(Elem elem);

struct CodeOperand {
  const QuantizedTensor* tensor = nullptr;
  CodeTable table{};
  bool contraction_along_cols = true;  // the GEMM sums over a stored row
  bool fold = false;
  int64_t extent = 0;  // rows of op(a), columns of op(b)
  int64_t depth = 0;   // the contraction
  int group = 0;       // contraction elements per group scale; 0: outer scales only
  bool wide = false;   // a wide residual is to be added to the codes
  int max_code = 0;    // of the codes as the kernels get them, residual included

  const uint8_t* codes() const { return static_cast<const uint8_t*>(tensor->codes.data()); }
  int64_t row_bytes() const { return tensor->code_row_bytes(); }
  // Integer code of stored element (row, col), residual apart.
  int CodeAt(int64_t row, int64_t col) const;
};

struct CodeGemm {
  CodeOperand left, right;
  int64_t rows = 0, cols = 0, depth = 0;
  int group = 0;
  bool sparse = false;      // the left operand has a kE4M3 or kBf16 residual
  bool split = false;       // the left operand's wide residual is not in its codes (outliers.h)
  bool transposed = false;  // operands changed places: out is (cols, rows), right scales come first
  bool accumulate = false;
  float* out = nullptr;
  // Filled by the caller from WriteOuterScales and WriteGroupScales.
  const float* left_scale = nullptr;   // (rows)
  const float* right_scale = nullptr;  // (cols)
  // (groups, stride): entries from rows (cols) on are padding.
  const float* left_group = nullptr;
  const float* right_group = nullptr;
  int64_t left_group_stride = 0;
  int64_t right_group_stride = 0;

  int64_t groups() const { return group == 0 ? 0 : (depth + group - 1) / group; }
};

// INVALID_ARGUMENT: shapes, scales that lie along the contraction without fold, unequal groups.
// UNIMPLEMENTED: formats without integer codes, a residual this GEMM cannot carry.
// FAILED_PRECONDITION: codes were not kept.
Result<CodeGemm> DescribeCodeGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                                  const QuantizedTensor& b, TensorView out);

// extent values: unit / enc, or unit times the scale codes' value; second-level scales included
// when there is one for the tensor.
void WriteOuterScales(const CodeOperand& operand, float* scales);
// (groups, stride) factors of decoding, 1 for an operand without groups, 0 for padding. `group` of
// the GEMM. Second-level scales per 128 elements are included.
void WriteGroupScales(const CodeOperand& operand, int group, int64_t stride, float* scales);
// Decoded value of entry i of a kE4M3 or kBf16 residual.
float ResidualValue(const QuantizedTensor& x, int64_t i);

}  // namespace nibble::cpu::codes
