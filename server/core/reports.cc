// SPDX-License-Identifier: Apache-2.0
//
// Controller: what workers say. Everything is level-triggered: an inventory says what is, the
// state says what shall be, and the difference becomes events and commands, so a lost, repeated or
// late message does no harm.
#include <algorithm>

#include "base/ids.h"
#include "base/strings.h"
#include "server/core/controller.h"

namespace nibble::core {
namespace {

constexpr size_t kMaxWorkers = 10'000;
constexpr size_t kMaxPathBytes = 4096;

Event WorkerEvent(EventType type, const std::string& worker_id) {
  Event event;
  event.type = type;
  event.worker_id = worker_id;
  event.actor = worker_id;
  return event;
}

Status CheckWorker(const Worker& worker) {
  if (!IsValidName(worker.id)) {
    return InvalidArgumentError("worker id '" + worker.id.substr(0, 80) +
                                "' is not valid: use 1 to 63 characters of a-z, 0-9 and '-'");
  }
  if (!IsValidName(worker.pool)) {
    return InvalidArgumentError("pool '" + worker.pool.substr(0, 80) + "' of worker " + worker.id +
                                " is not valid: use 1 to 63 characters of a-z, 0-9 and '-'");
  }
  if (worker.devices.size() > kMaxDevicesPerWorker) {
    return InvalidArgumentError(StrFormat("worker %s has %zu devices; at most %d",
                                          worker.id.c_str(), worker.devices.size(),
                                          kMaxDevicesPerWorker));
  }
  std::set<std::string> ids;
  for (const Device& device : worker.devices) {
    if (device.id.empty() || device.id.size() > kMaxTextBytes || device.kind == DeviceKind::kAny) {
      return InvalidArgumentError("a device of worker " + worker.id +
                                  " has no id, a too long one, or no kind");
    }
    if (!ids.insert(device.id).second) {
      return InvalidArgumentError("worker " + worker.id + " lists device '" + device.id +
                                  "' twice");
    }
  }
  return OkStatus();
}

// What registration changes, as text; "" when nothing.
bool SameRegistration(const Worker& a, const Worker& b) {
  Worker left = a;
  Worker right = b;
  left.registered_ms = right.registered_ms = 0;
  left.state_since_ms = right.state_since_ms = 0;
  return ToJson(left).Dump() == ToJson(right).Dump();
}

}  // namespace

void Controller::On(const RegisterWorker& input, Context& context) {
  Status& reply = context.decision.reply;
  reply = CheckWorker(input.worker);
  if (!reply.ok()) return;
  const std::string& id = input.worker.id;
  const Worker* known = state_.FindWorker(id);
  if (known == nullptr && state_.workers().size() >= kMaxWorkers) {
    reply = ResourceExhaustedError(StrFormat("%zu workers are known, the limit", kMaxWorkers));
    return;
  }
  if (known != nullptr && known->host != input.worker.host &&
      known->state == WorkerState::kActive && !workers_[id].session.empty()) {
    reply = AlreadyExistsError("worker id '" + id + "' is in use by host " + known->host +
                               ", whose lease is in time: give the worker on " + input.worker.host +
                               " another id");
    return;
  }
  if (known != nullptr && known->state == WorkerState::kSuspect) Heard(context, id);
  Worker worker = input.worker;
  known = state_.FindWorker(id);
  worker.state = WorkerState::kActive;
  worker.registered_ms = context.now.wall_ms;
  worker.state_since_ms = context.now.wall_ms;
  if (known != nullptr) {
    worker.draining = known->draining;
    worker.drain_reason = known->drain_reason;
    worker.drain_actor = known->drain_actor;
    worker.drain_deadline_ms = known->drain_deadline_ms;
  }
  if (known == nullptr || !SameRegistration(*known, worker)) {
    Event event = WorkerEvent(EventType::kWorkerRegistered, id);
    event.payload = std::move(worker);
    Emit(context, std::move(event));
  }
  workers_[id] = WorkerRuntime{input.session, context.now.steady_ms, 0, {}};
  for (const std::string& job_id : state_.JobsOnWorker(id)) attempts_[job_id].sent_ms.erase(id);
  needs_tick_ = true;
  Reconcile(context, id, input.inventory);
}

Status Controller::CheckSession(const std::string& worker_id, const std::string& session) const {
  const WorkerRuntime* runtime = FindWorkerRuntime(worker_id);
  if (runtime != nullptr && !session.empty() && runtime->session == session) return OkStatus();
  return AbortedError("session '" + session.substr(0, 80) + "' of worker '" +
                      worker_id.substr(0, 80) +
                      "' is not its present one: register again with the inventory");
}

void Controller::Heard(Context& context, const std::string& worker_id) {
  WorkerRuntime& runtime = workers_[worker_id];
  runtime.last_heard_ms = context.now.steady_ms;
  if (state_.FindWorker(worker_id)->state != WorkerState::kSuspect) return;
  Emit(context, WorkerEvent(EventType::kWorkerReturned, worker_id));
  for (const std::string& job_id : state_.JobsOnWorker(worker_id)) {
    const Job& job = *state_.FindJob(job_id);
    attempts_[job_id].step_at_ms = context.now.steady_ms;  // silence was not a stall
    if (job.state != JobState::kSuspect) continue;
    const auto& shares = job.live_attempt()->shares;
    const bool others_silent = std::any_of(shares.begin(), shares.end(), [&](const Share& share) {
      return share.phase != SharePhase::kEnded &&
             state_.FindWorker(share.worker_id)->state == WorkerState::kSuspect;
    });
    if (!others_silent) Emit(context, AttemptEvent(EventType::kJobReturned, job, worker_id));
  }
}

void Controller::On(const Heartbeat& input, Context& context) {
  context.decision.reply = CheckSession(input.worker_id, input.session);
  if (!context.decision.reply.ok()) return;
  Heard(context, input.worker_id);
  if (!input.has_inventory) return;
  WorkerRuntime& runtime = workers_[input.worker_id];
  if (input.sequence != 0) {
    if (input.sequence <= runtime.inventory_sequence) return;
    runtime.inventory_sequence = input.sequence;
  }
  Reconcile(context, input.worker_id, input.inventory);
}

void Controller::On(const ReportAttempt& input, Context& context) {
  context.decision.reply = CheckSession(input.worker_id, input.session);
  if (!context.decision.reply.ok()) return;
  Heard(context, input.worker_id);
  WorkerRuntime& runtime = workers_[input.worker_id];
  runtime.inventory_sequence = std::max(runtime.inventory_sequence, input.sequence);
  if (input.report.phase == SharePhase::kEnded) {
    for (const std::string& device : input.report.devices) runtime.unwanted_devices.erase(device);
  }
  context.decision.reply = TakeReport(context, input.worker_id, input.report);
}

Status Controller::TakeReport(Context& context, const std::string& worker_id,
                              const AttemptReport& report) {
  const bool ended = report.phase == SharePhase::kEnded;
  const Job* job = state_.FindJob(report.job_id);
  const Attempt* attempt = job == nullptr ? nullptr : job->FindAttempt(report.attempt);
  const Share* share = attempt == nullptr || attempt->epoch != report.epoch
                           ? nullptr
                           : attempt->FindShare(worker_id);
  if (share == nullptr || share->phase == SharePhase::kEnded) {
    if (ended) {
      Send(context, worker_id, ForgetAttempt{report.job_id, report.attempt, report.epoch});
    } else {
      for (const std::string& device : report.devices) {
        workers_[worker_id].unwanted_devices[device] = context.now.steady_ms + options_.lease_ms;
      }
      Send(context, worker_id,
           StopAttempt{report.job_id, report.attempt, report.epoch, StopMode::kKill,
                       StopCause::kNone, 0});
    }
    if (share != nullptr && ended) return OkStatus();  // a repeat of what is recorded
    return AbortedError(StrFormat("attempt %d of job '%s' with epoch %lld is not expected on %s",
                                  report.attempt, report.job_id.c_str(),
                                  static_cast<long long>(report.epoch), worker_id.c_str()));
  }
  const bool began = !ended || (report.outcome.kind == OutcomeKind::kExited);
  if (began) NoteStep(context, report.job_id, worker_id, report.phase, report.step);
  if (ended) {
    if (report.checkpoint.has_value()) {
      // A refused one (its path is too long, the attempt was given up) does not hold back the end.
      static_cast<void>(TakeCheckpoint(
          context, {worker_id, report.job_id, report.attempt, report.epoch, *report.checkpoint}));
    }
    EndShare(context, report.job_id, worker_id, report.outcome);
    Send(context, worker_id, ForgetAttempt{report.job_id, report.attempt, report.epoch});
  }
  return OkStatus();
}

void Controller::NoteStep(Context& context, const std::string& job_id, const std::string& worker_id,
                          SharePhase phase, int64_t step) {
  const auto share_phase = [&] {
    return state_.FindJob(job_id)->live_attempt()->FindShare(worker_id)->phase;
  };
  AttemptRuntime& runtime = attempts_[job_id];
  if (share_phase() == SharePhase::kAssigned) {
    Emit(context, AttemptEvent(EventType::kAttemptStarted, *state_.FindJob(job_id), worker_id));
    if (!runtime.started && state_.FindJob(job_id)->live_attempt()->started_ms != 0) {
      runtime.started = true;
      runtime.started_at_ms = context.now.steady_ms;
    }
  }
  if ((phase == SharePhase::kRunning || step > 0) && share_phase() == SharePhase::kStarted) {
    Emit(context, AttemptEvent(EventType::kAttemptRunning, *state_.FindJob(job_id), worker_id));
    runtime.step_at_ms = context.now.steady_ms;
  }
  if (step > runtime.step) {
    runtime.step = step;
    runtime.step_at_ms = context.now.steady_ms;
  }
}

void Controller::Reconcile(Context& context, const std::string& worker_id,
                           const std::vector<AttemptReport>& inventory) {
  workers_[worker_id].unwanted_devices.clear();
  std::set<std::pair<std::string, int64_t>> present;
  for (const AttemptReport& report : inventory) {
    present.emplace(report.job_id, report.epoch);
    // A stale entry is answered by a command; the inventory as a whole stays welcome.
    if (const Status taken = TakeReport(context, worker_id, report); !taken.ok()) continue;
  }
  for (const std::string& job_id : state_.JobsOnWorker(worker_id)) {
    const Job& job = *state_.FindJob(job_id);
    const Attempt& attempt = *job.live_attempt();
    if (present.contains({job_id, attempt.epoch})) continue;
    Outcome outcome;
    if (attempt.FindShare(worker_id)->phase != SharePhase::kAssigned) {
      outcome.kind = OutcomeKind::kLost;
      outcome.message = "missing from the worker's inventory";
      EndShare(context, job_id, worker_id, std::move(outcome));
    } else if (job.stop.cause != StopCause::kNone &&
               context.now.steady_ms - attempts_[job_id].stop_at_ms > options_.stop_confirm_ms) {
      outcome.kind = OutcomeKind::kNeverStarted;
      EndShare(context, job_id, worker_id, std::move(outcome));
    }
  }
  for (const std::string& job_id : state_.JobsOnWorker(worker_id)) SendUnconfirmed(context, job_id);
}

void Controller::On(const ReportCheckpoint& input, Context& context) {
  context.decision.reply = TakeCheckpoint(context, input);
}

Status Controller::TakeCheckpoint(Context& context, const ReportCheckpoint& input) {
  RETURN_IF_ERROR(CheckEpoch(input.job_id, input.attempt, input.epoch));
  if (input.checkpoint.path.size() > kMaxPathBytes) {
    return InvalidArgumentError(StrFormat("the checkpoint's path has %zu bytes; at most %zu",
                                          input.checkpoint.path.size(), kMaxPathBytes));
  }
  const Job& job = *state_.FindJob(input.job_id);
  const auto age = [](int attempt, int64_t step) { return std::pair(attempt, step); };
  if (job.latest_checkpoint &&
      age(input.attempt, input.checkpoint.step) <=
          age(job.latest_checkpoint->attempt, job.latest_checkpoint->step)) {
    return OkStatus();
  }
  Checkpoint checkpoint = input.checkpoint;
  checkpoint.attempt = input.attempt;
  if (checkpoint.saved_ms == 0) checkpoint.saved_ms = context.now.wall_ms;
  Event event;
  event.type = EventType::kCheckpointSaved;
  event.job_id = input.job_id;
  event.worker_id = input.worker_id;
  event.attempt = input.attempt;
  event.epoch = input.epoch;
  event.actor = input.worker_id;
  event.detail = StrFormat("step %lld", static_cast<long long>(checkpoint.step));
  event.payload = std::move(checkpoint);
  Emit(context, std::move(event));
  const auto runtime = attempts_.find(input.job_id);
  if (runtime != attempts_.end() && runtime->second.attempt == input.attempt) {
    runtime->second.step_at_ms = context.now.steady_ms;
  }
  return OkStatus();
}

void Controller::On(const ReportProgress& input, Context& context) {
  context.decision.reply = CheckEpoch(input.job_id, input.attempt, input.epoch);
  if (!context.decision.reply.ok()) return;
  const Attempt* attempt = state_.FindJob(input.job_id)->live_attempt();
  if (attempt == nullptr || attempt->number != input.attempt) return;  // late, but not stale
  const Share* share = attempt->FindShare(input.worker_id);
  if (share == nullptr || share->phase == SharePhase::kEnded) return;
  NoteStep(context, input.job_id, input.worker_id, SharePhase::kStarted, input.step);
}

void Controller::On(const SessionClosed& input, Context& context) {
  context.decision.reply = CheckSession(input.worker_id, input.session);
  if (context.decision.reply.ok()) workers_[input.worker_id].session.clear();
}

}  // namespace nibble::core
