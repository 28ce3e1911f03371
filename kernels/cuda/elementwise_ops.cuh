// SPDX-License-Identifier: Apache-2.0
//
// Operations of one element each, in the CPU's order of arithmetic: fill, sums, BF16 rounding,
// SwiGLU, AdamW. Those with At<n> take n neighbours from i on, a multiple of n.
//
// Thread-safety: pure functions of their elements.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/adamw_update.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/values.cuh"
#include "kernels/formats/bf16.h"

namespace nibble::cuda {

struct FillOp {
  float* x;
  float value;
  __device__ void operator()(int64_t i) const { x[i] = value; }
};
// At<4> of the first `packs` fours, At<1> of the rest of n elements.
template <typename Op>
__global__ void ForEachPackKernel(int64_t n, int64_t packs, Op op) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t i = thread; i < packs; i += stride) op.template At<4>(4 * i);
  for (int64_t i = 4 * packs + thread; i < n; i += stride) op.template At<1>(i);
}

struct AddOp {
  const float *a, *b;
  float* out;
  template <int n>
  __device__ void At(int64_t i) const {
    auto sum = GetPack<n>(a, i);
    const auto other = GetPack<n>(b, i);
#pragma unroll
    for (int k = 0; k < n; ++k) sum.x[k] = sum.x[k] + other.x[k];
    PutPack(out, i, sum);
  }
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
  template <int n>
  __device__ void At(int64_t i) const {
    auto pack = GetPack<n>(x, i);
#pragma unroll
    for (int k = 0; k < n; ++k) pack.x[k] = formats::RoundBf16(pack.x[k]);
    PutPack(out, i, pack);
  }
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
  template <int n>
  __device__ void At(int64_t i) const {
    auto pack = GetPack<n>(gate, i);
    const auto u = GetPack<n>(up, i);
#pragma unroll
    for (int k = 0; k < n; ++k) pack.x[k] = SwiGluOf(pack.x[k], u.x[k]);
    PutPack(out, i, pack);
  }
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
    const FourFloats g = GetPack<4>(gate, i);
    const FourFloats u = GetPack<4>(up, i);
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
  template <int n>
  __device__ void At(int64_t i) const {
    auto g = GetPack<n>(gate, i), u = GetPack<n>(up, i);
    const auto d = GetPack<n>(dout, i);
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const SwiGluGradient gradient = SwiGluGradientOf(d.x[k], g.x[k], u.x[k]);
      g.x[k] = gradient.gate;
      u.x[k] = gradient.up;
    }
    PutPack(dup, i, u);
    PutPack(dgate, i, g);
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
