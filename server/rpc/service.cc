// SPDX-License-Identifier: Apache-2.0
//
// The service's life, and what it does with decisions: publish, count, send.
#include "server/rpc/service.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/files.h"
#include "base/log.h"
#include "base/strings.h"
#include "kernels/recipe/recipe.h"

namespace nibble::rpc {
namespace {

constexpr int kReaderThreads = 2;
constexpr int kMaxInputsPerFsync = 256;
constexpr int64_t kSnapshotIntervalMs = 200;
constexpr int64_t kMaxTickMs = 1'000;
// How long after the end of an attempt its last telemetry is waited for.
constexpr int64_t kSettleMs = 2'000;

store::EngineOptions EngineOptionsOf(const ControllerOptions& options) {
  store::EngineOptions engine;
  engine.core.heartbeat_interval_ms = options.heartbeat_ms;
  engine.core.suspect_after_ms = options.suspect_after_ms;
  engine.core.lease_ms = options.lease_ms;
  engine.max_batch = kMaxInputsPerFsync;
  return engine;
}

// The job state an event leads to, for those that change it.
std::optional<core::JobState> StateAfter(const core::Event& event) {
  using core::EventType;
  switch (event.type) {
    case EventType::kJobSubmitted:
    case EventType::kJobResumed:
      return core::JobState::kPending;
    case EventType::kJobPlaced:
      return core::JobState::kStarting;
    case EventType::kAttemptRunning:
    case EventType::kJobReturned:
      return core::JobState::kRunning;
    case EventType::kJobSuspected:
      return core::JobState::kSuspect;
    case EventType::kJobHeld:
      return core::JobState::kHeld;
    case EventType::kJobRequeued:
      return std::get<core::JobRequeuedData>(event.payload).state;
    case EventType::kJobEnded:
      return std::get<core::JobEndedData>(event.payload).state;
    default:
      return std::nullopt;
  }
}

}  // namespace

ControllerService::ControllerService(const ControllerOptions& options, const Clock& clock)
    : options_(options),
      clock_(clock),
      start_wall_ms_(clock.WallMillis()),
      metrics_(options.version, options.state_dir) {}

Result<std::unique_ptr<ControllerService>> ControllerService::Open(const ControllerOptions& options,
                                                                   const Clock& clock) {
  RETURN_IF_ERROR(MakeDirectories(options.state_dir));
  std::unique_ptr<ControllerService> service(new ControllerService(options, clock));
  const auto below = [&options](const char* name) { return JoinPath(options.state_dir, name); };
  ASSIGN_OR_RETURN(service->log_,
                   store::SqliteEventLog::Open({.state_directory = options.state_dir}));
  ASSIGN_OR_RETURN(service->metric_store_, store::MetricStore::Open(below("metrics")));
  ASSIGN_OR_RETURN(service->logs_, store::LogStore::Open(below("logs")));
  ASSIGN_OR_RETURN(service->live_, LiveJobs::Open(below("progress"), clock));
  ASSIGN_OR_RETURN(
      std::unique_ptr<store::Engine> engine,
      store::Engine::Open(EngineOptionsOf(options), service->log_.get(),
                          {.wall_ms = clock.WallMillis(), .steady_ms = clock.SteadyMillis()}));
  const Result<int64_t> compacted = service->log_->Compact(clock.WallMillis());
  if (!compacted.ok()) {
    LogWarning("old events of workers stay", {{"error", compacted.status().ToString()}});
  }
  for (const auto& [queue, keys] : engine->state().queues()) {
    for (const core::QueueKey& key : keys) {
      const core::Job* job = engine->state().FindJob(key.job_id);
      if (job != nullptr) service->waiting_since_ms_[key.job_id] = job->state_since_ms;
    }
  }
  LogInfo("state replayed", {{"jobs", std::to_string(engine->state().jobs().size())},
                             {"sequence", std::to_string(engine->state().last_sequence())}});
  service->executor_ = std::make_unique<Executor>(kReaderThreads);
  TelemetrySink::Options sink;
  sink.metrics = service->metric_store_.get();
  sink.logs = service->logs_.get();
  sink.live = service->live_.get();
  sink.hub = &service->hub_;
  sink.send = [self = service.get()](const std::string& worker_id, const std::string& session,
                                     v1::ControllerMessage message) {
    self->sessions_.Send(worker_id, session, std::move(message));
  };
  sink.count_dropped = [self = service.get()](DropReason reason, int points) {
    self->metrics_.CountDropped(reason, points);
  };
  service->telemetry_ = std::make_unique<TelemetrySink>(std::move(sink));
  const std::chrono::milliseconds tick(
      std::clamp<int64_t>(options.heartbeat_ms / 4, 5, kMaxTickMs));
  service->loop_ =
      std::make_unique<Loop>(std::move(engine), service.get(), clock, tick, kMaxInputsPerFsync);
  return service;
}

ControllerService::~ControllerService() { Stop(); }

void ControllerService::Start() {
  telemetry_->Start();
  loop_->Start();
  started_ = true;
}

void ControllerService::BeginStop() {
  stopping_ = true;
  sessions_.KickAll("the controller is shutting down");
  hub_.PublishAll();
}

void ControllerService::Stop() {
  stopping_ = true;
  if (stopped_.exchange(true)) return;
  if (loop_ != nullptr) loop_->Stop();
  executor_.reset();
  telemetry_.reset();
}

void ControllerService::OnDecision(const core::Decision& decision, const View& view) {
  std::set<std::string> jobs;
  for (const core::Event& event : decision.events) {
    if (!event.job_id.empty()) jobs.insert(event.job_id);
    CountEvent(event, view);
  }
  if (!decision.events.empty()) changed_ = true;
  for (const core::Command& command : decision.commands) SendCommand(command, view);
  for (const std::string& job_id : jobs) {
    hub_.PublishJob(job_id);
    hub_.PublishLogs(job_id);
  }
}

void ControllerService::CountEvent(const core::Event& event, const View& view) {
  std::optional<core::JobState> to = StateAfter(event);
  if (!to.has_value()) return;
  const core::Job* job = view.state.FindJob(event.job_id);
  std::string reason;
  if (event.type == core::EventType::kJobEnded) {
    reason = core::Name(std::get<core::JobEndedData>(event.payload).reason);
  } else if (core::IsQueued(*to) && job != nullptr) {
    reason = core::Name(job->last_failure);
  }
  metrics_.CountTransition(*to, reason);
  if (core::IsQueued(*to)) {
    waiting_since_ms_[event.job_id] = event.time_ms;
    return;
  }
  const auto waiting = waiting_since_ms_.find(event.job_id);
  if (waiting == waiting_since_ms_.end()) return;
  if (event.type == core::EventType::kJobPlaced && job != nullptr) {
    const int64_t waited_ms = std::max<int64_t>(0, event.time_ms - waiting->second);
    metrics_.ObserveQueueWait(job->spec.queue, static_cast<double>(waited_ms) / 1e3);
  }
  waiting_since_ms_.erase(waiting);
}

void ControllerService::SendCommand(const core::Command& command, const View& view) {
  const v1::JobSpec* spec = nullptr;
  if (const auto* start = std::get_if<core::StartAttempt>(&command.body)) {
    const core::Job* job = view.state.FindJob(start->job_id);
    if (job != nullptr) spec = &specs_.Get(job->spec);
  }
  sessions_.Send(command.worker_id, command.session, ToProto(command, view.state, spec));
}

void ControllerService::OnStep(double seconds, size_t events) {
  if (events > 0) {
    metrics_.ObserveAppend(seconds, events);
  } else {
    metrics_.ObserveCycle(seconds);
  }
}

void ControllerService::OnTurn(const View& view, const Status& log_health) {
  const int64_t now = view.now.steady_ms;
  const bool due = now - snapshot_steady_ms_ >= kMaxTickMs ||
                   (changed_ && now - snapshot_steady_ms_ >= kSnapshotIntervalMs);
  if (due || snapshot_steady_ms_ == 0) {
    auto fresh = std::make_shared<Snapshot>(
        BuildSnapshot(view.controller, view.now, options_.job_series_grace_ms, specs_));
    fresh->log_health = log_health;
    snapshot_steady_ms_ = now;
    changed_ = false;
    MutexLock lock(snapshot_mutex_);
    snapshot_ = std::move(fresh);
  }
  // Streams look again once a second: progress moved, or a wait for last telemetry is over.
  if (now - woken_steady_ms_ >= kMaxTickMs) {
    woken_steady_ms_ = now;
    hub_.PublishAll();
  }
}

bool ControllerService::IsSettled(const core::Job& job, const core::Attempt* attempt,
                                  const View& view) const {
  if (attempt == nullptr) return core::IsTerminal(job.state);
  if (!attempt->ended()) return false;
  const std::optional<LiveValues> live = live_->Find(job.id);
  if (live.has_value() && (live->attempt > attempt->number ||
                           (live->attempt == attempt->number && live->journal_ended))) {
    return true;
  }
  return view.now.wall_ms - attempt->ended_ms > kSettleMs;
}

v1::ServerInfo ControllerService::GetServerInfo() const {
  v1::ServerInfo info;
  info.set_version(options_.version);
  info.set_http_address(http_address_);
  info.mutable_start_time()->set_seconds(start_wall_ms_ / 1000);
  info.mutable_start_time()->set_nanos(static_cast<int32_t>(start_wall_ms_ % 1000) * 1'000'000);
  for (const std::string& name : BuiltInRecipeNames()) info.add_recipes(name);
  for (const std::string& name : ModelPresetNames()) info.add_presets(name);
  MutexLock lock(snapshot_mutex_);
  if (snapshot_ != nullptr) {
    info.set_jobs_live(snapshot_->jobs_live);
    info.set_jobs_total(snapshot_->jobs_total);
  }
  return info;
}

std::string ControllerService::RenderMetrics() const {
  std::shared_ptr<const Snapshot> snapshot;
  {
    MutexLock lock(snapshot_mutex_);
    snapshot = snapshot_;
  }
  if (snapshot == nullptr) snapshot = std::make_shared<Snapshot>();
  return metrics_.Render(*snapshot, sessions_.All(), *live_, clock_.WallMillis(),
                         clock_.SteadyMillis());
}

std::string ControllerService::RenderServiceDiscovery() const {
  return ServiceDiscoveryJson(sessions_.All());
}

Status ControllerService::Ready() const {
  if (!started_) return UnavailableError("the event log is being replayed");
  if (stopping_) return UnavailableError("the controller is shutting down");
  MutexLock lock(snapshot_mutex_);
  if (snapshot_ == nullptr) return UnavailableError("the scheduler has not started");
  return snapshot_->log_health;
}

}  // namespace nibble::rpc
