// SPDX-License-Identifier: Apache-2.0
//
// State::Apply: what each event does. Every branch first checks that the event fits the state and
// only then changes a copy, so a contradiction changes nothing.
#include <algorithm>

#include "base/strings.h"
#include "server/core/state.h"

namespace nibble::core {
namespace {

constexpr int64_t kDayMs = int64_t{24} * 3600 * 1000;

Status Contradiction(const Event& event, const std::string& why) {
  return InternalError(StrFormat("event %lld %s of job '%s' worker '%s' contradicts the state: %s",
                                 static_cast<long long>(event.sequence),
                                 std::string(Name(event.type)).c_str(), event.job_id.c_str(),
                                 event.worker_id.c_str(), why.c_str()));
}

// The state a live, reachable attempt gives its job.
JobState StateOf(const Attempt& attempt) {
  if (attempt.running_ms != 0) return JobState::kRunning;
  return attempt.started_ms != 0 ? JobState::kStarting : JobState::kScheduled;
}

void SetState(Job& job, JobState state, int64_t time_ms) {
  if (job.state == state) return;
  job.state = state;
  job.state_since_ms = time_ms;
}

bool AllShares(const Attempt& attempt, SharePhase at_least) {
  return std::all_of(attempt.shares.begin(), attempt.shares.end(),
                     [&](const Share& share) { return share.phase >= at_least; });
}

void ApplyCheckpoint(const Event& event, Job& job) {
  const Checkpoint& checkpoint = std::get<Checkpoint>(event.payload);
  job.latest_checkpoint = checkpoint;
  job.failures_in_row = 0;
}

void ApplyAttemptEnded(const Event& event, Job& job, Attempt& attempt) {
  const auto& data = std::get<AttemptEndedData>(event.payload);
  attempt.ended_ms = event.time_ms;
  attempt.end_reason = data.reason;
  attempt.charge = data.charge;
  attempt.ran_ms = data.ran_ms;
  attempt.detail = event.detail;
  job.ran_ms += data.ran_ms;
  if (data.reason == EndReason::kPreempted && data.charge == Charge::kNone) ++job.preemptions;
  if (data.charge == Charge::kNone) return;
  job.last_failure = data.reason;
  ++job.failures_in_row;
  if (data.charge == Charge::kUser) {
    ++job.user_failures;
    return;
  }
  std::erase_if(job.infra_failures_ms,
                [&](int64_t time) { return time <= event.time_ms - kDayMs; });
  job.infra_failures_ms.push_back(event.time_ms);
}

}  // namespace

Status State::Apply(const Event& event) {
  if (event.sequence != counters_.last_sequence + 1) {
    return Contradiction(event, StrFormat("expected sequence %lld",
                                          static_cast<long long>(counters_.last_sequence + 1)));
  }
  if (!undo_.active) {
    undo_.active = true;
    undo_.counters = counters_;
  }
  if (event.job_id.empty()) {
    RETURN_IF_ERROR(ApplyToWorker(event));
  } else if (event.type == EventType::kJobSubmitted) {
    RETURN_IF_ERROR(ApplySubmitted(event));
  } else {
    const Job* found = FindJob(event.job_id);
    if (found == nullptr) return Contradiction(event, "no such job");
    Job job = *found;
    RETURN_IF_ERROR(ApplyToJob(event, job));
    PutJob(std::move(job));
  }
  counters_.last_sequence = event.sequence;
  return OkStatus();
}

Status State::ApplySubmitted(const Event& event) {
  const Job* job = std::get_if<Job>(&event.payload);
  if (job == nullptr || job->id != event.job_id) return Contradiction(event, "no job inside");
  if (FindJob(job->id) != nullptr) return Contradiction(event, "the job exists");
  if (job->state != JobState::kPending && job->state != JobState::kHeld) {
    return Contradiction(event, "a new job is PENDING or HELD");
  }
  RememberRequest(job->request_id, job->id, job->body_hash);
  counters_.next_job_number = std::max(counters_.next_job_number, job->number + 1);
  ++counters_.active_jobs;
  PutJob(*job);
  return OkStatus();
}

Status State::ApplyToJob(const Event& event, Job& job) {
  if (event.type == EventType::kCheckpointSaved) {  // may arrive after the end
    const Attempt* attempt = job.FindAttempt(event.attempt);
    if (attempt == nullptr || attempt->epoch != event.epoch) {
      return Contradiction(event, "unknown epoch");
    }
    ApplyCheckpoint(event, job);
    return OkStatus();
  }
  if (IsTerminal(job.state)) return Contradiction(event, "the job has ended");
  switch (event.type) {
    case EventType::kJobPlaced:
      return ApplyPlaced(event, job);
    case EventType::kJobCancelRequested:
    case EventType::kJobPauseRequested:
    case EventType::kJobRequeueRequested:
    case EventType::kAttemptStopRequested:
      return ApplyStopRequest(event, job);
    case EventType::kJobUpdated: {
      const auto& data = std::get<JobUpdatedData>(event.payload);
      if (data.priority) job.spec.priority = *data.priority;
      if (data.time_limit_ms) job.spec.time_limit_ms = *data.time_limit_ms;
      return OkStatus();
    }
    case EventType::kJobResumed:
      if (job.state == JobState::kHeld) {
        SetState(job, JobState::kPending, event.time_ms);
        job.not_before_ms = 0;
      } else if (job.stop.cause == StopCause::kPause) {
        job.stop.cause = StopCause::kRequeue;
      } else {
        return Contradiction(event, "the job is neither held nor pausing");
      }
      return OkStatus();
    case EventType::kJobRequeued:
    case EventType::kJobHeld:
    case EventType::kJobEnded:
      break;
    default:
      return ApplyToAttempt(event, job);
  }
  if (job.live_attempt() != nullptr) return Contradiction(event, "an attempt is live");
  if (event.type == EventType::kJobEnded) {
    const auto& data = std::get<JobEndedData>(event.payload);
    if (!IsTerminal(data.state)) return Contradiction(event, "the end state is not terminal");
    SetState(job, data.state, event.time_ms);
    job.end_reason = data.reason;
    job.end_detail = event.detail;
    job.ended_ms = event.time_ms;
    --counters_.active_jobs;
    return OkStatus();
  }
  job.stop = StopRequest();
  if (event.type == EventType::kJobHeld) {
    SetState(job, JobState::kHeld, event.time_ms);
    return OkStatus();
  }
  const auto& data = std::get<JobRequeuedData>(event.payload);
  if (!IsQueued(data.state)) return Contradiction(event, "a queued state was expected");
  SetState(job, data.state, event.time_ms);
  job.not_before_ms = data.not_before_ms;
  return OkStatus();
}

Status State::ApplyPlaced(const Event& event, Job& job) {
  const auto& data = std::get<JobPlacedData>(event.payload);
  if (!IsQueued(job.state)) return Contradiction(event, "the job is not queued");
  if (job.live_attempt() != nullptr) return Contradiction(event, "an attempt is live");
  const int number = job.attempts.empty() ? 1 : job.attempts.back().number + 1;
  if (event.attempt != number) return Contradiction(event, "attempt number out of order");
  if (event.epoch < counters_.next_epoch) return Contradiction(event, "the epoch was used");
  if (data.shares.empty()) return Contradiction(event, "no shares");
  for (const Share& share : data.shares) {
    if (FindWorker(share.worker_id) == nullptr) {
      return Contradiction(event, "unknown worker " + share.worker_id);
    }
    for (const std::string& device : share.devices) {
      const std::string holder = DeviceHolder(share.worker_id, device);
      if (!holder.empty()) {
        return Contradiction(event, share.worker_id + "/" + device + " is held by " + holder);
      }
    }
  }
  Attempt attempt;
  attempt.number = number;
  attempt.epoch = event.epoch;
  attempt.shares = data.shares;
  attempt.placed_ms = event.time_ms;
  attempt.resume_step = data.resume_step;
  job.attempts.push_back(std::move(attempt));
  if (job.attempts.size() > kMaxAttemptsKept) job.attempts.erase(job.attempts.begin());
  job.not_before_ms = 0;
  SetState(job, JobState::kScheduled, event.time_ms);
  counters_.next_epoch = event.epoch + 1;
  return OkStatus();
}

Status State::ApplyStopRequest(const Event& event, Job& job) {
  const auto& stop = std::get<StopRequest>(event.payload);
  if (stop.cause == StopCause::kNone) return Contradiction(event, "no cause");
  if (job.stop.cause != StopCause::kNone && stop.cause != StopCause::kCancel) {
    return Contradiction(event, "another stop is under way");
  }
  if (!stop.request_id.empty()) {
    const std::string hash = CancelBodyHash(job.id, stop.mode);
    RememberRequest(stop.request_id, job.id, hash);
    job.cancel_requests.push_back({stop.request_id, hash});
    if (job.cancel_requests.size() > kMaxRequestsKept) {
      job.cancel_requests.erase(job.cancel_requests.begin());
    }
  }
  job.stop = stop;
  job.stop.asked_ms = event.time_ms;
  if (job.live_attempt() != nullptr) SetState(job, JobState::kStopping, event.time_ms);
  return OkStatus();
}

Status State::ApplyToAttempt(const Event& event, Job& job) {
  Attempt* attempt = job.live_attempt();
  if (attempt == nullptr || attempt->number != event.attempt || attempt->epoch != event.epoch) {
    return Contradiction(event, "the attempt is not live");
  }
  if (event.type == EventType::kAttemptEnded) {
    if (!AllShares(*attempt, SharePhase::kEnded)) return Contradiction(event, "a share is live");
    ApplyAttemptEnded(event, job, *attempt);
    return OkStatus();
  }
  Share* share = attempt->FindShare(event.worker_id);
  if (share == nullptr) return Contradiction(event, "the worker has no share of it");
  if (share->phase == SharePhase::kEnded) return Contradiction(event, "the share has ended");
  switch (event.type) {
    case EventType::kAttemptStarted:
      if (share->phase != SharePhase::kAssigned) return Contradiction(event, "already started");
      share->phase = SharePhase::kStarted;
      if (AllShares(*attempt, SharePhase::kStarted)) attempt->started_ms = event.time_ms;
      if (job.first_started_ms == 0) job.first_started_ms = attempt->started_ms;
      break;
    case EventType::kAttemptRunning:
      if (share->phase != SharePhase::kStarted) return Contradiction(event, "not just started");
      share->phase = SharePhase::kRunning;
      if (attempt->running_ms == 0) attempt->running_ms = event.time_ms;
      break;
    case EventType::kJobSuspected:
      if (job.state == JobState::kStopping) return Contradiction(event, "the job is stopping");
      SetState(job, JobState::kSuspect, event.time_ms);
      return OkStatus();
    case EventType::kJobReturned:
      if (job.state != JobState::kSuspect) return Contradiction(event, "the job is not suspect");
      SetState(job, StateOf(*attempt), event.time_ms);
      return OkStatus();
    case EventType::kShareEnded:
      share->phase = SharePhase::kEnded;
      share->outcome = std::get<Outcome>(event.payload);
      return OkStatus();
    default:
      return Contradiction(event, "not an event of an attempt");
  }
  if (job.state != JobState::kStopping && job.state != JobState::kSuspect) {
    SetState(job, StateOf(*attempt), event.time_ms);
  }
  return OkStatus();
}

Status State::ApplyToWorker(const Event& event) {
  if (event.type == EventType::kWorkerRegistered) {
    const Worker* given = std::get_if<Worker>(&event.payload);
    if (given == nullptr || given->id != event.worker_id) {
      return Contradiction(event, "no worker inside");
    }
    PutWorker(*given);
    return OkStatus();
  }
  const Worker* found = FindWorker(event.worker_id);
  if (found == nullptr) return Contradiction(event, "no such worker");
  Worker worker = *found;
  const auto set_state = [&](WorkerState state) {
    worker.state = state;
    worker.state_since_ms = event.time_ms;
  };
  switch (event.type) {
    case EventType::kWorkerSuspected:
      if (worker.state != WorkerState::kActive) return Contradiction(event, "it is not active");
      set_state(WorkerState::kSuspect);
      break;
    case EventType::kWorkerReturned:
      if (worker.state != WorkerState::kSuspect) return Contradiction(event, "it is not suspect");
      set_state(WorkerState::kActive);
      break;
    case EventType::kLeaseExpired:
      if (worker.state == WorkerState::kLost) return Contradiction(event, "it is lost already");
      set_state(WorkerState::kLost);
      break;
    case EventType::kWorkerDrained: {
      const auto& data = std::get<WorkerDrainedData>(event.payload);
      worker.draining = true;
      worker.drain_reason = data.reason;
      worker.drain_actor = event.actor;
      worker.drain_deadline_ms = data.deadline_ms;
      break;
    }
    case EventType::kWorkerUndrained:
      worker.draining = false;
      worker.drain_reason.clear();
      worker.drain_actor.clear();
      worker.drain_deadline_ms = 0;
      break;
    default:
      return Contradiction(event, "it names no job");
  }
  PutWorker(std::move(worker));
  return OkStatus();
}

}  // namespace nibble::core
