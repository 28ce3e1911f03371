// SPDX-License-Identifier: Apache-2.0
//
// Controller: what people ask for.
#include "base/sha256.h"
#include "base/strings.h"
#include "server/core/controller.h"

namespace nibble::core {
namespace {

Event JobEvent(EventType type, const std::string& job_id, const std::string& actor,
               std::string detail = "") {
  Event event;
  event.type = type;
  event.job_id = job_id;
  event.actor = actor;
  event.detail = std::move(detail);
  return event;
}

Event WorkerEvent(EventType type, const std::string& worker_id, const std::string& actor) {
  Event event;
  event.type = type;
  event.worker_id = worker_id;
  event.actor = actor;
  return event;
}

Status RequestConflict(const std::string& request_id, const RequestRecord& used) {
  return AlreadyExistsError("request id '" + request_id + "' was used for something else (job " +
                            used.job_id + "): use a new one for a new request");
}

Status StopUnderWay(const Job& job, const std::string& wanted) {
  return FailedPreconditionError("job " + job.id + " is being stopped (" +
                                 std::string(Name(job.stop.cause)) + "): " + wanted +
                                 " when that is done, or cancel it");
}

Status CheckShort(const char* what, const std::string& text) {
  if (text.size() <= kMaxTextBytes) return OkStatus();
  return InvalidArgumentError(
      StrFormat("%s has %zu bytes; at most %zu", what, text.size(), kMaxTextBytes));
}

}  // namespace

Result<const Job*> Controller::FindActive(const std::string& job_id) const {
  const Job* job = state_.FindJob(job_id);
  if (job == nullptr) return NotFoundError("job '" + job_id + "' does not exist");
  if (IsTerminal(job->state)) {
    return FailedPreconditionError("job " + job_id + " has ended " + std::string(Name(job->state)) +
                                   "; an ended job never changes");
  }
  return job;
}

void Controller::On(const SubmitJob& input, Context& context) {
  Decision& decision = context.decision;
  Job job;
  job.spec = input.spec;
  job.body_hash = Sha256Hex(ToJson(input.spec).Dump() + (input.hold ? "\nhold" : ""));
  const RequestRecord* used =
      input.request_id.empty() ? nullptr : state_.FindRequest(input.request_id);
  if (used != nullptr) {
    decision.repeated = used->body_hash == job.body_hash;
    decision.job_id = decision.repeated ? used->job_id : "";
    if (!decision.repeated) decision.reply = RequestConflict(input.request_id, *used);
    return;
  }
  decision.reply = input.spec.Validate();
  if (decision.reply.ok()) decision.reply = CheckShort("request id", input.request_id);
  if (decision.reply.ok()) decision.reply = CheckShort("actor", input.actor);
  if (decision.reply.ok() && state_.active_jobs() >= options_.max_active_jobs) {
    decision.reply = ResourceExhaustedError(
        StrFormat("%lld jobs are active, the limit is %lld: wait until some have ended",
                  static_cast<long long>(state_.active_jobs()),
                  static_cast<long long>(options_.max_active_jobs)));
  }
  if (!decision.reply.ok()) return;
  job.number = state_.next_job_number();
  job.id = "j-" + std::to_string(job.number);
  job.request_id = input.request_id;
  if (job.spec.spec_hash.empty()) job.spec.spec_hash = Sha256Hex(job.spec.spec_json);
  job.submitted_ms = context.now.wall_ms;
  job.state_since_ms = context.now.wall_ms;
  job.state = input.hold ? JobState::kHeld : JobState::kPending;
  decision.job_id = job.id;
  Event event = JobEvent(EventType::kJobSubmitted, job.id, input.actor);
  event.payload = std::move(job);
  Emit(context, std::move(event));
}

void Controller::On(const CancelJob& input, Context& context) {
  Decision& decision = context.decision;
  if (!input.request_id.empty()) {
    if (const RequestRecord* used = state_.FindRequest(input.request_id)) {
      decision.repeated = used->body_hash == CancelBodyHash(input.job_id, input.mode);
      if (!decision.repeated) decision.reply = RequestConflict(input.request_id, *used);
      return;
    }
    decision.reply = CheckShort("request id", input.request_id);
    if (!decision.reply.ok()) return;
  }
  const Job* job = state_.FindJob(input.job_id);
  if (job != nullptr && job->state == JobState::kCancelled) return;
  const Result<const Job*> active = FindActive(input.job_id);
  if (!active.ok()) {
    decision.reply = active.status();
    return;
  }
  StopRequest stop{StopCause::kCancel, input.mode, input.actor, input.request_id, 0};
  const std::string detail = input.mode == StopMode::kKill ? "cancel now" : "cancel";
  if (job->live_attempt() == nullptr) {
    Event asked = JobEvent(EventType::kJobCancelRequested, job->id, input.actor, detail);
    asked.payload = std::move(stop);
    Emit(context, std::move(asked));
    Event ended =
        JobEvent(EventType::kJobEnded, input.job_id, "controller", "cancelled by " + input.actor);
    ended.payload = JobEndedData{JobState::kCancelled, EndReason::kCancelledByUser};
    Emit(context, std::move(ended));
    return;
  }
  const bool cancelling = job->stop.cause == StopCause::kCancel;
  const bool harder = job->stop.mode == StopMode::kSave && input.mode == StopMode::kKill;
  if (!cancelling || harder) {
    BeginStop(context, input.job_id, EventType::kJobCancelRequested, std::move(stop), detail);
  } else if (!input.request_id.empty()) {  // only remember the request
    stop.mode = job->stop.mode;
    Event event = AttemptEvent(EventType::kJobCancelRequested, *job, "");
    event.actor = input.actor;
    event.detail = "cancelled already";
    event.payload = std::move(stop);
    Emit(context, std::move(event));
  }
}

void Controller::On(const PauseJob& input, Context& context) {
  const Result<const Job*> found = FindActive(input.job_id);
  context.decision.reply = found.status();
  if (!found.ok()) return;
  const Job& job = **found;
  if (job.state == JobState::kHeld || job.stop.cause == StopCause::kPause) return;
  if (job.live_attempt() == nullptr) {
    Emit(context, JobEvent(EventType::kJobHeld, job.id, input.actor, "paused by " + input.actor));
  } else if (job.stop.cause != StopCause::kNone) {
    context.decision.reply = StopUnderWay(job, "pause it");
  } else {
    BeginStop(context, input.job_id, EventType::kJobPauseRequested,
              {StopCause::kPause, StopMode::kSave, input.actor, "", 0}, "pause");
  }
}

void Controller::On(const ResumeJob& input, Context& context) {
  const Result<const Job*> found = FindActive(input.job_id);
  context.decision.reply = found.status();
  if (!found.ok()) return;
  const Job& job = **found;
  if (job.state != JobState::kHeld && job.stop.cause != StopCause::kPause) return;
  Emit(context, JobEvent(EventType::kJobResumed, job.id, input.actor));
}

void Controller::On(const RequeueJob& input, Context& context) {
  const Result<const Job*> found = FindActive(input.job_id);
  context.decision.reply = found.status();
  if (!found.ok()) return;
  const Job& job = **found;
  if (job.state == JobState::kHeld) {
    context.decision.reply =
        FailedPreconditionError("job " + job.id + " is HELD: resume it instead of requeueing");
  } else if (job.live_attempt() == nullptr) {
    if (job.not_before_ms == 0) return;
    Event event = JobEvent(EventType::kJobRequeued, job.id, input.actor, "the wait was cut short");
    event.payload = JobRequeuedData{job.state, 0};
    Emit(context, std::move(event));
  } else if (job.stop.cause != StopCause::kNone) {
    if (job.stop.cause != StopCause::kRequeue) {
      context.decision.reply = StopUnderWay(job, "requeue it");
    }
  } else {
    BeginStop(context, input.job_id, EventType::kJobRequeueRequested,
              {StopCause::kRequeue, StopMode::kSave, input.actor, "", 0}, "requeue");
  }
}

void Controller::On(const UpdateJob& input, Context& context) {
  const Result<const Job*> found = FindActive(input.job_id);
  context.decision.reply = found.status();
  if (!found.ok()) return;
  JobSpec changed = (*found)->spec;
  std::string detail;
  if (input.priority) {
    detail = StrFormat("priority %d -> %d", changed.priority, *input.priority);
    changed.priority = *input.priority;
  }
  if (input.time_limit_ms) {
    if (!detail.empty()) detail += ", ";
    detail += "time limit " + FormatDuration(double(changed.time_limit_ms) / 1000) + " -> " +
              FormatDuration(double(*input.time_limit_ms) / 1000);
    changed.time_limit_ms = *input.time_limit_ms;
  }
  if (detail.empty()) {
    context.decision.reply =
        InvalidArgumentError("nothing to update: give a priority or a time limit");
    return;
  }
  context.decision.reply = changed.Validate();
  if (!context.decision.reply.ok()) return;
  Event event = JobEvent(EventType::kJobUpdated, input.job_id, input.actor, detail);
  event.payload = JobUpdatedData{input.priority, input.time_limit_ms};
  Emit(context, std::move(event));
}

void Controller::On(const DrainWorker& input, Context& context) {
  Status& reply = context.decision.reply;
  if (state_.FindWorker(input.worker_id) == nullptr) {
    reply = NotFoundError("worker '" + input.worker_id + "' does not exist");
    return;
  }
  reply = CheckShort("drain reason", input.reason);
  if (!reply.ok()) return;
  Event event = WorkerEvent(EventType::kWorkerDrained, input.worker_id, input.actor);
  event.detail = input.reason;
  event.payload = WorkerDrainedData{input.reason, input.deadline_ms};
  Emit(context, std::move(event));
}

void Controller::On(const UndrainWorker& input, Context& context) {
  const Worker* worker = state_.FindWorker(input.worker_id);
  if (worker == nullptr) {
    context.decision.reply = NotFoundError("worker '" + input.worker_id + "' does not exist");
  } else if (worker->draining) {
    Emit(context, WorkerEvent(EventType::kWorkerUndrained, input.worker_id, input.actor));
  }
}

}  // namespace nibble::core
