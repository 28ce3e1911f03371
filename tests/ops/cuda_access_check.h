// SPDX-License-Identifier: Apache-2.0
//
// AccessCheck: what emulated threads do to memory, judged as compute-sanitizer would on a GPU.
//
// Purpose: the emulator runs threads and blocks in one order and starts from zeros, a GPU does
// neither. The compiler calls a function before every load and store of the tests' kernels (GCC's
// -fsanitize=thread, without its library); this class keeps who touched each byte last and names
//   - two threads at one byte, one of them writing, without a barrier between them: in shared
//     memory, and in global memory of one block;
//   - two blocks at one byte, one of them writing, unless both are atomic or volatile;
//   - shared memory that is read before its block wrote it;
//   - addresses up to kRedZone beyond an allocation.
// A launch orders everything before it. Only barriers order threads: __syncthreads, and __syncwarp
// within a warp. Thread-safety: one launch at a time. Compiled by another compiler than GCC it sees
// what is atomic or asynchronous, and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::cuda {

class AccessCheck {
 public:
  // Volatile accesses count as atomic ones; kAtomic reads and writes.
  enum class Kind : uint8_t { kRead, kWrite, kAtomicRead, kAtomicWrite, kAtomic };
  static constexpr size_t kRedZone = 64;

  static void BeginLaunch();
  // Fails the running test with what was found since BeginLaunch.
  static void EndLaunch();
  static void BeginBlock(const void* shared, size_t shared_bytes);
  // From now on it is this thread that runs, on this stack, whose memory is its own.
  static void Resume(unsigned thread, const void* stack, size_t stack_bytes);
  static void BlockBarrier();
  static void WarpBarrier();
  // Whether accesses are those of a kernel; what it was.
  static bool Watch(bool on);
  static void Record(const void* at, size_t bytes, Kind kind);
};

// The emulator's own work within a kernel.
class Unwatched {
 public:
  Unwatched() : was_(AccessCheck::Watch(false)) {}
  ~Unwatched() { AccessCheck::Watch(was_); }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;

 private:
  bool was_;
};

}  // namespace nibble::cuda
