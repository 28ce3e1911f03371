// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/codes/operand.h"

#include <algorithm>
#include <limits>

#include "base/strings.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/formats/fp8.h"

namespace nibble::cpu::codes {
namespace {

// Twice the E2M1 values; code 8 is -0.
constexpr int8_t kE2M1Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr CodeTable kE2M1Table{kE2M1Values, 12, 0.5f};
constexpr CodeTable kInt8Table{nullptr, 127, 1.0f};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
long long Wide(int64_t value) { return static_cast<long long>(value); }

bool Grouped(const QuantizedTensor& x) {
  return x.block == Block::kGroup || x.block == Block::kTile;
}

const float* Floats(const Buffer& buffer) { return static_cast<const float*>(buffer.data()); }

// Whether every scale of the operand is constant along the contraction, or per group of it.
bool ScalesFactorOut(const CodeOperand& operand) {
  const QuantizedTensor& x = *operand.tensor;
  if (x.block == Block::kTensor || x.block == Block::kTile) return true;
  if (x.block == Block::kGroup) {
    return (x.contraction == Axis::kCols) == operand.contraction_along_cols;
  }
  return operand.contraction_along_cols ? x.per_row() : x.per_column();
}

// Whether decoding multiplies by the stored scale: scale codes, and QuEST's enc, the grid's step.
bool ScaleMultiplies(const QuantizedTensor& x) {
  return x.has_group_scale || x.scale == ScaleRule::kQuest;
}

// What the second level of scales multiplies every code of a one-level operand with.
float OuterFactor(const QuantizedTensor& x) {
  return x.outer == Outer::kTensor ? Floats(x.outer_scale)[0] / x.outer_divisor
                                   : 1.0f / x.outer_divisor;
}

Result<CodeOperand> DescribeOperand(const char* name, const QuantizedTensor& x,
                                    bool contraction_along_cols, bool fold) {
  const CodeTable* table = CodeTableOf(x.elem);
  if (table == nullptr) {
    return UnimplementedError(
        StrFormat("QuantizedGemm: %s is %s, which has no integer codes; decode it and use Gemm",
                  name, ElemName(x.elem).c_str()));
  }
  if (!x.has_codes) {
    return FailedPreconditionError(
        StrFormat("QuantizedGemm: the codes of %s were not kept (keep_codes was false)", name));
  }
  if (x.recast_enc != 0) {
    return UnimplementedError(StrFormat(
        "QuantizedGemm: %s was cast to E4M3 after its codes; decode it and use Gemm", name));
  }
  if (x.outer == Outer::k128 && (x.block != Block::kGroup || x.group <= 0 || 128 % x.group != 0)) {
    return UnimplementedError(StrFormat(
        "QuantizedGemm: %s has second-level scales per 128 elements without groups that divide "
        "128; decode it and use Gemm",
        name));
  }
  CodeOperand operand;
  operand.tensor = &x;
  operand.table = *table;
  operand.contraction_along_cols = contraction_along_cols;
  operand.fold = fold;
  operand.extent = contraction_along_cols ? x.rows : x.cols;
  operand.depth = contraction_along_cols ? x.cols : x.rows;
  operand.wide = IsWide(x.comp) && x.residual_count > 0;
  operand.max_code = operand.wide ? std::max(x.wide_max, table->max_code) : table->max_code;
  if (!fold && x.scale != ScaleRule::kNone) {
    if (!ScalesFactorOut(operand)) {
      return InvalidArgumentError(
          StrFormat("QuantizedGemm: the scales of %s (block %s) lie along the contraction; fold "
                    "them into the other operand or decode",
                    name, BlockName(x.block, x.group).c_str()));
    }
    if (Grouped(x)) {
      if (x.group < 1) {
        return InvalidArgumentError(StrFormat("QuantizedGemm: %s has groups of %d", name, x.group));
      }
      operand.group = x.group;
    }
  }
  return operand;
}

Status CheckResiduals(const CodeGemm& gemm) {
  const OccComp right = gemm.right.tensor->comp;
  if ((right == OccComp::kE4M3 || right == OccComp::kBf16) &&
      gemm.right.tensor->residual_count > 0) {
    return UnimplementedError(
        "QuantizedGemm: an E4M3 or BF16 residual of the right operand; decode it and use Gemm");
  }
  const bool left_usable = gemm.left.contraction_along_cols && !gemm.left.fold;
  if (gemm.sparse && !left_usable) {
    return UnimplementedError(
        "QuantizedGemm: an E4M3 or BF16 residual of a transposed or folded left operand; decode "
        "it and use Gemm");
  }
  return OkStatus();
}

}  // namespace

const CodeTable* CodeTableOf(Elem elem) {
  switch (elem) {
    case Elem::kE2M1:
      return &kE2M1Table;
    case Elem::kInt8:
      return &kInt8Table;
    default:
      return nullptr;
  }
}

int CodeOperand::CodeAt(int64_t row, int64_t col) const {
  const uint8_t* line = codes() + row * row_bytes();
  if (table.values == nullptr) return static_cast<int8_t>(line[col]);
  return table.values[(line[col / 2] >> (col % 2 * 4)) & 15];
}

Result<CodeGemm> DescribeCodeGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                                  const QuantizedTensor& b, TensorView out) {
  CodeGemm gemm;
  ASSIGN_OR_RETURN(gemm.left,
                   DescribeOperand("a", a, params.transpose_a == Transpose::kNo, params.fold_a));
  ASSIGN_OR_RETURN(gemm.right,
                   DescribeOperand("b", b, params.transpose_b == Transpose::kYes, params.fold_b));
  gemm.rows = gemm.left.extent;
  gemm.cols = gemm.right.extent;
  gemm.depth = gemm.left.depth;
  gemm.accumulate = params.accumulate;
  if (gemm.right.depth != gemm.depth) {
    return InvalidArgumentError(StrFormat("QuantizedGemm: contraction of %lld (a) against %lld (b)",
                                          Wide(gemm.depth), Wide(gemm.right.depth)));
  }
  RETURN_IF_ERROR(CheckView("QuantizedGemm", "out", out, gemm.rows, gemm.cols));
  gemm.out = out.f32();
  gemm.group = std::max(gemm.left.group, gemm.right.group);
  if (gemm.left.group > 0 && gemm.right.group > 0 && gemm.left.group != gemm.right.group) {
    return InvalidArgumentError(StrFormat("QuantizedGemm: groups of %d (a) against %d (b)",
                                          gemm.left.group, gemm.right.group));
  }
  // 32-bit sums hold every product; deeper contractions would wrap.
  const int64_t limit =
      std::numeric_limits<int32_t>::max() / (int64_t{gemm.left.max_code} * gemm.right.max_code);
  if (gemm.depth > limit) {
    return InvalidArgumentError(StrFormat(
        "QuantizedGemm: a contraction of %lld; 32-bit sums of these codes hold %lld: use smaller "
        "micro-batches",
        Wide(gemm.depth), Wide(limit)));
  }
  gemm.sparse = (a.comp == OccComp::kE4M3 || a.comp == OccComp::kBf16) && a.residual_count > 0;
  RETURN_IF_ERROR(CheckResiduals(gemm));
  return gemm;
}

void WriteOuterScales(const CodeOperand& operand, float* scales) {
  const QuantizedTensor& x = *operand.tensor;
  const float unit = operand.table.unit;
  if (operand.fold || x.scale == ScaleRule::kNone) {
    std::fill(scales, scales + operand.extent, unit);
    return;
  }
  const float factor = x.has_group_scale ? unit * OuterFactor(x) : unit;
  const float* levels = Floats(x.has_group_scale ? x.group_scale : x.enc);
  const bool single = x.block == Block::kTensor;
  for (int64_t i = 0; i < operand.extent; ++i) {
    if (Grouped(x)) {
      scales[i] = factor;
    } else {
      const float level = levels[single ? 0 : i];
      scales[i] = ScaleMultiplies(x) ? factor * level : factor / level;
    }
  }
}

void WriteGroupScales(const CodeOperand& operand, int group, int64_t stride, float* scales) {
  const QuantizedTensor& x = *operand.tensor;
  const int64_t groups = CeilDiv(operand.depth, group);
  const float* source = Floats(x.has_group_scale ? x.group_scale : x.enc);
  const float* outer =
      x.has_group_scale && x.outer == Outer::k128 ? Floats(x.outer_scale) : nullptr;
  const int64_t outers = CeilDiv(operand.depth, 128);
  const bool tiles = x.block == Block::kTile;
  const int64_t tile_cols = CeilDiv(x.cols, group);
  for (int64_t g = 0; g < groups; ++g) {
    float* out = scales + g * stride;
    std::fill(out + operand.extent, out + stride, 0.0f);
    if (operand.group == 0) {
      std::fill(out, out + operand.extent, 1.0f);
      continue;
    }
    for (int64_t i = 0; i < operand.extent; ++i) {
      int64_t index = i * groups + g;
      if (tiles) {
        index =
            operand.contraction_along_cols ? i / group * tile_cols + g : g * tile_cols + i / group;
      }
      out[i] = ScaleMultiplies(x) ? source[index] : 1.0f / source[index];
      if (outer != nullptr) out[i] *= outer[i * outers + g * group / 128];
    }
  }
}

float ResidualValue(const QuantizedTensor& x, int64_t i) {
  if (x.comp == OccComp::kE4M3) {
    return formats::DecodeE4M3(static_cast<const uint8_t*>(x.residual_values.data())[i]) /
           x.residual_enc;
  }
  return Floats(x.residual_values)[i];
}

}  // namespace nibble::cpu::codes
