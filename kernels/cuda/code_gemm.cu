// SPDX-License-Identifier: Apache-2.0
//
// QuantizedGemm for outer scales: codes carried as FP8 bytes where the device scales both sides of
// an FP8 product by vectors (Hopper), as BF16 elsewhere and for wide codes, as FP32 in the
// reference form. Sums of E2M1 products are exact in each: FP32 holds every sum of quarter units
// below 2^24.
#include <string>

#include "base/strings.h"
#include "kernels/cuda/carry_kernels.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"

namespace nibble::cuda {
namespace {

// Terms of a sum that stays exact: quarter units, |E2M1| <= 6 = 12 halves, wide codes <= 127
// halves.
constexpr int64_t kExactDepth = (int64_t{1} << 24) / (12 * 12);
constexpr int64_t kExactWideDepth = (int64_t{1} << 24) / (127 * 12);
constexpr int64_t kFloat8Step = 16;  // every size of an FP8 product is a multiple of it

CarriedCodes CodesOf(const QuantizedTensor& x) {
  return {x.elem, x.rows, x.cols, x.code_row_bytes(), static_cast<const uint8_t*>(x.codes.data())};
}

bool HasResidual(const QuantizedTensor& x) {
  return (x.comp == OccComp::kE4M3 || x.comp == OccComp::kBf16) && x.residual_count > 0;
}
bool IsWide(const QuantizedTensor& x) { return x.comp == OccComp::kWide; }
bool IsOuter(const QuantizedTensor& x) {
  return x.block != Block::kGroup && x.block != Block::kTile && x.recast_enc == 0;
}
bool IsFloat8(MatmulElem elem) { return elem == MatmulElem::kE4M3 || elem == MatmulElem::kE5M2; }

// Calls `use` with the carrier as a type.
template <typename Use>
Status WithCarrier(MatmulElem carrier, Use use) {
  switch (carrier) {
    case MatmulElem::kE4M3:
      return use(AsE4M3());
    case MatmulElem::kE5M2:
      return use(AsE5M2());
    case MatmulElem::kBf16:
      return use(AsBf16());
    default:
      return use(AsF32());
  }
}

Status CheckOperands(const QuantizedGemmParams& params, const QuantizedTensor& a,
                     const QuantizedTensor& b, int64_t depth, TensorView out) {
  const bool ta = params.transpose_a == Transpose::kYes;
  const bool tb = params.transpose_b == Transpose::kYes;
  if ((ta ? a.cols : a.rows) != out.rows || (tb ? b.rows : b.cols) != out.cols ||
      (tb ? b.cols : b.rows) != depth) {
    return InvalidArgumentError(
        StrFormat("QuantizedGemm: a (%lld, %lld), b (%lld, %lld), out (%lld, %lld) do not fit",
                  static_cast<long long>(a.rows), static_cast<long long>(a.cols),
                  static_cast<long long>(b.rows), static_cast<long long>(b.cols),
                  static_cast<long long>(out.rows), static_cast<long long>(out.cols)));
  }
  if (!a.has_codes || !b.has_codes) {
    return FailedPreconditionError("QuantizedGemm: an operand's codes were not kept");
  }
  if (!IsOuter(a) || !IsOuter(b) || HasResidual(b)) {
    return UnimplementedError(
        "QuantizedGemm: the CUDA backend multiplies codes with scales by tensor, row or column, "
        "and "
        "adds an outlier residual of the left operand; use the decoded path");
  }
  // A vector of scales must lie along the output; along the contraction it cannot leave the sum.
  if ((!params.fold_a && (ta ? a.per_row() : a.per_column())) ||
      (!params.fold_b && (tb ? b.per_column() : b.per_row()))) {
    return InvalidArgumentError(
        "QuantizedGemm: a vector of scales lies along the contraction; fold it or decode");
  }
  const int64_t limit = IsWide(a) || IsWide(b) ? kExactWideDepth : kExactDepth;
  if (a.elem == Elem::kE2M1 && b.elem == Elem::kE2M1 && depth > limit) {
    return UnimplementedError(
        StrFormat("QuantizedGemm: a sum of %lld terms is exact in FP32 up to %lld; decode instead",
                  static_cast<long long>(depth), static_cast<long long>(limit)));
  }
  return OkStatus();
}

}  // namespace

MatmulElem CudaBackend::CarrierOf(const QuantizedGemmParams& params, const QuantizedTensor& a,
                                  const QuantizedTensor& b, const MatmulShape& shape) const {
  if (params.path == Support::kReference) return MatmulElem::kF32;
  const bool sizes =
      shape.m % kFloat8Step == 0 && shape.n % kFloat8Step == 0 && shape.k % kFloat8Step == 0;
  const bool formats = a.elem != Elem::kInt8 && b.elem != Elem::kInt8 &&
                       (a.elem != Elem::kE5M2 || b.elem != Elem::kE5M2);
  const bool fits = !IsWide(a) && !IsWide(b) && a.comp != OccComp::kBf16;
  return float8_products_ && sizes && formats && fits ? MatmulElem::kE4M3 : MatmulElem::kBf16;
}

Status CudaBackend::Carry(const QuantizedTensor& x, MatmulElem carrier, bool transposed,
                          bool residual_alone, Buffer& buffer) {
  return WithCarrier(carrier, [&](auto as) -> Status {
    using Carrier = decltype(as);
    using Stored = typename Carrier::Stored;
    const CarriedCodes codes = CodesOf(x);
    const int64_t bytes = x.rows * x.cols * static_cast<int64_t>(sizeof(Stored));
    RETURN_IF_ERROR(buffer.Reserve(*this, bytes));
    auto* out = static_cast<Stored*>(buffer.data());
    if (residual_alone) {
      RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(out, 0, static_cast<size_t>(bytes), stream_),
                                 "QuantizedGemm"));
    } else {
      const dim3 grid(static_cast<unsigned>((x.cols + kCarryTile - 1) / kCarryTile),
                      GridForRows((x.rows + kCarryTile - 1) / kCarryTile));
      CarryKernel<Carrier><<<grid, kThreads, 0, stream_>>>(codes, transposed, out);
      RETURN_IF_ERROR(LaunchStatus("QuantizedGemm"));
    }
    if (x.residual_count == 0 || (!IsWide(x) && !residual_alone)) return OkStatus();
    const CarriedResidual residual{x.comp, static_cast<const int32_t*>(x.residual_offsets.data()),
                                   static_cast<const int32_t*>(x.residual_columns.data()),
                                   x.residual_values.data()};
    return ForEach(stream_, "QuantizedGemm", x.rows,
                   CarryOutliersOp<Carrier>{codes, residual, transposed, out});
  });
}

// The operands lie in code_a_ and code_b_, the scales of both sides in scale_a_ and scale_b_.
Status CudaBackend::CarriedProduct(const MatmulShape& shape, bool accumulate, TensorView out) {
  if (IsFloat8(shape.a)) {
    return matmul_->Run(stream_, shape, code_a_.data(), code_b_.data(),
                        {scale_a_.data(), scale_b_.data()}, accumulate, out.f32());
  }
  RETURN_IF_ERROR(code_out_.Reserve(*this, out.size() * 4));
  auto* sums = static_cast<float*>(code_out_.data());
  RETURN_IF_ERROR(matmul_->Run(stream_, shape, code_a_.data(), code_b_.data(), {}, false, sums));
  return ForEach(stream_, "QuantizedGemm", out.size(),
                 OuterProductOp{sums, out.cols, static_cast<const float*>(scale_a_.data()),
                                static_cast<const float*>(scale_b_.data()), accumulate, out.f32()});
}

Status CudaBackend::QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                                  const QuantizedTensor& b, TensorView out) {
  const bool ta = params.transpose_a == Transpose::kYes;
  const bool tb = params.transpose_b == Transpose::kYes;
  MatmulShape shape{out.rows, out.cols, ta ? a.rows : a.cols, ta, tb};
  RETURN_IF_ERROR(CheckOperands(params, a, b, shape.k, out));
  if (out.size() == 0) return OkStatus();
  const MatmulElem carrier = CarrierOf(params, a, b, shape);
  shape.a = shape.b = carrier;
  bool turn_a = false, turn_b = false;
  if (IsFloat8(carrier)) {
    // Both operands along the sum.
    turn_a = ta;
    turn_b = !tb;
    shape.transpose_a = false;
    shape.transpose_b = true;
    if (a.elem == Elem::kE5M2) shape.a = MatmulElem::kE5M2;
    if (b.elem == Elem::kE5M2) shape.b = MatmulElem::kE5M2;
  }
  RETURN_IF_ERROR(scale_a_.Reserve(*this, out.rows * 4));
  RETURN_IF_ERROR(scale_b_.Reserve(*this, out.cols * 4));
  auto* scales_a = static_cast<float*>(scale_a_.data());
  const auto enc = [](const QuantizedTensor& x, bool folded) {
    return folded ? nullptr : static_cast<const float*>(x.enc.data());
  };
  RETURN_IF_ERROR(
      ForEach(stream_, "QuantizedGemm", out.rows,
              OuterScaleOp{enc(a, params.fold_a), a.block != Block::kTensor, scales_a}));
  RETURN_IF_ERROR(ForEach(stream_, "QuantizedGemm", out.cols,
                          OuterScaleOp{enc(b, params.fold_b), b.block != Block::kTensor,
                                       static_cast<float*>(scale_b_.data())}));
  RETURN_IF_ERROR(Carry(a, shape.a, turn_a, false, code_a_));
  RETURN_IF_ERROR(Carry(b, shape.b, turn_b, false, code_b_));
  RETURN_IF_ERROR(CarriedProduct(shape, params.accumulate, out));
  if (!HasResidual(a)) return OkStatus();
  // Outliers with a scale of their own are a second product on the same right operand.
  RETURN_IF_ERROR(Fill({scales_a, 1, out.rows}, 1.0f / a.residual_enc));
  if (IsFloat8(carrier)) shape.a = MatmulElem::kE4M3;
  RETURN_IF_ERROR(Carry(a, shape.a, turn_a, true, code_a_));
  return CarriedProduct(shape, true, out);
}

}  // namespace nibble::cuda
