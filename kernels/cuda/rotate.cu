// SPDX-License-Identifier: Apache-2.0
//
// Hadamard rotations along either axis and gradient masks. A block rotates one group in shared
// memory, butterflies in the order of formats::HadamardInPlace, so the bits are the CPU's.
#include <cmath>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/formats/hadamard.h"
#include "kernels/formats/philox.h"

namespace nibble::cuda {
namespace {

struct RotationTask {
  int size;
  bool inverse;
  float factor;
  uint32_t negative[formats::kMaxRotation / 32];  // one bit per coordinate
  // Coordinates of a group lie `step` apart, groups of a line size * step, lines `lane`.
  int64_t groups, lines, step, lane;
  const float* x;
  float* out;
};

__global__ void RotateKernel(RotationTask t) {
  __shared__ float values[formats::kMaxRotation];
  const int i = threadIdx.x;
  const float sign = (t.negative[i / 32] >> (i % 32) & 1u) != 0 ? -1.0f : 1.0f;
  for (int64_t job = blockIdx.x; job < t.groups * t.lines; job += gridDim.x) {
    const int64_t start = job / t.groups * t.lane + (job % t.groups * t.size + i) * t.step;
    __syncthreads();
    values[i] = t.inverse ? t.x[start] : t.x[start] * sign;
    for (int half = 1; half < t.size; half *= 2) {
      __syncthreads();
      const float mine = values[i];
      const float other = values[i ^ half];
      __syncthreads();
      values[i] = (i & half) == 0 ? mine + other : other - mine;
    }
    t.out[start] = values[i] * (t.inverse ? t.factor * sign : t.factor);
  }
}

struct ApplyMaskOp {
  const uint8_t* mask;
  float* x;
  __device__ void operator()(int64_t i) const {
    if (mask[i] == 0) x[i] = 0.0f;
  }
};

bool IsNegative(const Rotation& rotation, const QuantizeContext& context, int i) {
  if (rotation.signs == Signs::kFixed) return formats::FixedSign(i) < 0;
  if (rotation.signs != Signs::kFresh) return false;
  if (context.replay != nullptr) return context.replay->Negative(context.rotation_stream, i);
  return formats::RandomWord(context.seed, context.step, context.rotation_stream,
                             static_cast<uint64_t>(i)) >>
             31 !=
         0;
}

}  // namespace

Status CudaBackend::Rotate(const Rotation& rotation, const QuantizeContext& context, bool inverse,
                           ConstTensorView x, TensorView out) {
  RETURN_IF_ERROR(CheckView("Rotate", "x", x, x.rows, x.cols));
  RETURN_IF_ERROR(CheckView("Rotate", "out", out, x.rows, x.cols));
  const int size = rotation.size;
  if (size < 2 || size > formats::kMaxRotation || (size & (size - 1)) != 0) {
    return InvalidArgumentError(StrFormat("Rotate: size %d; expected a power of two from 2 to %d",
                                          size, formats::kMaxRotation));
  }
  const bool by_rows = context.contraction == Axis::kRows;
  const int64_t depth = by_rows ? x.rows : x.cols;
  if (depth % size != 0) {
    return InvalidArgumentError(StrFormat(
        "Rotate: the contraction has %lld elements; expected a multiple of the rotation's %d",
        static_cast<long long>(depth), size));
  }
  RotationTask task{};
  task.size = size;
  task.inverse = inverse;
  task.factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(size)));
  for (int i = 0; i < size; ++i) {
    if (IsNegative(rotation, context, i)) task.negative[i / 32] |= 1u << (i % 32);
  }
  task.groups = depth / size;
  task.lines = by_rows ? x.cols : x.rows;
  task.step = by_rows ? x.cols : 1;
  task.lane = by_rows ? 1 : x.cols;
  task.x = x.f32();
  task.out = out.f32();
  if (x.size() == 0) return OkStatus();
  RotateKernel<<<GridForRows(task.groups * task.lines), static_cast<unsigned>(size), 0, stream_>>>(
      task);
  return LaunchStatus("Rotate");
}

Status CudaBackend::ApplyMask(const QuantizedTensor& quantized, TensorView x) {
  RETURN_IF_ERROR(CheckView("ApplyMask", "x", x, quantized.rows, quantized.cols));
  if (!quantized.has_mask) {
    return FailedPreconditionError("ApplyMask: the quantized tensor has no mask");
  }
  return ForEach(stream_, "ApplyMask", x.size(),
                 ApplyMaskOp{static_cast<const uint8_t*>(quantized.mask.data()), x.f32()});
}

}  // namespace nibble::cuda
