// SPDX-License-Identifier: Apache-2.0
//
// Softmax cross-entropy: one block per row, the gradient in place of the logits.
#include <cmath>

#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/formats/bits.h"

namespace nibble::cuda {
namespace {

__global__ void CrossEntropyKernel(float* logits, const int32_t* targets, int64_t rows,
                                   int64_t vocabulary, float gradient_scale, bool write_gradient,
                                   float* losses) {
  for (int64_t t = blockIdx.x; t < rows; t += gridDim.x) {
    float* row = logits + t * vocabulary;
    const int32_t target = targets[t];
    if (target == Backend::kIgnoreTarget) {  // the same for the whole block
      if (threadIdx.x == 0) losses[t] = 0.0f;
      if (write_gradient) {
        for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) row[i] = 0.0f;
      }
      continue;
    }
    float largest = -formats::kLargestFloat;
    for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) {
      largest = row[i] > largest ? row[i] : largest;
    }
    const float max = BlockMax(largest);
    float partial = 0;
    for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) partial += expf(row[i] - max);
    const float sum = BlockSum(partial);
    if (threadIdx.x == 0) losses[t] = (max - row[target]) + logf(sum);
    if (!write_gradient) continue;
    __syncthreads();  // row[target] has been read
    const float factor = gradient_scale / sum;
    for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) {
      const float share = expf(row[i] - max) * factor;
      row[i] = i == target ? share - gradient_scale : share;
    }
  }
}

}  // namespace

Status CudaBackend::CrossEntropy(TensorView logits, ConstTensorView targets, float gradient_scale,
                                 bool write_gradient, TensorView losses) {
  RETURN_IF_ERROR(CheckView("CrossEntropy", "logits", logits, logits.rows, logits.cols));
  RETURN_IF_ERROR(CheckSameSize("CrossEntropy", "targets", targets, logits.rows, DType::kI32));
  RETURN_IF_ERROR(CheckSameSize("CrossEntropy", "losses", losses, logits.rows));
  RETURN_IF_ERROR(CheckIds("CrossEntropy", targets, logits.cols, true));
  if (logits.rows == 0) return OkStatus();
  CrossEntropyKernel<<<GridForRows(logits.rows), kThreads, 0, stream_>>>(
      logits.f32(), targets.i32(), logits.rows, logits.cols, gradient_scale, write_gradient,
      losses.f32());
  return LaunchStatus("CrossEntropy");
}

}  // namespace nibble::cuda
