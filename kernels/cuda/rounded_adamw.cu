// SPDX-License-Identifier: Apache-2.0
//
// RoundedAdamW, AbsMax and the E4M3 form of gradients; kernels: rounded_adamw_kernels.cuh.
#include <cmath>

#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rounded_adamw_kernels.cuh"
#include "kernels/rounded_state.h"

namespace nibble::cuda {

Status CudaBackend::RoundedAdamW(const AdamWParams& params, const StatePrecision& precision,
                                 ConstTensorView gradient, TensorView m, TensorView v,
                                 TensorView parameter, StateScales* scales) {
  const int64_t size = parameter.size();
  RETURN_IF_ERROR(CheckSameSize("RoundedAdamW", "gradient", gradient, size));
  RETURN_IF_ERROR(CheckSameSize("RoundedAdamW", "parameter", parameter, size));
  RETURN_IF_ERROR(CheckMoments("RoundedAdamW", m, v, size, params.step));
  if (size == 0) return OkStatus();
  const double step = static_cast<double>(params.step);
  const double beta1 = static_cast<double>(params.beta1);
  const double beta2 = static_cast<double>(params.beta2);
  RETURN_IF_ERROR(words_.Reserve(*this, 3 * 4));
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(words_.data(), 0, 3 * 4, stream_), "RoundedAdamW"));
  RoundedAdamWTask task{};
  task.gradient_scale = params.gradient_scale;
  task.beta1 = params.beta1;
  task.rest1 = static_cast<float>(1.0 - beta1);
  task.beta2 = params.beta2;
  task.rest2 = static_cast<float>(1.0 - beta2);
  task.rate =
      static_cast<float>(static_cast<double>(params.learning_rate) / (1.0 - std::pow(beta1, step)));
  task.root_scale = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, step)));
  task.epsilon = params.epsilon;
  task.kept = 1.0f - params.learning_rate * params.weight_decay;
  task.size = size;
  task.gradient = gradient.f32();
  task.m = {precision.m, scales->m, m.data};
  task.v = {precision.v, scales->v, v.data};
  task.parameter = parameter.f32();
  task.maxima = static_cast<uint32_t*>(words_.data());
  task.seed = params.seed;
  task.step = static_cast<uint32_t>(params.step);
  task.stream = params.stream;
  RoundedAdamWUpdateKernel<<<GridFor(size), kThreads, 0, stream_>>>(task);
  RETURN_IF_ERROR(LaunchStatus("RoundedAdamW"));
  uint32_t maxima[3] = {};
  RETURN_IF_ERROR(CopyOut(maxima, words_.data(), sizeof(maxima)));
  scales->m = StoredScale(precision.m, formats::BitsFloat(maxima[0]), scales->m);
  scales->v = StoredScale(precision.v, formats::BitsFloat(maxima[1]), scales->v);
  const float largest = formats::BitsFloat(maxima[2]);
  scales->master = StoredScale(precision.master, largest, scales->master);
  RoundedAdamWStoreKernel<<<GridFor(size), kThreads, 0, stream_>>>(task, *scales, precision.master,
                                                                   formats::IsFinite(largest));
  return LaunchStatus("RoundedAdamW");
}

Status CudaBackend::RoundToE4M3(float scale, TensorView x) {
  RETURN_IF_ERROR(CheckSameSize("RoundToE4M3", "x", x, x.size()));
  return ForEach(stream_, "RoundToE4M3", x.size(), RoundToE4M3Op{scale, x.f32()});
}

Result<float> CudaBackend::AbsMax(ConstTensorView x) {
  RETURN_IF_ERROR(CheckSameSize("AbsMax", "x", x, x.size(), FloatType(x)));
  if (x.size() == 0) return 0.0f;
  RETURN_IF_ERROR(words_.Reserve(*this, 4));
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(words_.data(), 0, 4, stream_), "AbsMax"));
  RETURN_IF_ERROR(WithIn(x, [&](auto* from) {
    AbsMaxKernel<<<GridFor(x.size()), kThreads, 0, stream_>>>(
        from, x.size(), static_cast<uint32_t*>(words_.data()));
    return LaunchStatus("AbsMax");
  }));
  uint32_t bits = 0;
  RETURN_IF_ERROR(CopyOut(&bits, words_.data(), sizeof(bits)));
  return formats::BitsFloat(bits);
}

}  // namespace nibble::cuda
