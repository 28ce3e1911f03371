// SPDX-License-Identifier: Apache-2.0
//
// Runs CUDA kernels on the CPU, thread by thread, to test their arithmetic and layouts without a
// GPU.
//
// Purpose: kernels that include nothing of CUDA (kernels/cuda/*.cuh) compile here as plain C++.
// Each thread of a block is a fiber; fibers change only at barriers and warp operations, so a block
// runs in a fixed order, forwards or backwards: results that differ show a missing barrier. Blocks
// run one after another, forwards or backwards, too; a block that waits for one that has not run
// aborts. Every access is judged (cuda_access_check.h): races, also between blocks, memory that was
// not set, places outside an allocation fail the test. What it cannot show: speed, memory
// coalescing, the rounding of tensor cores. Include before the kernels. Thread-safety: one launch
// at a time.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "kernels/formats/bf16.h"
#include "tests/ops/cuda_fibers.h"

#define __global__ inline
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

namespace nibble::cuda {

// --- What CUDA C++ gives a kernel
// -----------------------------------------------------------------

struct EmulatedIndex {
  EmulatedDim (*get)();
  struct Axis {
    EmulatedDim (*get)();
    unsigned EmulatedDim::*member;
    NIBBLE_UNWATCHED operator unsigned() const { return get().*member; }
  };
  Axis x{get, &EmulatedDim::x}, y{get, &EmulatedDim::y}, z{get, &EmulatedDim::z};
};
inline constexpr EmulatedIndex threadIdx{[] {
  return EmulatedDim{Emulator::Get().thread(), 0, 0};
}};
inline constexpr EmulatedIndex blockDim{[] {
  return EmulatedDim{Emulator::Get().threads(), 1, 1};
}};
inline constexpr EmulatedIndex blockIdx{[] { return Emulator::Get().block(); }};
inline constexpr EmulatedIndex gridDim{[] { return Emulator::Get().grid(); }};

inline void __syncthreads() { Emulator::Get().BlockBarrier(); }
inline void __syncwarp() { Emulator::Get().WarpBarrier(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return Emulator::Get().Exchange(value)[(Emulator::Get().thread() % 32) ^ mask];
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const unsigned lane = Emulator::Get().thread() % 32;
  const auto all = Emulator::Get().Exchange(value);
  return all[lane + delta < 32 ? lane + delta : lane];
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  const auto all = Emulator::Get().Exchange(static_cast<unsigned>(predicate));
  unsigned mask = 0;
  for (unsigned lane = 0; lane < 32; ++lane) mask |= all[lane] << lane;
  return mask;
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  unsigned largest = 0;
  for (const unsigned other : Emulator::Get().Exchange(value)) {
    largest = other > largest ? other : largest;
  }
  return largest;
}
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  unsigned sum = 0;
  for (const unsigned other : Emulator::Get().Exchange(value)) sum += other;
  return sum;
}
// Four of the eight bytes of y:x, chosen by the low three bits of each nibble of `selector`.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t chosen = selector >> 4 * i & 7u;
    out |= static_cast<uint32_t>(bytes >> 8 * chosen & 0xFFu) << 8 * i;
  }
  return out;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <typename T, typename Next>
T Atomically(T* at, Next next) {
  const Unwatched own;
  AccessCheck::Record(at, sizeof(T), AccessCheck::Kind::kAtomic);
  const T old = *at;
  *at = next(old);
  return old;
}
template <typename T>
T atomicExch(T* at, T value) {
  return Atomically(at, [value](T) { return static_cast<T>(value); });
}
template <typename T>
T atomicMax(T* at, T value) {
  return Atomically(at, [value](T old) { return static_cast<T>(old > value ? old : value); });
}
template <typename T>
T atomicMin(T* at, T value) {
  return Atomically(at, [value](T old) { return static_cast<T>(old < value ? old : value); });
}
template <typename T>
T atomicAdd(T* at, T value) {
  return Atomically(at, [value](T old) { return static_cast<T>(old + value); });
}
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// --- The functions of kernels/cuda/mma.cuh
// ---------------------------------------------------------

inline float Bf16Half(uint32_t pair, int half) {
  return formats::FromBf16(static_cast<uint16_t>(pair >> (16 * half)));
}
struct EmulatedFragments {
  uint32_t a[4], b[2];
};
// The products of a lane's four sums, in ascending k.
inline void MmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto all = Emulator::Get().Exchange(EmulatedFragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int lane = static_cast<int>(Emulator::Get().thread() % 32);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int col = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const EmulatedFragments& left = all[static_cast<size_t>(row % 8 * 4 + k % 8 / 2)];
      const EmulatedFragments& right = all[static_cast<size_t>(col * 4 + k % 8 / 2)];
      c[i] += Bf16Half(left.a[row / 8 + k / 8 * 2], k % 2) * Bf16Half(right.b[k / 8], k % 2);
    }
  }
}
inline void LoadEmulatedMatrices(uint32_t (&r)[4], const uint16_t* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) std::abort();  // as a GPU would
  const auto rows = Emulator::Get().Exchange(row);
  const size_t lane = Emulator::Get().thread() % 32;
  for (size_t m = 0; m < 4; ++m) {
    uint32_t half[2];
    for (size_t i = 0; i < 2; ++i) {
      const size_t at = lane % 4 * 2 + i;
      half[i] = transposed ? rows[m * 8 + at][lane / 4] : rows[m * 8 + lane / 4][at];
    }
    r[m] = half[0] | half[1] << 16;
  }
}
inline void LoadMatrices(uint32_t (&r)[4], const uint16_t* row) {
  LoadEmulatedMatrices(r, row, false);
}
inline void LoadMatricesTransposed(uint32_t (&r)[4], const uint16_t* row) {
  LoadEmulatedMatrices(r, row, true);
}

// Copies land when they are waited for, so that a missing wait is seen.
inline void CopyAsync16(void* shared, const void* global, bool live) {
  const Unwatched own;
  Emulator::Copy copy{shared, {}};
  if (live) {
    AccessCheck::Record(global, 16, AccessCheck::Kind::kRead);
    std::memcpy(copy.bytes, global, 16);
  }
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    std::abort();  // as a GPU would
  }
  Emulator::Get().Begin(copy);
}
inline void CommitCopies() { Emulator::Get().Commit(); }
template <int kPending>
void WaitCopies() {
  Emulator::Get().Land(kPending);
}
inline uint32_t PackBf16(float low, float high) {
  return static_cast<uint32_t>(formats::ToBf16(low)) | static_cast<uint32_t>(formats::ToBf16(high))
                                                           << 16;
}
inline float Exp2(float x) { return std::exp2(x); }
inline void* SharedMemory() { return Emulator::Get().shared(); }

}  // namespace nibble::cuda
