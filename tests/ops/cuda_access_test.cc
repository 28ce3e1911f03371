// SPDX-License-Identifier: Apache-2.0
//
// Kernels that would fail on a GPU fail under the emulator, each for its own reason.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <numeric>
#include <utility>

#include "kernels/cuda/four.cuh"

namespace nibble::cuda {
namespace {

constexpr unsigned kLaunched = 64;  // two warps

// Global memory. EXPECT_NONFATAL_FAILURE takes no local variables, and a kernel's static variables
// are shared memory.
struct Memory {
  std::vector<float> x, y;
  float* aligned = nullptr;
  uint32_t counter = 0;
};
NIBBLE_UNWATCHED Memory& Global() {
  static Memory* const memory = new Memory();
  return *memory;
}
float* X() { return Global().x.data(); }
float* Y() { return Global().y.data(); }

// `shift`: whose value a thread reads.
__global__ void ThroughSharedMemory(unsigned shift, void (*barrier)(), unsigned live = kLaunched) {
  __shared__ float held[kLaunched];
  const unsigned i = threadIdx.x;
  if (i < live) held[i] = X()[i];
  barrier();
  Y()[blockIdx.x * kLaunched + i] = held[(i + shift) % kLaunched];
}
__global__ void ThroughWarp(void (*barrier)()) {
  __shared__ float held[kLaunched];
  const unsigned i = threadIdx.x;
  held[i] = X()[i];
  barrier();
  Y()[i] = i % 32 == 0 ? 0.0f : held[i - 1];
}
__global__ void SwapInSharedMemory(void (*barrier)()) {
  __shared__ float held[kLaunched];
  const unsigned i = threadIdx.x;
  held[i] = X()[i];
  __syncthreads();
  const float other = held[kLaunched - 1 - i];
  barrier();
  held[i] = other;
}
__global__ void ThroughDynamicMemory(unsigned count) {
  auto* const held = static_cast<float*>(SharedMemory());
  if (threadIdx.x < count) held[threadIdx.x] = 1.0f;
}
// Threads of neighbouring blocks meet at one place.
__global__ void Shift(float* from, float* to, unsigned by) {
  const unsigned i = blockIdx.x * kLaunched + threadIdx.x;
  to[i] = from[i + by];
}
__global__ void Count(bool atomically) {
  if (threadIdx.x != 0) return;
  if (atomically) {
    atomicAdd(&Global().counter, 1u);
  } else {
    Y()[0] += 1.0f;
  }
}
__global__ void WaitForTheBlockBefore(volatile uint32_t* done) {
  while (blockIdx.x > 0 && done[blockIdx.x - 1] == 0) __syncthreads();
  if (threadIdx.x == 0) done[blockIdx.x] = 1;
}

class AccessCheckTest : public testing::Test {
 protected:
  void SetUp() override {
#if !defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "the compiler calls nothing before loads and stores";
#endif
    Global().x.assign(3 * kLaunched, 1.0f);
    Global().y.assign(2 * kLaunched, 0.0f);
    Global().counter = 0;
  }
  void TearDown() override { Emulator::Get().most_turns = most_turns_; }
  static void Run(const std::function<void()>& kernel, unsigned blocks = 2,
                  FiberOrder order = FiberOrder::kForwards) {
    Emulator::Get().Launch({blocks}, kLaunched, 16, order, kernel);
  }

 private:
  int64_t most_turns_ = Emulator::Get().most_turns;
};

void NoBarrier() {}

TEST_F(AccessCheckTest, ThreadsOfABlockAreOrderedByBarriers) {
  Run([] { ThroughSharedMemory(32, __syncthreads); });
  Run([] { ThroughSharedMemory(0, NoBarrier); });
  Run([] { SwapInSharedMemory(__syncthreads); });
  EXPECT_NONFATAL_FAILURE(Run([] { SwapInSharedMemory(NoBarrier); }), "since the last barrier");
  EXPECT_NONFATAL_FAILURE(Run([] { SwapInSharedMemory(__syncwarp); }), "since the last barrier");
}

TEST_F(AccessCheckTest, ThreadsOfAWarpAreOrderedByItsOwn) {
  Run([] { ThroughSharedMemory(0, __syncwarp); });
  EXPECT_NONFATAL_FAILURE(Run([] { ThroughSharedMemory(1, NoBarrier); }), "since the last barrier");
}

TEST_F(AccessCheckTest, SharedMemoryBeginsUnset) {
  EXPECT_NONFATAL_FAILURE(Run([] { ThroughSharedMemory(0, __syncthreads, 63); }),
                          "shared memory that its block has not set");
}

TEST_F(AccessCheckTest, BlocksAreOrderedByNothing) {
  Run([] { Shift(X(), Y(), 1); });
  EXPECT_NONFATAL_FAILURE(Run([] { Shift(X(), X(), kLaunched); }), "in the same launch");
  EXPECT_NONFATAL_FAILURE(Run([] { Count(false); }), "in the same launch");
  Run([] { Count(true); });
  EXPECT_EQ(Global().counter, 2u);
  std::vector<uint32_t> done(2, 0);
  Run([&] { WaitForTheBlockBefore(done.data()); });
}

TEST_F(AccessCheckTest, AllocationsEndWhereTheyEnd) {
  EXPECT_NONFATAL_FAILURE(Run([] { Shift(X(), Y() + kLaunched + 1, 0); }, 1), "ends there");
  EXPECT_NONFATAL_FAILURE(Run([] { Shift(X() - 3, Y(), 0); }, 1), "begins after it");
  // Of the CPU backend, too.
  Global().aligned = static_cast<float*>(std::aligned_alloc(64, kLaunched * 4));
  Run([] { Shift(X(), Global().aligned, 0); }, 1);
  EXPECT_NONFATAL_FAILURE(Run([] { Shift(X(), Global().aligned + 1, 0); }, 1), "ends there");
  std::free(Global().aligned);
  Run([] { ThroughDynamicMemory(4); });
  EXPECT_NONFATAL_FAILURE(Run([] { ThroughDynamicMemory(5); }), "ends there");
}

TEST_F(AccessCheckTest, AVectorAtAnOddPlaceEndsTheProgram) {
  const auto load = [](int64_t at) {
    Run([=] { StoreSome<true>(LoadSome<true>(X() + at, 4), 4, Y()); }, 1);
  };
  EXPECT_DEATH(load(1), "");
}

TEST_F(AccessCheckTest, ABlockThatWaitsForALaterOneEndsTheProgram) {
  Emulator::Get().most_turns = 1000;
  std::vector<uint32_t> done(2, 0);
  EXPECT_DEATH(Run([&] { WaitForTheBlockBefore(done.data()); }, 2, FiberOrder::kBackwards), "");
}

}  // namespace
}  // namespace nibble::cuda
