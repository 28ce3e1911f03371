// SPDX-License-Identifier: Apache-2.0
//
// The closed vocabularies of the service: job states, pending reasons, end reasons and the small
// enums around them, with their names. Few states, many reasons.
//
// Thread-safety: constants and pure functions. Invariant: a name is never reused for another
// meaning, because names are what the durable log and the API store.
// What this release never produces (quotas, dependencies, preemption, GPU faults) is in the enums
// so that clients can be written once.
#pragma once

#include <optional>
#include <string_view>

namespace nibble::core {

enum class JobState {
  kPending,     // PENDING: waits in its queue; Explain says why
  kHeld,        // HELD: waits for `resume`
  kScheduled,   // SCHEDULED: placed, the worker has not confirmed yet
  kStarting,    // STARTING: trainer processes exist, no step yet
  kRunning,     // RUNNING: steps are made
  kSuspect,     // SUSPECT: a worker of the attempt is silent; nothing is known to be wrong
  kPreempting,  // PREEMPTING: not produced by this release
  kRecovering,  // RECOVERING: lost its attempt to infrastructure, waits for a new place
  kStopping,    // STOPPING: asked to stop, not yet confirmed
  kSucceeded,   // SUCCEEDED, FAILED, CANCELLED, TIMED_OUT, REJECTED: terminal, written once
  kFailed,
  kCancelled,
  kTimedOut,
  kRejected,  // not produced by this release: a refused submit makes no job
};

// Why a job does not run. The order is the precedence: the first that holds is the answer.
enum class PendingReason {
  kHeldByUser,
  kHeldByAdmin,
  kInvalidSpec,
  kNoMatchingPool,
  kCapabilityNotProved,
  kExceedsPoolCapacity,
  kMemoryEstimateTooLarge,
  kBeginTime,
  kDependency,
  kDependencyNeverSatisfied,
  kQueueStopped,
  kQuotaExceeded,
  kRetryBackoff,
  kExcludedNodesOnly,
  kFragmented,
  kWaitingForPreemption,
  kPriority,
  kResources,
  kReservedFor,
  kPendingEvaluation,
};

// Why an attempt or a job ended.
enum class EndReason {
  kNone,  // "": has not ended
  kCompleted,
  kUserError,
  kOutOfMemoryGpu,
  kOutOfMemoryHost,
  kDiverged,
  kStalled,
  kStartTimeout,
  kTimeLimit,
  kDeadline,
  kPreempted,
  kNodeLost,
  kGpuFault,
  kCheckpointUnreadable,
  kDataUnreadable,
  kCancelledByUser,
  kCancelledByAdmin,
  kRetryBudgetSpent,
  kControllerBug,
};

// Who pays for an ended attempt. The three never mix.
enum class Charge { kNone, kUser, kInfra };

// Why an attempt was asked to stop; decides what becomes of the job afterwards.
enum class StopCause {
  kNone,
  kCancel,        // -> CANCELLED
  kPause,         // -> HELD
  kRequeue,       // -> PENDING, at its old place in the order
  kTimeLimit,     // -> TIMED_OUT
  kStartTimeout,  // -> RECOVERING on the infra budget
  kStalled,       // -> RECOVERING on the infra budget
  kPeerFailed,    // another share of the gang ended badly; that share's outcome decides
  kDrain,         // -> PENDING, nothing charged
};

enum class StopMode {
  kSave,  // finish the step, save, exit; killed after the grace time
  kKill,  // kill the process group now
};

enum class SharePhase {
  kAssigned,  // placed here; the worker has not confirmed
  kStarted,   // processes exist
  kRunning,   // at least one step was made
  kEnded,     // confirmed gone by the worker, or fenced off by lease expiry
};

// How a share of an attempt ended, as far as the worker knows.
enum class OutcomeKind {
  kExited,        // all its processes ended; exit status and journal say how
  kStartFailed,   // the worker could not start the trainer (disk, exec); infrastructure
  kNeverStarted,  // stopped before the worker ever had it
  kLost,          // lease expired, or missing from the worker's inventory
};

enum class WorkerState {
  kActive,   // ACTIVE: lease in time
  kSuspect,  // SUSPECT: silent longer than Options::suspect_after_ms
  kLost,     // LOST: lease expired; must register again with its inventory
};

enum class DeviceKind { kAny, kCpu, kCuda };

// The stored and shown name: "RUNNING", "CapabilityNotProved", "Completed", "cuda".
std::string_view Name(JobState value);
std::string_view Name(PendingReason value);
std::string_view Name(EndReason value);
std::string_view Name(Charge value);
std::string_view Name(StopCause value);
std::string_view Name(StopMode value);
std::string_view Name(SharePhase value);
std::string_view Name(OutcomeKind value);
std::string_view Name(WorkerState value);
std::string_view Name(DeviceKind value);

// The value with exactly this name; nullopt for none. Defined for every enum above.
template <typename Enum>
std::optional<Enum> FromName(std::string_view name);

// The end reason a trainer journalled. Case and underscores do not matter: "out_of_memory_host".
// A reason this list lacks ("InvalidSpec") is a UserError: it had a last word, so it is not
// infrastructure. nullopt for "".
std::optional<EndReason> EndReasonFromJournal(std::string_view name);

constexpr bool IsTerminal(JobState state) { return state >= JobState::kSucceeded; }
// In a queue: PENDING or RECOVERING.
constexpr bool IsQueued(JobState state) {
  return state == JobState::kPending || state == JobState::kRecovering;
}
// Has an attempt that may hold devices.
constexpr bool IsLive(JobState state) {
  return state == JobState::kScheduled || state == JobState::kStarting ||
         state == JobState::kRunning || state == JobState::kSuspect ||
         state == JobState::kPreempting || state == JobState::kStopping;
}

}  // namespace nibble::core
