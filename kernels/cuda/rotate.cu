// SPDX-License-Identifier: Apache-2.0
//
// Hadamard rotations along either axis and gradient masks; kernels: rotate_kernels.cuh.
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rotate_kernels.cuh"
#include "kernels/rotation.h"

namespace nibble::cuda {

Status CudaBackend::Rotate(const Rotation& rotation, const QuantizeContext& context, bool inverse,
                           ConstTensorView x, TensorView out) {
  RETURN_IF_ERROR(CheckView("Rotate", "x", x, x.rows, x.cols));
  RETURN_IF_ERROR(CheckView("Rotate", "out", out, x.rows, x.cols));
  RETURN_IF_ERROR(CheckRotation(rotation, context, x.rows, x.cols));
  const int size = rotation.size;
  const bool by_rows = context.contraction == Axis::kRows;
  RotationTask task = RotationTaskOf(size, inverse, by_rows, x.rows, x.cols);
  for (int i = 0; i < size; ++i) {
    if (IsNegative(rotation, context, i)) task.negative[i / 32] |= 1u << (i % 32);
  }
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
