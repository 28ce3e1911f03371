// SPDX-License-Identifier: Apache-2.0
//
// QuantizedGemm: codes carried to the tensor cores in the form that code_carrier.h chooses. Sums of
// E2M1 products are exact in each: FP32 holds every sum of quarter units below 2^24.
#include <string>
#include <type_traits>

#include "base/strings.h"
#include "kernels/cuda/carry_bytes.cuh"
#include "kernels/cuda/carry_kernels.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/quantize_parts.cuh"

namespace nibble::cuda {
namespace {

constexpr uint8_t kUnitE4M3 = 0x38, kUnitE8M0 = 127;  // codes of 1
constexpr int64_t kBlockFp4Group = 16, kBlockFp8Group = 32;

bool HasResidual(const QuantizedTensor& x) {
  return (x.comp == OccComp::kE4M3 || x.comp == OccComp::kBf16) && x.residual_count > 0;
}
bool IsBlockScaled(CodeCarrier carrier) {
  return carrier == CodeCarrier::kBlockFp4 || carrier == CodeCarrier::kBlockFp8;
}

MatmulElem ElemOf(CodeCarrier carrier, Elem elem) {
  switch (carrier) {
    case CodeCarrier::kOuterFp8:
      return elem == Elem::kE5M2 ? MatmulElem::kE5M2 : MatmulElem::kE4M3;
    case CodeCarrier::kBlockFp8:
      return MatmulElem::kMxE4M3;
    case CodeCarrier::kBlockFp4:
      return MatmulElem::kNvE2M1;
    default:
      return carrier == CodeCarrier::kBf16 ? MatmulElem::kBf16 : MatmulElem::kF32;
  }
}

// The product of carried operands; narrow ones both lie along the sum.
MatmulShape Carried(MatmulShape shape, CodeCarrier carrier, const QuantizedTensor& a,
                    const QuantizedTensor& b) {
  shape.a = ElemOf(carrier, a.elem);
  shape.b = ElemOf(carrier, b.elem);
  if (IsNarrow(shape.a)) {
    shape.transpose_a = false;
    shape.transpose_b = true;
  }
  return shape;
}

// Calls `use` with what stores a value as a type.
template <typename Use>
Status WithStored(MatmulElem elem, Use use) {
  switch (elem) {
    case MatmulElem::kE4M3:
    case MatmulElem::kMxE4M3:
      return use(AsE4M3());
    case MatmulElem::kE5M2:
      return use(AsE5M2());
    case MatmulElem::kBf16:
      return use(AsBf16());
    default:
      return use(AsF32());
  }
}

// A vector of scales must lie along the output, groups along the sum; anything else cannot leave
// it. `turned`: the sum runs over the rows.
bool ScalesFactorOut(const QuantizedTensor& x, bool turned) {
  if (x.block == Block::kGroup) return (x.contraction == Axis::kRows) == turned;
  return turned ? !x.per_row() : !x.per_column();
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
  if (params.accumulate && out.dtype != DType::kF32) {
    return InvalidArgumentError("QuantizedGemm: sums are gathered in FP32, not in BF16");
  }
  if (!a.has_codes || !b.has_codes) {
    return FailedPreconditionError("QuantizedGemm: an operand's codes were not kept");
  }
  if (HasResidual(b) || a.recast_enc != 0 || b.recast_enc != 0) {
    return UnimplementedError(
        "QuantizedGemm: the CUDA backend adds an outlier residual of the left operand alone and "
        "multiplies no recast codes; use the decoded path");
  }
  if ((!params.fold_a && !ScalesFactorOut(a, ta)) || (!params.fold_b && !ScalesFactorOut(b, !tb))) {
    return InvalidArgumentError(
        "QuantizedGemm: scales lie along the contraction; fold them or decode");
  }
  return OkStatus();
}

}  // namespace

// Codes of x as `carrier` has them, in `buffer`.
Status CudaBackend::Carry(const QuantizedTensor& x, CodeCarrier carrier, bool transposed,
                          Buffer& buffer) {
  const dim3 grid(static_cast<unsigned>((x.cols + kCarryTile - 1) / kCarryTile),
                  GridForRows((x.rows + kCarryTile - 1) / kCarryTile));
  const auto* codes = static_cast<const uint8_t*>(x.codes.data());
  if (carrier == CodeCarrier::kBlockFp4) {  // turned; as they lie, nothing is carried
    RETURN_IF_ERROR(buffer.Reserve(*this, x.rows * x.cols / 2));
    TurnPairsKernel<<<grid, kThreads, 0, stream_>>>(codes, x.rows, x.cols, x.code_row_bytes(),
                                                    static_cast<uint8_t*>(buffer.data()));
    return LaunchStatus("QuantizedGemm");
  }
  const MatmulElem elem = ElemOf(carrier, x.elem);
  if (IsNarrow(elem) && CarriesInPieces(x.elem, elem != MatmulElem::kE5M2, x.rows, x.cols)) {
    RETURN_IF_ERROR(CarryPieces(x, transposed, buffer));
    return IsWide(x.comp)
               ? PlaceOutliers<AsE4M3>(x, transposed, static_cast<uint8_t*>(buffer.data()))
               : OkStatus();
  }
  return WithStored(elem, [&](auto as) -> Status {
    using Carrier = decltype(as);
    using Stored = typename Carrier::Stored;
    RETURN_IF_ERROR(buffer.Reserve(*this, x.rows * x.cols * static_cast<int64_t>(sizeof(Stored))));
    auto* out = static_cast<Stored*>(buffer.data());
    if (IsGrouped(x.block)) {
      using Form = CarriedGroups::Form;
      const Form form = IsBlockScaled(carrier)          ? Form::kElement
                        : carrier == CodeCarrier::kBf16 ? Form::kScaled
                                                        : Form::kDecoded;
      const CarriedGroups values{StoredGroupsOf(x), form, x.rows, x.cols};
      CarryKernel<Carrier><<<grid, kThreads, 0, stream_>>>(values, transposed, out);
      return LaunchStatus("QuantizedGemm");
    }
    const CarriedCodes values{x.elem, x.rows, x.cols, x.code_row_bytes(), codes};
    CarryKernel<Carrier><<<grid, kThreads, 0, stream_>>>(values, transposed, out);
    RETURN_IF_ERROR(LaunchStatus("QuantizedGemm"));
    return IsWide(x.comp) ? PlaceOutliers<Carrier>(x, transposed, out) : OkStatus();
  });
}

Status CudaBackend::CarryPieces(const QuantizedTensor& x, bool transposed, Buffer& buffer) {
  RETURN_IF_ERROR(buffer.Reserve(*this, x.rows * x.cols));
  const auto* codes = static_cast<const uint8_t*>(x.codes.data());
  auto* out = static_cast<uint8_t*>(buffer.data());
  if (!transposed) {  // bytes stay where they are, unless outliers are to be placed among them
    if (x.elem != Elem::kE2M1) return Copy(out, codes, x.rows * x.cols);
    const int64_t n = x.rows * x.cols;
    SpreadPairsKernel<<<GridFor(n / (kBytePiece * kBytesAhead)), kThreads, 0, stream_>>>(codes, n,
                                                                                         out);
    return LaunchStatus("QuantizedGemm");
  }
  const auto kernel = x.elem == Elem::kE2M1 ? TurnBytesKernel<true> : TurnBytesKernel<false>;
  const dim3 grid(static_cast<unsigned>((x.cols + kByteColumns - 1) / kByteColumns),
                  GridForRows((x.rows + kByteRows - 1) / kByteRows));
  kernel<<<grid, kThreads, 0, stream_>>>(codes, x.rows, x.cols, out);
  return LaunchStatus("QuantizedGemm");
}

Result<const void*> CudaBackend::CarryTo(CarriedPlace place, const QuantizedTensor& x,
                                         CodeCarrier carrier, bool transposed) {
  if (LiesAsCarried(x, carrier, transposed)) return static_cast<const void*>(x.codes.data());
  Buffer& memory = carried_memory_[static_cast<size_t>(place)];
  if (!carried_.Holds(place, x.version, carrier)) {
    carried_.Put(place, 0, carrier);
    RETURN_IF_ERROR(Carry(x, carrier, transposed, memory));
    carried_.Put(place, x.version, carrier);
  }
  return static_cast<const void*>(memory.data());
}

template <typename Carrier>
Status CudaBackend::PlaceOutliers(const QuantizedTensor& x, bool transposed,
                                  typename Carrier::Stored* out) {
  const CarriedCodes codes{x.elem, x.rows, x.cols, x.code_row_bytes(),
                           static_cast<const uint8_t*>(x.codes.data())};
  const CarriedResidual residual{x.comp, static_cast<const int32_t*>(x.residual_offsets.data()),
                                 static_cast<const int32_t*>(x.residual_columns.data()),
                                 x.residual_values.data()};
  return ForEach(stream_, "QuantizedGemm", x.rows * kOutlierLanes,
                 CarryOutliersOp<Carrier>{codes, residual, transposed, out});
}

// The residual alone, zeros elsewhere.
Status CudaBackend::CarryResidual(const QuantizedTensor& x, CodeCarrier carrier, bool transposed,
                                  Buffer& buffer) {
  return WithStored(ElemOf(carrier, Elem::kE4M3), [&](auto as) -> Status {
    using Carrier = decltype(as);
    const int64_t bytes = x.rows * x.cols * static_cast<int64_t>(sizeof(typename Carrier::Stored));
    RETURN_IF_ERROR(buffer.Reserve(*this, bytes));
    RETURN_IF_ERROR(CudaStatus(
        cudaMemsetAsync(buffer.data(), 0, static_cast<size_t>(bytes), stream_), "QuantizedGemm"));
    return PlaceOutliers<Carrier>(x, transposed,
                                  static_cast<typename Carrier::Stored*>(buffer.data()));
  });
}

// One code per block of x, in the layout of block-scaled products; 1 for operands scaled otherwise.
Status CudaBackend::CarryBlockScales(const QuantizedTensor& x, CodeCarrier carrier, bool transposed,
                                     Buffer& buffer) {
  const bool fp4 = carrier == CodeCarrier::kBlockFp4;
  const int64_t group = fp4 ? kBlockFp4Group : kBlockFp8Group;
  const int64_t lines = transposed ? x.cols : x.rows;
  const int64_t blocks = (transposed ? x.rows : x.cols) / group;
  const int64_t bytes = formats::BlockScaleBytes(lines, blocks);
  RETURN_IF_ERROR(buffer.Reserve(*this, bytes));
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(buffer.data(), 0, static_cast<size_t>(bytes), stream_),
                             "QuantizedGemm"));
  BlockScaleOp op{};
  op.unit = fp4 ? kUnitE4M3 : kUnitE8M0;
  op.transposed = transposed;
  op.blocks = blocks;
  op.block = group;
  op.out = static_cast<uint8_t*>(buffer.data());
  if (IsGrouped(x.block)) {
    op.x = StoredGroupsOf(x);
    op.scale_codes = static_cast<const uint8_t*>(x.scale_codes.data());
  }
  return ForEach(stream_, "QuantizedGemm", lines * blocks, op);
}

// What the sums are multiplied by along one side of the output.
Status CudaBackend::SideScales(const QuantizedTensor& x, bool folded, CodeCarrier carrier,
                               int64_t count, Buffer& buffer) {
  RETURN_IF_ERROR(buffer.Reserve(*this, count * 4));
  auto* const scales = static_cast<float*>(buffer.data());
  if (IsGrouped(x.block)) {
    const bool outer = x.has_group_scale && carrier != CodeCarrier::kF32;
    return ForEach(stream_, "QuantizedGemm", count,
                   OuterLevelOp{outer ? static_cast<const float*>(x.outer_scale.data()) : nullptr,
                                x.outer_divisor, scales});
  }
  return ForEach(stream_, "QuantizedGemm", count,
                 OuterScaleOp{folded ? nullptr : static_cast<const float*>(x.enc.data()),
                              x.block != Block::kTensor, scales});
}

// Of carried operands; the scales of both sides lie in scale_a_ and scale_b_, those of blocks in
// block_a_ and block_b_.
Status CudaBackend::CarriedProduct(const MatmulShape& shape, const void* a, const void* b,
                                   bool accumulate, TensorView out) {
  const bool outer_fp8 = shape.a == MatmulElem::kE4M3 || shape.a == MatmulElem::kE5M2;
  if (outer_fp8) {
    const MatmulScales scales{scale_a_.data(), scale_b_.data()};
    MatmulShape to = shape;
    to.bf16_out = out.dtype == DType::kBF16;
    if (!to.bf16_out || matmul_->RunsWhole(to, a, b, out.data)) {
      return matmul_->Run(stream_, to, a, b, scales, accumulate, out.data);
    }
    ASSIGN_OR_RETURN(const TensorView wide, gemm_out_.View(*this, out.rows, out.cols));
    RETURN_IF_ERROR(matmul_->Run(stream_, shape, a, b, scales, false, wide.data));
    return RoundToBf16(wide, out);
  }
  RETURN_IF_ERROR(code_out_.Reserve(*this, out.size() * 4));
  auto* sums = static_cast<float*>(code_out_.data());
  RETURN_IF_ERROR(
      matmul_->Run(stream_, shape, a, b, {block_a_.data(), block_b_.data()}, false, sums));
  return WithOut(out, [&](auto* to) {
    using Out = std::remove_pointer_t<decltype(to)>;
    const OuterProduct<Out> task{sums,
                                 out.rows,
                                 out.cols,
                                 static_cast<const float*>(scale_a_.data()),
                                 static_cast<const float*>(scale_b_.data()),
                                 accumulate,
                                 to};
    const auto kernel =
        InFours(out.cols, {to}) ? OuterProductKernel<4, Out> : OuterProductKernel<1, Out>;
    kernel<<<GridForRows(out.rows), kThreads, 0, stream_>>>(task);
    return LaunchStatus("QuantizedGemm");
  });
}

Status CudaBackend::QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                                  const QuantizedTensor& b, TensorView out) {
  const bool ta = params.transpose_a == Transpose::kYes;
  const bool tb = params.transpose_b == Transpose::kYes;
  MatmulShape shape{out.rows, out.cols, ta ? a.rows : a.cols, ta, tb};
  RETURN_IF_ERROR(CheckOperands(params, a, b, shape.k, out));
  if (out.size() == 0) return OkStatus();
  if (out.dtype == DType::kBF16 && HasResidual(a)) {  // two products, one rounding
    ASSIGN_OR_RETURN(const TensorView wide, gemm_out_.View(*this, out.rows, out.cols));
    RETURN_IF_ERROR(QuantizedGemm(params, a, b, wide));
    return RoundToBf16(wide, out);
  }
  const MatmulShape whole = shape;
  CodeCarrier carrier = ChooseCarrier(products_, params.path, a, b, shape.m, shape.n, shape.k);
  shape = Carried(whole, carrier, a, b);
  if (IsNarrow(shape.a) && !matmul_->Has(shape)) {
    carrier = ChooseCarrier({}, params.path, a, b, shape.m, shape.n, shape.k);
    shape = Carried(whole, carrier, a, b);
  }
  const bool turn_a = IsNarrow(shape.a) && ta, turn_b = IsNarrow(shape.a) && !tb;
  RETURN_IF_ERROR(SideScales(a, params.fold_a, carrier, out.rows, scale_a_));
  RETURN_IF_ERROR(SideScales(b, params.fold_b, carrier, out.cols, scale_b_));
  ASSIGN_OR_RETURN(const void* const left,
                   CarryTo(LeftPlace(params.transpose_a), a, carrier, turn_a));
  ASSIGN_OR_RETURN(const void* const right,
                   CarryTo(RightPlace(params.transpose_a, params.transpose_b), b, carrier, turn_b));
  if (IsBlockScaled(carrier)) {
    RETURN_IF_ERROR(CarryBlockScales(a, carrier, turn_a, block_a_));
    RETURN_IF_ERROR(CarryBlockScales(b, carrier, turn_b, block_b_));
  }
  RETURN_IF_ERROR(CarriedProduct(shape, left, right, params.accumulate, out));
  if (!HasResidual(a)) return OkStatus();
  // Outliers with a scale of their own are a second product on the same right operand.
  const auto* counters = static_cast<const QuantizeCounters*>(a.counters.data());
  RETURN_IF_ERROR(
      ForEach(stream_, "QuantizedGemm", out.rows,
              OuterScaleOp{&counters->residual_enc, false, static_cast<float*>(scale_a_.data())}));
  shape.a = ElemOf(carrier, Elem::kE4M3);
  RETURN_IF_ERROR(CarryResidual(a, carrier, turn_a, code_residual_));
  return CarriedProduct(shape, code_residual_.data(), right, true, out);
}

}  // namespace nibble::cuda
