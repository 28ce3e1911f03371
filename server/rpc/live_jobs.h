// SPDX-License-Identifier: Apache-2.0
//
// LiveJobs: the newest values each job reported (step, loss, memory, health, checkpoints), for
// `ps`, `describe` and /metrics. Curves by step are in the MetricStore.
//
// Thread-safety: thread-safe; Find copies. Ownership: owns the values and the files they are kept
// in, <directory>/<job>.json, so that they survive a restart of the controller.
// Invariant: values of an older attempt never replace those of a newer one. A record that was seen
// before (seq not above the newest of its rank and attempt) changes nothing.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/status.h"
#include "nibble/v1/job.pb.h"
#include "nibble/v1/metrics.pb.h"

namespace nibble::rpc {

inline constexpr size_t kMaxTensorClasses = 18;  // as many as a trainer has
inline constexpr size_t kMaxMemoryClasses = 8;

struct LiveValues {
  v1::Progress progress;
  int attempt = 0;       // of the values; 0 = nothing reported
  int64_t last_seq = 0;  // newest record of rank 0 seen
  bool has_step = false;
  bool has_validation = false;
  bool journal_ended = false;  // the attempt's end record has arrived
  double step_seconds = 0;
  std::map<std::string, v1::HealthPoint> health;  // by tensor class
  std::string recipe;
  // Checkpoints, over all attempts.
  std::string checkpoint_path;
  std::string best_checkpoint_path;
  int64_t checkpoint_step = 0;
  int64_t checkpoint_time_ms = 0;
  double checkpoint_save_seconds = 0;
  int64_t checkpoint_bytes = 0;
  // Since this controller started; not kept on disk.
  int64_t tokens_counted = 0;
  int64_t last_step_steady_ms = 0;
};

class LiveJobs {
 public:
  // Reads what an earlier controller kept; a damaged file is logged and skipped.
  static Result<std::unique_ptr<LiveJobs>> Open(const std::string& directory, const Clock& clock);

  // Folds records of one attempt in, oldest first; ignores repeats and older attempts. Returns how
  // many values were refused because a job has too many classes.
  int Apply(const std::string& job_id, int attempt, int rank,
            const std::vector<v1::JournalRecord>& records) EXCLUDES(mutex_);

  std::optional<LiveValues> Find(const std::string& job_id) const EXCLUDES(mutex_);

  // Writes the values changed since the last call: after a start, a checkpoint or an end at once,
  // else no more often than every few seconds. Called by one thread.
  void Save() EXCLUDES(mutex_);

 private:
  struct Entry {
    LiveValues values;
    bool changed = false;
    bool urgent = false;  // a checkpoint or the end: save at the next call
    int64_t saved_ms = 0;
  };
  LiveJobs(std::string directory, const Clock& clock)
      : directory_(std::move(directory)), clock_(clock) {}
  Status Load(const std::string& job_id);

  const std::string directory_;
  const Clock& clock_;
  mutable Mutex mutex_;
  std::map<std::string, Entry> jobs_ GUARDED_BY(mutex_);
};

}  // namespace nibble::rpc
