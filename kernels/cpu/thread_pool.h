// SPDX-License-Identifier: Apache-2.0
//
// ThreadPool: runs numbered chunks of one loop on a fixed set of threads.
//
// Purpose: the CPU backend's only source of parallelism. The caller fixes the chunks: from the
// shape alone wherever a chunk's bounds enter a result, so that no thread count can change one.
// Thread-safety: Run is for one caller thread at a time and does not nest. Ownership: owns its
// threads; the destructor joins them. Run allocates nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/mutex.h"

namespace nibble::cpu {

class ThreadPool {
 public:
  // `threads` counts the caller: 1 starts none. Precondition: threads >= 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(chunk, worker) once for each chunk in [0, chunks), worker in [0, threads()), and
  // returns when all are done. `body` must not throw.
  template <typename Body>
  void Run(int64_t chunks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    RunErased(chunks, const_cast<void*>(static_cast<const void*>(&body)),
              [](void* context, int64_t chunk, int worker) {
                (*static_cast<Plain*>(context))(chunk, worker);
              });
  }

  // Run over [0, count) in pieces of `grain`: body(first, last, worker).
  template <typename Body>
  void RunRanges(int64_t count, int64_t grain, Body&& body) {
    if (count <= 0) return;
    Run((count + grain - 1) / grain, [&](int64_t chunk, int worker) {
      const int64_t first = chunk * grain;
      const int64_t last = first + grain < count ? first + grain : count;
      body(first, last, worker);
    });
  }

 private:
  using Erased = void (*)(void* context, int64_t chunk, int worker);
  void RunErased(int64_t chunks, void* context, Erased body);
  void WorkerLoop(int worker);
  void TakeChunks(int worker);

  std::vector<std::thread> workers_;

  // Written by Run while closed; read by workers that announced themselves and found it open.
  Erased body_ = nullptr;
  void* context_ = nullptr;
  int64_t chunks_ = 0;

  std::atomic<int64_t> next_chunk_{0};
  // A worker raises working_ before it looks at open_; Run closes before it waits for working_ to
  // reach 0. So Run never waits for a worker that is still asleep, and none enters late.
  std::atomic<bool> open_{false};
  std::atomic<int> working_{0};
  std::atomic<uint64_t> generation_{0};  // of calls to Run: there is something to look at
  std::atomic<bool> stop_{false};
  // Sleep of idle workers only; the hand-over itself is the atomics above.
  Mutex mutex_;
  CondVar wake_;
};

}  // namespace nibble::cpu
