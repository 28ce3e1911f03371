// SPDX-License-Identifier: Apache-2.0
//
// Interrupt: Ctrl-C and SIGTERM as an object that waits and blocking calls can depend on.
//
// Thread-safety: thread-safe. Ownership: callbacks are borrowed until their Registration ends;
// they run on the thread that triggers and must not block or register.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <thread>

#include "base/mutex.h"

namespace nibble {

class Interrupt {
 public:
  void Trigger() EXCLUDES(mutex_);
  bool requested() const EXCLUDES(mutex_);
  // Asked for more than once: the user does not want to wait.
  bool insisted() const EXCLUDES(mutex_);
  // Waits at most `timeout`; true when the interrupt was (or becomes) requested.
  bool WaitFor(std::chrono::milliseconds timeout) EXCLUDES(mutex_);

  // Calls `callback` at every Trigger while it lives, and at once when already requested.
  class Registration {
   public:
    Registration(Interrupt& interrupt, std::function<void()> callback);
    ~Registration();
    Registration(const Registration&) = delete;
    Registration& operator=(const Registration&) = delete;

   private:
    Interrupt& interrupt_;
    int id_ = 0;
  };

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  int count_ GUARDED_BY(mutex_) = 0;
  int next_id_ GUARDED_BY(mutex_) = 1;
  std::map<int, std::function<void()>> callbacks_ GUARDED_BY(mutex_);
};

// Turns SIGINT, SIGTERM and SIGHUP of this process into Trigger while it lives. Create it first in
// main: threads started later inherit the blocked signals, child processes do not.
class SignalInterrupt {
 public:
  explicit SignalInterrupt(Interrupt& interrupt);
  ~SignalInterrupt();
  SignalInterrupt(const SignalInterrupt&) = delete;
  SignalInterrupt& operator=(const SignalInterrupt&) = delete;

 private:
  std::thread thread_;
};

}  // namespace nibble
