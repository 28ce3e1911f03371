// SPDX-License-Identifier: Apache-2.0
//
// Neighbours in memory moved by one instruction.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace nibble::cuda {

// n neighbours, n a power of two; in memory at a multiple of their size.
template <typename T, int n>
struct alignas(sizeof(T) * n) Pack {
  T x[n];
};

// On the host: whether rows of `cols` floats in these places are whole fours.
inline bool InFours(int64_t cols, std::initializer_list<const void*> places) {
  uintptr_t bits = static_cast<uintptr_t>(cols % 4);
  for (const void* place : places) bits |= reinterpret_cast<uintptr_t>(place) % 16;
  return bits == 0;
}

// Four floats from `from`; with kWhole one load, otherwise those below `live`, zeros after.
template <bool kWhole>
__device__ inline Pack<float, 4> LoadSome(const float* from, int64_t live) {
  Pack<float, 4> pack;
  if constexpr (kWhole) {
    pack = *reinterpret_cast<const Pack<float, 4>*>(from);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) pack.x[k] = k < live ? from[k] : 0.0f;
  }
  return pack;
}

// All of `pack` in one store, or what lies below `live`.
template <bool kWhole, typename T, int n>
__device__ inline void StoreSome(const Pack<T, n>& pack, int64_t live, T* to) {
  if constexpr (kWhole) {
    *reinterpret_cast<Pack<T, n>*>(to) = pack;
  } else {
#pragma unroll
    for (int k = 0; k < n; ++k) {
      if (k < live) to[k] = pack.x[k];
    }
  }
}

}  // namespace nibble::cuda
