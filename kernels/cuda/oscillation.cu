// SPDX-License-Identifier: Apache-2.0
//
// The weight rule oscireset: paths of weights, and weights set to their quantized values.
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/oscillation_kernels.cuh"

namespace nibble::cuda {

Status CudaBackend::AddPath(ConstTensorView x, TensorView previous, TensorView path) {
  RETURN_IF_ERROR(CheckSameSize("AddPath", "previous", previous, x.size()));
  RETURN_IF_ERROR(CheckSameSize("AddPath", "path", path, x.size()));
  return ForEach(stream_, "AddPath", x.size(), AddPathOp{x.f32(), previous.f32(), path.f32()});
}

Result<int64_t> CudaBackend::ResetOscillating(float ratio, ConstTensorView path,
                                              ConstTensorView quantized_path,
                                              ConstTensorView quantized, TensorView weight) {
  for (const ConstTensorView& other : {path, quantized_path, quantized}) {
    RETURN_IF_ERROR(CheckSameSize("ResetOscillating", "weight", weight, other.size()));
  }
  if (weight.size() == 0) return int64_t{0};
  unsigned long long count = 0;
  RETURN_IF_ERROR(words_.Reserve(*this, sizeof(count)));
  auto* const counter = static_cast<unsigned long long*>(words_.data());
  RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(counter, 0, sizeof(count), stream_), "ResetOscillating"));
  ResetOscillatingKernel<<<GridFor(weight.size()), kThreads, 0, stream_>>>(
      ratio, weight.size(), path.f32(), quantized_path.f32(), quantized.f32(), weight.f32(),
      counter);
  RETURN_IF_ERROR(LaunchStatus("ResetOscillating"));
  RETURN_IF_ERROR(CopyOut(&count, counter, sizeof(count)));
  return static_cast<int64_t>(count);
}

}  // namespace nibble::cuda
