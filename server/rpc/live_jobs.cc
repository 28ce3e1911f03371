// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/live_jobs.h"

#include <google/protobuf/util/json_util.h>

#include <utility>

#include "base/files.h"
#include "base/json.h"
#include "base/log.h"
#include "base/strings.h"

namespace nibble::rpc {
namespace {

constexpr int64_t kSaveIntervalMs = 5'000;
constexpr int64_t kMaxFileBytes = 1 << 20;
constexpr double kStepTimeSmoothing = 0.1;  // weight of the newest step in the ETA's mean
constexpr char kSuffix[] = ".json";

void ApplyStep(const v1::StepPoint& point, int64_t steady_ms, LiveValues& live) {
  v1::Progress& progress = live.progress;
  const int64_t new_tokens = point.tokens() - progress.tokens();
  if (live.has_step && new_tokens > 0) {
    live.tokens_counted += new_tokens;
  } else if (point.step() > 0) {
    live.tokens_counted += point.tokens() / point.step();
  }
  live.step_seconds = point.step_seconds();
  live.last_step_steady_ms = steady_ms;
  // eta_seconds holds the smoothed step time times the steps left.
  const int64_t before = progress.steps_total() - progress.step();
  const double mean = live.has_step && before > 0 && progress.eta_seconds() > 0
                          ? progress.eta_seconds() / static_cast<double>(before)
                          : point.step_seconds();
  const double smoothed =
      mean * (1 - kStepTimeSmoothing) + point.step_seconds() * kStepTimeSmoothing;
  progress.set_step(point.step());
  const int64_t left = std::max<int64_t>(0, progress.steps_total() - point.step());
  progress.set_eta_seconds(smoothed * static_cast<double>(left));
  progress.set_loss(point.loss());
  progress.set_tokens_per_second(point.tokens_per_second());
  progress.set_tokens(point.tokens());
  progress.set_grad_norm(point.grad_norm());
  progress.set_learning_rate(point.learning_rate());
  live.has_step = true;
}

void ApplyCheckpoint(const v1::CheckpointEvent& event, int64_t time_ms, LiveValues& live) {
  live.checkpoint_path = event.path();
  live.checkpoint_step = event.step();
  live.checkpoint_time_ms = time_ms;
  live.checkpoint_save_seconds = event.save_seconds();
  live.checkpoint_bytes = event.bytes();
  if (event.best()) live.best_checkpoint_path = event.path();
}

// Returns how many values were refused for the limits.
int ApplyRecord(const v1::JournalRecord& record, int64_t steady_ms, LiveValues& live) {
  v1::Progress& progress = live.progress;
  switch (record.event_case()) {
    case v1::JournalRecord::kStart:
      progress.set_steps_total(record.start().steps_total());
      progress.set_step(record.start().resumed_from_step());
      progress.set_eta_seconds(0);
      live.recipe = record.start().recipe();
      live.has_step = false;
      return 0;
    case v1::JournalRecord::kStep:
      ApplyStep(record.step(), steady_ms, live);
      return 0;
    case v1::JournalRecord::kValidation:
      progress.set_validation_loss(record.validation().loss());
      progress.set_validation_step(record.validation().step());
      if (!live.has_validation) progress.set_first_validation_loss(record.validation().loss());
      live.has_validation = true;
      return 0;
    case v1::JournalRecord::kHealth: {
      const std::string& name = record.health().tensor_class();
      if (live.health.size() >= kMaxTensorClasses && live.health.count(name) == 0) return 1;
      live.health[name] = record.health();
      return 0;
    }
    case v1::JournalRecord::kCheckpoint:
      ApplyCheckpoint(record.checkpoint(), record.time_ms(), live);
      return 0;
    case v1::JournalRecord::kMemory: {
      int refused = 0;
      auto& memory = *progress.mutable_memory_bytes();
      for (const auto& [name, bytes] : record.memory().bytes()) {
        if (memory.size() >= kMaxMemoryClasses && memory.count(name) == 0) {
          ++refused;
        } else {
          memory[name] = bytes;
        }
      }
      return refused;
    }
    case v1::JournalRecord::kEnd:
      live.journal_ended = true;
      progress.set_eta_seconds(0);
      return 0;
    default:
      return 0;
  }
}

bool IsUrgent(const v1::JournalRecord& record) {
  return record.has_checkpoint() || record.has_end() || record.has_start();
}

// What survives a restart. NaN and infinities are strings in our JSON and in proto3's alike.
Result<std::string> Encode(const LiveValues& live) {
  std::string progress;
  const auto made = google::protobuf::util::MessageToJsonString(live.progress, &progress);
  if (!made.ok()) return InternalError(made.ToString());
  ASSIGN_OR_RETURN(Json progress_json, Json::Parse(progress));
  return Json::Object({{"progress", std::move(progress_json)},
                       {"attempt", live.attempt},
                       {"lastSeq", live.last_seq},
                       {"hasStep", live.has_step},
                       {"hasValidation", live.has_validation},
                       {"journalEnded", live.journal_ended},
                       {"stepSeconds", live.step_seconds},
                       {"recipe", live.recipe},
                       {"checkpointPath", live.checkpoint_path},
                       {"bestCheckpointPath", live.best_checkpoint_path},
                       {"checkpointStep", live.checkpoint_step},
                       {"checkpointTimeMs", live.checkpoint_time_ms},
                       {"checkpointSaveSeconds", live.checkpoint_save_seconds},
                       {"checkpointBytes", live.checkpoint_bytes}})
      .Dump();
}

Result<LiveValues> Decode(const std::string& text) {
  ASSIGN_OR_RETURN(const Json json, Json::Parse(text));
  LiveValues live;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto parsed =
      google::protobuf::util::JsonStringToMessage(json["progress"].Dump(), &live.progress, options);
  if (!parsed.ok()) return DataLossError(parsed.ToString());
  live.attempt = static_cast<int>(json["attempt"].AsInt());
  live.last_seq = json["lastSeq"].AsInt();
  live.has_step = json["hasStep"].AsBool();
  live.has_validation = json["hasValidation"].AsBool();
  live.journal_ended = json["journalEnded"].AsBool();
  live.step_seconds = json["stepSeconds"].AsDouble();
  live.recipe = json["recipe"].AsString();
  live.checkpoint_path = json["checkpointPath"].AsString();
  live.best_checkpoint_path = json["bestCheckpointPath"].AsString();
  live.checkpoint_step = json["checkpointStep"].AsInt();
  live.checkpoint_time_ms = json["checkpointTimeMs"].AsInt();
  live.checkpoint_save_seconds = json["checkpointSaveSeconds"].AsDouble();
  live.checkpoint_bytes = json["checkpointBytes"].AsInt();
  return live;
}

}  // namespace

Result<std::unique_ptr<LiveJobs>> LiveJobs::Open(const std::string& directory, const Clock& clock) {
  RETURN_IF_ERROR(MakeDirectories(directory));
  std::unique_ptr<LiveJobs> jobs(new LiveJobs(directory, clock));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
  for (const std::string& name : names) {
    if (name.size() <= sizeof kSuffix || !name.ends_with(kSuffix)) continue;
    const std::string job_id = name.substr(0, name.size() - (sizeof kSuffix - 1));
    const Status loaded = jobs->Load(job_id);
    if (!loaded.ok()) {
      LogWarning("kept progress of a job is not readable; it starts empty",
                 {{"job", job_id}, {"error", loaded.ToString()}});
    }
  }
  return jobs;
}

Status LiveJobs::Load(const std::string& job_id) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(JoinPath(directory_, job_id + kSuffix), kMaxFileBytes));
  ASSIGN_OR_RETURN(LiveValues values, Decode(text));
  values.last_step_steady_ms = clock_.SteadyMillis();
  MutexLock lock(mutex_);
  jobs_[job_id].values = std::move(values);
  return OkStatus();
}

int LiveJobs::Apply(const std::string& job_id, int attempt, int rank,
                    const std::vector<v1::JournalRecord>& records) {
  if (rank != 0) return 0;  // rank 0 speaks for the job
  int refused = 0;
  MutexLock lock(mutex_);
  Entry& entry = jobs_[job_id];
  LiveValues& live = entry.values;
  if (attempt < live.attempt) return 0;
  if (attempt > live.attempt) {
    live.attempt = attempt;
    live.last_seq = 0;
    live.journal_ended = false;
    live.last_step_steady_ms = clock_.SteadyMillis();
  }
  for (const v1::JournalRecord& record : records) {
    if (record.seq() <= live.last_seq) continue;
    live.last_seq = record.seq();
    refused += ApplyRecord(record, clock_.SteadyMillis(), live);
    entry.changed = true;
    entry.urgent = entry.urgent || IsUrgent(record);
  }
  return refused;
}

std::optional<LiveValues> LiveJobs::Find(const std::string& job_id) const {
  MutexLock lock(mutex_);
  const auto found = jobs_.find(job_id);
  if (found == jobs_.end()) return std::nullopt;
  return found->second.values;
}

void LiveJobs::Save() {
  std::vector<std::pair<std::string, LiveValues>> due;
  const int64_t now = clock_.SteadyMillis();
  {
    MutexLock lock(mutex_);
    for (auto& [job_id, entry] : jobs_) {
      if (!entry.changed) continue;
      if (!entry.urgent && now - entry.saved_ms < kSaveIntervalMs) continue;
      entry.changed = entry.urgent = false;
      entry.saved_ms = now;
      due.emplace_back(job_id, entry.values);
    }
  }
  for (const auto& [job_id, values] : due) {
    const Result<std::string> text = Encode(values);
    const Status saved =
        text.ok() ? AtomicWriteFile(JoinPath(directory_, job_id + kSuffix), *text) : text.status();
    if (!saved.ok()) {
      LogWarning("progress of a job is not kept", {{"job", job_id}, {"error", saved.ToString()}});
    }
  }
}

}  // namespace nibble::rpc
