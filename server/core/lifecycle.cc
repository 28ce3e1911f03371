// SPDX-License-Identifier: Apache-2.0
//
// Controller: how attempts are started, stopped and ended, and which commands say so.
#include <algorithm>

#include "base/strings.h"
#include "server/core/controller.h"
#include "server/core/verdict.h"

namespace nibble::core {

void Controller::Emit(Context& context, Event event) {
  event.sequence = state_.last_sequence() + 1;
  event.time_ms = context.now.wall_ms;
  if (event.actor.empty()) event.actor = "controller";
  event.detail.resize(Utf8Prefix(event.detail, kMaxTextBytes).size());
  const Status applied = state_.Apply(event);
  // A contradiction here is a bug of the core: better to stop than to write a log that no restart
  // could replay.
  if (!applied.ok()) internal::DieOnBadResultAccess(applied);
  context.decision.events.push_back(std::move(event));
  needs_tick_ = true;
}

Event Controller::AttemptEvent(EventType type, const Job& job, const std::string& worker_id) const {
  const Attempt& attempt = *job.live_attempt();
  Event event;
  event.type = type;
  event.job_id = job.id;
  event.worker_id = worker_id;
  event.attempt = attempt.number;
  event.epoch = attempt.epoch;
  event.actor = worker_id;
  return event;
}

void Controller::Send(Context& context, const std::string& worker_id,
                      std::variant<StartAttempt, StopAttempt, ForgetAttempt> body) {
  const auto worker = workers_.find(worker_id);
  if (worker == workers_.end() || worker->second.session.empty()) return;
  context.decision.commands.push_back({worker_id, worker->second.session, std::move(body)});
}

void Controller::SendStart(Context& context, const Job& job, const Share& share) {
  const Attempt& attempt = *job.live_attempt();
  const Worker* master = state_.FindWorker(attempt.shares.front().worker_id);
  StartAttempt start;
  start.job_id = job.id;
  start.job_name = job.spec.name;
  start.attempt = attempt.number;
  start.epoch = attempt.epoch;
  start.devices = share.devices;
  start.first_rank = share.first_rank;
  for (const Share& other : attempt.shares) {
    start.world_size += static_cast<int>(other.devices.size());
    if (other.first_rank < share.first_rank) ++start.node_rank;
  }
  start.nodes = static_cast<int>(attempt.shares.size());
  start.master_address = master == nullptr ? "" : master->address;
  start.resume_from = job.latest_checkpoint;
  start.stop_grace_ms = job.spec.stop_grace_ms;
  start.restarts = job.restarts();
  start.spec_json = job.spec.spec_json;
  attempts_[job.id].sent_ms[share.worker_id] = context.now.steady_ms;
  Send(context, share.worker_id, std::move(start));
}

void Controller::SendStop(Context& context, const Job& job, const Share& share) {
  const Attempt& attempt = *job.live_attempt();
  AttemptRuntime& runtime = attempts_[job.id];
  runtime.sent_ms[share.worker_id] = context.now.steady_ms;
  const StopMode mode = runtime.stop_escalated ? StopMode::kKill : job.stop.mode;
  Send(context, share.worker_id,
       StopAttempt{job.id, attempt.number, attempt.epoch, mode, job.stop.cause,
                   mode == StopMode::kKill ? 0 : job.spec.stop_grace_ms});
}

void Controller::SendUnconfirmed(Context& context, const std::string& job_id) {
  const Job& job = *state_.FindJob(job_id);
  for (const Share& share : job.live_attempt()->shares) {
    if (share.phase == SharePhase::kEnded) continue;
    const auto& sent = attempts_[job_id].sent_ms;
    const auto last = sent.find(share.worker_id);
    if (last != sent.end() && context.now.steady_ms - last->second < options_.resend_ms) continue;
    if (job.stop.cause != StopCause::kNone) {
      SendStop(context, job, share);
    } else if (share.phase == SharePhase::kAssigned) {
      SendStart(context, job, share);
    }
  }
}

void Controller::BeginStop(Context& context, const std::string& job_id, EventType type,
                           StopRequest stop, const std::string& detail) {
  Event event = AttemptEvent(type, *state_.FindJob(job_id), "");
  event.actor = stop.actor;
  event.detail = detail;
  event.payload = std::move(stop);
  Emit(context, std::move(event));
  AttemptRuntime& runtime = attempts_[job_id];
  runtime.stop_at_ms = context.now.steady_ms;
  runtime.stop_escalated = false;
  const Job& job = *state_.FindJob(job_id);
  for (const Share& share : job.live_attempt()->shares) {
    if (share.phase != SharePhase::kEnded) SendStop(context, job, share);
  }
}

void Controller::EndShare(Context& context, const std::string& job_id, const std::string& worker_id,
                          Outcome outcome) {
  outcome.message.resize(Utf8Prefix(outcome.message, kMaxTextBytes).size());
  const Job* job = state_.FindJob(job_id);
  const bool completed = JudgeOutcome(outcome, job->spec.retry).reason == EndReason::kCompleted;
  Event event = AttemptEvent(EventType::kShareEnded, *job, worker_id);
  if (outcome.kind == OutcomeKind::kLost) event.actor = "controller";
  event.detail = outcome.message;
  event.payload = std::move(outcome);
  Emit(context, std::move(event));
  job = state_.FindJob(job_id);
  const auto& shares = job->live_attempt()->shares;
  if (std::all_of(shares.begin(), shares.end(),
                  [](const Share& share) { return share.phase == SharePhase::kEnded; })) {
    FinishAttempt(context, job_id);
  } else if (!completed && job->stop.cause == StopCause::kNone) {
    StopRequest stop{StopCause::kPeerFailed, StopMode::kKill, "controller", "", 0};
    BeginStop(context, job_id, EventType::kAttemptStopRequested, std::move(stop),
              "the share on " + worker_id + " ended; a gang runs whole or not at all");
  }
}

void Controller::FinishAttempt(Context& context, const std::string& job_id) {
  const Job* job = state_.FindJob(job_id);
  const Verdict verdict = JudgeAttempt(*job, *job->live_attempt());
  Event ended = AttemptEvent(EventType::kAttemptEnded, *job, "");
  ended.actor = "controller";
  ended.detail = verdict.detail;
  ended.payload =
      AttemptEndedData{verdict.reason, verdict.charge, RanMillis(*job, context.now) - job->ran_ms};
  Emit(context, std::move(ended));
  attempts_.erase(job_id);

  job = state_.FindJob(job_id);
  NextStep next = Decide(*job, verdict, context.now.wall_ms);
  Event event;
  event.job_id = job_id;
  event.attempt = job->attempts.back().number;
  event.epoch = job->attempts.back().epoch;
  event.detail = std::move(next.detail);
  if (IsTerminal(next.state)) {
    event.type = EventType::kJobEnded;
    event.payload = JobEndedData{next.state, next.reason};
  } else if (next.state == JobState::kHeld) {
    event.type = EventType::kJobHeld;
  } else {
    event.type = EventType::kJobRequeued;
    event.payload = JobRequeuedData{next.state, next.not_before_ms};
  }
  Emit(context, std::move(event));
}

}  // namespace nibble::core
