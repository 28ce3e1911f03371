// SPDX-License-Identifier: Apache-2.0
//
// Exact order statistics for outlier clamping, of the whole tensor or of each row; kernels:
// occ_kernels.cuh.
#include <limits>

#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/elementwise_ops.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/occ_kernels.cuh"
#include "kernels/cuda/row_stats.h"
#include "kernels/formats/occ.h"

namespace nibble::cuda {
namespace {

struct SetBoundsOp {
  float low, high;
  RowStats* stats;
  __device__ void operator()(int64_t row) const {
    stats[row].low = low;
    stats[row].high = high;
  }
};

}  // namespace

template <typename Values>
Status CudaBackend::CountKeys(Values x, int64_t size, bool aligned) {
  RETURN_IF_ERROR(histogram_.Reserve(*this, kKeys * 4));
  auto* const counts = static_cast<unsigned*>(histogram_.data());
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(counts, 0, kKeys * 4, stream_), "Quantize"));
  if (block_shared_bytes_ < kHistogramBytes || !aligned) {
    return ForEach(stream_, "Quantize", size, CountKeysOp<Values>{x, counts});
  }
  RETURN_IF_ERROR(
      CudaStatus(cudaFuncSetAttribute(CountKeysKernel<Values>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, kHistogramBytes),
                 "shared memory of the histogram"));
  CountKeysKernel<<<GridForRows((size + kHistogramChunk - 1) / kHistogramChunk), kHistogramThreads,
                    kHistogramBytes, stream_>>>(x, size, counts);
  return LaunchStatus("Quantize");
}

Status CudaBackend::CountSwiGlu(ConstTensorView gate, ConstTensorView up, TensorView out) {
  RETURN_IF_ERROR(CheckView("QuantizeFormed", "gate", gate, out.rows, out.cols, FloatType(gate)));
  RETURN_IF_ERROR(CheckView("QuantizeFormed", "up", up, out.rows, out.cols, FloatType(gate)));
  RETURN_IF_ERROR(CheckView("QuantizeFormed", "rows", out, out.rows, out.cols, DType::kBF16));
  return WithIn(gate, [&](auto* from) {
    const SwiGluValues values{from, static_cast<decltype(from)>(up.data),
                              static_cast<uint16_t*>(out.data)};
    return CountKeys(values, out.size(), InFours(0, {gate.data, up.data, out.data}));
  });
}

Status CudaBackend::OccBounds(const Quant& quant, ConstTensorView x, bool counted,
                              RowStats* stats) {
  if (!quant.pre.enabled) {
    const float infinity = std::numeric_limits<float>::infinity();
    return ForEach(stream_, "Quantize", x.rows, SetBoundsOp{-infinity, infinity, stats});
  }
  if (quant.pre.scope == OccScope::kToken) {
    const formats::QuantileIndices index = formats::OccIndices(quant.pre.alpha, x.cols);
    return WithValues(x, [&](auto values) {
      TokenBoundsKernel<<<GridForRows(x.rows), kThreads, 0, stream_>>>(
          values, x.rows, x.cols, index.low, index.high, stats);
      return LaunchStatus("Quantize");
    });
  }
  const formats::QuantileIndices index = formats::OccIndices(quant.pre.alpha, x.size());
  if (!counted) {
    RETURN_IF_ERROR(WithValues(
        x, [&](auto values) { return CountKeys(values, x.size(), InFours(0, {x.data})); }));
  }
  const auto* counts = static_cast<const unsigned*>(histogram_.data());
  TensorBoundsKernel<<<1, kThreads, 0, stream_>>>(counts, index.low, index.high, x.rows, stats);
  return LaunchStatus("Quantize");
}

}  // namespace nibble::cuda
