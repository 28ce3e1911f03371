// SPDX-License-Identifier: Apache-2.0
//
// ProcessTree: who belongs to a supervised trainer, read from /proc. Thread-safe, no state.
#pragma once

#include <sys/types.h>

#include <vector>

#include "base/status.h"

namespace nibble::agent {

// Living processes (no zombies) other than `leader` that are in the session `leader` leads or led,
// or descend from it. Empty when the number `leader` now belongs to a process whose start is not
// `leader_start_ticks`: the kernel reuses a number only after its session is empty.
std::vector<pid_t> SessionMembers(pid_t leader, int64_t leader_start_ticks);

// SIGKILL to each; a process that is gone already is fine.
void KillProcesses(const std::vector<pid_t>& pids);

// The random id of this boot: process ids and start ticks mean nothing after another one.
std::string BootId();

}  // namespace nibble::agent
