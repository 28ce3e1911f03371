// SPDX-License-Identifier: Apache-2.0
//
// AdamW with a rounded state (arXiv 2310.18313), two passes: the update and the maxima of the new
// state, then the state under its new scales. Equal bit for bit to the CPU backend: one order of
// operations per element, maxima of bits. Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/values.cuh"
#include "kernels/formats/bf16.h"
#include "kernels/formats/fp16.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/philox.h"
#include "kernels/rounded_state.h"

namespace nibble::cuda {

// One stored moment: codes over a scale that is a power of two.
struct StoredMoment {
  StateElem elem;
  float scale;
  void* data;

  __device__ float Load(int64_t i) const {
    const float inverse = 1.0f / scale;
    switch (elem) {
      case StateElem::kF32:
        return static_cast<const float*>(data)[i];
      case StateElem::kBf16:
      case StateElem::kBf16Sr:
        return formats::FromBf16(static_cast<const uint16_t*>(data)[i]);
      case StateElem::kF16:
        return formats::DecodeF16(static_cast<const uint16_t*>(data)[i]) * inverse;
      case StateElem::kE4M3:
        break;
    }
    return formats::DecodeE4M3(static_cast<const uint8_t*>(data)[i]) * inverse;
  }
  // `word`: the element's random number, of stochastic rounding only.
  __device__ void Store(int64_t i, float value, float new_scale, uint32_t word) const {
    switch (elem) {
      case StateElem::kF32:
        static_cast<float*>(data)[i] = value;
        return;
      case StateElem::kBf16:
        static_cast<uint16_t*>(data)[i] = formats::ToBf16(value);
        return;
      case StateElem::kBf16Sr:
        static_cast<uint16_t*>(data)[i] = formats::StochasticBf16(value, word);
        return;
      case StateElem::kF16:
        static_cast<uint16_t*>(data)[i] = formats::EncodeF16(value * new_scale);
        return;
      case StateElem::kE4M3:
        static_cast<uint8_t*>(data)[i] = formats::EncodeE4M3(value * new_scale);
    }
  }
};

struct RoundedAdamWTask {
  float gradient_scale, beta1, rest1, beta2, rest2;
  float rate, root_scale, epsilon, kept;
  int64_t size;
  const float* gradient;
  StoredMoment m, v;
  float* parameter;
  uint32_t* maxima;  // of m, v and the parameter, as bits; zero before
  uint64_t seed;     // of stochastic rounding, with step and stream as AdamWParams says
  uint32_t step, stream;

  __device__ void Moments(int64_t i, float* next_m, float* next_v) const {
    const float g = gradient[i] * gradient_scale;
    *next_m = beta1 * m.Load(i) + rest1 * g;
    *next_v = beta2 * v.Load(i) + rest2 * (g * g);
  }
  // Of element i of m, v (roles 0, 1) or the parameter (2).
  __device__ uint32_t Word(StateElem elem, uint32_t role, int64_t i) const {
    if (elem != StateElem::kBf16Sr) return 0;
    return formats::RandomWord(seed, step, stream + role, static_cast<uint64_t>(i));
  }
};

__device__ inline uint32_t MagnitudeBits(float x) {
  return formats::FloatBits(x) & formats::kMagnitudeBits;
}

__global__ void RoundedAdamWUpdateKernel(RoundedAdamWTask t) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  uint32_t maxima[3] = {0, 0, 0};
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < t.size;
       i += stride) {
    float m, v;
    t.Moments(i, &m, &v);
    const float root = sqrtf(v) * t.root_scale + t.epsilon;
    const float p = t.parameter[i] * t.kept - t.rate * (m / root);
    t.parameter[i] = p;
    const uint32_t bits[3] = {MagnitudeBits(m), MagnitudeBits(v), MagnitudeBits(p)};
    for (int k = 0; k < 3; ++k) maxima[k] = bits[k] > maxima[k] ? bits[k] : maxima[k];
  }
  for (int k = 0; k < 3; ++k) {
    const uint32_t largest = BlockMax(maxima[k]);
    if (threadIdx.x == 0) atomicMax(&t.maxima[k], largest);
  }
}

// A parameter that is not finite stays unrounded: `round_parameter` false.
__global__ void RoundedAdamWStoreKernel(RoundedAdamWTask t, StateScales scales, StateElem master,
                                        bool round_parameter) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < t.size;
       i += stride) {
    float m, v;
    t.Moments(i, &m, &v);
    t.m.Store(i, m, scales.m, t.Word(t.m.elem, 0, i));
    t.v.Store(i, v, scales.v, t.Word(t.v.elem, 1, i));
    if (!round_parameter) continue;
    t.parameter[i] = RoundedWeight(master, t.parameter[i], scales.master, t.Word(master, 2, i));
  }
}

template <typename In>
__global__ void AbsMaxKernel(const In* x, int64_t n, uint32_t* bits) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  uint32_t mine = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const uint32_t other = MagnitudeBits(Get(x, i));
    mine = other > mine ? other : mine;
  }
  const uint32_t largest = BlockMax(mine);
  if (threadIdx.x == 0) atomicMax(bits, largest);
}

struct RoundToE4M3Op {
  float scale;
  float* x;
  __device__ void operator()(int64_t i) const { x[i] = formats::RoundE4M3(x[i] * scale); }
};

}  // namespace nibble::cuda
