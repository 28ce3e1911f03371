// SPDX-License-Identifier: Apache-2.0
//
// TrainerProcess: a trainer under its supervisor, started by this worker or by an earlier one.
//
// Invariant: Gone() is true only when the supervisor and every process it is answerable for have
// ended; only then may the device be given to somebody else.
// Thread-safety: one thread. Ownership: destruction ends nothing; trainers outlive the worker.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "worker/agent/supervise.h"

namespace nibble::agent {

class TrainerProcess {
 public:
  struct Launch {
    std::string supervisor;            // a program that runs SuperviseMain for "supervise"
    std::string run_dir;               // absolute
    std::vector<std::string> command;  // the trainer and its arguments
    std::map<std::string, std::string> env;
    std::string log_path;  // stdout and stderr
  };

  // Starts a supervisor in a session of its own. NOT_FOUND when its program is not there.
  static Result<TrainerProcess> Start(const Launch& launch);

  // The process that an earlier worker started for `run_dir`. When none was, or it belongs to an
  // earlier boot, the result is already gone; and a start still under way there is forbidden.
  static Result<TrainerProcess> Adopt(const std::string& run_dir);

  // Polls. Once the supervisor has ended, kills what is left of its session.
  bool Gone();
  // SIGTERM for the trainer, by way of its supervisor.
  void Terminate();
  // SIGKILL for everything; call again until Gone. With `supervisor_too` the supervisor as well,
  // for one that does not end.
  void Kill(bool supervisor_too);
  // How the trainer ended. Precondition: Gone(). NOT_FOUND when nobody saw it end.
  Result<TrainerExit> Exit() const;

  pid_t pid() const { return pid_; }

 private:
  bool SupervisorAlive();

  std::string run_dir_;
  pid_t pid_ = 0;
  int64_t start_ticks_ = 0;
  bool child_ = false;  // ours to wait for
  bool leader_gone_ = false;
  bool gone_ = false;
};

}  // namespace nibble::agent
