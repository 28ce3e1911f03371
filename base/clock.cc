// SPDX-License-Identifier: Apache-2.0
#include "base/clock.h"

namespace nibble {
namespace {

class RealClock : public Clock {
 public:
  int64_t WallMillis() const override {
    return Millis(std::chrono::system_clock::now().time_since_epoch());
  }
  int64_t SteadyMillis() const override {
    return Millis(std::chrono::steady_clock::now().time_since_epoch());
  }

 private:
  template <typename Duration>
  static int64_t Millis(Duration duration) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
  }
};

}  // namespace

const Clock& Clock::Real() {
  static const RealClock clock;
  return clock;
}

}  // namespace nibble
