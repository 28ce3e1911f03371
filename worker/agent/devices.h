// SPDX-License-Identifier: Apache-2.0
//
// Devices: what this host can train on, proved by running the trainer's self-test.
//
// Thread-safety: free functions, thread-safe.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "worker/agent/messages.h"

namespace nibble::agent {

inline constexpr int kSelfTestTimeoutMs = 60'000;  // takes about 1 s on a laptop
inline constexpr int kMaxSlots = 1024;

// Runs `trainer self-test --json` and returns its devices, each CPU divided into `slots` equal
// slots and all numbered from 0. FAILED_PRECONDITION with what the self-test said when it does not
// pass; NOT_FOUND without a trainer; DEADLINE_EXCEEDED; DATA_LOSS for output that is not its JSON.
Result<std::vector<DeviceInfo>> ProveDevices(const std::string& trainer, int slots,
                                             const std::string& work_dir);

// The pure part: {"devices":[{index,kind,name,memory_bytes,threads,gflops,features}]} to slots.
Result<std::vector<DeviceInfo>> ParseDevices(const std::string& json_text, int slots);

}  // namespace nibble::agent
