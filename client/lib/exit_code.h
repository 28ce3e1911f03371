// SPDX-License-Identifier: Apache-2.0
//
// Exit codes of `nibble`: part of its interface, listed in docs/reference/cli.md.
// Thread-safety: pure functions.
#pragma once

#include "base/status.h"

namespace nibble {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitNotFound = 3;
inline constexpr int kExitAuth = 4;         // unauthenticated or forbidden
inline constexpr int kExitUnreachable = 5;  // no controller at that address
inline constexpr int kExitSpecRejected = 6;
inline constexpr int kExitConflict = 7;     // wrong state, or the request id is taken
inline constexpr int kExitJobFailed = 100;  // wait: failed, timed out or rejected
inline constexpr int kExitJobActive = 101;  // wait: still active when the wait time was over
inline constexpr int kExitJobCancelled = 103;
inline constexpr int kExitTimeout = 124;  // the call's own deadline
inline constexpr int kExitInterrupted = 130;

// The exit code for a failed command. INVALID_ARGUMENT is a usage error; commands that take a job
// spec turn it into kExitSpecRejected themselves.
int ExitCodeFor(const Status& status);

}  // namespace nibble
