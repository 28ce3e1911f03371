// SPDX-License-Identifier: Apache-2.0
//
// EventLog: the durable log of the controller, and its SQLite form.
//
// Format (docs/reference describes the tables): control.db in WAL mode with synchronous=FULL;
// `events` holds one JSON text per event, `jobs`, `workers` and `meta` the incremental snapshot.
// Thread-safety: an EventLog is used by one thread; History may be called from others (it has its
// own connection and lock). Ownership: owns the database connections and the directory's lock.
// Invariants: what Append returned OK for survives kill -9 and power loss; a failed Append leaves
// nothing behind; sequence numbers have no gaps.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "server/core/events.h"
#include "server/core/state.h"

namespace nibble::store {

class EventLog {
 public:
  virtual ~EventLog() = default;

  // Makes all events durable, or none. Their sequence numbers continue the log's: INTERNAL else.
  // RESOURCE_EXHAUSTED when the disk is full; the log stays usable and a later Append may succeed.
  virtual Status Append(const std::vector<core::Event>& events) = 0;

  // The state after the last durable event: snapshot rows plus the events that follow them.
  // DATA_LOSS for a damaged log, FAILED_PRECONDITION for one written by a newer build.
  virtual Result<core::State> Load() = 0;

  // Stores changed rows, all or none. Events up to rows.sequence are then not needed by Load.
  virtual Status SaveSnapshot(const core::SnapshotRows& rows) = 0;

  // Removes worker-only events older than the log's retention that Load no longer needs, and
  // returns how many. What History of a job needs stays.
  virtual Result<int64_t> Compact(int64_t wall_ms) = 0;

  // Events of a job (or of a worker, or of both when "" is given) after `after_sequence`, oldest
  // first, at most `limit`. The history of a job is kept as long as the job.
  virtual Result<std::vector<core::Event>> History(const std::string& job_id,
                                                   const std::string& worker_id,
                                                   int64_t after_sequence, int limit) const = 0;
};

struct SqliteLogOptions {
  std::string state_directory;
  // Compact keeps worker-only events this long.
  int64_t worker_history_ms = int64_t{30} * 24 * 3600 * 1000;
};

class SqliteEventLog : public EventLog {
 public:
  // Creates or opens <state_directory>/control.db and takes <state_directory>/controller.lock.
  // FAILED_PRECONDITION when another controller holds it (with its process id) or when the schema
  // is newer than this build; DATA_LOSS when the file is not a database or is damaged.
  static Result<std::unique_ptr<SqliteEventLog>> Open(const SqliteLogOptions& options);
  ~SqliteEventLog() override;

  Status Append(const std::vector<core::Event>& events) override;
  Result<core::State> Load() override;
  Status SaveSnapshot(const core::SnapshotRows& rows) override;
  Result<int64_t> Compact(int64_t wall_ms) override;
  Result<std::vector<core::Event>> History(const std::string& job_id, const std::string& worker_id,
                                           int64_t after_sequence, int limit) const override;

 private:
  struct Impl;
  explicit SqliteEventLog(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::store
