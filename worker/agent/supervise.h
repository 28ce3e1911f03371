// SPDX-License-Identifier: Apache-2.0
//
// The supervisor: a small process between the worker and one trainer, "nibble-worker supervise".
//
// Why it exists: only a parent learns how a process ended. The worker may be restarted while
// trainers run, so it cannot be that parent; a shell line (sh -c '"$@"; echo $?') would not pass
// signals on, nor see processes that the trainer leaves behind. The supervisor
//   - leads a session of its own and is the reaper of all its descendants, even of those that
//     start sessions of their own, so nothing a trainer starts can outlive the attempt;
//   - passes SIGTERM and SIGINT on to the trainer's process group and ignores hang-ups;
//   - when the trainer ends, kills what it left, and writes how it ended to exit.json.
// If the supervisor itself is killed, the kernel kills the trainer with it.
//
// Files in the run folder: supervisor.json is created exclusively (link(2)) before the trainer is
// started. A worker that finds none creates it itself, which forbids a late supervisor to start.
// Thread-safety: one thread, a process of its own; the file functions are thread-safe.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace nibble::agent {

inline constexpr char kSuperviseCommand[] = "supervise";
inline constexpr char kSupervisorFile[] = "supervisor.json";
inline constexpr char kExitFile[] = "exit.json";

struct SupervisorId {
  pid_t pid = 0;  // 0 = start forbidden by a worker
  int64_t start_ticks = 0;
  std::string boot_id;
};

// How the trainer ended, as exit.json tells it.
struct TrainerExit {
  int exit_code = 0;
  int signal = 0;
  std::string start_error;  // not "" = the trainer could not be started
};

// ALREADY_EXISTS when the file is there.
Status ClaimSupervisor(const std::string& run_dir, const SupervisorId& id);
// NOT_FOUND, or DATA_LOSS when the file cannot be read as JSON.
Result<SupervisorId> ReadSupervisor(const std::string& run_dir);
Result<TrainerExit> ReadTrainerExit(const std::string& run_dir);

// The whole program: arguments are the run folder, then the trainer and its arguments. Returns the
// exit code: the trainer's, 128 + signal, or 126 when it could not be started.
int SuperviseMain(const std::vector<std::string>& arguments);

}  // namespace nibble::agent
