// SPDX-License-Identifier: Apache-2.0
//
// Fill, sums, scaling, BF16 rounding, SwiGLU, AdamW: one thread per element, no shared state.
#include <cmath>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/formats/bf16.h"

namespace nibble::cuda {
namespace {

struct FillOp {
  float* x;
  float value;
  __device__ void operator()(int64_t i) const { x[i] = value; }
};
struct AddOp {
  const float *a, *b;
  float* out;
  __device__ void operator()(int64_t i) const { out[i] = a[i] + b[i]; }
};
struct AxpyOp {
  float factor;
  const float* x;
  float* y;
  __device__ void operator()(int64_t i) const { y[i] = y[i] + factor * x[i]; }
};
struct ScaleOp {
  float factor;
  float* x;
  __device__ void operator()(int64_t i) const { x[i] = x[i] * factor; }
};
struct RoundOp {
  const float* x;
  float* out;
  __device__ void operator()(int64_t i) const { out[i] = formats::RoundBf16(x[i]); }
};
struct SwiGluOp {
  const float *gate, *up;
  float* out;
  __device__ void operator()(int64_t i) const {
    const float sigmoid = 1.0f / (1.0f + expf(-gate[i]));
    out[i] = (gate[i] * sigmoid) * up[i];
  }
};
struct SwiGluBackwardOp {
  const float *dout, *gate, *up;
  float *dgate, *dup;
  __device__ void operator()(int64_t i) const {
    const float g = gate[i];
    const float d = dout[i];
    const float u = up[i];
    const float sigmoid = 1.0f / (1.0f + expf(-g));
    const float silu = g * sigmoid;
    dup[i] = d * silu;
    dgate[i] = (d * u) * (sigmoid + silu * (1.0f - sigmoid));
  }
};

// The update in the CPU backend's order of operations.
struct AdamWOp {
  float gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  float inverse_correction1, inverse_correction2, epsilon, learning_rate, decay;
  const float* gradient;
  float *m, *v, *parameter;
  __device__ void operator()(int64_t i) const {
    const float g = gradient[i] * gradient_scale;
    const float first = beta1 * m[i] + one_minus_beta1 * g;
    const float second = beta2 * v[i] + one_minus_beta2 * (g * g);
    m[i] = first;
    v[i] = second;
    const float root = sqrtf(second * inverse_correction2) + epsilon;
    const float decayed = parameter[i] - decay * parameter[i];
    parameter[i] = decayed - learning_rate * ((first * inverse_correction1) / root);
  }
};

}  // namespace

Status CudaBackend::Fill(TensorView x, float value) {
  RETURN_IF_ERROR(CheckSameSize("Fill", "x", x, x.size()));
  return ForEach(stream_, "Fill", x.size(), FillOp{x.f32(), value});
}

Status CudaBackend::Add(ConstTensorView a, ConstTensorView b, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("Add", "a", a, out.size()));
  RETURN_IF_ERROR(CheckSameSize("Add", "b", b, out.size()));
  RETURN_IF_ERROR(CheckSameSize("Add", "out", out, out.size()));
  return ForEach(stream_, "Add", out.size(), AddOp{a.f32(), b.f32(), out.f32()});
}

Status CudaBackend::Axpy(float factor, ConstTensorView x, TensorView y) {
  RETURN_IF_ERROR(CheckSameSize("Axpy", "x", x, y.size()));
  RETURN_IF_ERROR(CheckSameSize("Axpy", "y", y, y.size()));
  return ForEach(stream_, "Axpy", y.size(), AxpyOp{factor, x.f32(), y.f32()});
}

Status CudaBackend::Scale(float factor, TensorView x) {
  RETURN_IF_ERROR(CheckSameSize("Scale", "x", x, x.size()));
  return ForEach(stream_, "Scale", x.size(), ScaleOp{factor, x.f32()});
}

Status CudaBackend::RoundToBf16(ConstTensorView x, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("RoundToBf16", "x", x, out.size()));
  RETURN_IF_ERROR(CheckSameSize("RoundToBf16", "out", out, out.size()));
  return ForEach(stream_, "RoundToBf16", out.size(), RoundOp{x.f32(), out.f32()});
}

Status CudaBackend::SwiGluForward(ConstTensorView gate, ConstTensorView up, TensorView out) {
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "gate", gate, out.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "up", up, out.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluForward", "out", out, out.size()));
  return ForEach(stream_, "SwiGluForward", out.size(), SwiGluOp{gate.f32(), up.f32(), out.f32()});
}

Status CudaBackend::SwiGluBackward(ConstTensorView dout, ConstTensorView gate, ConstTensorView up,
                                   TensorView dgate, TensorView dup) {
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dout", dout, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "gate", gate, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "up", up, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dgate", dgate, dgate.size()));
  RETURN_IF_ERROR(CheckSameSize("SwiGluBackward", "dup", dup, dgate.size()));
  return ForEach(stream_, "SwiGluBackward", dgate.size(),
                 SwiGluBackwardOp{dout.f32(), gate.f32(), up.f32(), dgate.f32(), dup.f32()});
}

Status CudaBackend::AdamW(const AdamWParams& params, ConstTensorView gradient, TensorView m,
                          TensorView v, TensorView parameter) {
  const int64_t size = parameter.size();
  RETURN_IF_ERROR(CheckSameSize("AdamW", "gradient", gradient, size));
  RETURN_IF_ERROR(CheckSameSize("AdamW", "m", m, size));
  RETURN_IF_ERROR(CheckSameSize("AdamW", "v", v, size));
  RETURN_IF_ERROR(CheckSameSize("AdamW", "parameter", parameter, size));
  if (params.step < 1) {
    return InvalidArgumentError(StrFormat("AdamW: step %lld; the first update is step 1",
                                          static_cast<long long>(params.step)));
  }
  const double step = static_cast<double>(params.step);
  const double beta1 = static_cast<double>(params.beta1);
  const double beta2 = static_cast<double>(params.beta2);
  AdamWOp op{};
  op.gradient_scale = params.gradient_scale;
  op.beta1 = params.beta1;
  op.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  op.beta2 = params.beta2;
  op.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  op.inverse_correction1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1, step)));
  op.inverse_correction2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2, step)));
  op.epsilon = params.epsilon;
  op.learning_rate = params.learning_rate;
  op.decay = params.learning_rate * params.weight_decay;
  op.gradient = gradient.f32();
  op.m = m.f32();
  op.v = v.f32();
  op.parameter = parameter.f32();
  return ForEach(stream_, "AdamW", size, op);
}

}  // namespace nibble::cuda
