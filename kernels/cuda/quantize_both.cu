// SPDX-License-Identifier: Apache-2.0
//
// QuantizeBoth: one pass to measure, one to encode; kernels: quantize_both_kernels.cuh.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/quantize_both_kernels.cuh"

namespace nibble::cuda {
namespace {

MeasureSide MeasureSideOf(const QuantizedTensor& q, RowStats* stats, uint32_t* columns) {
  return {FoldOf(q), AxisOf(q), stats, columns};
}

EncodeSide EncodeSideOf(const Quant& quant, const QuantizeContext& context,
                        const QuantizedTensor& q) {
  return {quant.elem,
          quant.round,
          {context.seed, context.step, context.stream},
          context.contraction == Axis::kRows,
          AxisOf(q),
          FoldOf(q),
          static_cast<const float*>(q.enc.data()),
          static_cast<uint8_t*>(q.codes.data()),
          q.code_row_bytes()};
}

}  // namespace

Status CudaBackend::QuantizeBoth(const Quant& first, const QuantizeContext& first_context,
                                 const Quant& second, const QuantizeContext& second_context,
                                 ConstTensorView x, QuantizedTensor* first_out,
                                 QuantizedTensor* second_out) {
  const bool together = !first.pre.enabled && !second.pre.enabled && !IsGrouped(first.block) &&
                        !IsGrouped(second.block) && first_context.history == nullptr &&
                        second_context.history == nullptr && first_context.keep_codes &&
                        second_context.keep_codes && x.size() > 0 && x.cols % kTogether == 0;
  if (!together) {
    return Backend::QuantizeBoth(first, first_context, second, second_context, x, first_out,
                                 second_out);
  }
  RETURN_IF_ERROR(PrepareQuantize(first, first_context, x, first_out));
  RETURN_IF_ERROR(PrepareQuantize(second, second_context, x, second_out));
  const int64_t stats_bytes = 2 * x.rows * static_cast<int64_t>(sizeof(RowStats));
  RETURN_IF_ERROR(row_stats_.Reserve(*this, stats_bytes));
  RETURN_IF_ERROR(column_amax_.Reserve(*this, 2 * x.cols * 4));
  auto* stats = static_cast<RowStats*>(row_stats_.data());
  auto* columns = static_cast<uint32_t*>(column_amax_.data());
  RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(stats, 0, static_cast<size_t>(stats_bytes), stream_), "memset"));
  RETURN_IF_ERROR(CudaStatus(
      cudaMemsetAsync(columns, 0, static_cast<size_t>(2 * x.cols) * 4, stream_), "memset"));
  const dim3 tiles(static_cast<unsigned>((x.cols + kThreads - 1) / kThreads),
                   GridForRows((x.rows + kMeasureRows - 1) / kMeasureRows));
  MeasureBothKernel<<<tiles, kThreads, 0, stream_>>>(
      x.f32(), x.rows, x.cols, MeasureSideOf(*first_out, stats, columns),
      MeasureSideOf(*second_out, stats + x.rows, columns + x.cols));
  RETURN_IF_ERROR(LaunchStatus("QuantizeBoth"));
  RETURN_IF_ERROR(SetScales(first, x, stats, columns, first_out));
  RETURN_IF_ERROR(SetScales(second, x, stats + x.rows, columns + x.cols, second_out));
  for (QuantizedTensor* out : {first_out, second_out}) {
    RETURN_IF_ERROR(out->codes.Reserve(*this, out->rows * out->code_row_bytes()));
  }
  EncodeBothKernel<<<GridFor(x.size() / kTogether), kThreads, 0, stream_>>>(
      x.f32(), x.rows, x.cols, EncodeSideOf(first, first_context, *first_out),
      EncodeSideOf(second, second_context, *second_out));
  return LaunchStatus("QuantizeBoth");
}

}  // namespace nibble::cuda
