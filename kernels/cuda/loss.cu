// SPDX-License-Identifier: Apache-2.0
//
// Softmax cross-entropy; kernel: loss_kernels.cuh.
#include <type_traits>

#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/loss_kernels.cuh"

namespace nibble::cuda {

bool CudaBackend::HasCode() {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, CrossEntropyKernel<true, float>) == cudaSuccess)
    return true;
  cudaGetLastError();  // not sticky
  return false;
}

Status CudaBackend::CrossEntropy(TensorView logits, ConstTensorView targets, float gradient_scale,
                                 TensorView gradient, TensorView losses) {
  RETURN_IF_ERROR(CheckView("CrossEntropy", "logits", logits, logits.rows, logits.cols));
  RETURN_IF_ERROR(CheckSameSize("CrossEntropy", "targets", targets, logits.rows, DType::kI32));
  RETURN_IF_ERROR(CheckSameSize("CrossEntropy", "losses", losses, logits.rows));
  RETURN_IF_ERROR(CheckIds(IdCheck::kTarget, targets, logits.cols));
  if (gradient.data != nullptr) {
    RETURN_IF_ERROR(CheckView("CrossEntropy", "gradient", gradient, logits.rows, logits.cols,
                              FloatType(gradient)));
  }
  if (logits.rows == 0) return OkStatus();
  return WithOut(gradient, [&](auto* to) {
    using Gradient = std::remove_pointer_t<decltype(to)>;
    const auto kernel = InFours(logits.cols, {logits.data, to})
                            ? CrossEntropyKernel<true, Gradient>
                            : CrossEntropyKernel<false, Gradient>;
    kernel<<<GridForRows(logits.rows), kThreads, 0, stream_>>>(
        logits.f32(), targets.i32(), logits.rows, logits.cols, gradient_scale, to, losses.f32());
    return LaunchStatus("CrossEntropy");
  });
}

}  // namespace nibble::cuda
