// SPDX-License-Identifier: Apache-2.0
//
// GEMM on integer codes: the description of the operands, their scales, then one of two paths.
#include "kernels/cpu/codes/operand.h"
#include "kernels/cpu/codes/reference.h"
#include "kernels/cpu/cpu_backend.h"

namespace nibble::cpu {

Status CpuBackend::QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                                 const QuantizedTensor& b, TensorView out) {
  ASSIGN_OR_RETURN(codes::CodeGemm gemm, codes::DescribeCodeGemm(params, a, b, out));
  if (out.size() == 0) return OkStatus();
  const int64_t vectors = 1 + gemm.groups();
  ASSIGN_OR_RETURN(float* scales, Workspace(code_scales_, vectors * (gemm.rows + gemm.cols)));
  gemm.left_scale = scales;
  gemm.right_scale = scales + gemm.rows;
  codes::WriteOuterScales(gemm.left, scales);
  codes::WriteOuterScales(gemm.right, scales + gemm.rows);
  if (gemm.group > 0) {
    float* groups = scales + gemm.rows + gemm.cols;
    gemm.left_group = groups;
    gemm.right_group = groups + gemm.groups() * gemm.rows;
    codes::WriteGroupScales(gemm.left, gemm.group, groups);
    codes::WriteGroupScales(gemm.right, gemm.group, groups + gemm.groups() * gemm.rows);
  }
  return codes::ReferenceCodeGemm(*this, pool_, gemm, &code_reference_);
}

}  // namespace nibble::cpu
