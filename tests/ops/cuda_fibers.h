// SPDX-License-Identifier: Apache-2.0
//
// Emulator: threads of a block as fibers of one thread of the host, which change at barriers and
// warp operations alone. What a kernel sees of it is cuda_emulator.h. Thread-safety: one launch at
// a time.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "tests/ops/cuda_access_check.h"

// The emulator's own state, read while a kernel runs.
#define NIBBLE_UNWATCHED __attribute__((no_sanitize_thread))

namespace nibble::cuda {

struct EmulatedDim {
  unsigned x = 1, y = 1, z = 1;
};

enum class FiberOrder { kForwards, kBackwards };

class Emulator {
 public:
  NIBBLE_UNWATCHED static Emulator& Get() { return instance_; }

  // Turns of a block's threads after which it waits for what never comes.
  int64_t most_turns = int64_t{1} << 22;

  // Runs `kernel` once per thread of the grid, `shared_bytes` of dynamic shared memory each block.
  void Launch(EmulatedDim grid, unsigned threads, size_t shared_bytes, FiberOrder order,
              const std::function<void()>& kernel) {
    kernel_ = &kernel;
    grid_ = grid;
    threads_ = threads;
    order_ = order;
    shared_ = std::vector<Chunk>((shared_bytes + 15) / 16);
    while (fibers_.size() < threads) fibers_.emplace_back();
    AccessCheck::BeginLaunch();
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; ++i) {
      const uint64_t block = order == FiberOrder::kForwards ? i : blocks - 1 - i;
      AccessCheck::BeginBlock(shared_.data(), shared_bytes);
      RunBlock({static_cast<unsigned>(block % grid.x),
                static_cast<unsigned>(block / grid.x % grid.y),
                static_cast<unsigned>(block / grid.x / grid.y)});
    }
    AccessCheck::EndLaunch();
  }

  void BlockBarrier() {
    const Unwatched own;
    Wait(block_, threads_, [] { AccessCheck::BlockBarrier(); });
  }
  void WarpBarrier() {
    const Unwatched own;
    Wait(warps_[current_ / 32].barrier, lanes(), [] { AccessCheck::WarpBarrier(); });
  }

  // Every lane of the warp gives a value and gets those of all 32.
  template <typename T>
  std::array<T, 32> Exchange(const T& value) {
    const Unwatched own;
    Warp& warp = warps_[current_ / 32];
    static_assert(sizeof(T) <= sizeof(warp.slots[0]));
    std::memcpy(warp.slots[current_ % 32], &value, sizeof(T));
    Wait(warp.barrier, lanes(), [] {});
    std::array<T, 32> all{};
    for (unsigned lane = 0; lane < lanes(); ++lane) {
      std::memcpy(&all[lane], warp.slots[lane], sizeof(T));
    }
    Wait(warp.barrier, lanes(), [] {});
    return all;
  }

  // Asynchronous copies of the running thread.
  struct Copy {
    void* shared;
    uint8_t bytes[16];
  };
  void Begin(const Copy& copy) {
    const Unwatched own;
    fibers_[current_].copies.open.push_back(copy);
    AccessCheck::Record(copy.shared, 16, AccessCheck::Kind::kWrite);
  }
  void Commit() {
    const Unwatched own;
    Copies& copies = fibers_[current_].copies;
    copies.groups.push_back(std::move(copies.open));
    copies.open.clear();
  }
  void Land(size_t pending) {
    const Unwatched own;
    std::vector<std::vector<Copy>>& groups = fibers_[current_].copies.groups;
    while (groups.size() > pending) {
      for (const Copy& copy : groups.front()) {
        std::memcpy(copy.shared, copy.bytes, 16);
        AccessCheck::Record(copy.shared, 16, AccessCheck::Kind::kWrite);
      }
      groups.erase(groups.begin());
    }
  }

  NIBBLE_UNWATCHED unsigned thread() const { return current_; }
  NIBBLE_UNWATCHED unsigned threads() const { return threads_; }
  NIBBLE_UNWATCHED EmulatedDim block() const { return place_; }
  NIBBLE_UNWATCHED EmulatedDim grid() const { return grid_; }
  void* shared() {
    const Unwatched own;
    return shared_.data();
  }

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
    uint8_t slots[32][32];
  };
  struct Copies {
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
  };
  struct Fiber {
    Copies copies;
    ucontext_t context;  // to begin; later switches need no system call
    jmp_buf resume;
    std::unique_ptr<uint8_t[]> stack = std::make_unique_for_overwrite<uint8_t[]>(kStackBytes);
    bool begun = false;
    bool done = false;
  };

  unsigned lanes() const { return threads_ < 32 ? threads_ : 32; }

  // The last one to arrive calls `complete`. Unwatched before and after.
  template <typename Complete>
  void Wait(Barrier& barrier, unsigned expected, Complete complete) {
    progress_ = true;
    const uint64_t generation = barrier.generation;
    if (++barrier.arrived == expected) {
      barrier.arrived = 0;
      ++barrier.generation;
      complete();
      return;
    }
    while (barrier.generation == generation) {
      if (_setjmp(fibers_[current_].resume) == 0) _longjmp(scheduler_, 1);
      AccessCheck::Watch(false);
    }
    progress_ = true;
  }

  static void Entry() {
    Emulator& emulator = Get();
    const std::function<void()>& kernel = *emulator.kernel_;
    AccessCheck::Watch(true);
    kernel();
    AccessCheck::Watch(false);
    emulator.fibers_[emulator.current_].done = true;
    emulator.progress_ = true;
    _longjmp(emulator.scheduler_, 1);
  }

  // Returns when the fiber waits or ends.
  void Resume(Fiber& fiber) {
    AccessCheck::Resume(current_, fiber.stack.get(), kStackBytes);
    if (_setjmp(scheduler_) != 0) {
      AccessCheck::Watch(false);
      return;
    }
    if (fiber.begun) _longjmp(fiber.resume, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
  }

  static void Prepare(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    fiber.copies = Copies();
    fiber.begun = fiber.done = false;
    makecontext(&fiber.context, &Emulator::Entry, 0);
  }

  void RunBlock(EmulatedDim place) {
    place_ = place;
    block_ = Barrier();
    warps_.assign((threads_ + 31) / 32, Warp());
    for (unsigned i = 0; i < threads_; ++i) Prepare(fibers_[i]);
    bool live = true;
    for (int64_t turn = 0; live; ++turn) {
      live = false;
      progress_ = false;
      for (unsigned i = 0; i < threads_; ++i) {
        current_ = order_ == FiberOrder::kForwards ? i : threads_ - 1 - i;
        if (fibers_[current_].done) continue;
        live = true;
        Resume(fibers_[current_]);
      }
      // All wait and nobody moved: a barrier that not every thread reaches. Or they go on for ever.
      if (live && (!progress_ || turn == most_turns)) std::abort();
    }
  }

  static Emulator instance_;
  const std::function<void()>* kernel_ = nullptr;
  EmulatedDim grid_, place_;
  unsigned threads_ = 0, current_ = 0;
  FiberOrder order_ = FiberOrder::kForwards;
  bool progress_ = false;
  jmp_buf scheduler_;
  Barrier block_;
  std::vector<Warp> warps_;
  std::deque<Fiber> fibers_;  // which stay where they are
  std::vector<Chunk> shared_;
};
inline Emulator Emulator::instance_;

}  // namespace nibble::cuda
