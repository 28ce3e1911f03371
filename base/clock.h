// SPDX-License-Identifier: Apache-2.0
//
// Clock: time as a dependency, so that leases and timeouts are tested with virtual time.
//
// Thread-safety: all implementations are thread-safe. Ownership: callers borrow a Clock that
// outlives them; Clock::Real() lives for ever.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace nibble {

class Clock {
 public:
  virtual ~Clock() = default;
  // Milliseconds since the Unix epoch; may jump. For time stamps shown to people.
  virtual int64_t WallMillis() const = 0;
  // Milliseconds since an arbitrary start; never goes back. For durations and deadlines.
  virtual int64_t SteadyMillis() const = 0;

  static const Clock& Real();
};

// A clock that stands still until Advance.
class FakeClock : public Clock {
 public:
  explicit FakeClock(int64_t wall_ms = 1'700'000'000'000) : wall_ms_(wall_ms) {}
  int64_t WallMillis() const override { return wall_ms_.load(); }
  int64_t SteadyMillis() const override { return steady_ms_.load(); }
  void Advance(std::chrono::milliseconds by) {
    wall_ms_ += by.count();
    steady_ms_ += by.count();
  }

 private:
  std::atomic<int64_t> wall_ms_;
  std::atomic<int64_t> steady_ms_{0};
};

}  // namespace nibble
