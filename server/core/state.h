// SPDX-License-Identifier: Apache-2.0
//
// State: everything the controller knows durably, as a fold over events.
//
// Purpose: `Apply` is the only way to change it, deterministic and free of I/O, so a restart,
// the simulator and the running controller reach the same state from the same events.
// Thread-safety: one thread. Ownership: owns jobs and workers; pointers returned are valid until
// the next Apply or Rollback.
// Invariants: terminal jobs never change; at most one live attempt per job; a device is in at most
// one share that has not ended; epochs grow.
//
// Speculation: the caller applies events before they are durable to be able to decide further, and
// then either Commit()s (the log took them) or Rollback()s (it did not): Rollback restores exactly
// the state of the last Commit.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "server/core/events.h"
#include "server/core/types.h"

namespace nibble::core {

// The total order of a queue: high priority first, then first come, then the job's number.
struct QueueKey {
  int priority = 0;
  int64_t submitted_ms = 0;
  int64_t number = 0;
  std::string job_id;
  friend bool operator<(const QueueKey& a, const QueueKey& b) {
    return std::tuple(-int64_t{a.priority}, a.submitted_ms, a.number) <
           std::tuple(-int64_t{b.priority}, b.submitted_ms, b.number);
  }
};

// What a request id was used for; kept as long as the job.
struct RequestRecord {
  std::string job_id;
  std::string body_hash;
};

// Entities changed since the last ForgetChanges, as JSON rows for an incremental snapshot.
struct SnapshotRows {
  int64_t sequence = 0;                                      // last event folded in
  std::vector<std::pair<std::string, std::string>> jobs;     // id, JSON text
  std::vector<std::pair<std::string, std::string>> workers;  // id, JSON text
  std::string counters;                                      // JSON text
};

class State {
 public:
  using Jobs = std::map<std::string, Job, std::less<>>;
  using Workers = std::map<std::string, Worker, std::less<>>;
  using Queue = std::set<QueueKey>;

  // Folds one event in; its sequence must be last_sequence() + 1. INTERNAL, and no change, when the
  // event contradicts the state: the log was written by a buggy build or is not this state's
  // continuation.
  Status Apply(const Event& event);

  const Jobs& jobs() const { return jobs_; }
  const Workers& workers() const { return workers_; }
  const Job* FindJob(std::string_view id) const;
  // By id, else the newest job with that name; nullptr when there is none.
  const Job* FindJobByIdOrName(std::string_view id_or_name) const;
  const Worker* FindWorker(std::string_view id) const;
  const RequestRecord* FindRequest(std::string_view request_id) const;
  // Jobs in PENDING or RECOVERING, per queue, in order. Empty queues are absent.
  const std::map<std::string, Queue>& queues() const { return queues_; }
  // Ids of jobs with a live attempt.
  const std::set<std::string>& live_jobs() const { return live_jobs_; }
  // Ids of jobs whose live attempt has an unended share on this worker.
  std::vector<std::string> JobsOnWorker(std::string_view worker_id) const;
  // Id of the job whose live attempt holds the device, or "" when it is free.
  std::string DeviceHolder(std::string_view worker_id, std::string_view device_id) const;
  int64_t next_job_number() const { return counters_.next_job_number; }
  int64_t next_epoch() const { return counters_.next_epoch; }
  int64_t last_sequence() const { return counters_.last_sequence; }
  int64_t active_jobs() const { return counters_.active_jobs; }  // not terminal

  void Commit();
  void Rollback();

  // Rows of all jobs and workers changed since the last ForgetChanges (which says that they are
  // saved). Precondition of both: nothing speculative.
  SnapshotRows Changes() const;
  void ForgetChanges();
  // Rebuilds from the rows of all snapshots so far. DATA_LOSS for a damaged row.
  static Result<State> FromSnapshot(const SnapshotRows& rows);

 private:
  struct Counters {
    int64_t next_job_number = 1;
    int64_t next_epoch = 1;
    int64_t last_sequence = 0;
    int64_t active_jobs = 0;
  };
  struct Undo {
    bool active = false;
    Counters counters;
    std::map<std::string, std::optional<Job>> jobs;  // as they were; nullopt = did not exist
    std::map<std::string, std::optional<Worker>> workers;
    std::vector<std::string> requests;  // added
  };

  Status ApplySubmitted(const Event& event);
  Status ApplyToJob(const Event& event, Job& job);
  Status ApplyToAttempt(const Event& event, Job& job);
  Status ApplyPlaced(const Event& event, Job& job);
  Status ApplyStopRequest(const Event& event, Job& job);
  Status ApplyToWorker(const Event& event);
  void PutJob(Job job);
  void PutWorker(Worker worker);
  void StoreJob(const std::string& id, std::optional<Job> job);  // keeps the indexes true
  void Index(const Job& job, bool add);
  void RememberRequest(const std::string& request_id, const std::string& job_id,
                       const std::string& body_hash);

  Jobs jobs_;
  Workers workers_;
  std::map<std::string, RequestRecord, std::less<>> requests_;
  std::map<std::string, Queue> queues_;
  std::set<std::string> live_jobs_;
  // Worker -> device -> id of the job that holds it.
  std::map<std::string, std::map<std::string, std::string, std::less<>>, std::less<>> held_devices_;
  std::map<std::string, std::map<int64_t, std::string>, std::less<>> names_;  // number -> id
  Counters counters_;
  Undo undo_;
  std::set<std::string> changed_jobs_;
  std::set<std::string> changed_workers_;
};

// Body hash of a cancel request, to tell a repeat from a conflict.
std::string CancelBodyHash(std::string_view job_id, StopMode mode);

}  // namespace nibble::core
