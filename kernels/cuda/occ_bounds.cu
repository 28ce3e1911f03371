// SPDX-License-Identifier: Apache-2.0
//
// Exact order statistics for outlier clamping: radix selection on BF16 order keys, high byte first,
// for the whole tensor or each row. Counts are integers, so their order does not matter.
#include <limits>

#include "kernels/cuda/cuda_backend.h"
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
struct CountKeysOp {
  const float* x;
  unsigned* counts;
  __device__ void operator()(int64_t i) const {
    atomicAdd(&counts[formats::Bf16OrderKey(formats::ToBf16(x[i]))], 1u);
  }
};

// One block: walks the histogram to the two ranks and writes both bounds to every row.
__global__ void TensorBoundsKernel(const unsigned* counts, int64_t low_rank, int64_t high_rank,
                                   int64_t rows, RowStats* stats) {
  constexpr int kPerThread = kKeys / kThreads;
  __shared__ int64_t before[kThreads];
  __shared__ float bounds[2];
  int64_t mine = 0;
  for (int i = 0; i < kPerThread; ++i) mine += counts[threadIdx.x * kPerThread + i];
  before[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t seen = 0;
    for (int i = 0; i < kThreads; ++i) {
      const int64_t count = before[i];
      before[i] = seen;
      seen += count;
    }
  }
  __syncthreads();
  int64_t seen = before[threadIdx.x];
  for (int i = 0; i < kPerThread; ++i) {
    const int key = threadIdx.x * kPerThread + i;
    const int64_t after = seen + counts[key];
    const float value = formats::FromBf16(formats::Bf16FromOrderKey(static_cast<uint16_t>(key)));
    if (seen <= low_rank && low_rank < after) bounds[0] = value;
    if (seen <= high_rank && high_rank < after) bounds[1] = value;
    seen = after;
  }
  __syncthreads();
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) {
    stats[row].low = bounds[0];
    stats[row].high = bounds[1];
  }
}

// The key of rank `rank` among the block's row: 256 bins of the high byte, then of the low byte.
__device__ uint16_t SelectKey(const float* row, int64_t cols, int64_t rank) {
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
      const uint16_t key = formats::Bf16OrderKey(formats::ToBf16(row[i]));
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

__global__ void TokenBoundsKernel(const float* x, int64_t rows, int64_t cols, int64_t low_rank,
                                  int64_t high_rank, RowStats* stats) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const uint16_t low = SelectKey(x + row * cols, cols, low_rank);
    const uint16_t high = SelectKey(x + row * cols, cols, high_rank);
    if (threadIdx.x == 0) {
      stats[row].low = formats::FromBf16(formats::Bf16FromOrderKey(low));
      stats[row].high = formats::FromBf16(formats::Bf16FromOrderKey(high));
    }
    __syncthreads();
  }
}

}  // namespace

Status CudaBackend::OccBounds(const Quant& quant, ConstTensorView x, RowStats* stats) {
  if (!quant.pre.enabled) {
    const float infinity = std::numeric_limits<float>::infinity();
    return ForEach(stream_, "Quantize", x.rows, SetBoundsOp{-infinity, infinity, stats});
  }
  if (quant.pre.scope == OccScope::kToken) {
    const formats::QuantileIndices index = formats::OccIndices(quant.pre.alpha, x.cols);
    TokenBoundsKernel<<<GridForRows(x.rows), kThreads, 0, stream_>>>(x.f32(), x.rows, x.cols,
                                                                     index.low, index.high, stats);
    return LaunchStatus("Quantize");
  }
  const formats::QuantileIndices index = formats::OccIndices(quant.pre.alpha, x.size());
  RETURN_IF_ERROR(histogram_.Reserve(*this, kKeys * 4));
  unsigned* counts = static_cast<unsigned*>(histogram_.data());
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(counts, 0, kKeys * 4, stream_), "Quantize"));
  if (block_shared_bytes_ >= kHistogramBytes) {
    RETURN_IF_ERROR(CudaStatus(
        cudaFuncSetAttribute(CountKeysKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kHistogramBytes),
        "shared memory of the histogram"));
    CountKeysKernel<<<GridForRows((x.size() + kHistogramChunk - 1) / kHistogramChunk),
                      kHistogramThreads, kHistogramBytes, stream_>>>(x.f32(), x.size(), counts);
    RETURN_IF_ERROR(LaunchStatus("Quantize"));
  } else {
    RETURN_IF_ERROR(ForEach(stream_, "Quantize", x.size(), CountKeysOp{x.f32(), counts}));
  }
  TensorBoundsKernel<<<1, kThreads, 0, stream_>>>(counts, index.low, index.high, x.rows, stats);
  return LaunchStatus("Quantize");
}

}  // namespace nibble::cuda
