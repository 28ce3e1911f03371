// SPDX-License-Identifier: Apache-2.0
//
// Gradients quantized twice each: one pass to measure, one to encode; kernels:
// quantize_both_kernels.cuh.
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/quantize_both_kernels.cuh"

namespace nibble::cuda {
namespace {

EncodeSide EncodeSideOf(const QuantizeTarget& target) {
  const Quant& quant = *target.quant;
  const QuantizeContext& context = *target.context;
  const QuantizedTensor& q = *target.out;
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

// Whether a tensor of this shape can be quantized together with others.
bool InTiles(const QuantizeTarget& target, ConstTensorView x) {
  const Quant& quant = *target.quant;
  return !quant.pre.enabled && !IsGrouped(quant.block) && target.context->history == nullptr &&
         !quant.has_history() && target.context->keep_codes && x.size() > 0 &&
         InFours(x.cols, {x.data});
}

}  // namespace

// `measured` forms the tensors, `encoded` finds them again; two targets for each.
template <typename Measured, typename Encoded>
Status CudaBackend::QuantizeTiles(const Measured& measured, const Encoded& encoded,
                                  ConstTensorView x, std::span<const QuantizeTarget> targets) {
  const auto count = static_cast<int64_t>(targets.size());
  const int64_t stats_bytes = count * x.rows * static_cast<int64_t>(sizeof(RowStats));
  const int64_t column_bytes = count * x.cols * 4;
  RETURN_IF_ERROR(row_stats_.Reserve(*this, stats_bytes));
  RETURN_IF_ERROR(column_amax_.Reserve(*this, column_bytes));
  auto* const stats = static_cast<RowStats*>(row_stats_.data());
  auto* const columns = static_cast<uint32_t*>(column_amax_.data());
  RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(stats, 0, static_cast<size_t>(stats_bytes), stream_), "memset"));
  RETURN_IF_ERROR(CudaStatus(
      cudaMemsetAsync(columns, 0, static_cast<size_t>(column_bytes), stream_), "memset"));
  MeasureSides<Measured> measure;
  for (int64_t i = 0; i < count; ++i) {
    const QuantizeTarget& to = targets[static_cast<size_t>(i)];
    RETURN_IF_ERROR(PrepareQuantize(*to.quant, *to.context, x, to.out));
    measure.of[i / 2][i % 2] = {FoldOf(*to.out), AxisOf(*to.out), stats + i * x.rows,
                                columns + i * x.cols};
  }
  const dim3 tiles(static_cast<unsigned>((x.cols + kThreads - 1) / kThreads),
                   GridForRows((x.rows + kMeasureRows - 1) / kMeasureRows));
  MeasureBothKernel<<<tiles, kThreads, 0, stream_>>>(measured, x.rows, x.cols, measure);
  RETURN_IF_ERROR(LaunchStatus("QuantizeBoth"));
  EncodeSides<Encoded> encode;
  for (int64_t i = 0; i < count; ++i) {
    const QuantizeTarget& to = targets[static_cast<size_t>(i)];
    RETURN_IF_ERROR(SetScales(*to.quant, x, stats + i * x.rows, columns + i * x.cols, to.out));
    RETURN_IF_ERROR(to.out->codes.Reserve(*this, to.out->rows * to.out->code_row_bytes()));
    encode.of[i / 2][i % 2] = EncodeSideOf(to);
  }
  EncodeBothKernel<<<GridFor(x.size() / kTogether), kThreads, 0, stream_>>>(encoded, x.rows, x.cols,
                                                                            encode);
  return LaunchStatus("QuantizeBoth");
}

Status CudaBackend::QuantizeBoth(const Quant& first, const QuantizeContext& first_context,
                                 const Quant& second, const QuantizeContext& second_context,
                                 ConstTensorView x, QuantizedTensor* first_out,
                                 QuantizedTensor* second_out) {
  const std::array<QuantizeTarget, 2> targets = {
      {{&first, &first_context, first_out}, {&second, &second_context, second_out}}};
  if (x.dtype != DType::kF32 || !InTiles(targets[0], x) || !InTiles(targets[1], x)) {
    return Backend::QuantizeBoth(first, first_context, second, second_context, x, first_out,
                                 second_out);
  }
  const OneTensor<F32Values> source{{x.f32()}};
  return QuantizeTiles(source, source, x, targets);
}

Status CudaBackend::SwiGluBackwardToCodes(const SwiGluGradientViews& v,
                                          const std::array<QuantizeTarget, 2>& dgate,
                                          const std::array<QuantizeTarget, 2>& dup) {
  const std::array<QuantizeTarget, 4> targets = {dgate[0], dgate[1], dup[0], dup[1]};
  for (const QuantizeTarget& target : targets) {
    if (!InTiles(target, v.gate) || !InTiles(target, v.up)) {
      return Backend::SwiGluBackwardToCodes(v, dgate, dup);
    }
  }
  const char* const op = "SwiGluBackwardToCodes";
  const int64_t rows = v.gate.rows, cols = v.gate.cols;
  RETURN_IF_ERROR(CheckView(op, "dout", v.dout, rows, cols));
  RETURN_IF_ERROR(CheckView(op, "gate", v.gate, rows, cols, FloatType(v.gate)));
  RETURN_IF_ERROR(CheckView(op, "up", v.up, rows, cols, v.gate.dtype));
  if (v.gate.dtype == DType::kBF16) {
    auto* const gate = static_cast<uint16_t*>(v.gate.data);
    auto* const up = static_cast<uint16_t*>(v.up.data);
    return QuantizeTiles(SwiGluGradients<uint16_t>{v.dout.f32(), gate, up}, TwoTensors{gate, up},
                         v.gate, targets);
  }
  return QuantizeTiles(SwiGluGradients<float>{v.dout.f32(), v.gate.f32(), v.up.f32()},
                       GradientPairs{v.gate.f32()}, v.gate, targets);
}

}  // namespace nibble::cuda
