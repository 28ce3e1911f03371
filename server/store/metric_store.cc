// SPDX-License-Identifier: Apache-2.0
#include "server/store/metric_store.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <set>

#include "base/ids.h"
#include "base/log.h"
#include "base/strings.h"
#include "server/store/downsample.h"
#include "server/store/points_codec.h"

namespace nibble::store {
namespace {

// One index entry per this many bytes of segment.
constexpr int64_t kIndexEveryBytes = int64_t{256} << 10;
constexpr size_t kMaxTensorClassBytes = 64;
constexpr size_t kMaxPathBytes = 4096;

Status CheckKey(const StreamKey& key) {
  if (IsValidName(key.job_id) && key.attempt >= 1 && key.rank >= 0) return OkStatus();
  return InvalidArgumentError(StrFormat("no metric stream can be job '%.80s' attempt %d rank %d",
                                        key.job_id.c_str(), key.attempt, key.rank));
}

bool TextFits(const StepPoint&) { return true; }
bool TextFits(const ValidationPoint&) { return true; }
bool TextFits(const HealthPoint& point) {
  return point.tensor_class.size() <= kMaxTensorClassBytes;
}
bool TextFits(const CheckpointPoint& point) { return point.path.size() <= kMaxPathBytes; }
bool TextFits(const Note& note) {
  return note.name.size() <= kMaxTensorClassBytes && note.json.size() <= kMaxNoteBytes;
}

// What deduplication needs to remember of a segment: the newest step of each kind.
struct Newest {
  int64_t step = -1;
  int64_t validation = -1;
  int64_t health = -1;
  std::set<std::string> health_classes;  // at that step
  int64_t checkpoint = -1;

  bool Take(const StepPoint& point) { return TakeStep(step, point.step); }
  bool Take(const ValidationPoint& point) { return TakeStep(validation, point.step); }
  bool Take(const CheckpointPoint& point) { return TakeStep(checkpoint, point.step); }
  bool Take(const HealthPoint& point) {
    if (point.step < health) return false;
    if (point.step > health) health_classes.clear();
    health = point.step;
    return health_classes.insert(point.tensor_class).second;
  }
  bool Take(const Note&) { return true; }

 private:
  static bool TakeStep(int64_t& newest, int64_t step) {
    if (step <= newest) return false;
    newest = step;
    return true;
  }
};

}  // namespace

struct MetricStore::Segment {
  std::string path;
  AppendFile file;
  int64_t cursor = 0;
  int64_t first_step = -1;  // of step points; -1 = none
  StepPoint last;           // newest step point; meaningful when first_step >= 0
  Newest newest;
  // Frames from `offset` on; all frames before hold only steps up to `step`.
  struct IndexEntry {
    int64_t step = 0;
    int64_t offset = 0;
  };
  std::vector<IndexEntry> index;
  std::vector<Note> notes;  // the newest of each name
  bool dirty = false;
  int64_t last_used = 0;

  void Keep(const Note& note) {
    std::erase_if(notes, [&](const Note& old) { return old.name == note.name; });
    notes.push_back(note);
  }
  // Accounts for a frame at `offset` that is in the file.
  void Account(int64_t offset, const PointBatch& batch, int64_t end_cursor) {
    if (index.empty() || offset - index.back().offset >= kIndexEveryBytes) {
      index.push_back({first_step < 0 ? -1 : last.step, offset});
    }
    cursor = std::max(cursor, end_cursor);
    for (const Note& note : batch.notes) Keep(note);
    if (batch.steps.empty()) return;
    if (first_step < 0) first_step = batch.steps.front().step;
    last = batch.steps.back();
  }
  // Where to begin reading to see everything from `step` on.
  int64_t OffsetFor(int64_t step) const {
    int64_t offset = 0;
    for (const IndexEntry& entry : index) {
      if (entry.step >= step) break;
      offset = entry.offset;
    }
    return offset;
  }
};

namespace {

// Moves the points that are new and small enough into `fresh`.
template <typename Point>
void Filter(Newest& newest, const std::vector<Point>& points, std::vector<Point>& fresh,
            AppendResult& result) {
  for (const Point& point : points) {
    if (!TextFits(point)) {
      ++result.dropped_over_limit;
    } else if (newest.Take(point)) {
      fresh.push_back(point);
    } else {
      ++result.dropped_repeats;
    }
  }
}

void FilterBatch(Newest& newest, const PointBatch& batch, AppendResult& result) {
  Filter(newest, batch.steps, result.fresh.steps, result);
  Filter(newest, batch.validations, result.fresh.validations, result);
  Filter(newest, batch.healths, result.fresh.healths, result);
  Filter(newest, batch.checkpoints, result.fresh.checkpoints, result);
  Filter(newest, batch.notes, result.fresh.notes, result);
}

// The attempt of a rank-0 segment's file name "a3-r0.points"; 0 for any other name.
int AttemptOfFile(const std::string& name) {
  constexpr std::string_view kSuffix = "-r0.points";
  if (name.size() <= kSuffix.size() + 1 || name[0] != 'a' || !name.ends_with(kSuffix)) return 0;
  const auto number = ParseInt(name.substr(1, name.size() - kSuffix.size() - 1));
  return number.ok() && *number > 0 && *number < INT32_MAX ? static_cast<int>(*number) : 0;
}

}  // namespace

MetricStore::MetricStore(std::string directory) : directory_(std::move(directory)) {}
MetricStore::~MetricStore() = default;

Result<std::unique_ptr<MetricStore>> MetricStore::Open(const std::string& directory) {
  RETURN_IF_ERROR(MakeDirectories(directory));
  return std::unique_ptr<MetricStore>(new MetricStore(directory));
}

std::string MetricStore::PathOf(const StreamKey& key) const {
  return JoinPath(JoinPath(directory_, key.job_id),
                  StrFormat("a%d-r%d.points", key.attempt, key.rank));
}

Status MetricStore::EvictOldest() {
  const auto oldest = std::min_element(
      segments_.begin(), segments_.end(),
      [](const auto& a, const auto& b) { return a.second->last_used < b.second->last_used; });
  if (oldest->second->dirty) RETURN_IF_ERROR(oldest->second->file.Sync());
  segments_.erase(oldest);
  return OkStatus();
}

Result<std::shared_ptr<MetricStore::Segment>> MetricStore::OpenSegment(const StreamKey& key,
                                                                       bool create) {
  RETURN_IF_ERROR(CheckKey(key));
  const auto found = segments_.find(key);
  if (found != segments_.end()) {
    found->second->last_used = ++use_counter_;
    return found->second;
  }
  auto segment = std::make_shared<Segment>();
  segment->path = PathOf(key);
  if (!PathExists(segment->path)) {
    if (!create) return std::shared_ptr<Segment>();
    RETURN_IF_ERROR(MakeDirectories(DirName(segment->path)));
  } else {
    ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(segment->path));
    const auto account = [&](int64_t offset, DecodedFrame& frame) {
      AppendResult ignored;
      FilterBatch(segment->newest, frame.batch, ignored);
      segment->Account(offset, frame.batch, frame.end_cursor);
      return true;
    };
    ASSIGN_OR_RETURN(const int64_t whole, ForEachFrame(segment->path, 0, size, account));
    if (whole < size) {
      LogWarning("metric segment cut back to its last whole frame",
                 {{"path", segment->path},
                  {"bytes_kept", std::to_string(whole)},
                  {"bytes_cut", std::to_string(size - whole)}});
      if (::truncate(segment->path.c_str(), whole) != 0) {
        return ErrnoError(errno, "truncate " + segment->path);
      }
    }
  }
  ASSIGN_OR_RETURN(segment->file, AppendFile::Open(segment->path));
  if (segment->file.size_bytes() == 0) RETURN_IF_ERROR(segment->file.Append(kSegmentMagic));
  if (segments_.size() >= kMaxOpenSegments) RETURN_IF_ERROR(EvictOldest());
  segment->last_used = ++use_counter_;
  segments_[key] = segment;
  return segment;
}

Result<int64_t> MetricStore::Cursor(const StreamKey& key) {
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(const auto segment, OpenSegment(key, false));
  return segment == nullptr ? 0 : segment->cursor;
}

Result<AppendResult> MetricStore::Append(const StreamKey& key, const PointBatch& batch,
                                         int64_t end_cursor) {
  if (batch.size() > kMaxBatchPoints) {
    return InvalidArgumentError(
        StrFormat("a batch of %zu points; at most %zu", batch.size(), kMaxBatchPoints));
  }
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(const auto segment, OpenSegment(key, true));
  AppendResult result;
  result.cursor = segment->cursor;
  if (end_cursor <= segment->cursor) {
    result.dropped_repeats = static_cast<int>(batch.size());
    return result;
  }
  Newest newest = segment->newest;  // taken over only when the write succeeds
  FilterBatch(newest, batch, result);
  const std::string frame = EncodeFrame(result.fresh, end_cursor);
  const int64_t offset = segment->file.size_bytes();
  if (offset + static_cast<int64_t>(frame.size()) > kMaxSegmentBytes) {
    result.dropped_over_limit += static_cast<int>(result.fresh.size());
    result.fresh = PointBatch();
    result.cursor = segment->cursor = end_cursor;  // in memory only: there is no room left
    return result;
  }
  RETURN_IF_ERROR(segment->file.Append(frame));
  segment->dirty = true;
  segment->newest = std::move(newest);
  segment->Account(offset, result.fresh, end_cursor);
  result.cursor = segment->cursor;
  return result;
}

Status MetricStore::Sync() {
  MutexLock lock(mutex_);
  for (auto& [key, segment] : segments_) {
    if (!segment->dirty) continue;
    RETURN_IF_ERROR(segment->file.Sync());
    segment->dirty = false;
  }
  return OkStatus();
}

Result<std::vector<int>> MetricStore::Attempts(const std::string& job_id) const {
  if (!IsValidName(job_id)) {
    return InvalidArgumentError("'" + job_id.substr(0, 80) + "' is not a job id");
  }
  std::vector<int> attempts;
  const std::string directory = JoinPath(directory_, job_id);
  if (!PathExists(directory)) return attempts;
  ASSIGN_OR_RETURN(const auto names, ListDirectory(directory));
  for (const std::string& name : names) {
    if (const int attempt = AttemptOfFile(name); attempt > 0) attempts.push_back(attempt);
  }
  std::sort(attempts.rbegin(), attempts.rend());
  return attempts;
}

Result<std::vector<MetricStore::Stretch>> MetricStore::Stretches(const std::string& job_id,
                                                                 const CurveQuery& query) {
  ASSIGN_OR_RETURN(const std::vector<int> attempts, Attempts(job_id));
  std::vector<Stretch> stretches;
  int64_t to_step = query.to_step;
  for (const int attempt : attempts) {
    if (query.attempt != 0 && attempt != query.attempt) continue;
    ASSIGN_OR_RETURN(auto segment, OpenSegment({job_id, attempt, 0}, false));
    if (segment == nullptr) continue;
    stretches.push_back({attempt, query.from_step, to_step, segment});
    if (segment->first_step >= 0) to_step = std::min(to_step, segment->first_step - 1);
  }
  return stretches;
}

template <typename Point>
Status MetricStore::Visit(const Stretch& stretch, std::vector<Point> PointBatch::*points,
                          const std::function<Status(const Point&)>& visit) {
  if (stretch.from_step > stretch.to_step) return OkStatus();
  Status status;
  const auto take = [&](int64_t, DecodedFrame& frame) {
    for (const Point& point : frame.batch.*points) {
      if (point.step < stretch.from_step || point.step > stretch.to_step) continue;
      status = visit(point);
      if (!status.ok()) return false;
    }
    return true;
  };
  const Segment& segment = *stretch.segment;
  const Result<int64_t> end = ForEachFrame(segment.path, segment.OffsetFor(stretch.from_step),
                                           segment.file.size_bytes(), take);
  return end.ok() ? status : end.status();
}

template <typename Point>
Result<std::vector<Attributed<Point>>> MetricStore::Collect(
    const std::string& job_id, const CurveQuery& query, std::vector<Point> PointBatch::*points) {
  ASSIGN_OR_RETURN(const std::vector<Stretch> stretches, Stretches(job_id, query));
  std::vector<Attributed<Point>> curve;
  for (const Stretch& stretch : stretches) {
    RETURN_IF_ERROR(Visit<Point>(stretch, points, [&](const Point& point) {
      if (curve.size() >= kMaxCurvePoints) {
        return ResourceExhaustedError(
            StrFormat("job %s has more than %zu points in this range: ask for a smaller range or "
                      "set a maximum number of points",
                      job_id.c_str(), kMaxCurvePoints));
      }
      curve.push_back({stretch.attempt, point});
      return OkStatus();
    }));
  }
  std::stable_sort(curve.begin(), curve.end(),
                   [](const auto& a, const auto& b) { return a.point.step < b.point.step; });
  // A step that two attempts have (a validation at the step both resumed from): the newest counts,
  // and it comes first because stretches do.
  std::vector<Attributed<Point>> unique;
  unique.reserve(curve.size());
  for (Attributed<Point>& item : curve) {
    if (!unique.empty() && unique.back().point.step == item.point.step &&
        unique.back().attempt != item.attempt) {
      continue;
    }
    unique.push_back(std::move(item));
  }
  return unique;
}

Result<std::vector<Attributed<StepPoint>>> MetricStore::Steps(const std::string& job_id,
                                                              const CurveQuery& query) {
  MutexLock lock(mutex_);
  if (query.max_points == 0) return Collect<StepPoint>(job_id, query, &PointBatch::steps);
  if (query.max_points < kMinDownsampledPoints) {
    return InvalidArgumentError(StrFormat("max_points is %d; use 0 for all or at least %d",
                                          query.max_points, kMinDownsampledPoints));
  }
  ASSIGN_OR_RETURN(const std::vector<Stretch> stretches, Stretches(job_id, query));
  int64_t first = INT64_MAX;
  int64_t last = -1;
  for (const Stretch& stretch : stretches) {
    if (stretch.segment->first_step < 0) continue;
    first = std::min(first, std::max(query.from_step, stretch.segment->first_step));
    last = std::max(last, std::min(stretch.to_step, stretch.segment->last.step));
  }
  if (last < first) return std::vector<Attributed<StepPoint>>();
  Downsampler downsampler(first, last, query.max_points);
  for (const Stretch& stretch : stretches) {
    RETURN_IF_ERROR(Visit<StepPoint>(stretch, &PointBatch::steps, [&](const StepPoint& point) {
      downsampler.Add({stretch.attempt, point});
      return OkStatus();
    }));
  }
  return downsampler.Take();
}

Result<std::vector<Attributed<ValidationPoint>>> MetricStore::Validations(const std::string& job_id,
                                                                          const CurveQuery& query) {
  MutexLock lock(mutex_);
  return Collect<ValidationPoint>(job_id, query, &PointBatch::validations);
}

Result<std::vector<Attributed<HealthPoint>>> MetricStore::Healths(const std::string& job_id,
                                                                  const CurveQuery& query) {
  MutexLock lock(mutex_);
  return Collect<HealthPoint>(job_id, query, &PointBatch::healths);
}

Result<std::vector<Attributed<CheckpointPoint>>> MetricStore::Checkpoints(const std::string& job_id,
                                                                          const CurveQuery& query) {
  MutexLock lock(mutex_);
  return Collect<CheckpointPoint>(job_id, query, &PointBatch::checkpoints);
}

Result<std::vector<Attributed<Note>>> MetricStore::Notes(const std::string& job_id, int attempt) {
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(const auto stretches, Stretches(job_id, CurveQuery{.attempt = attempt}));
  std::vector<Attributed<Note>> notes;
  for (const Stretch& stretch : stretches) {
    for (const Note& note : stretch.segment->notes) notes.push_back({stretch.attempt, note});
    if (!notes.empty()) break;
  }
  return notes;
}

Result<std::optional<Attributed<StepPoint>>> MetricStore::LastStep(const std::string& job_id) {
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(const auto stretches, Stretches(job_id, CurveQuery{}));
  for (const Stretch& stretch : stretches) {
    if (stretch.segment->first_step < 0) continue;
    return std::optional(Attributed<StepPoint>{stretch.attempt, stretch.segment->last});
  }
  return std::optional<Attributed<StepPoint>>();
}

}  // namespace nibble::store
