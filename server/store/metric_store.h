// SPDX-License-Identifier: Apache-2.0
//
// MetricStore: full-resolution curves in append-only segment files, one per (job, attempt, rank).
//
// Layout: <directory>/<job>/a<attempt>-r<rank>.points. A segment is a header and frames; a frame
// is one appended batch with the journal cursor after it, length and CRC-32 first, so points and
// cursor become durable together. A torn or damaged tail is cut back when a segment is opened, and
// logged; the worker then resends from the older cursor.
// Keys: (kind, step, tensor class) within a segment; steps grow within an attempt, and a point that
// is not newer than the last of its kind is a repeat and is dropped. Notes have no key: the newest
// of a name counts.
// Thread-safety: thread-safe; one lock, held during file reads and writes of this store only.
// Limits: kMaxOpenSegments open files (each with its newest points and a sparse index in memory),
// kMaxBatchPoints per append, kMaxCurvePoints per answer. A segment never exceeds kMaxSegmentBytes:
// beyond that new points are dropped and counted.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/mutex.h"
#include "base/status.h"
#include "server/store/points.h"

namespace nibble::store {

inline constexpr size_t kMaxOpenSegments = 256;
inline constexpr size_t kMaxBatchPoints = 65'536;
inline constexpr int64_t kMaxSegmentBytes = int64_t{4} << 30;
inline constexpr size_t kMaxCurvePoints = 2'000'000;
inline constexpr size_t kMaxNoteBytes = 65'536;
inline constexpr int kMinDownsampledPoints = 4;

struct AppendResult {
  int64_t cursor = 0;  // acknowledge this to the worker
  int dropped_repeats = 0;
  int dropped_over_limit = 0;  // segment full, or a text too long
  PointBatch fresh;            // what was new: publish this to watchers
};

// Which steps to read, and how many points at most.
struct CurveQuery {
  int64_t from_step = 0;  // inclusive
  int64_t to_step = INT64_MAX;
  // 0 = all. Otherwise the range is cut into about max_points / 2 buckets of equal width, and each
  // yields its lowest and its highest loss (one that is not finite counts as highest), so spikes
  // stay visible; the first and the last point are always among the answer. At least 4.
  int max_points = 0;
  int attempt = 0;  // 0 = canonical; else that attempt alone
};

class MetricStore {
 public:
  // Creates `directory` when missing.
  static Result<std::unique_ptr<MetricStore>> Open(const std::string& directory);
  ~MetricStore();

  // Journal cursor of what is stored: where the worker shall resume. 0 for an unknown stream.
  Result<int64_t> Cursor(const StreamKey& key) EXCLUDES(mutex_);

  // Writes the batch and the cursor after it, then returns the cursor to acknowledge. A batch
  // whose end_cursor is not above the stored cursor is a repeat: nothing is written.
  // RESOURCE_EXHAUSTED when the disk is full: nothing is written, do not acknowledge.
  // INVALID_ARGUMENT above kMaxBatchPoints or for a job id that is no valid name.
  Result<AppendResult> Append(const StreamKey& key, const PointBatch& batch, int64_t end_cursor)
      EXCLUDES(mutex_);

  // fdatasync of every segment written since the last call. Between calls a power loss may cost
  // points, never consistency: cursor and points go together, so the worker sends them again.
  Status Sync() EXCLUDES(mutex_);

  // The curve of rank 0, by step. Canonical (query.attempt == 0): each attempt's points up to the
  // first step of the next newer attempt that has steps; what a rollback undid is not shown.
  // INVALID_ARGUMENT for max_points of 1 to 3; RESOURCE_EXHAUSTED above kMaxCurvePoints.
  Result<std::vector<Attributed<StepPoint>>> Steps(const std::string& job_id,
                                                   const CurveQuery& query) EXCLUDES(mutex_);
  // As Steps, never downsampled.
  Result<std::vector<Attributed<ValidationPoint>>> Validations(const std::string& job_id,
                                                               const CurveQuery& query)
      EXCLUDES(mutex_);
  Result<std::vector<Attributed<HealthPoint>>> Healths(const std::string& job_id,
                                                       const CurveQuery& query) EXCLUDES(mutex_);
  Result<std::vector<Attributed<CheckpointPoint>>> Checkpoints(const std::string& job_id,
                                                               const CurveQuery& query)
      EXCLUDES(mutex_);

  // The notes of rank 0 of one attempt, the newest of each name. `attempt` 0 = the newest that has
  // any.
  Result<std::vector<Attributed<Note>>> Notes(const std::string& job_id, int attempt)
      EXCLUDES(mutex_);

  // Newest step point of the job's newest attempt that has one, from memory when it is cached.
  Result<std::optional<Attributed<StepPoint>>> LastStep(const std::string& job_id) EXCLUDES(mutex_);

 private:
  struct Segment;
  // A stretch of one attempt's segment that a query asks for.
  struct Stretch {
    int attempt = 0;
    int64_t from_step = 0;
    int64_t to_step = 0;
    std::shared_ptr<Segment> segment;
  };

  explicit MetricStore(std::string directory);
  std::string PathOf(const StreamKey& key) const;
  // Null when there is no such segment and `create` is off. Shared with the Stretches of a query
  // that is being answered, so that opening one segment may evict another.
  Result<std::shared_ptr<Segment>> OpenSegment(const StreamKey& key, bool create) REQUIRES(mutex_);
  Status EvictOldest() REQUIRES(mutex_);
  Result<std::vector<int>> Attempts(const std::string& job_id) const;  // newest first
  // Newest attempt first.
  Result<std::vector<Stretch>> Stretches(const std::string& job_id, const CurveQuery& query)
      REQUIRES(mutex_);
  template <typename Point>
  Status Visit(const Stretch& stretch, std::vector<Point> PointBatch::*points,
               const std::function<Status(const Point&)>& visit) REQUIRES(mutex_);
  template <typename Point>
  Result<std::vector<Attributed<Point>>> Collect(const std::string& job_id, const CurveQuery& query,
                                                 std::vector<Point> PointBatch::*points)
      REQUIRES(mutex_);

  const std::string directory_;
  Mutex mutex_;
  std::map<StreamKey, std::shared_ptr<Segment>> segments_ GUARDED_BY(mutex_);
  int64_t use_counter_ GUARDED_BY(mutex_) = 0;
};

}  // namespace nibble::store
