// SPDX-License-Identifier: Apache-2.0
//
// Gemm: products of FP32 operands, as they are or rounded to BF16, and of BF16 operands.
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/values.cuh"

namespace nibble::cuda {

Result<const void*> CudaBackend::InBf16(ConstTensorView x, Buffer& buffer) {
  if (x.dtype == DType::kBF16) return x.data;
  ASSIGN_OR_RETURN(const TensorView rounded, buffer.View(*this, x.rows, x.cols, DType::kBF16));
  RETURN_IF_ERROR(RoundToBf16(x, rounded));
  return static_cast<const void*>(rounded.data);
}

Status CudaBackend::Gemm(GemmMode mode, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                         Transpose transpose_b, bool accumulate, TensorView out) {
  const bool ta = transpose_a == Transpose::kYes;
  const bool tb = transpose_b == Transpose::kYes;
  const int64_t m = out.rows;
  const int64_t n = out.cols;
  const int64_t k = ta ? a.rows : a.cols;
  RETURN_IF_ERROR(CheckView("Gemm", "out", out, m, n, accumulate ? DType::kF32 : FloatType(out)));
  const bool bf16 = mode == GemmMode::kBf16;
  const auto type = [bf16](ConstTensorView x) {
    return bf16 && x.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  };
  RETURN_IF_ERROR(CheckView("Gemm", "a", a, ta ? k : m, ta ? m : k, type(a)));
  RETURN_IF_ERROR(CheckView("Gemm", "b", b, tb ? n : k, tb ? k : n, type(b)));
  if (m == 0 || n == 0) return OkStatus();
  if (k == 0 && accumulate) return OkStatus();
  if (k == 0) {
    const auto bytes = static_cast<size_t>(out.size_bytes());
    return CudaStatus(cudaMemsetAsync(out.data, 0, bytes, stream_), "Gemm");
  }
  MatmulShape shape{m, n, k, ta, tb};
  if (!bf16 && out.dtype == DType::kBF16) {
    ASSIGN_OR_RETURN(const TensorView wide, gemm_out_.View(*this, m, n));
    RETURN_IF_ERROR(matmul_->Run(stream_, shape, a.data, b.data, {}, false, wide.data));
    return RoundToBf16(wide, out);
  }
  if (!bf16) return matmul_->Run(stream_, shape, a.data, b.data, {}, accumulate, out.data);
  shape.bf16_out = out.dtype == DType::kBF16;
  shape.a = shape.b = MatmulElem::kBf16;
  ASSIGN_OR_RETURN(const void* const narrow_a, InBf16(a, gemm_a_));
  ASSIGN_OR_RETURN(const void* const narrow_b, InBf16(b, gemm_b_));
  return matmul_->Run(stream_, shape, narrow_a, narrow_b, {}, accumulate, out.data);
}

}  // namespace nibble::cuda
