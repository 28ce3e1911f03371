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

inline constexpr int kSelfTestTimeoutMs = 600'000;  // takes seconds, for each GPU again
inline constexpr int kMaxSlots = 1024;
inline constexpr size_t kMaxNotes = 32;  // what the controller keeps, of each worker
inline constexpr size_t kMaxNoteBytes = 1024;

// What the self-test found, and what it says about what it did not, in lines: first of devices
// that are not offered ("no GPU slots: ..."), then of features that offered ones lack ("cuda 1
// (NAME) has no linear.fp4, recipe:quartet: ..."). At most kMaxNotes of kMaxNoteBytes; when there
// were more, the last line counts them.
struct ProvedDevices {
  std::vector<DeviceInfo> devices;
  std::vector<std::string> notes;
};

// Runs `trainer self-test --json` and returns its devices, each CPU divided into `slots` equal
// slots and all numbered from 0. FAILED_PRECONDITION with what the self-test said when it does not
// pass; NOT_FOUND without a trainer; DEADLINE_EXCEEDED; DATA_LOSS for output that is not its JSON.
Result<ProvedDevices> ProveDevices(const std::string& trainer, int slots,
                                   const std::string& work_dir);

// The pure part: {"devices":[{index,kind,name,memory_bytes,threads,gflops,features,refused,
// visible}],"notes":[text]} to slots.
Result<ProvedDevices> ParseDevices(const std::string& json_text, int slots);

}  // namespace nibble::agent
