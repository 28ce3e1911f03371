// SPDX-License-Identifier: Apache-2.0
//
// Event: one fact of the durable log. State is a fold over events (server/core/state.h).
//
// Thread-safety: value type. Invariants: an event once written keeps its meaning for ever; a new
// meaning gets a new type; a reader that meets an unknown type or a newer format refuses loudly,
// because skipping a fact would make another state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "server/core/types.h"

namespace nibble::core {

inline constexpr int kEventFormat = 1;

enum class EventType {
  kJobSubmitted,          // payload Job
  kJobPlaced,             // payload JobPlacedData; attempt and epoch are new
  kAttemptStarted,        // share of worker_id confirmed: its processes exist
  kAttemptRunning,        // share of worker_id made a step
  kJobSuspected,          // worker_id of its attempt is silent
  kJobReturned,           // worker_id is back; the attempt went on
  kCheckpointSaved,       // payload Checkpoint
  kJobCancelRequested,    // payload StopRequest
  kJobPauseRequested,     // payload StopRequest
  kJobRequeueRequested,   // payload StopRequest
  kAttemptStopRequested,  // payload StopRequest: time limit, stall, start timeout, peer, drain
  kShareEnded,            // payload Outcome: worker_id no longer runs the attempt
  kAttemptEnded,          // payload AttemptEndedData: all shares ended
  kJobRequeued,           // payload JobRequeuedData
  kJobHeld,               // pause took effect
  kJobResumed,            // HELD -> PENDING, or a pause withdrawn before it took effect
  kJobUpdated,            // payload JobUpdatedData
  kJobEnded,              // payload JobEndedData; nothing about this job follows
  kWorkerRegistered,      // payload Worker
  kWorkerSuspected,
  kWorkerReturned,
  kLeaseExpired,
  kWorkerDrained,  // payload WorkerDrainedData
  kWorkerUndrained,
};

struct JobPlacedData {
  std::vector<Share> shares;
  int64_t resume_step = 0;
};
struct AttemptEndedData {
  EndReason reason = EndReason::kNone;
  Charge charge = Charge::kNone;
  int64_t ran_ms = 0;
};
struct JobRequeuedData {
  JobState state = JobState::kPending;  // kPending or kRecovering
  int64_t not_before_ms = 0;
};
struct JobUpdatedData {
  std::optional<int> priority;
  std::optional<int64_t> time_limit_ms;
};
struct JobEndedData {
  JobState state = JobState::kFailed;
  EndReason reason = EndReason::kNone;
};
struct WorkerDrainedData {
  std::string reason;
  int64_t deadline_ms = 0;
};

struct Event {
  using Payload = std::variant<std::monostate, Job, JobPlacedData, Checkpoint, StopRequest, Outcome,
                               AttemptEndedData, JobRequeuedData, JobUpdatedData, JobEndedData,
                               Worker, WorkerDrainedData>;
  EventType type = EventType::kJobSubmitted;
  int64_t sequence = 0;  // position in the log, from 1, without gaps
  int64_t time_ms = 0;   // wall time of the decision
  std::string job_id;    // "" for events of a worker only
  std::string worker_id;
  int attempt = 0;
  int64_t epoch = 0;
  std::string actor;   // who caused it: a user, a worker id, or "controller"
  std::string detail;  // the cause in one line for people; never parsed
  Payload payload;
};

// "JobSubmitted", ...
std::string_view Name(EventType type);
std::optional<EventType> EventTypeFromName(std::string_view name);

// {"v":1,"type":"JobPlaced","time_ms":...,"job":...,"data":{...}}; `sequence` is not part of it.
Json ToJson(const Event& event);
// FAILED_PRECONDITION for an unknown type or a newer format (this build is too old for the log);
// DATA_LOSS for anything that no build could have written.
Result<Event> EventFromJson(const Json& json);

}  // namespace nibble::core
