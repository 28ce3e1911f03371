// SPDX-License-Identifier: Apache-2.0
//
// Mutex, MutexLock and CondVar: std::mutex under Clang's thread-safety annotations.
//
// std::mutex and not absl::Mutex, because ThreadSanitizer sees into the former only.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define NIBBLE_THREAD_ANNOTATION_(x) __attribute__((x))
#else
#define NIBBLE_THREAD_ANNOTATION_(x)
#endif
#ifndef GUARDED_BY  // Debian's Abseil defines the same, when its headers come first
#define GUARDED_BY(x) NIBBLE_THREAD_ANNOTATION_(guarded_by(x))
#endif
#define EXCLUDES(...) NIBBLE_THREAD_ANNOTATION_(locks_excluded(__VA_ARGS__))
#define REQUIRES(...) NIBBLE_THREAD_ANNOTATION_(exclusive_locks_required(__VA_ARGS__))

namespace nibble {

class NIBBLE_THREAD_ANNOTATION_(capability("mutex")) Mutex {
 public:
  void Lock() NIBBLE_THREAD_ANNOTATION_(acquire_capability()) { mutex_.lock(); }
  void Unlock() NIBBLE_THREAD_ANNOTATION_(release_capability()) { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class NIBBLE_THREAD_ANNOTATION_(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) NIBBLE_THREAD_ANNOTATION_(acquire_capability(mutex))
      : mutex_(mutex) {
    mutex_.Lock();
  }
  ~MutexLock() NIBBLE_THREAD_ANNOTATION_(release_capability()) { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

class CondVar {
 public:
  // Precondition for both waits: the calling thread holds `mutex`. Spurious wake-ups happen.
  void Wait(Mutex& mutex) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    variable_.wait(lock);
    lock.release();
  }
  // False when the time ran out first.
  bool WaitFor(Mutex& mutex, std::chrono::milliseconds timeout) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const bool signalled = variable_.wait_for(lock, timeout) == std::cv_status::no_timeout;
    lock.release();
    return signalled;
  }
  void NotifyOne() { variable_.notify_one(); }
  void NotifyAll() { variable_.notify_all(); }

 private:
  std::condition_variable variable_;
};

}  // namespace nibble
