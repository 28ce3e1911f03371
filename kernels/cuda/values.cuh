// SPDX-License-Identifier: Apache-2.0
//
// Numbers that rest as FP32 or as BF16. What the quantizers read: rows in FP32, rounded to BF16 on
// the way, or rows that an earlier kernel has left as BF16. Both are the same values.
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

// Loads a number that rests as FP32 or as BF16.
__device__ inline float Get(const float* x, int64_t i) { return x[i]; }
__device__ inline float Get(const uint16_t* x, int64_t i) { return formats::FromBf16(x[i]); }

// n neighbours of them; i is a multiple of n.
template <int n>
__device__ inline Pack<float, n> GetPack(const float* x, int64_t i) {
  return *reinterpret_cast<const Pack<float, n>*>(x + i);
}
template <int n>
__device__ inline Pack<float, n> GetPack(const uint16_t* x, int64_t i) {
  const auto bits = *reinterpret_cast<const Pack<uint16_t, n>*>(x + i);
  Pack<float, n> pack;
#pragma unroll
  for (int k = 0; k < n; ++k) pack.x[k] = formats::FromBf16(bits.x[k]);
  return pack;
}

// Stores what a kernel forms, as FP32 or as the BF16 that a quantizer would make of it.
__device__ inline void Put(float* out, int64_t i, float value) { out[i] = value; }
__device__ inline void Put(uint16_t* out, int64_t i, float value) {
  out[i] = formats::ToBf16(value);
}
template <int n>
__device__ inline void PutPack(float* out, int64_t i, const Pack<float, n>& pack) {
  *reinterpret_cast<Pack<float, n>*>(out + i) = pack;
}
template <int n>
__device__ inline void PutPack(uint16_t* out, int64_t i, const Pack<float, n>& pack) {
  Pack<uint16_t, n> bits;
#pragma unroll
  for (int k = 0; k < n; ++k) bits.x[k] = formats::ToBf16(pack.x[k]);
  *reinterpret_cast<Pack<uint16_t, n>*>(out + i) = bits;
}

// On the host: the type to expect of a view that may be FP32 or BF16.
inline DType FloatType(const ConstTensorView& x) {
  return x.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

// On the host: calls `use` with the values of a view, FP32 or BF16.
template <typename Use>
auto WithValues(const ConstTensorView& x, Use use) {
  if (x.dtype == DType::kBF16) return use(Bf16Values{static_cast<const uint16_t*>(x.data)});
  return use(F32Values{x.f32()});
}

// On the host: calls `use` with what Get loads from.
template <typename Use>
auto WithIn(const ConstTensorView& x, Use use) {
  if (x.dtype == DType::kBF16) return use(static_cast<const uint16_t*>(x.data));
  return use(x.f32());
}

// On the host: calls `use` with what Put stores to.
template <typename Use>
auto WithOut(const TensorView& out, Use use) {
  if (out.dtype == DType::kBF16) return use(static_cast<uint16_t*>(out.data));
  return use(out.f32());
}

}  // namespace nibble::cuda
