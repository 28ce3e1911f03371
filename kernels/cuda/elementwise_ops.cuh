// SPDX-License-Identifier: Apache-2.0
//
// Operations of one element each, in the CPU's order of arithmetic: fill, sums, BF16 rounding,
// SwiGLU, AdamW.
//
// Thread-safety: pure functions of their element.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/adamw_update.h"
#include "kernels/cuda/values.cuh"
#include "kernels/formats/bf16.h"

namespace nibble::cuda {

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
template <typename In, typename Out>
struct RoundOp {
  const In* x;
  Out* out;
  __device__ void operator()(int64_t i) const { Put(out, i, formats::RoundBf16(Get(x, i))); }
};
__device__ inline float SwiGluOf(float gate, float up) {
  const float sigmoid = 1.0f / (1.0f + expf(-gate));
  return (gate * sigmoid) * up;
}
// In: float or uint16_t, what gate and up rest as.
template <typename In, typename Out>
struct SwiGluOp {
  const In *gate, *up;
  Out* out;
  __device__ void operator()(int64_t i) const { Put(out, i, SwiGluOf(Get(gate, i), Get(up, i))); }
};
// SwiGLU as a source of values: whoever reads one leaves it as BF16.
template <typename In>
struct SwiGluValues {
  const In *gate, *up;
  uint16_t* out;
  __device__ uint16_t Bits(int64_t i) const {
    Put(out, i, SwiGluOf(Get(gate, i), Get(up, i)));
    return out[i];
  }
  __device__ Four Together(int64_t i) const {
    const FourFloats g = GetFour(gate, i);
    const FourFloats u = GetFour(up, i);
    Four four;
    for (int k = 0; k < 4; ++k) four.x[k] = formats::ToBf16(SwiGluOf(g.x[k], u.x[k]));
    *reinterpret_cast<Four*>(out + i) = four;
    return four;
  }
};
struct SwiGluGradient {
  float gate, up;
};
__device__ inline SwiGluGradient SwiGluGradientOf(float d, float gate, float up) {
  const float sigmoid = 1.0f / (1.0f + expf(-gate));
  const float silu = gate * sigmoid;
  return {(d * up) * (sigmoid + silu * (1.0f - sigmoid)), d * silu};
}
template <typename In>
struct SwiGluBackwardOp {
  const float* dout;
  const In *gate, *up;
  float *dgate, *dup;
  __device__ void operator()(int64_t i) const {
    const SwiGluGradient gradient = SwiGluGradientOf(dout[i], Get(gate, i), Get(up, i));
    dup[i] = gradient.up;
    dgate[i] = gradient.gate;
  }
};

struct AdamWOp {
  AdamWUpdate update;
  const float* gradient;
  float *m, *v, *parameter;
  __device__ void operator()(int64_t i) const {
    float first = m[i], second = v[i];
    parameter[i] = update.Apply(gradient[i], &first, &second, parameter[i]);
    m[i] = first;
    v[i] = second;
  }
};

}  // namespace nibble::cuda
