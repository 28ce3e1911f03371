// SPDX-License-Identifier: Apache-2.0
//
// What goes into the controller core and what comes out: inputs, commands and decisions.
//
// Thread-safety: value types. The rpc layer turns requests and worker messages into inputs, puts
// them into one bounded queue, and one thread feeds them to Controller (or to store::Engine, which
// also makes them durable).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/status.h"
#include "server/core/events.h"
#include "server/core/types.h"

namespace nibble::core {

// The two clocks an input carries: wall time stamps events, steady time drives leases and timers,
// so a jump of the wall clock expires nothing.
struct Instant {
  int64_t wall_ms = 0;
  int64_t steady_ms = 0;
};

// ---- From people ----------------------------------------------------------------------------

// Same request_id and same body: the reply of the first submit again. Same id, other body:
// ALREADY_EXISTS. "" as request_id: never a repeat.
// INVALID_ARGUMENT from JobSpec::Validate; RESOURCE_EXHAUSTED above Options::max_active_jobs.
struct SubmitJob {
  JobSpec spec;
  std::string request_id;
  std::string actor;
  bool hold = false;  // starts HELD
};

// In the inputs below `job_id` is an id, not a name; NOT_FOUND when it does not exist.

// Cancelling a job that is being cancelled or is CANCELLED is OK; kKill turns a graceful stop into
// a kill. FAILED_PRECONDITION when the job ended otherwise. Request ids as in SubmitJob.
struct CancelJob {
  std::string job_id;
  StopMode mode = StopMode::kSave;
  std::string request_id;
  std::string actor;
};

// Save, release the devices, HELD. OK when already HELD or pausing. FAILED_PRECONDITION when ended
// or when another stop is under way.
struct PauseJob {
  std::string job_id;
  std::string actor;
};

// HELD -> PENDING at its old place; withdraws a pause that has not taken effect once the attempt
// has stopped. OK when not held. FAILED_PRECONDITION when ended.
struct ResumeJob {
  std::string job_id;
  std::string actor;
};

// Live: save, release, PENDING. Queued: clears a retry backoff. FAILED_PRECONDITION when ended,
// HELD, or when another stop is under way.
struct RequeueJob {
  std::string job_id;
  std::string actor;
};

// FAILED_PRECONDITION when ended. INVALID_ARGUMENT for a negative time limit.
struct UpdateJob {
  std::string job_id;
  std::optional<int> priority;
  std::optional<int64_t> time_limit_ms;  // 0 = none
  std::string actor;
};

// Stops new placements. What runs goes on until `deadline_ms` (wall time; 0 = until it ends), then
// it saves and is requeued. Draining again replaces reason and deadline. NOT_FOUND.
struct DrainWorker {
  std::string worker_id;
  std::string reason;
  std::string actor;
  int64_t deadline_ms = 0;
};
struct UndrainWorker {
  std::string worker_id;
  std::string actor;
};

// ---- From workers ---------------------------------------------------------------------------

// What a worker knows of one attempt.
struct AttemptReport {
  std::string job_id;
  int attempt = 0;
  int64_t epoch = 0;
  SharePhase phase = SharePhase::kStarted;  // kStarted, kRunning or kEnded
  std::vector<std::string> devices;         // it holds (or held)
  int64_t step = 0;                         // last journalled step; 0 = none yet
  Outcome outcome;                          // with kEnded
  // With kEnded: the newest it saved. Taken before the end, as by ReportCheckpoint, so that a retry
  // and whoever waited for the end know it.
  std::optional<Checkpoint> checkpoint = std::nullopt;
};

// First message of a session, and after any ABORTED. `inventory` is complete: every attempt with a
// live process, and every ended one not yet forgotten. The lease starts anew.
// Reply OK, with commands for what must change. ALREADY_EXISTS when another host uses this id and
// its lease is in time; INVALID_ARGUMENT for bad names or duplicate devices.
struct RegisterWorker {
  Worker worker;        // id, host, address, version, pool, devices; the rest is ignored
  std::string session;  // unique per connection
  std::vector<AttemptReport> inventory;
};

// Every few seconds; renews the lease. An inventory (complete, as above) lets the controller
// repair lost messages: send it with every heartbeat. `sequence` grows by message within the
// session; an inventory that is not newer than the last one is not compared (0 = unnumbered).
// ABORTED when the session is not the worker's present one or the lease expired: register again.
struct Heartbeat {
  std::string worker_id;
  std::string session;
  int64_t sequence = 0;
  bool has_inventory = false;
  std::vector<AttemptReport> inventory;
};

// News of one attempt between heartbeats; `sequence` from the same counter as theirs, so that an
// inventory taken before this news but arriving after it is not compared. ABORTED for a stale epoch
// or session; then nothing has changed, and for a live process a StopAttempt{kill} follows.
struct ReportAttempt {
  std::string worker_id;
  std::string session;
  int64_t sequence = 0;
  AttemptReport report;
};

// A checkpoint became visible. ABORTED for a stale epoch. Repeats and older steps change nothing.
struct ReportCheckpoint {
  std::string worker_id;
  std::string job_id;
  int attempt = 0;
  int64_t epoch = 0;
  Checkpoint checkpoint;  // `attempt` is filled in
};

// Steps made; feeds the stall clock and starts RUNNING. Durable only as that first step. ABORTED
// for a stale epoch.
struct ReportProgress {
  std::string worker_id;
  std::string job_id;
  int attempt = 0;
  int64_t epoch = 0;
  int64_t step = 0;
};

// The connection broke. Nothing new is placed there until it registers; the lease decides the rest.
struct SessionClosed {
  std::string worker_id;
  std::string session;
};

// Timers and scheduling. Call it when Controller::NeedsTick() and at least once a second.
struct Tick {};

using Input = std::variant<SubmitJob, CancelJob, PauseJob, ResumeJob, RequeueJob, UpdateJob,
                           DrainWorker, UndrainWorker, RegisterWorker, Heartbeat, ReportAttempt,
                           ReportCheckpoint, ReportProgress, SessionClosed, Tick>;

// ---- To workers -----------------------------------------------------------------------------

// Start the ranks of one share. Repeated until the worker reports the attempt; a worker starts an
// epoch once; for one that it has seen but no longer has it reports an end with kLost; it refuses a
// device that still has a live process (reporting kStartFailed).
struct StartAttempt {
  std::string job_id;
  std::string job_name;
  int attempt = 0;
  int64_t epoch = 0;
  std::vector<std::string> devices;  // rank first_rank + i runs on devices[i]
  int first_rank = 0;
  int world_size = 0;
  int node_rank = 0;
  int nodes = 1;
  std::string master_address;  // of the worker with rank 0
  std::optional<Checkpoint> resume_from;
  int64_t stop_grace_ms = 0;
  int restarts = 0;
  std::string spec_json;
};

// Stop: with kSave ask the trainer to save and exit, kill the process group after `grace_ms`; with
// kKill at once. Repeated until the end is reported. For an attempt the worker does not know:
// no-op.
struct StopAttempt {
  std::string job_id;
  int attempt = 0;
  int64_t epoch = 0;
  StopMode mode = StopMode::kKill;
  StopCause cause = StopCause::kNone;
  int64_t grace_ms = 0;
};

// The end is durably recorded; drop it from the inventory.
struct ForgetAttempt {
  std::string job_id;
  int attempt = 0;
  int64_t epoch = 0;
};

struct Command {
  std::string worker_id;
  std::string session;  // drop the command when this is not the present session any more
  std::variant<StartAttempt, StopAttempt, ForgetAttempt> body;
};

// ---- Answer ---------------------------------------------------------------------------------

// What one input leads to. `events` are to be made durable first; only then may `commands` be sent
// and the reply be given. When they cannot be made durable, the reply is that failure instead.
struct Decision {
  Status reply;
  std::string job_id;     // SubmitJob
  bool repeated = false;  // SubmitJob, CancelJob: the request id was known
  std::vector<Event> events;
  std::vector<Command> commands;
};

}  // namespace nibble::core
