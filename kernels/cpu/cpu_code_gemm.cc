// SPDX-License-Identifier: Apache-2.0
//
// GEMM on integer codes: the description of the operands, their scales, then one of two paths.
#include "kernels/cpu/codes/gemm.h"
#include "kernels/cpu/codes/operand.h"
#include "kernels/cpu/codes/outliers.h"
#include "kernels/cpu/codes/reference.h"
#include "kernels/cpu/cpu_backend.h"

namespace nibble::cpu {
namespace {

int64_t Padded(int64_t entries) {
  return (entries + codes::kScalePadding - 1) / codes::kScalePadding * codes::kScalePadding;
}

}  // namespace

Status CpuBackend::WriteCodeScales(codes::CodeGemm* gemm) {
  const int64_t rows = Padded(gemm->rows);
  const int64_t cols = Padded(gemm->cols);
  const int64_t vectors = 1 + gemm->groups();
  ASSIGN_OR_RETURN(float* scales, Workspace(code_scales_, vectors * (rows + cols)));
  gemm->left_scale = scales;
  gemm->right_scale = scales + rows;
  codes::WriteOuterScales(gemm->left, scales);
  codes::WriteOuterScales(gemm->right, scales + rows);
  if (gemm->group == 0) return OkStatus();
  float* left = scales + rows + cols;
  float* right = left + gemm->groups() * rows;
  gemm->left_group = left;
  gemm->right_group = right;
  gemm->left_group_stride = rows;
  gemm->right_group_stride = cols;
  codes::WriteGroupScales(gemm->left, gemm->group, rows, left);
  codes::WriteGroupScales(gemm->right, gemm->group, cols, right);
  return OkStatus();
}

Status CpuBackend::QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                                 const QuantizedTensor& b, TensorView out) {
  ASSIGN_OR_RETURN(codes::CodeGemm gemm, codes::DescribeCodeGemm(params, a, b, out));
  if (out.size() == 0) return OkStatus();
  if (params.path == Support::kFast && gemm.depth > 0) codes::SplitOutliers(code_kernels_, &gemm);
  RETURN_IF_ERROR(WriteCodeScales(&gemm));
  const codes::Variant* variant = codes::ChooseVariant(code_kernels_, gemm);
  if (params.path != Support::kFast || variant == nullptr || gemm.depth == 0) {
    return codes::ReferenceCodeGemm(*this, pool_, gemm, &code_reference_);
  }
  return codes::FastCodeGemm(*this, pool_, code_kernels_, *variant, gemm, &code_workspace_);
}

}  // namespace nibble::cpu
