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
  next_chunk_.store(0);
  open_.store(true);
  {
    MutexLock lock(mutex_);
    generation_.fetch_add(1);
  }
  wake_.NotifyAll();
  TakeChunks(0);
  open_.store(false);
  int spins = 0;
  while (working_.load() != 0) {
    if (++spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::TakeChunks(int worker) {
  while (true) {
    const int64_t chunk = next_chunk_.fetch_add(1);
    if (chunk >= chunks_) return;
    body_(context_, chunk, worker);
  }
}

void ThreadPool::WorkerLoop(int worker) {
  uint64_t seen = 0;
  while (true) {
    for (int spins = 0; spins < kSpins; ++spins) {
      if (generation_.load() != seen || stop_.load()) break;
      Pause();
    }
    if (generation_.load() == seen) {
      MutexLock lock(mutex_);
      while (!stop_.load() && generation_.load() == seen) wake_.Wait(mutex_);
    }
    if (stop_.load()) return;
    seen = generation_.load();
    working_.fetch_add(1);
    if (open_.load()) TakeChunks(worker);
    working_.fetch_sub(1);
  }
}

}  // namespace nibble::cpu
