// SPDX-License-Identifier: Apache-2.0
//
// Embedding, RMSNorm and rotary position embedding.
#include <cmath>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/ids.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm_kernels.cuh"

namespace nibble::cuda {
namespace {

constexpr int64_t kNormChunkRows = 64;  // rows per partial sum of dweight
constexpr int kVocabularyShards = 64;   // blocks that share one group of embedding columns

// A thread owns one column of one shard of the vocabulary, so each sum runs in ascending token
// order and no two threads add to one element.
__global__ void EmbeddingBackwardKernel(const int32_t* ids, const float* dout, int64_t tokens,
                                        int64_t vocabulary, int64_t width, float* dtable) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= width) return;
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t id = ids[t];
    if (id % kVocabularyShards != static_cast<int32_t>(blockIdx.y) || id >= vocabulary) continue;
    dtable[id * width + column] += dout[t * width + column];
  }
}

// projection[t] = rstd^2 / width * sum(dout * weight * x).
__global__ void RmsNormProjectionKernel(const float* dout, const float* x, const float* weight,
                                        const float* rstd, int64_t rows, int64_t width,
                                        float* projections) {
  for (int64_t t = blockIdx.x; t < rows; t += gridDim.x) {
    const float* g = dout + t * width;
    const float* row = x + t * width;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < width; i += kThreads) sum += (g[i] * weight[i]) * row[i];
    const float dot = BlockSum(sum);
    const float scale = rstd[t];
    if (threadIdx.x == 0) projections[t] = dot * scale * scale / static_cast<float>(width);
  }
}

// dweight partials of one chunk of rows, then dx of those rows: dx may be dout, so the sums come
// first. A thread owns columns.
__global__ void RmsNormApplyKernel(const float* dout, const float* x, const float* weight,
                                   const float* rstd, const float* projections, int64_t rows,
                                   int64_t width, bool accumulate, float* dx, float* partials) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kNormChunkRows;
  const int64_t last = first + kNormChunkRows < rows ? first + kNormChunkRows : rows;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    float partial = 0;
    for (int64_t t = first; t < last; ++t) {
      const float g = dout[t * width + i];
      const float value = x[t * width + i];
      const float scale = rstd[t];
      partial += g * (value * scale);
      const float gradient = scale * (g * weight[i] - value * projections[t]);
      float& target = dx[t * width + i];
      target = accumulate ? target + gradient : gradient;
    }
    partials[static_cast<int64_t>(blockIdx.x) * width + i] = partial;
  }
}

struct FoldPartialsOp {
  const float* partials;
  int64_t chunks, width;
  float* dweight;
  __device__ void operator()(int64_t i) const {
    float sum = dweight[i];
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partials[chunk * width + i];
    dweight[i] = sum;
  }
};

// The angle in double, as the CPU's table holds it.
struct RopeOp {
  float* x;
  int64_t seq, heads, head_dim, offset;
  double theta;
  float sign;
  __device__ void operator()(int64_t i) const {
    const int64_t half = head_dim / 2;
    const int64_t pair = i % half;
    const int64_t head = i / half % heads;
    const int64_t t = i / half / heads;
    const double exponent = -2.0 * static_cast<double>(pair) / static_cast<double>(head_dim);
    const double angle = static_cast<double>(t % seq + offset) * pow(theta, exponent);
    const float cosine = static_cast<float>(cos(angle));
    const float sine = sign * static_cast<float>(sin(angle));
    float* first = x + (t * heads + head) * head_dim + pair;
    const float a = first[0];
    const float b = first[half];
    first[0] = a * cosine - b * sine;
    first[half] = b * cosine + a * sine;
  }
};

}  // namespace

Status CudaBackend::EmbeddingForward(ConstTensorView table, ConstTensorView ids, TensorView out) {
  const int64_t width = table.cols;
  RETURN_IF_ERROR(CheckSameSize("EmbeddingForward", "ids", ids, out.rows, DType::kI32));
  RETURN_IF_ERROR(CheckView("EmbeddingForward", "table", table, table.rows, width));
  RETURN_IF_ERROR(CheckView("EmbeddingForward", "out", out, out.rows, width));
  RETURN_IF_ERROR(CheckIds(IdCheck::kToken, ids, table.rows));
  return ForEach(stream_, "EmbeddingForward", out.size(),
                 GatherOp{table.f32(), ids.i32(), table.rows, width, out.f32()});
}

Status CudaBackend::EmbeddingBackward(ConstTensorView ids, ConstTensorView dout,
                                      TensorView dtable) {
  const int64_t width = dtable.cols;
  RETURN_IF_ERROR(CheckSameSize("EmbeddingBackward", "ids", ids, dout.rows, DType::kI32));
  RETURN_IF_ERROR(CheckView("EmbeddingBackward", "dout", dout, dout.rows, width));
  RETURN_IF_ERROR(CheckView("EmbeddingBackward", "dtable", dtable, dtable.rows, width));
  RETURN_IF_ERROR(CheckIds(IdCheck::kToken, ids, dtable.rows));
  if (width == 0 || dout.rows == 0) return OkStatus();
  const dim3 grid(GridFor(width), kVocabularyShards);
  EmbeddingBackwardKernel<<<grid, kThreads, 0, stream_>>>(ids.i32(), dout.f32(), dout.rows,
                                                          dtable.rows, width, dtable.f32());
  return LaunchStatus("EmbeddingBackward");
}

Status CudaBackend::RmsNormForward(ConstTensorView x, ConstTensorView weight, float epsilon,
                                   TensorView out, TensorView rstd) {
  RETURN_IF_ERROR(CheckView("RmsNormForward", "x", x, x.rows, x.cols));
  RETURN_IF_ERROR(CheckView("RmsNormForward", "out", out, x.rows, x.cols));
  RETURN_IF_ERROR(CheckSameSize("RmsNormForward", "weight", weight, x.cols));
  RETURN_IF_ERROR(CheckSameSize("RmsNormForward", "rstd", rstd, x.rows));
  if (x.size() == 0) return OkStatus();
  RmsNormKernel<<<GridForRows(x.rows), kThreads, 0, stream_>>>(
      x.f32(), weight.f32(), epsilon, x.rows, x.cols, out.f32(), rstd.f32());
  return LaunchStatus("RmsNormForward");
}

Status CudaBackend::AddRmsNormForward(ConstTensorView a, ConstTensorView b, ConstTensorView weight,
                                      float epsilon, TensorView sum, TensorView out,
                                      TensorView rstd) {
  RETURN_IF_ERROR(CheckView("AddRmsNormForward", "a", a, sum.rows, sum.cols));
  RETURN_IF_ERROR(CheckView("AddRmsNormForward", "b", b, sum.rows, sum.cols));
  RETURN_IF_ERROR(CheckView("AddRmsNormForward", "sum", sum, sum.rows, sum.cols));
  RETURN_IF_ERROR(CheckView("AddRmsNormForward", "out", out, sum.rows, sum.cols));
  RETURN_IF_ERROR(CheckSameSize("AddRmsNormForward", "weight", weight, sum.cols));
  RETURN_IF_ERROR(CheckSameSize("AddRmsNormForward", "rstd", rstd, sum.rows));
  if (sum.size() == 0) return OkStatus();
  AddRmsNormKernel<<<GridForRows(sum.rows), kThreads, 0, stream_>>>(
      a.f32(), b.f32(), weight.f32(), epsilon, sum.rows, sum.cols, sum.f32(), out.f32(),
      rstd.f32());
  return LaunchStatus("AddRmsNormForward");
}

Status CudaBackend::RmsNormBackward(ConstTensorView dout, ConstTensorView x, ConstTensorView weight,
                                    ConstTensorView rstd, TensorView dx, bool accumulate_dx,
                                    TensorView dweight) {
  const int64_t rows = x.rows;
  const int64_t width = x.cols;
  RETURN_IF_ERROR(CheckView("RmsNormBackward", "x", x, rows, width));
  RETURN_IF_ERROR(CheckView("RmsNormBackward", "dout", dout, rows, width));
  RETURN_IF_ERROR(CheckView("RmsNormBackward", "dx", dx, rows, width));
  RETURN_IF_ERROR(CheckSameSize("RmsNormBackward", "weight", weight, width));
  RETURN_IF_ERROR(CheckSameSize("RmsNormBackward", "rstd", rstd, rows));
  RETURN_IF_ERROR(CheckSameSize("RmsNormBackward", "dweight", dweight, width));
  if (x.size() == 0) return OkStatus();
  const int64_t chunks = (rows + kNormChunkRows - 1) / kNormChunkRows;
  RETURN_IF_ERROR(norm_partials_.Reserve(*this, (chunks * width + rows) * 4));
  float* partials = static_cast<float*>(norm_partials_.data());
  float* projections = partials + chunks * width;
  RmsNormProjectionKernel<<<GridForRows(rows), kThreads, 0, stream_>>>(
      dout.f32(), x.f32(), weight.f32(), rstd.f32(), rows, width, projections);
  RETURN_IF_ERROR(LaunchStatus("RmsNormBackward"));
  RmsNormApplyKernel<<<static_cast<unsigned>(chunks), kThreads, 0, stream_>>>(
      dout.f32(), x.f32(), weight.f32(), rstd.f32(), projections, rows, width, accumulate_dx,
      dx.f32(), partials);
  RETURN_IF_ERROR(LaunchStatus("RmsNormBackward"));
  return ForEach(stream_, "RmsNormBackward", width,
                 FoldPartialsOp{partials, chunks, width, dweight.f32()});
}

Status CudaBackend::Rope(const RopeParams& params, TensorView x, float sign) {
  if (params.head_dim <= 0 || params.head_dim % 2 != 0 || params.position_offset < 0 ||
      !(params.theta > 0)) {
    return InvalidArgumentError(StrFormat(
        "Rope: head_dim %lld, position_offset %lld, theta %g; head_dim must be even and positive, "
        "the offset at least 0, theta above 0",
        static_cast<long long>(params.head_dim), static_cast<long long>(params.position_offset),
        params.theta));
  }
  RETURN_IF_ERROR(
      CheckView("Rope", "x", x, params.batch * params.seq, params.heads * params.head_dim));
  return ForEach(stream_, "Rope", x.size() / 2,
                 RopeOp{x.f32(), params.seq, params.heads, params.head_dim, params.position_offset,
                        params.theta, sign});
}

Status CudaBackend::RopeForward(const RopeParams& params, TensorView x) {
  return Rope(params, x, 1.0f);
}
Status CudaBackend::RopeBackward(const RopeParams& params, TensorView dx) {
  return Rope(params, dx, -1.0f);
}

}  // namespace nibble::cuda
