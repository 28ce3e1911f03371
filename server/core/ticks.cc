// SPDX-License-Identifier: Apache-2.0
//
// Controller: timers (leases, time limits, stalls, unconfirmed stops) and the scheduling cycle.
#include <algorithm>

#include "base/strings.h"
#include "server/core/controller.h"

namespace nibble::core {

void Controller::On(const Tick&, Context& context) {
  ForgiveOwnPause(context.now);
  CheckLeases(context);
  const std::vector<std::string> live(state_.live_jobs().begin(), state_.live_jobs().end());
  for (const std::string& job_id : live) {
    const Job* job = state_.FindJob(job_id);
    if (job->live_attempt() == nullptr) continue;
    if (job->stop.cause == StopCause::kNone) CheckLiveJob(context, job_id);
    CheckStop(context, job_id);
    SendUnconfirmed(context, job_id);
  }
  StartPlacedJobs(context);
  needs_tick_ = false;
}

void Controller::ForgiveOwnPause(Instant now) {
  const int64_t gap_ms = now.steady_ms - last_tick_ms_;
  last_tick_ms_ = now.steady_ms;
  if (gap_ms <= options_.max_tick_gap_ms) return;
  // Nothing was heard because nobody listened: as if the gap had not been.
  for (auto& [id, runtime] : workers_) {
    runtime.last_heard_ms = std::min(now.steady_ms, runtime.last_heard_ms + gap_ms);
  }
  for (auto& [id, runtime] : attempts_) {
    runtime.step_at_ms = std::min(now.steady_ms, runtime.step_at_ms + gap_ms);
    runtime.stop_at_ms = std::min(now.steady_ms, runtime.stop_at_ms + gap_ms);
  }
}

void Controller::CheckLeases(Context& context) {
  for (auto& [id, runtime] : workers_) {
    const Worker* worker = state_.FindWorker(id);
    if (worker == nullptr || worker->state == WorkerState::kLost) continue;
    const int64_t silent_ms = context.now.steady_ms - runtime.last_heard_ms;
    Event event;
    event.worker_id = id;
    event.detail = "silent for " + FormatDuration(double(silent_ms) / 1000);
    if (silent_ms >= options_.lease_ms) {
      event.type = EventType::kLeaseExpired;
      Emit(context, event);
      runtime.session.clear();
      runtime.unwanted_devices.clear();
      for (const std::string& job_id : state_.JobsOnWorker(id)) {
        Outcome outcome;
        outcome.kind = OutcomeKind::kLost;
        outcome.message = "the lease of worker " + id + " expired, " + event.detail;
        EndShare(context, job_id, id, std::move(outcome));
      }
    } else if (silent_ms >= options_.suspect_after_ms && worker->state == WorkerState::kActive) {
      event.type = EventType::kWorkerSuspected;
      Emit(context, event);
      for (const std::string& job_id : state_.JobsOnWorker(id)) {
        const Job& job = *state_.FindJob(job_id);
        if (job.state == JobState::kStopping || job.state == JobState::kSuspect) continue;
        Event suspected = AttemptEvent(EventType::kJobSuspected, job, id);
        suspected.actor = "controller";
        suspected.detail = "worker " + id + " is " + event.detail;
        Emit(context, std::move(suspected));
      }
    }
  }
}

void Controller::CheckLiveJob(Context& context, const std::string& job_id) {
  const Job& job = *state_.FindJob(job_id);
  const Attempt& attempt = *job.live_attempt();
  const AttemptRuntime& runtime = attempts_[job_id];
  const JobSpec& spec = job.spec;
  const int64_t now_ms = context.now.steady_ms;
  StopRequest stop{StopCause::kNone, StopMode::kSave, "controller", "", 0};
  std::string detail;
  const auto after = [](int64_t limit_ms) { return " after " + FormatDuration(limit_ms / 1000.0); };
  if (spec.time_limit_ms > 0 && RanMillis(job, context.now) >= spec.time_limit_ms) {
    stop.cause = StopCause::kTimeLimit;
    detail = "time limit reached" + after(spec.time_limit_ms) + " of running";
  } else if (spec.start_timeout_ms > 0 && attempt.running_ms == 0 &&
             job.state != JobState::kSuspect &&
             now_ms - runtime.placed_at_ms >= spec.start_timeout_ms) {
    stop.cause = StopCause::kStartTimeout;
    stop.mode = StopMode::kKill;
    detail = "no first step" + after(spec.start_timeout_ms);
  } else if (attempt.started_ms == 0 && job.state != JobState::kSuspect &&
             now_ms - runtime.placed_at_ms >= options_.start_confirm_ms) {
    stop.cause = StopCause::kStartTimeout;
    stop.mode = StopMode::kKill;
    detail = "the worker did not confirm the start" + after(options_.start_confirm_ms);
  } else if (spec.stall_timeout_ms > 0 && job.state == JobState::kRunning &&
             now_ms - runtime.step_at_ms >= spec.stall_timeout_ms) {
    stop.cause = StopCause::kStalled;
    stop.mode = StopMode::kKill;
    detail = StrFormat("no step after step %lld", static_cast<long long>(runtime.step)) +
             after(spec.stall_timeout_ms);
  } else {
    for (const Share& share : attempt.shares) {
      const Worker* worker = state_.FindWorker(share.worker_id);
      if (worker == nullptr || !worker->draining || worker->drain_deadline_ms == 0 ||
          worker->drain_deadline_ms > context.now.wall_ms) {
        continue;
      }
      stop.cause = StopCause::kDrain;
      detail = "worker " + worker->id + " is draining: " + worker->drain_reason;
    }
  }
  if (stop.cause == StopCause::kNone) return;
  BeginStop(context, job_id, EventType::kAttemptStopRequested, std::move(stop), detail);
}

void Controller::CheckStop(Context& context, const std::string& job_id) {
  const Job& job = *state_.FindJob(job_id);
  if (job.stop.cause == StopCause::kNone) return;
  AttemptRuntime& runtime = attempts_[job_id];
  const int64_t grace_ms = job.stop.mode == StopMode::kKill ? 0 : job.spec.stop_grace_ms;
  const int64_t overdue_ms = context.now.steady_ms - runtime.stop_at_ms - grace_ms;
  if (overdue_ms < options_.stop_confirm_ms) return;
  if (!runtime.stop_escalated) {
    runtime.stop_escalated = true;
    runtime.sent_ms.clear();  // the kill goes out at once
  }
  if (overdue_ms < 2 * options_.stop_confirm_ms) return;
  for (const Share& share : job.live_attempt()->shares) {
    const Worker* worker = state_.FindWorker(share.worker_id);
    // A silent worker is the lease's business; this one talks but does not stop.
    if (share.phase == SharePhase::kEnded || worker->draining ||
        worker->state != WorkerState::kActive || workers_[worker->id].session.empty()) {
      continue;
    }
    Event event;
    event.type = EventType::kWorkerDrained;
    event.worker_id = worker->id;
    event.detail = "job " + job_id + " did not stop; its devices may still be in use";
    event.payload = WorkerDrainedData{event.detail, 0};
    Emit(context, std::move(event));
  }
}

void Controller::StartPlacedJobs(Context& context) {
  for (Placement& placement : PlanPlacements(state_, Available(), context.now.wall_ms)) {
    const Job* job = state_.FindJob(placement.job_id);
    Event event;
    event.type = EventType::kJobPlaced;
    event.job_id = placement.job_id;
    event.attempt = job->attempts.empty() ? 1 : job->attempts.back().number + 1;
    event.epoch = state_.next_epoch();
    std::vector<std::string> workers;
    for (const Share& share : placement.shares) workers.push_back(share.worker_id);
    event.detail = StrFormat("%d device%s on ", job->spec.resources.ranks(),
                             job->spec.resources.ranks() == 1 ? "" : "s") +
                   StrJoin(workers, ", ");
    event.payload =
        JobPlacedData{std::move(placement.shares),
                      job->latest_checkpoint ? job->latest_checkpoint->step : int64_t{0}};
    AttemptRuntime runtime;
    runtime.attempt = event.attempt;
    runtime.placed_at_ms = runtime.step_at_ms = context.now.steady_ms;
    Emit(context, std::move(event));
    attempts_[placement.job_id] = runtime;
    SendUnconfirmed(context, placement.job_id);
  }
}

}  // namespace nibble::core
