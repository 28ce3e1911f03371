// SPDX-License-Identifier: Apache-2.0
//
// Exact order statistics for outlier clamping: radix selection on BF16 order keys, high byte first,
// for the whole tensor or each row. Counts are integers, so their order does not matter.
#include <limits>

#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/elementwise_ops.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/occ_kernels.cuh"
#include "kernels/cuda/row_stats.h"
#include "kernels/formats/bf16.h"
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

// Where shared memory is too small for CountKeysKernel.
template <typename Values>
struct CountKeysOp {
  Values x;
  unsigned* counts;
  __device__ void operator()(int64_t i) const {
    atomicAdd(&counts[formats::Bf16OrderKey(x.Bits(i))], 1u);
  }
};

// The key of rank `rank` among a row that begins at `row`: 256 bins of the high byte, then of the
// low byte.
template <typename Values>
__device__ uint16_t SelectKey(Values x, int64_t row, int64_t cols, int64_t rank) {
  __shared__ unsigned bins[256];
  __shared__ int chosen;
  __shared__ int64_t left;
  int high = 0;
  for (int pass = 0; pass < 2; ++pass) {
    __syncthreads();
    bins[threadIdx.x] = 0;
    if (threadIdx.x == 0 && pass == 0) left = rank;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
      const uint16_t key = formats::Bf16OrderKey(x.Bits(row + i));
      if (pass == 0) {
        atomicAdd(&bins[key >> 8], 1u);
      } else if (key >> 8 == high) {
        atomicAdd(&bins[key & 255], 1u);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = 0;
      while (bin < 255 && left >= static_cast<int64_t>(bins[bin])) left -= bins[bin++];
      chosen = bin;
    }
    __syncthreads();
    if (pass == 0) high = chosen;
  }
  return static_cast<uint16_t>(high << 8 | chosen);
}

template <typename Values>
__global__ void TokenBoundsKernel(Values x, int64_t rows, int64_t cols, int64_t low_rank,
                                  int64_t high_rank, RowStats* stats) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const uint16_t low = SelectKey(x, row * cols, cols, low_rank);
    const uint16_t high = SelectKey(x, row * cols, cols, high_rank);
    if (threadIdx.x == 0) {
      stats[row].low = formats::FromBf16(formats::Bf16FromOrderKey(low));
      stats[row].high = formats::FromBf16(formats::Bf16FromOrderKey(high));
    }
    __syncthreads();
  }
}

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
  RETURN_IF_ERROR(CheckView("QuantizeFormed", "gate", gate, out.rows, out.cols));
  RETURN_IF_ERROR(CheckView("QuantizeFormed", "up", up, out.rows, out.cols));
  RETURN_IF_ERROR(CheckView("QuantizeFormed", "rows", out, out.rows, out.cols, DType::kBF16));
  const SwiGluValues values{gate.f32(), up.f32(), static_cast<uint16_t*>(out.data)};
  return CountKeys(values, out.size(), InFours(0, {gate.data, up.data, out.data}));
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
