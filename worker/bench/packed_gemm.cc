// SPDX-License-Identifier: Apache-2.0
#include "worker/bench/packed_gemm.h"

#include "base/strings.h"
#include "kernels/cpu/cpu_features.h"

namespace nibble::bench {
namespace {

int64_t Padded(int64_t entries) {
  return (entries + cpu::codes::kScalePadding - 1) / cpu::codes::kScalePadding *
         cpu::codes::kScalePadding;
}

}  // namespace

Result<std::unique_ptr<PackedGemm>> PackedGemm::Make(Backend* backend, int threads,
                                                     const QuantizedTensor& a,
                                                     const QuantizedTensor& b, TensorView out) {
  std::unique_ptr<PackedGemm> made(new PackedGemm(backend, threads));
  QuantizedGemmParams params;
  params.transpose_b = Transpose::kYes;
  ASSIGN_OR_RETURN(made->gemm_, cpu::codes::DescribeCodeGemm(params, a, b, out));
  ASSIGN_OR_RETURN(made->kernels_, cpu::ChooseCodeKernels(cpu::CodeKernelOverride()));
  made->variant_ = cpu::codes::ChooseVariant(*made->kernels_, made->gemm_);
  if (made->variant_ == nullptr) {
    return UnimplementedError(
        StrFormat("%s has no fast form for these groups", made->kernels_->name));
  }
  made->WriteScales();
  using cpu::codes::PackSide;
  RETURN_IF_ERROR(cpu::codes::PackCodes(*backend, made->pool_, *made->kernels_, *made->variant_,
                                        made->gemm_, PackSide::kLeft, &made->left_));
  RETURN_IF_ERROR(cpu::codes::PackCodes(*backend, made->pool_, *made->kernels_, *made->variant_,
                                        made->gemm_, PackSide::kRight, &made->right_));
  return made;
}

void PackedGemm::WriteScales() {
  const int64_t rows = Padded(gemm_.rows);
  const int64_t cols = Padded(gemm_.cols);
  scales_.assign(static_cast<size_t>((1 + gemm_.groups()) * (rows + cols)), 0.0f);
  float* next = scales_.data();
  gemm_.left_scale = next;
  gemm_.right_scale = next + rows;
  cpu::codes::WriteOuterScales(gemm_.left, next);
  cpu::codes::WriteOuterScales(gemm_.right, next + rows);
  if (gemm_.group == 0) return;
  float* const left = next + rows + cols;
  float* const right = left + gemm_.groups() * rows;
  gemm_.left_group = left;
  gemm_.right_group = right;
  gemm_.left_group_stride = rows;
  gemm_.right_group_stride = cols;
  cpu::codes::WriteGroupScales(gemm_.left, gemm_.group, rows, left);
  cpu::codes::WriteGroupScales(gemm_.right, gemm_.group, cols, right);
}

Status PackedGemm::Run() {
  return cpu::codes::MultiplyCodes(backend_, pool_, *kernels_, *variant_, gemm_, left_, right_,
                                   &workspace_);
}

}  // namespace nibble::bench
