// SPDX-License-Identifier: Apache-2.0
//
// AdamW, alone and with the codes of the new weight; kernels: elementwise_ops.cuh,
// adamw_kernels.cuh.
#include "kernels/checks.h"
#include "kernels/cuda/adamw_kernels.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"

namespace nibble::cuda {
namespace {

Result<AdamWOp> AdamWOn(const AdamWParams& params, ConstTensorView gradient, TensorView m,
                        TensorView v, TensorView parameter) {
  RETURN_IF_ERROR(CheckAdamW(gradient, m, v, parameter, params.step));
  return AdamWOp{AdamWUpdateOf(params), gradient.f32(), m.f32(), v.f32(), parameter.f32()};
}

}  // namespace

Status CudaBackend::AdamW(const AdamWParams& params, ConstTensorView gradient, TensorView m,
                          TensorView v, TensorView parameter) {
  ASSIGN_OR_RETURN(const AdamWOp op, AdamWOn(params, gradient, m, v, parameter));
  return ForEach(stream_, "AdamW", parameter.size(), op);
}

bool CudaBackend::QuantizesInUpdate(const Quant& quant) const { return UpdatesByRow(quant); }

// Matrices whose rows have a scale of their own, and are rounded to nearest: one pass. Others take
// two.
Status CudaBackend::AdamWQuantize(const AdamWParams& params, const Quant& quant,
                                  const QuantizeContext& context, ConstTensorView gradient,
                                  TensorView m, TensorView v, TensorView parameter,
                                  QuantizedTensor* out) {
  const bool by_row = UpdatesByRow(quant) && context.fold == nullptr && context.keep_codes;
  if (!by_row || parameter.size() == 0) {
    return Backend::AdamWQuantize(params, quant, context, gradient, m, v, parameter, out);
  }
  ASSIGN_OR_RETURN(const AdamWOp op, AdamWOn(params, gradient, m, v, parameter));
  RETURN_IF_ERROR(PrepareQuantize(quant, context, parameter, out));
  RETURN_IF_ERROR(out->enc.Reserve(*this, out->scale_count() * 4));
  RETURN_IF_ERROR(out->codes.Reserve(*this, out->rows * out->code_row_bytes()));
  RETURN_IF_ERROR(StartCounting(out));
  RETURN_IF_ERROR(CudaStatus(
      cudaMemsetAsync(out->counters.data(), 0, sizeof(QuantizeCounters), stream_), "AdamW"));
  const AdamWRowsTask task{op,
                           parameter.rows,
                           parameter.cols,
                           out->code_row_bytes(),
                           quant.scale,
                           quant.scale_max,
                           static_cast<float*>(out->enc.data()),
                           static_cast<uint8_t*>(out->codes.data()),
                           &static_cast<QuantizeCounters*>(out->counters.data())->nonfinite_amax};
  const unsigned grid = GridForRows(parameter.rows);
  const bool four = InFours(parameter.cols, {gradient.data, m.data, v.data, parameter.data});
  if (quant.elem == Elem::kE2M1) {
    const auto kernel =
        four ? AdamWRowsKernel<Elem::kE2M1, true> : AdamWRowsKernel<Elem::kE2M1, false>;
    kernel<<<grid, kThreads, 0, stream_>>>(task);
  } else {
    const auto kernel =
        four ? AdamWRowsKernel<Elem::kE4M3, true> : AdamWRowsKernel<Elem::kE4M3, false>;
    kernel<<<grid, kThreads, 0, stream_>>>(task);
  }
  return LaunchStatus("AdamW");
}

}  // namespace nibble::cuda
