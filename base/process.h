// SPDX-License-Identifier: Apache-2.0
//
// Process: starting and ending child processes. `nibble up`, the worker and the tests use it.
//
// Thread-safety: thread-compatible. Ownership: a Process does not end its child when destroyed;
// whoever wants that calls KillGroup and Wait.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace nibble {

// How a process ended: an exit code, or the signal that ended it.
struct ExitStatus {
  int exit_code = 0;  // meaningful when signal == 0
  int signal = 0;     // 0 when the process exited by itself
  bool success() const { return signal == 0 && exit_code == 0; }
  std::string ToString() const;  // "exit code 3", "signal 9 (Killed)"
};

struct ProcessOptions {
  std::vector<std::string> argv;                         // argv[0] is the program's path
  std::vector<std::pair<std::string, std::string>> env;  // added to the parent's environment
  std::string working_directory;                         // "" keeps the parent's
  std::string stdout_path;                               // appended to; "" inherits
  std::string stderr_path;                               // as stdout_path; may be the same file
  bool new_process_group = true;                         // so that a signal reaches descendants
  bool new_session = false;                              // setsid: outlives the terminal
  int parent_death_signal = 0;  // sent when the thread that called Start ends; 0 = none
};

class Process {
 public:
  // NOT_FOUND when argv[0] cannot be executed.
  static Result<Process> Start(const ProcessOptions& options);

  pid_t pid() const { return pid_; }
  // Blocks until the child ends.
  Result<ExitStatus> Wait();
  // Polls: nullopt while it runs.
  Result<std::optional<ExitStatus>> TryWait();
  // Polls every few milliseconds until `timeout`; nullopt when it still runs.
  Result<std::optional<ExitStatus>> WaitFor(std::chrono::milliseconds timeout);
  // Sends `signal` to the process group (or the process when it has no group of its own).
  Status Signal(int signal) const;

 private:
  pid_t pid_ = -1;
  bool own_group_ = true;
  std::optional<ExitStatus> ended_;
};

// Runs a program to its end and returns what it printed (stdout only when `merge_stderr` is off).
struct CommandOutput {
  ExitStatus status;
  std::string output;
};
Result<CommandOutput> RunCommand(const std::vector<std::string>& argv, bool merge_stderr = true);

// When process `pid` was started, in clock ticks since boot (/proc/PID/stat field 22): with the pid
// it identifies a process even after the pid was used again. NOT_FOUND when it is gone or a zombie.
Result<int64_t> ProcessStartTicks(pid_t pid);

}  // namespace nibble
