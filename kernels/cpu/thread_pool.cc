// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// Looks for work this often before sleeping: some 20 microseconds, the gap between two operations
// of a training step, and little enough not to hold a busy machine's core.
constexpr int kSpins = 4000;

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  workers_.reserve(static_cast<size_t>(threads - 1));
  for (int worker = 1; worker < threads; ++worker) {
    workers_.emplace_back([this, worker] { WorkerLoop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(mutex_);
    stop_.store(true);
  }
  wake_.NotifyAll();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunErased(int64_t chunks, void* context, Erased body) {
  if (chunks <= 0) return;
  if (workers_.empty() || chunks == 1) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) body(context, chunk, 0);
    return;
  }
  body_ = body;
  context_ = context;
  chunks_ = chunks;
  next_chunk_.store(0, std::memory_order_relaxed);
  working_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    MutexLock lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.NotifyAll();
  TakeChunks(0);
  int spins = 0;
  while (working_.load(std::memory_order_acquire) != 0) {
    if (++spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::TakeChunks(int worker) {
  while (true) {
    const int64_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= chunks_) return;
    body_(context_, chunk, worker);
  }
}

void ThreadPool::WorkerLoop(int worker) {
  uint64_t seen = 0;
  while (true) {
    for (int spins = 0; spins < kSpins; ++spins) {
      if (generation_.load(std::memory_order_acquire) != seen || stop_.load()) break;
      Pause();
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      MutexLock lock(mutex_);
      while (!stop_.load() && generation_.load() == seen) wake_.Wait(mutex_);
    }
    if (stop_.load()) return;
    seen = generation_.load(std::memory_order_acquire);
    TakeChunks(worker);
    working_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace nibble::cpu
