// SPDX-License-Identifier: Apache-2.0
//
// Quantize and Dequantize for outer scales (tensor, row, column); kernels: quantize_kernels.cuh.
#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/quantize_kernels.cuh"
#include "kernels/cuda/row_kernels.cuh"
#include "kernels/group_rules.h"

namespace nibble::cuda {
namespace {

// The scale comes from past maxima, which are the host's.
bool IsWindowed(const Quant& quant) {
  return quant.window > 1 || quant.scale == ScaleRule::kDelayed;
}

Status CheckQuant(const Quant& quant, const QuantizeContext& context) {
  const bool elem =
      quant.elem == Elem::kE2M1 || quant.elem == Elem::kE4M3 || quant.elem == Elem::kE5M2 ||
      (quant.elem == Elem::kInt8 && (quant.round == Round::kEven || quant.round == Round::kSr24));
  const bool scale = quant.scale == ScaleRule::kF32 || quant.scale == ScaleRule::kP2 ||
                     quant.scale == ScaleRule::kCurrent || quant.scale == ScaleRule::kCurrentP2 ||
                     quant.scale == ScaleRule::kDelayed;
  const bool block = quant.block == Block::kTensor || quant.block == Block::kToken ||
                     quant.block == Block::kOutputChannel || quant.block == Block::kInputChannel;
  const bool rounds =
      quant.round == Round::kEven || quant.elem == Elem::kE2M1 || quant.elem == Elem::kInt8;
  const bool window = !IsWindowed(quant) || (quant.block == Block::kTensor && !quant.pre.enabled &&
                                             context.fold == nullptr);
  const bool plain = rounds && window && quant.mask == Mask::kNone && quant.split == Split::kNone &&
                     !quant.alternatives.enabled() && !quant.recast_e4m3 &&
                     quant.fallback_error == 0 && quant.smooth_max == 0 && context.round_source &&
                     context.replay == nullptr;
  if (elem && scale && block && plain) return OkStatus();
  return UnimplementedError(
      "Quantize: by tensor, row or column the CUDA backend builds e2m1, e4m3, e5m2 and int8 with "
      "scales f32, p2, cur and dly, rounding FP8 to nearest, without masks, recasts, fallbacks or "
      "smooth maxima; use backend cpu for this recipe");
}

StoredCodes CodesOf(const QuantizedTensor& x) {
  return {x.elem,
          x.scale,
          AxisOf(x),
          x.rows,
          x.cols,
          x.code_row_bytes(),
          static_cast<const uint8_t*>(x.codes.data()),
          static_cast<const float*>(x.enc.data())};
}

QuantizeCounters* CountersOf(const QuantizedTensor& x) {
  return static_cast<QuantizeCounters*>(x.counters.data());
}

// Bounds are order statistics, so that many values at most lie outside them.
int64_t MostOutliers(const Occ& occ, ConstTensorView x) {
  const int64_t values = occ.scope == OccScope::kToken ? x.cols : x.size();
  const formats::QuantileIndices index = formats::OccIndices(occ.alpha, values);
  return (index.low + values - 1 - index.high) * (x.size() / values);
}

int64_t ResidualValueBytes(OccComp comp) { return comp == OccComp::kBf16 ? 4 : 1; }

}  // namespace

Status CudaBackend::PrepareFold(const QuantizeContext& context, ConstTensorView x, bool clamped,
                                QuantizedTensor* out) {
  out->folded = context.fold != nullptr;
  if (!out->folded) return OkStatus();
  const QuantizedTensor& other = *context.fold;
  const bool turned = context.contraction == Axis::kRows;
  const int64_t depth = turned ? x.rows : x.cols;
  const bool fits = other.per_row() ? other.rows == depth : other.block == Block::kTensor;
  if (!fits || (!turned && out->per_column()) || clamped || !other.has_codes) {
    return InvalidArgumentError(StrFormat(
        "Quantize: scales of (%lld, %lld) codes cannot be folded into %lld elements of a sum",
        static_cast<long long>(other.rows), static_cast<long long>(other.cols),
        static_cast<long long>(depth)));
  }
  RETURN_IF_ERROR(out->fold.Reserve(*this, depth * 4));
  const uint8_t magnitudes =
      other.elem == Elem::kE2M1 ? 0x77 : (other.elem == Elem::kInt8 ? 0xFF : 0x7F);
  const bool residual = other.comp != OccComp::kNone;
  FoldKernel<<<GridForRows(depth), kThreads, 0, stream_>>>(
      static_cast<const float*>(other.enc.data()), other.per_row(),
      static_cast<const uint8_t*>(other.codes.data()),
      residual ? static_cast<const int32_t*>(other.residual_offsets.data()) : nullptr, depth,
      other.code_row_bytes(), magnitudes, static_cast<float*>(out->fold.data()));
  return LaunchStatus("Quantize");
}

Status CudaBackend::MeasureColumns(ConstTensorView x, const RowStats* stats,
                                   const QuantizedTensor& out) {
  constexpr int64_t kRowsPerChunk = 256;
  RETURN_IF_ERROR(column_amax_.Reserve(*this, x.cols * 4));
  auto* columns = static_cast<uint32_t*>(column_amax_.data());
  RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(columns, 0, static_cast<size_t>(x.cols) * 4, stream_), "memset"));
  const dim3 grid(static_cast<unsigned>((x.cols + kStripColumns - 1) / kStripColumns),
                  GridForRows((x.rows + kRowsPerChunk - 1) / kRowsPerChunk));
  return WithValues(x, [&](auto values) {
    MeasureColumnsKernel<<<grid, kThreads, 0, stream_>>>(values, FoldOf(out), stats, x.rows, x.cols,
                                                         columns);
    return LaunchStatus("Quantize");
  });
}

Status CudaBackend::SetScales(const Quant& quant, ConstTensorView x, const RowStats* stats,
                              const uint32_t* columns, QuantizedTensor* out) {
  const ScaleAxis axis = AxisOf(*out);
  RETURN_IF_ERROR(out->enc.Reserve(*this, out->scale_count() * 4));
  const bool residual = out->comp != OccComp::kNone;
  int32_t* offsets = nullptr;
  if (residual) {
    RETURN_IF_ERROR(out->residual_offsets.Reserve(*this, (out->rows + 1) * 4));
    offsets = static_cast<int32_t*>(out->residual_offsets.data());
  }
  RETURN_IF_ERROR(StartCounting(out));
  if (!residual && axis != ScaleAxis::kTensor) {
    RETURN_IF_ERROR(CudaStatus(
        cudaMemsetAsync(out->counters.data(), 0, sizeof(QuantizeCounters), stream_), "Quantize"));
    return ForEach(stream_, "Quantize", out->scale_count(),
                   VectorScalesOp{quant.scale, quant.scale_max, stats,
                                  axis == ScaleAxis::kColumn ? columns : nullptr,
                                  static_cast<float*>(out->enc.data()), CountersOf(*out)});
  }
  ScalesKernel<<<1, kThreads, 0, stream_>>>({quant.scale, quant.scale_max, axis, x.rows, x.cols,
                                             stats, columns, static_cast<float*>(out->enc.data()),
                                             out->comp, offsets, CountersOf(*out)});
  RETURN_IF_ERROR(LaunchStatus("Quantize"));
  return residual ? ReserveOutliers(quant, x, out) : OkStatus();
}

Status CudaBackend::ReserveOutliers(const Quant& quant, ConstTensorView x, QuantizedTensor* out) {
  out->residual_count = MostOutliers(quant.pre, x);
  RETURN_IF_ERROR(out->residual_columns.Reserve(*this, out->residual_count * 4));
  return out->residual_values.Reserve(*this, out->residual_count * ResidualValueBytes(out->comp));
}

Status CudaBackend::StartCounting(QuantizedTensor* out) {
  out->version = ++last_version_;
  out->counting = true;
  out->residual_count = 0;
  out->residual_enc = 1.0f;
  out->nonfinite_amax = 0;
  return out->counters.Reserve(*this, static_cast<int64_t>(sizeof(QuantizeCounters)));
}

Status CudaBackend::ReadCounters(QuantizedTensor* x) {
  if (!x->counting) return OkStatus();
  QuantizeCounters counters;
  RETURN_IF_ERROR(CopyOut(&counters, x->counters.data(), sizeof(counters)));
  x->residual_count = counters.residual_count;
  x->residual_enc = x->comp == OccComp::kE4M3 ? counters.residual_enc : 1.0f;
  x->nonfinite_amax = counters.nonfinite_amax;
  x->counting = false;
  return OkStatus();
}

namespace {

// Everything but the bounds.
EncodeTask EncodeTaskOf(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                        const QuantizedTensor& out, TensorView decoded) {
  EncodeTask task{};
  task.elem = quant.elem;
  task.round = quant.round;
  task.scale = quant.scale;
  task.comp = out.comp;
  task.random = {context.seed, context.step, context.stream};
  task.axis = AxisOf(out);
  task.turned = context.contraction == Axis::kRows;
  task.fold = FoldOf(out);
  task.counters = CountersOf(out);
  task.rows = x.rows;
  task.cols = x.cols;
  task.code_row_bytes = out.code_row_bytes();
  task.enc = static_cast<float*>(out.enc.data());
  task.codes = out.has_codes ? static_cast<uint8_t*>(out.codes.data()) : nullptr;
  task.decoded = decoded.data == nullptr ? nullptr : decoded.f32();
  if (out.comp == OccComp::kNone) return task;
  task.offsets = static_cast<const int32_t*>(out.residual_offsets.data());
  task.columns = static_cast<int32_t*>(out.residual_columns.data());
  task.values = out.residual_values.data();
  return task;
}

// Outliers whose scale is the tensor's need a second look at it.
bool InOnePass(const Quant& quant, ConstTensorView x, const QuantizedTensor& out) {
  if (!out.per_row() || out.comp == OccComp::kE4M3) return false;
  return out.comp == OccComp::kNone ||
         (x.cols <= kMostScanned && MostOutliers(quant.pre, x) < kMostOutliers);
}

}  // namespace

Status CudaBackend::Encode(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                           const RowStats* stats, QuantizedTensor* out, TensorView decoded) {
  if (out->has_codes) RETURN_IF_ERROR(out->codes.Reserve(*this, out->rows * out->code_row_bytes()));
  EncodeTask task = EncodeTaskOf(quant, context, x, *out, decoded);
  task.stats = stats;
  return WithValues(x, [&](auto values) {
    EncodeRowsKernel<<<GridForRows(x.rows), kThreads, 0, stream_>>>(task, values);
    return LaunchStatus("Quantize");
  });
}

// A scale per row: measured and encoded in one pass.
Status CudaBackend::QuantizeRows(const Quant& quant, const QuantizeContext& context,
                                 ConstTensorView x, QuantizedTensor* out, TensorView decoded,
                                 bool counted) {
  RETURN_IF_ERROR(out->enc.Reserve(*this, out->scale_count() * 4));
  if (out->has_codes) RETURN_IF_ERROR(out->codes.Reserve(*this, out->rows * out->code_row_bytes()));
  RETURN_IF_ERROR(StartCounting(out));
  const auto zero = [&](void* memory, size_t bytes) {
    return CudaStatus(cudaMemsetAsync(memory, 0, bytes, stream_), "Quantize");
  };
  RETURN_IF_ERROR(zero(out->counters.data(), sizeof(QuantizeCounters)));
  RowTask task{};
  if (quant.pre.enabled) {
    RETURN_IF_ERROR(row_stats_.Reserve(*this, x.rows * static_cast<int64_t>(sizeof(RowStats))));
    RETURN_IF_ERROR(OccBounds(quant, x, counted, static_cast<RowStats*>(row_stats_.data())));
  }
  if (out->comp != OccComp::kNone) {
    RETURN_IF_ERROR(out->residual_offsets.Reserve(*this, (out->rows + 1) * 4));
    RETURN_IF_ERROR(ReserveOutliers(quant, x, out));
    const int64_t words = x.rows + 2;
    RETURN_IF_ERROR(row_scan_.Reserve(*this, words * 4));
    RETURN_IF_ERROR(zero(row_scan_.data(), static_cast<size_t>(words) * 4));
    auto* const scan = static_cast<uint32_t*>(row_scan_.data());
    task.scan = {scan, scan + 1, scan + 2};
    task.offsets = static_cast<int32_t*>(out->residual_offsets.data());
  }
  task.encode = EncodeTaskOf(quant, context, x, *out, decoded);
  task.encode.stats = quant.pre.enabled ? static_cast<const RowStats*>(row_stats_.data()) : nullptr;
  task.max = quant.scale_max;
  task.in_fours = InFours(x.cols, {x.data});
  task.counters = CountersOf(*out);
  return WithValues(x, [&](auto values) {
    QuantizeRowsKernel<<<GridForRows(x.rows), kThreads, static_cast<size_t>(HeldBytes(x.cols)),
                         stream_>>>(task, values);
    return LaunchStatus("Quantize");
  });
}

Status CudaBackend::PrepareQuantize(const Quant& quant, const QuantizeContext& context,
                                    ConstTensorView x, QuantizedTensor* out) {
  const DType type = x.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  RETURN_IF_ERROR(CheckView("Quantize", "x", x, x.rows, x.cols, type));
  RETURN_IF_ERROR(CheckQuant(quant, context));
  out->rows = x.rows;
  out->cols = x.cols;
  out->elem = quant.elem;
  out->block = quant.block;
  out->contraction = context.contraction;
  out->scale = quant.scale;
  out->comp = quant.pre.enabled ? quant.pre.comp : OccComp::kNone;
  out->has_codes = context.keep_codes;
  out->has_group_scale = false;
  out->has_mask = false;
  out->recast_enc = 0;
  out->counting = false;
  out->residual_count = out->nonfinite_amax = 0;
  return x.size() == 0 ? OkStatus() : PrepareFold(context, x, quant.pre.enabled, out);
}

Status CudaBackend::Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                             QuantizedTensor* out, TensorView decoded) {
  return QuantizeView(quant, context, x, out, decoded, false);
}

Status CudaBackend::QuantizeView(const Quant& quant, const QuantizeContext& context,
                                 ConstTensorView x, QuantizedTensor* out, TensorView decoded,
                                 bool counted) {
  if (IsGrouped(quant.block)) return QuantizeGroups(quant, context, x, 0, out, decoded);
  if (decoded.data != nullptr) {
    RETURN_IF_ERROR(CheckView("Quantize", "decoded", decoded, x.rows, x.cols));
  }
  RETURN_IF_ERROR(PrepareQuantize(quant, context, x, out));
  if (x.size() == 0) return OkStatus();
  if (InOnePass(quant, x, *out)) return QuantizeRows(quant, context, x, out, decoded, counted);
  RETURN_IF_ERROR(row_stats_.Reserve(*this, x.rows * static_cast<int64_t>(sizeof(RowStats))));
  RowStats* stats = static_cast<RowStats*>(row_stats_.data());
  RETURN_IF_ERROR(OccBounds(quant, x, counted, stats));
  RETURN_IF_ERROR(WithValues(x, [&](auto values) {
    MeasureRowsKernel<<<GridForRows(x.rows), kThreads, 0, stream_>>>(values, FoldOf(*out), x.rows,
                                                                     x.cols, stats);
    return LaunchStatus("Quantize");
  }));
  if (out->per_column()) RETURN_IF_ERROR(MeasureColumns(x, stats, *out));
  RETURN_IF_ERROR(
      SetScales(quant, x, stats, static_cast<const uint32_t*>(column_amax_.data()), out));
  if (IsWindowed(quant)) {
    // Waits for the maximum, which joins the past ones. Rounding is monotone.
    ASSIGN_OR_RETURN(const float amax, AbsMax(x));
    const float enc = WindowedEnc(quant, formats::RoundBf16(amax), context.history);
    RETURN_IF_ERROR(CopyIn(out->enc.data(), &enc, sizeof(enc)));
  }
  return Encode(quant, context, x, stats, out, decoded);
}

Status CudaBackend::Dequantize(const QuantizedTensor& x, TensorView decoded) {
  RETURN_IF_ERROR(CheckView("Dequantize", "decoded", decoded, x.rows, x.cols));
  if (!x.has_codes) {
    return FailedPreconditionError("Dequantize: the codes were not kept (keep_codes was false)");
  }
  if (IsGrouped(x.block)) return DequantizeGroups(x, decoded);
  RETURN_IF_ERROR(ForEach(stream_, "Dequantize", decoded.size(),
                          DecodeOp{CodesOf(x), FoldOf(x), decoded.f32()}));
  if (x.comp == OccComp::kNone || x.residual_count == 0) return OkStatus();
  return ForEach(stream_, "Dequantize", x.rows,
                 AddResidualOp{CodesOf(x), x.comp, CountersOf(x),
                               static_cast<const int32_t*>(x.residual_offsets.data()),
                               static_cast<const int32_t*>(x.residual_columns.data()),
                               x.residual_values.data(), decoded.f32()});
}

}  // namespace nibble::cuda
