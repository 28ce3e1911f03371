// SPDX-License-Identifier: Apache-2.0
//
// BoundedQueue: a FIFO between threads with a fixed capacity. Thread-safe.
// State must not be lost: Push waits or TryPush refuses. Telemetry may be: PushDropOldest.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

#include "base/mutex.h"

namespace nibble {

template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // False when full or closed; the item is then untouched.
  bool TryPush(T&& item) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (closed_ || items_.size() >= capacity_) return false;
    items_.push_back(std::move(item));
    not_empty_.NotifyOne();
    return true;
  }

  // Waits for room; false when closed.
  bool Push(T item) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (!closed_ && items_.size() >= capacity_) not_full_.Wait(mutex_);
    if (closed_) return false;
    items_.push_back(std::move(item));
    not_empty_.NotifyOne();
    return true;
  }

  // Always takes the item; true when the oldest one was dropped for it.
  bool PushDropOldest(T item) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    const bool dropped = items_.size() >= capacity_;
    if (dropped) items_.pop_front();
    items_.push_back(std::move(item));
    not_empty_.NotifyOne();
    return dropped;
  }

  // Waits for an item; nullopt when closed and empty.
  std::optional<T> Pop() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (!closed_ && items_.empty()) not_empty_.Wait(mutex_);
    return TakeFront();
  }

  // Waits at most `timeout`; nullopt when nothing came.
  std::optional<T> PopFor(std::chrono::milliseconds timeout) EXCLUDES(mutex_) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    MutexLock lock(mutex_);
    while (!closed_ && items_.empty()) {
      const auto left = deadline - std::chrono::steady_clock::now();
      if (left <= std::chrono::steady_clock::duration::zero()) break;
      not_empty_.WaitFor(mutex_, std::chrono::ceil<std::chrono::milliseconds>(left));
    }
    return TakeFront();
  }

  // Wakes all waiters; what is queued can still be popped.
  void Close() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    closed_ = true;
    not_empty_.NotifyAll();
    not_full_.NotifyAll();
  }

  size_t size() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return items_.size();
  }

 private:
  std::optional<T> TakeFront() REQUIRES(mutex_) {
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    not_full_.NotifyOne();
    return item;
  }

  const size_t capacity_;
  mutable Mutex mutex_;
  CondVar not_empty_;
  CondVar not_full_;
  std::deque<T> items_ GUARDED_BY(mutex_);
  bool closed_ GUARDED_BY(mutex_) = false;
};

}  // namespace nibble
