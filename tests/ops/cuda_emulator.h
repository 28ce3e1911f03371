// SPDX-License-Identifier: Apache-2.0
//
// Runs CUDA kernels on the CPU, thread by thread, to test their arithmetic and layouts without a
// GPU.
//
// Purpose: kernels that include nothing of CUDA (kernels/cuda/*.cuh) compile here as plain C++.
// Each thread of a block is a fiber; fibers change only at barriers and warp operations, so a block
// runs in a fixed order, forwards or backwards: results that differ show a missing barrier. Blocks
// run one after another. What it cannot show: speed, memory coalescing, races between blocks, the
// rounding of tensor cores. Include before the kernels. Thread-safety: one launch at a time.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/formats/bf16.h"

#define __global__ inline
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

namespace nibble::cuda {

struct EmulatedDim {
  unsigned x = 1, y = 1, z = 1;
};

enum class FiberOrder { kForwards, kBackwards };

class Emulator {
 public:
  static Emulator& Get() {
    static Emulator emulator;
    return emulator;
  }

  // Runs `kernel` once per thread of the grid, `shared_bytes` of dynamic shared memory each block.
  void Launch(EmulatedDim grid, unsigned threads, size_t shared_bytes, FiberOrder order,
              const std::function<void()>& kernel) {
    kernel_ = &kernel;
    grid_ = grid;
    threads_ = threads;
    order_ = order;
    shared_.assign(shared_bytes / 16 + 1, Chunk{});
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) RunBlock({x, y, z});
      }
    }
  }

  void BlockBarrier() { Wait(block_, threads_); }

  // Every lane of the warp gives a value and gets those of all 32.
  template <typename T>
  std::vector<T> Exchange(const T& value) {
    Warp& warp = warps_[current_ / 32];
    const unsigned lanes = threads_ < 32 ? threads_ : 32;
    warp.slots[current_ % 32].assign(reinterpret_cast<const uint8_t*>(&value),
                                     reinterpret_cast<const uint8_t*>(&value) + sizeof(T));
    Wait(warp.barrier, lanes);
    std::vector<T> all(32);
    for (unsigned lane = 0; lane < lanes; ++lane) {
      std::memcpy(&all[lane], warp.slots[lane].data(), sizeof(T));
    }
    Wait(warp.barrier, lanes);
    return all;
  }

  // Asynchronous copies of the running thread.
  struct Copy {
    void* shared;
    uint8_t bytes[16];
  };
  std::vector<Copy>& copies() { return fibers_[current_].copies.open; }
  void Commit() {
    Copies& copies = fibers_[current_].copies;
    copies.groups.push_back(std::move(copies.open));
    copies.open.clear();
  }
  void Land(size_t pending) {
    std::vector<std::vector<Copy>>& groups = fibers_[current_].copies.groups;
    while (groups.size() > pending) {
      for (const Copy& copy : groups.front()) std::memcpy(copy.shared, copy.bytes, 16);
      groups.erase(groups.begin());
    }
  }

  unsigned thread() const { return current_; }
  unsigned threads() const { return threads_; }
  EmulatedDim block() const { return place_; }
  EmulatedDim grid() const { return grid_; }
  void* shared() { return shared_.data(); }

 private:
  static constexpr size_t kStackBytes = 128 << 10;
  struct alignas(16) Chunk {
    uint8_t bytes[16];
  };
  struct Barrier {
    unsigned arrived = 0;
    uint64_t generation = 0;
  };
  struct Warp {
    Barrier barrier;
    std::vector<uint8_t> slots[32];
  };
  struct Copies {
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
  };
  struct Fiber {
    Copies copies;
    ucontext_t context;  // to begin; later switches need no system call
    jmp_buf resume;
    std::unique_ptr<uint8_t[]> stack;
    bool begun = false;
    bool done = false;
  };

  void Wait(Barrier& barrier, unsigned expected) {
    progress_ = true;
    const uint64_t generation = barrier.generation;
    if (++barrier.arrived == expected) {
      barrier.arrived = 0;
      ++barrier.generation;
      return;
    }
    while (barrier.generation == generation) {
      if (_setjmp(fibers_[current_].resume) == 0) _longjmp(scheduler_, 1);
    }
    progress_ = true;
  }

  static void Entry() {
    Emulator& emulator = Get();
    (*emulator.kernel_)();
    emulator.fibers_[emulator.current_].done = true;
    emulator.progress_ = true;
    _longjmp(emulator.scheduler_, 1);
  }

  // Returns when the fiber waits or ends.
  void Resume(Fiber& fiber) {
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.begun) _longjmp(fiber.resume, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
  }

  void RunBlock(EmulatedDim place) {
    place_ = place;
    block_ = Barrier();
    warps_.assign((threads_ + 31) / 32, Warp());
    fibers_.resize(threads_);
    for (Fiber& fiber : fibers_) {
      if (fiber.stack == nullptr) fiber.stack = std::make_unique<uint8_t[]>(kStackBytes);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      fiber.copies = Copies();
      fiber.begun = fiber.done = false;
      makecontext(&fiber.context, &Emulator::Entry, 0);
    }
    bool live = true;
    while (live) {
      live = false;
      progress_ = false;
      for (unsigned i = 0; i < threads_; ++i) {
        current_ = order_ == FiberOrder::kForwards ? i : threads_ - 1 - i;
        if (fibers_[current_].done) continue;
        live = true;
        Resume(fibers_[current_]);
      }
      // All wait and nobody moved: a barrier that not every thread reaches.
      if (live && !progress_) std::abort();
    }
  }

  const std::function<void()>* kernel_ = nullptr;
  EmulatedDim grid_, place_;
  unsigned threads_ = 0, current_ = 0;
  FiberOrder order_ = FiberOrder::kForwards;
  bool progress_ = false;
  jmp_buf scheduler_;
  Barrier block_;
  std::vector<Warp> warps_;
  std::vector<Fiber> fibers_;
  std::vector<Chunk> shared_;
};

// --- What CUDA C++ gives a kernel
// -----------------------------------------------------------------

struct EmulatedIndex {
  EmulatedDim (*get)();
  struct Axis {
    EmulatedDim (*get)();
    unsigned EmulatedDim::*member;
    operator unsigned() const { return get().*member; }
  };
  Axis x{get, &EmulatedDim::x}, y{get, &EmulatedDim::y}, z{get, &EmulatedDim::z};
};
inline const EmulatedIndex threadIdx{[] { return EmulatedDim{Emulator::Get().thread(), 0, 0}; }};
inline const EmulatedIndex blockDim{[] { return EmulatedDim{Emulator::Get().threads(), 1, 1}; }};
inline const EmulatedIndex blockIdx{[] { return Emulator::Get().block(); }};
inline const EmulatedIndex gridDim{[] { return Emulator::Get().grid(); }};

inline void __syncthreads() { Emulator::Get().BlockBarrier(); }
inline void __syncwarp() { Emulator::Get().Exchange(0); }

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
template <typename T>
T atomicExch(T* at, T value) {
  const T old = *at;
  *at = value;
  return old;
}
template <typename T>
T atomicMax(T* at, T value) {
  const T old = *at;
  *at = old > value ? old : value;
  return old;
}
template <typename T>
T atomicMin(T* at, T value) {
  const T old = *at;
  *at = old < value ? old : value;
  return old;
}
template <typename T>
T atomicAdd(T* at, T value) {
  const T old = *at;
  *at = old + value;
  return old;
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
  Emulator::Get().copies().push_back({shared, {}});
  if (live) std::memcpy(Emulator::Get().copies().back().bytes, global, 16);
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
