// SPDX-License-Identifier: Apache-2.0
//
// What the quantizers read: rows in FP32, rounded to BF16 on the way, or rows that an earlier
// kernel has left as BF16. Both are the same values.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/cuda/four.cuh"
#include "kernels/formats/bf16.h"
#include "kernels/tensor.h"

namespace nibble::cuda {

// Four neighbours as BF16.
using Four = Pack<uint16_t, 4>;
using FourFloats = Pack<float, 4>;

struct F32Values {
  const float* x;
  __device__ uint16_t Bits(int64_t i) const { return formats::ToBf16(x[i]); }
  __device__ float At(int64_t i) const { return formats::RoundBf16(x[i]); }
  // i is a multiple of four.
  __device__ Four Together(int64_t i) const {
    const FourFloats four = *reinterpret_cast<const FourFloats*>(x + i);
    return {{formats::ToBf16(four.x[0]), formats::ToBf16(four.x[1]), formats::ToBf16(four.x[2]),
             formats::ToBf16(four.x[3])}};
  }
};

struct Bf16Values {
  const uint16_t* x;
  __device__ uint16_t Bits(int64_t i) const { return x[i]; }
  __device__ float At(int64_t i) const { return formats::FromBf16(x[i]); }
  __device__ Four Together(int64_t i) const { return *reinterpret_cast<const Four*>(x + i); }
};

// Stores what a kernel forms, as FP32 or as the BF16 that a quantizer would make of it.
__device__ inline void Put(float* out, int64_t i, float value) { out[i] = value; }
__device__ inline void Put(uint16_t* out, int64_t i, float value) {
  out[i] = formats::ToBf16(value);
}

// On the host: calls `use` with the values of a view, FP32 or BF16.
template <typename Use>
auto WithValues(const ConstTensorView& x, Use use) {
  if (x.dtype == DType::kBF16) return use(Bf16Values{static_cast<const uint16_t*>(x.data)});
  return use(F32Values{x.f32()});
}

// On the host: calls `use` with what Put stores to.
template <typename Use>
auto WithOut(const TensorView& out, Use use) {
  if (out.dtype == DType::kBF16) return use(static_cast<uint16_t*>(out.data));
  return use(out.f32());
}

}  // namespace nibble::cuda
