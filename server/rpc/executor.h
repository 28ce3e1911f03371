// SPDX-License-Identifier: Apache-2.0
//
// Executor: a few threads for work that reads files, so that neither the scheduler's thread nor
// gRPC's wait for a disk.
//
// Thread-safety: thread-safe. Invariant: accepted work runs, also during destruction.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"

namespace nibble::rpc {

inline constexpr size_t kMaxQueuedReads = 4096;

class Executor {
 public:
  explicit Executor(int threads) : queue_(kMaxQueuedReads) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this] {
        while (auto work = queue_.Pop()) (*work)();
      });
    }
  }
  ~Executor() {
    queue_.Close();
    for (std::thread& thread : threads_) thread.join();
  }
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // False when the queue is full; the work is then dropped.
  bool Run(std::function<void()> work) { return queue_.TryPush(std::move(work)); }

 private:
  BoundedQueue<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace nibble::rpc
