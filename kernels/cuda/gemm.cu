// SPDX-License-Identifier: Apache-2.0
//
// Gemm: products of FP32 operands, as they are or rounded to BF16.
#include "kernels/checks.h"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"

namespace nibble::cuda {
Status CudaBackend::Gemm(GemmMode mode, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                         Transpose transpose_b, bool accumulate, TensorView out) {
  const bool ta = transpose_a == Transpose::kYes;
  const bool tb = transpose_b == Transpose::kYes;
  const int64_t m = out.rows;
  const int64_t n = out.cols;
  const int64_t k = ta ? a.rows : a.cols;
  RETURN_IF_ERROR(CheckView("Gemm", "out", out, m, n));
  RETURN_IF_ERROR(CheckView("Gemm", "a", a, ta ? k : m, ta ? m : k));
  RETURN_IF_ERROR(CheckView("Gemm", "b", b, tb ? n : k, tb ? k : n));
  if (m == 0 || n == 0) return OkStatus();
  if (k == 0) return accumulate ? OkStatus() : Fill(out, 0.0f);
  MatmulShape shape{m, n, k, ta, tb};
  if (mode == GemmMode::kF32) {
    return matmul_->Run(stream_, shape, a.data, b.data, {}, accumulate, out.f32());
  }
  shape.a = shape.b = MatmulElem::kBf16;
  RETURN_IF_ERROR(gemm_a_.Reserve(*this, a.size() * 2));
  RETURN_IF_ERROR(gemm_b_.Reserve(*this, b.size() * 2));
  uint16_t* rounded_a = static_cast<uint16_t*>(gemm_a_.data());
  uint16_t* rounded_b = static_cast<uint16_t*>(gemm_b_.data());
  RETURN_IF_ERROR(ForEach(stream_, "Gemm", a.size(), ToBf16Op{a.f32(), rounded_a}));
  RETURN_IF_ERROR(ForEach(stream_, "Gemm", b.size(), ToBf16Op{b.f32(), rounded_b}));
  return matmul_->Run(stream_, shape, rounded_a, rounded_b, {}, accumulate, out.f32());
}

}  // namespace nibble::cuda
