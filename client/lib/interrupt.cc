// SPDX-License-Identifier: Apache-2.0
#include "client/lib/interrupt.h"

#include <pthread.h>

#include <csignal>
#include <utility>

namespace nibble {
namespace {

// Wakes the waiting thread so that it ends; never sent by anyone else.
constexpr int kStopSignal = SIGUSR1;

sigset_t WatchedSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, kStopSignal}) sigaddset(&set, signal);
  return set;
}

}  // namespace

void Interrupt::Trigger() {
  MutexLock lock(mutex_);
  ++count_;
  for (const auto& [id, callback] : callbacks_) callback();
  changed_.NotifyAll();
}

bool Interrupt::requested() const {
  MutexLock lock(mutex_);
  return count_ > 0;
}

bool Interrupt::insisted() const {
  MutexLock lock(mutex_);
  return count_ > 1;
}

bool Interrupt::WaitFor(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  MutexLock lock(mutex_);
  while (count_ == 0) {
    const auto left = deadline - std::chrono::steady_clock::now();
    if (left <= std::chrono::steady_clock::duration::zero()) return false;
    changed_.WaitFor(mutex_, std::chrono::ceil<std::chrono::milliseconds>(left));
  }
  return true;
}

Interrupt::Registration::Registration(Interrupt& interrupt, std::function<void()> callback)
    : interrupt_(interrupt) {
  MutexLock lock(interrupt_.mutex_);
  if (interrupt_.count_ > 0) callback();
  id_ = interrupt_.next_id_++;
  interrupt_.callbacks_.emplace(id_, std::move(callback));
}

Interrupt::Registration::~Registration() {
  MutexLock lock(interrupt_.mutex_);
  interrupt_.callbacks_.erase(id_);
}

SignalInterrupt::SignalInterrupt(Interrupt& interrupt) {
  const sigset_t signals = WatchedSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);  // a closed pipe shows as a failed write
  thread_ = std::thread([&interrupt, signals] {
    while (true) {
      int signal = 0;
      if (sigwait(&signals, &signal) != 0) continue;
      if (signal == kStopSignal) return;
      interrupt.Trigger();
    }
  });
}

SignalInterrupt::~SignalInterrupt() {
  pthread_kill(thread_.native_handle(), kStopSignal);
  thread_.join();
}

}  // namespace nibble
