// SPDX-License-Identifier: Apache-2.0
//
// ProgressPrinter: what a person at the terminal sees while a run goes: a line every so often.
// Thread-safety: one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "base/clock.h"
#include "worker/spec/journal.h"

namespace nibble {

class ProgressPrinter {
 public:
  // Lines go to file descriptor `fd`, at most one per `interval_ms` apart from the first and last
  // step; write errors are ignored.
  ProgressPrinter(int fd, int64_t interval_ms, const Clock* clock)
      : fd_(fd), interval_ms_(interval_ms), clock_(*clock) {}

  // Every line printed from now on also goes to `sink`; nullptr ends that.
  void ForwardTo(std::function<void(const std::string& line)> sink) { sink_ = std::move(sink); }

  void Start(const StartRecord& record, const std::string& details);
  void Step(const StepRecord& record, int64_t steps_total);
  void Validation(const ValidationRecord& record);
  void Checkpoint(const CheckpointRecord& record);
  void Memory(const MemoryRecord& record);
  void End(const EndRecord& record);

 private:
  void Print(const std::string& line) const;

  int fd_;
  int64_t interval_ms_;
  const Clock& clock_;
  std::function<void(const std::string&)> sink_;
  int64_t printed_ms_ = -1;
  double seconds_ = 0;  // of all steps so far
  int64_t steps_ = 0;
};

}  // namespace nibble
