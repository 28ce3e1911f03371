// SPDX-License-Identifier: Apache-2.0
//
// Domain types of the controller: job, attempt, share, worker, device. Plain values with JSON.
//
// Thread-safety: value types, thread-compatible. Ownership: they own everything they hold.
// Words: a job has attempts, one live at most; an attempt has one share per worker; a share holds
// devices and runs one rank per device. The epoch is unique over all attempts of the cluster and
// grows; whoever speaks for an attempt proves it with the epoch.
// Times ending in _ms are milliseconds of wall time since 1970 unless named otherwise; 0 = never.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "server/core/enums.h"

namespace nibble::core {

// Limits, each refused with INVALID_ARGUMENT naming it.
inline constexpr int kMaxNodesPerJob = 1024;
inline constexpr int kMaxSlotsPerNode = 64;
inline constexpr int kMaxRetries = 1000;
inline constexpr int kMaxLabels = 64;
inline constexpr int kMaxDevicesPerWorker = 64;
inline constexpr int kMaxNotesPerWorker = 32;
inline constexpr size_t kMaxSpecBytes = 1 << 20;
inline constexpr size_t kMaxTextBytes = 1024;  // any single name, label, reason or message
// Attempts kept in a job's state; older ones remain in its event history.
inline constexpr size_t kMaxAttemptsKept = 100;
inline constexpr size_t kMaxRequestsKept = 100;

struct Resources {
  int nodes = 1;           // distinct workers
  int slots_per_node = 1;  // devices on each; one rank per device
  DeviceKind device_kind = DeviceKind::kAny;
  std::vector<std::string> required_features;  // each must be proved by each device
  int64_t memory_bytes_per_device = 0;         // estimate; 0 = not known, any device will do
  std::vector<std::string> exclude_workers;
  int ranks() const { return nodes * slots_per_node; }
};

struct RetryPolicy {
  int user = 3;            // for the whole life of the job
  int infra_per_day = 20;  // within any 24 hours
  // User errors are retried only with one of these exit codes (75 = EX_TEMPFAIL, "try again").
  std::vector<int> on_exit_codes = {75};
  // Wait before retry n in a row without a new checkpoint: base * 2^(n-1), at most max. The first
  // retry after a lost node does not wait.
  int64_t backoff_base_ms = 30'000;
  int64_t backoff_max_ms = 900'000;
};

// What a submitter asks for; immutable but for priority and time limit (UpdateJob).
struct JobSpec {
  std::string name;     // RFC 1123 label
  std::string project;  // RFC 1123 label
  std::string user;
  std::string queue = "main";  // the pool of workers it waits for
  int priority = 0;            // high number = high priority
  std::string priority_class;  // for display; the number decides
  Resources resources;
  RetryPolicy retry;
  int64_t time_limit_ms = 0;     // running time over all attempts; 0 = none
  int64_t start_timeout_ms = 0;  // from placement to the first step; 0 = none
  int64_t stall_timeout_ms = 0;  // without a new step; 0 = none
  int64_t stop_grace_ms = 60'000;
  std::vector<std::pair<std::string, std::string>> labels;
  std::string spec_json;  // resolved training spec, opaque to the core
  std::string spec_hash;  // identity of the run; sha256 of spec_json when empty

  // INVALID_ARGUMENT naming the field, the value and the limit.
  Status Validate() const;
};

// How one share ended. Fields beyond `kind` are as the worker reported them.
struct Outcome {
  OutcomeKind kind = OutcomeKind::kExited;
  int exit_code = 0;
  int signal = 0;                         // 0 = exited by itself
  EndReason reported = EndReason::kNone;  // the trainer's last journal event; kNone = it has none
  int rank = -1;                          // the rank it is about; -1 = no single one
  int64_t last_step = 0;
  std::string message;
};

struct Share {
  std::string worker_id;
  std::vector<std::string> devices;  // ids on that worker; rank = first_rank + index
  int first_rank = 0;
  SharePhase phase = SharePhase::kAssigned;
  Outcome outcome;  // meaningful when ended
};

struct Attempt {
  int number = 0;  // from 1
  int64_t epoch = 0;
  std::vector<Share> shares;
  int64_t placed_ms = 0;
  int64_t started_ms = 0;  // all shares confirmed
  int64_t running_ms = 0;  // first step
  int64_t ended_ms = 0;
  int64_t ran_ms = 0;       // started to ended; added to the job's total
  int64_t resume_step = 0;  // checkpoint it was told to resume from; 0 = from the beginning
  EndReason end_reason = EndReason::kNone;
  Charge charge = Charge::kNone;
  std::string detail;  // one line for people
  bool ended() const { return ended_ms != 0; }
  const Share* FindShare(const std::string& worker_id) const;
  Share* FindShare(const std::string& worker_id);
};

struct Checkpoint {
  int64_t step = 0;
  int attempt = 0;
  std::string path;
  int64_t size_bytes = 0;
  double validation_loss = 0;  // 0 = not measured
  int64_t saved_ms = 0;
};

struct StopRequest {
  StopCause cause = StopCause::kNone;
  StopMode mode = StopMode::kSave;
  std::string actor;       // user, or "controller"
  std::string request_id;  // cancel only
  int64_t asked_ms = 0;
};

// A request id of a change to a job and the hash of what it asked for.
struct RequestUse {
  std::string request_id;
  std::string body_hash;
};

struct Job {
  std::string id;      // "j-17"
  int64_t number = 0;  // 17: the last key of the queue order
  JobSpec spec;
  std::string request_id;
  std::string body_hash;  // sha256 over the submitted spec; tells a repeat from a conflict
  JobState state = JobState::kPending;
  int64_t submitted_ms = 0;
  int64_t state_since_ms = 0;
  int64_t first_started_ms = 0;
  int64_t ended_ms = 0;
  EndReason end_reason = EndReason::kNone;
  std::string end_detail;
  StopRequest stop;               // pending request; cause kNone when there is none
  std::vector<Attempt> attempts;  // oldest first, the newest kMaxAttemptsKept
  std::optional<Checkpoint> latest_checkpoint;
  int64_t not_before_ms = 0;                  // retry backoff
  EndReason last_failure = EndReason::kNone;  // of the last charged attempt
  int user_failures = 0;                      // attempts charged to the user's budget
  std::vector<int64_t> infra_failures_ms;     // times of attempts charged to infra, last 24 hours
  int preemptions = 0;                        // attempts that ended Preempted, charged to nobody
  int failures_in_row = 0;                    // since the last new checkpoint
  int64_t ran_ms = 0;                         // over ended attempts
  std::vector<RequestUse> cancel_requests;    // the newest kMaxRequestsKept

  // The attempt that may hold devices, or nullptr.
  const Attempt* live_attempt() const;
  Attempt* live_attempt();
  const Attempt* FindAttempt(int attempt_number) const;
  int restarts() const { return attempts.empty() ? 0 : attempts.back().number - 1; }
};

struct Device {
  std::string id;  // unique on its worker: "cpu0", a GPU UUID
  DeviceKind kind = DeviceKind::kCpu;
  std::string model;
  int64_t memory_bytes = 0;
  std::vector<std::string> proved_features;  // by the worker's self-test, never inferred
};

struct Worker {
  std::string id;
  std::string host;
  std::string address;  // where ranks of a gang reach it
  std::string version;
  std::string pool = "main";
  std::vector<Device> devices;
  // What its self-test says about devices and features that it does not offer, in one line each;
  // the absent before the incomplete ones.
  std::vector<std::string> notes;
  WorkerState state = WorkerState::kActive;
  bool draining = false;
  std::string drain_reason;
  std::string drain_actor;
  int64_t drain_deadline_ms = 0;  // stop (save) what still runs then; 0 = let it finish
  int64_t registered_ms = 0;
  int64_t state_since_ms = 0;
};

// JSON of the durable log and of snapshots. Readers ignore unknown members and keep defaults for
// missing ones; INVALID_ARGUMENT for a wrong type or an unknown enum name.
Json ToJson(const JobSpec& spec);
Json ToJson(const Outcome& outcome);
Json ToJson(const Share& share);
Json ToJson(const Checkpoint& checkpoint);
Json ToJson(const StopRequest& stop);
Json ToJson(const Job& job);
Json ToJson(const Worker& worker);
Result<JobSpec> JobSpecFromJson(const Json& json);
Result<Outcome> OutcomeFromJson(const Json& json);
Result<Share> ShareFromJson(const Json& json);
Result<Checkpoint> CheckpointFromJson(const Json& json);
Result<StopRequest> StopRequestFromJson(const Json& json);
Result<Job> JobFromJson(const Json& json);
Result<Worker> WorkerFromJson(const Json& json);

}  // namespace nibble::core
