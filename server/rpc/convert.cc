// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/convert.h"

#include <google/protobuf/util/time_util.h>

#include <algorithm>

#include "base/log.h"
#include "base/strings.h"
#include "server/rpc/spec.h"

namespace nibble::rpc {
namespace {

using google::protobuf::util::TimeUtil;

template <typename Setter>
void SetIfGiven(int64_t ms, Setter mutable_field) {
  if (ms > 0) *mutable_field() = TimeUtil::MillisecondsToTimestamp(ms);
}

const char* AttemptStateName(const core::Job& job, const core::Attempt& attempt) {
  if (attempt.ended()) return "ended";
  if (job.state == core::JobState::kStopping) return "stopping";
  if (job.state == core::JobState::kSuspect) return "suspect";
  return attempt.running_ms != 0 ? "running" : "starting";
}

void AddAttempt(const core::Job& job, const core::Attempt& attempt, v1::Job& out) {
  v1::Attempt& to = *out.add_attempts();
  to.set_number(attempt.number);
  to.set_epoch(attempt.epoch);
  to.set_state(AttemptStateName(job, attempt));
  SetIfGiven(attempt.started_ms != 0 ? attempt.started_ms : attempt.placed_ms,
             [&to] { return to.mutable_start_time(); });
  SetIfGiven(attempt.ended_ms, [&to] { return to.mutable_end_time(); });
  to.set_resumed_from_step(attempt.resume_step);
  if (!attempt.shares.empty()) {
    const core::Share& share = attempt.shares.front();
    to.set_worker_id(share.worker_id);
    if (attempt.ended()) {
      to.set_exit_code(share.outcome.exit_code);
      to.set_signal(share.outcome.signal);
    }
  }
  if (attempt.ended()) {
    to.set_end_reason(std::string(core::Name(attempt.end_reason)));
    to.set_end_message(attempt.detail);
  }
}

void SetProgress(const core::Job& job, const LiveValues& live, v1::Job& out) {
  *out.mutable_progress() = live.progress;
  if (out.progress().steps_total() == 0) {
    out.mutable_progress()->set_steps_total(out.spec().schedule().steps());
  }
  if (core::IsTerminal(job.state)) out.mutable_progress()->set_eta_seconds(0);
  if (live.checkpoint_step > out.checkpoint_step()) {
    out.set_checkpoint_step(live.checkpoint_step);
    out.set_checkpoint_path(live.checkpoint_path);
  }
  out.set_best_checkpoint_path(live.best_checkpoint_path);
}

std::string NodeState(const core::Worker& worker, bool connected, bool busy) {
  if (worker.state == core::WorkerState::kLost) return "down";
  if (worker.state == core::WorkerState::kSuspect) return "suspect";
  if (worker.draining) return busy ? "draining" : "drained";
  return connected ? "up" : "suspect";
}

}  // namespace

const v1::JobSpec& SpecCache::Get(const core::JobSpec& spec) {
  const auto found = specs_.find(spec.spec_hash);
  if (found != specs_.end()) return found->second;
  if (specs_.size() >= kMaxCachedSpecs) specs_.clear();
  Result<v1::JobSpec> parsed = SpecFromJson(spec.spec_json);
  if (!parsed.ok()) {
    LogError("stored spec is unreadable",
             {{"name", spec.name}, {"error", parsed.status().ToString()}});
  }
  return specs_[spec.spec_hash] = std::move(parsed).value_or(v1::JobSpec());
}

v1::JobState ToProto(core::JobState state) {
  switch (state) {
    case core::JobState::kPending:
      return v1::JOB_STATE_PENDING;
    case core::JobState::kHeld:
      return v1::JOB_STATE_HELD;
    case core::JobState::kScheduled:
    case core::JobState::kStarting:
      return v1::JOB_STATE_STARTING;
    case core::JobState::kRunning:
      return v1::JOB_STATE_RUNNING;
    case core::JobState::kSuspect:
      return v1::JOB_STATE_SUSPECT;
    case core::JobState::kPreempting:
      return v1::JOB_STATE_PREEMPTING;
    case core::JobState::kRecovering:
      return v1::JOB_STATE_RECOVERING;
    case core::JobState::kStopping:
      return v1::JOB_STATE_STOPPING;
    case core::JobState::kSucceeded:
      return v1::JOB_STATE_SUCCEEDED;
    case core::JobState::kFailed:
      return v1::JOB_STATE_FAILED;
    case core::JobState::kCancelled:
      return v1::JOB_STATE_CANCELLED;
    case core::JobState::kTimedOut:
      return v1::JOB_STATE_TIMED_OUT;
    case core::JobState::kRejected:
      return v1::JOB_STATE_REJECTED;
  }
  return v1::JOB_STATE_UNSPECIFIED;
}

bool Matches(v1::JobState asked, core::JobState state) { return ToProto(state) == asked; }

v1::Job ToProto(const core::Job& job, const v1::JobSpec& spec,
                const std::optional<LiveValues>& live) {
  v1::Job out;
  out.set_id(job.id);
  *out.mutable_spec() = spec;
  // What UpdateJob may change is in the core's copy.
  out.mutable_spec()->set_priority(job.spec.priority);
  if (job.spec.time_limit_ms > 0) {
    *out.mutable_spec()->mutable_time_limit() =
        TimeUtil::MillisecondsToDuration(job.spec.time_limit_ms);
  } else {
    out.mutable_spec()->clear_time_limit();
  }
  out.set_user(job.spec.user);
  out.set_state(ToProto(job.state));
  out.set_spec_hash(job.spec.spec_hash);
  SetIfGiven(job.submitted_ms, [&out] { return out.mutable_submit_time(); });
  SetIfGiven(job.first_started_ms, [&out] { return out.mutable_start_time(); });
  SetIfGiven(job.ended_ms, [&out] { return out.mutable_end_time(); });
  for (const core::Attempt& attempt : job.attempts) AddAttempt(job, attempt, out);
  if (job.latest_checkpoint.has_value()) {
    out.set_checkpoint_path(job.latest_checkpoint->path);
    out.set_checkpoint_step(job.latest_checkpoint->step);
  }
  if (live.has_value()) SetProgress(job, *live, out);
  if (core::IsTerminal(job.state)) {
    out.set_reason(std::string(core::Name(job.end_reason)));
    out.set_message(job.end_detail);
  } else if (job.stop.cause != core::StopCause::kNone) {
    out.set_reason(std::string(core::Name(job.stop.cause)));
    out.set_message("asked to stop by " + job.stop.actor);
  }
  return out;
}

v1::JobEvent ToProto(const core::Event& event) {
  v1::JobEvent out;
  out.set_seq(event.sequence);
  *out.mutable_time() = TimeUtil::MillisecondsToTimestamp(event.time_ms);
  out.set_type(std::string(core::Name(event.type)));
  out.set_actor(event.actor);
  out.set_message(event.detail);
  out.set_attempt(event.attempt);
  out.set_epoch(event.epoch);
  return out;
}

std::string DeviceId(const v1::Device& device) {
  return (device.kind().empty() ? "cpu" : device.kind()) + std::to_string(device.index());
}

int DeviceIndex(const std::string& id) {
  const size_t digits = id.find_first_of("0123456789");
  if (digits == std::string::npos) return -1;
  return static_cast<int>(ParseInt(std::string_view(id).substr(digits)).value_or(-1));
}

v1::Node ToProto(const core::Worker& worker, const std::optional<WorkerFacts>& facts,
                 const core::State& state) {
  v1::Node node;
  node.set_worker_id(worker.id);
  node.set_host(worker.host);
  node.set_pool(worker.pool);
  node.set_version(worker.version);
  node.set_drain_reason(worker.drain_reason);
  node.set_drain_actor(worker.drain_actor);
  for (const core::Device& device : worker.devices) {
    v1::Device& out = *node.add_devices();
    out.set_index(std::max(0, DeviceIndex(device.id)));
    out.set_kind(std::string(core::Name(device.kind)));
    out.set_name(device.model);
    out.set_memory_bytes(device.memory_bytes);
    for (const std::string& feature : device.proved_features) {
      if (feature != WorkerFeature(worker.id)) out.add_features(feature);
    }
    if (facts.has_value()) {
      for (const v1::Device& said : facts->devices) {
        if (DeviceId(said) != device.id) continue;
        out.set_gflops(said.gflops());
        out.set_threads(said.threads());
      }
    }
    const std::string holder = state.DeviceHolder(worker.id, device.id);
    out.set_job_id(holder.substr(0, holder.find('/')));
  }
  for (const std::string& job_id : state.JobsOnWorker(worker.id)) node.add_running(job_id);
  *node.mutable_notes() = {worker.notes.begin(), worker.notes.end()};
  if (facts.has_value()) {
    SetIfGiven(facts->last_heard_wall_ms, [&node] { return node.mutable_last_heartbeat(); });
  }
  const bool connected = facts.has_value() && !facts->session.empty();
  node.set_state(NodeState(worker, connected, node.running_size() > 0));
  return node;
}

core::Checkpoint CheckpointOf(const v1::JournalRecord& record) {
  core::Checkpoint out;
  out.step = record.checkpoint().step();
  out.path = record.checkpoint().path();
  out.size_bytes = record.checkpoint().bytes();
  out.saved_ms = record.time_ms();
  return out;
}

core::AttemptReport ToCore(const v1::AttemptReport& message, const core::State& state,
                           const std::string& worker_id) {
  core::AttemptReport out;
  out.job_id = message.key().job_id();
  out.attempt = message.key().attempt();
  out.epoch = message.key().epoch();
  out.step = message.step();
  const core::Job* job = state.FindJob(out.job_id);
  const core::Attempt* attempt = job != nullptr ? job->FindAttempt(out.attempt) : nullptr;
  if (attempt != nullptr && attempt->epoch == out.epoch) {
    const core::Share* share = attempt->FindShare(worker_id);
    if (share != nullptr) out.devices = share->devices;
  }
  if (message.state() != "ended") {
    const bool running = message.state() == "running" || message.step() > 0;
    out.phase = running ? core::SharePhase::kRunning : core::SharePhase::kStarted;
    return out;
  }
  out.phase = core::SharePhase::kEnded;
  if (message.checkpoint().has_checkpoint()) out.checkpoint = CheckpointOf(message.checkpoint());
  out.outcome.kind =
      message.start_failed() ? core::OutcomeKind::kStartFailed : core::OutcomeKind::kExited;
  out.outcome.exit_code = message.exit_code();
  out.outcome.signal = message.signal();
  out.outcome.reported =
      core::EndReasonFromJournal(message.end_reason()).value_or(core::EndReason::kNone);
  out.outcome.rank = 0;
  out.outcome.last_step = message.step();
  out.outcome.message = Utf8Prefix(message.end_message(), core::kMaxTextBytes);
  return out;
}

core::RegisterWorker ToCore(const v1::Register& message, const std::string& session,
                            const core::State& state) {
  core::RegisterWorker out;
  out.session = session;
  out.worker.id = message.worker_id();
  out.worker.host = message.host();
  out.worker.address = message.host();
  out.worker.version = message.version();
  out.worker.pool = message.pool().empty() ? "main" : message.pool();
  for (const v1::Device& device : message.devices()) {
    core::Device& to = out.worker.devices.emplace_back();
    to.id = DeviceId(device);
    to.kind = core::FromName<core::DeviceKind>(device.kind()).value_or(core::DeviceKind::kCpu);
    to.model = device.name();
    to.memory_bytes = device.memory_bytes();
    to.proved_features = {device.features().begin(), device.features().end()};
    to.proved_features.push_back(WorkerFeature(message.worker_id()));
  }
  // Cut, not refused: a worker is no worse for having much to say.
  for (const std::string& note : message.notes()) {
    if (out.worker.notes.size() >= core::kMaxNotesPerWorker) break;
    out.worker.notes.emplace_back(Utf8Prefix(note, core::kMaxTextBytes));
  }
  for (const v1::AttemptReport& report : message.inventory()) {
    out.inventory.push_back(ToCore(report, state, message.worker_id()));
  }
  return out;
}

namespace {

void SetKey(const std::string& job_id, int attempt, int64_t epoch, v1::AttemptKey* key) {
  key->set_job_id(job_id);
  key->set_attempt(attempt);
  key->set_epoch(epoch);
}

void Fill(const core::StartAttempt& from, const core::State& state, const v1::JobSpec* spec,
          v1::ControllerMessage& out) {
  v1::StartAttempt& start = *out.mutable_start();
  SetKey(from.job_id, from.attempt, from.epoch, start.mutable_key());
  start.set_run_json(from.spec_json);
  start.set_job_name(from.job_name);
  start.set_world_size(from.world_size);
  for (const std::string& device : from.devices) {
    start.add_device_indices(std::max(0, DeviceIndex(device)));
  }
  if (from.resume_from.has_value()) start.set_resume_from(from.resume_from->path);
  if (spec != nullptr) *start.mutable_env() = spec->env();
  const core::Job* job = state.FindJob(from.job_id);
  if (job != nullptr) start.set_memory_bytes(job->spec.resources.memory_bytes_per_device);
}

std::string StopReason(core::StopCause cause) {
  switch (cause) {
    case core::StopCause::kCancel:
      return "cancel";
    case core::StopCause::kPause:
      return "pause";
    case core::StopCause::kDrain:
      return "drain";
    case core::StopCause::kNone:
      return "stale";
    default:
      return std::string(core::Name(cause));
  }
}

}  // namespace

v1::ControllerMessage ToProto(const core::Command& command, const core::State& state,
                              const v1::JobSpec* spec) {
  v1::ControllerMessage out;
  if (const auto* start = std::get_if<core::StartAttempt>(&command.body)) {
    Fill(*start, state, spec, out);
  } else if (const auto* stop = std::get_if<core::StopAttempt>(&command.body)) {
    SetKey(stop->job_id, stop->attempt, stop->epoch, out.mutable_stop()->mutable_key());
    out.mutable_stop()->set_save(stop->mode == core::StopMode::kSave);
    out.mutable_stop()->set_grace_ms(static_cast<int32_t>(stop->grace_ms));
    out.mutable_stop()->set_reason(StopReason(stop->cause));
  } else if (const auto* forget = std::get_if<core::ForgetAttempt>(&command.body)) {
    SetKey(forget->job_id, forget->attempt, forget->epoch,
           out.mutable_attempt_ack()->mutable_key());
  }
  return out;
}

}  // namespace nibble::rpc
