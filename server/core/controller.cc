// SPDX-License-Identifier: Apache-2.0
#include "server/core/controller.h"

#include <algorithm>

#include "base/strings.h"

namespace nibble::core {

Controller::Controller(Options options, State state, Instant now)
    : options_(options), state_(std::move(state)), last_now_(now), last_tick_ms_(now.steady_ms) {
  for (const auto& [id, worker] : state_.workers()) {
    if (worker.state != WorkerState::kLost) workers_[id].last_heard_ms = now.steady_ms;
  }
  for (const std::string& id : state_.live_jobs()) {
    attempts_[id] = RuntimeFromState(*state_.FindJob(id), now);
  }
}

Decision Controller::Handle(const Input& input, Instant now) {
  last_now_ = now;
  Context context{now, {}};
  std::visit([&](const auto& typed) { On(typed, context); }, input);
  return std::move(context.decision);
}

void Controller::Rollback() {
  state_.Rollback();
  std::erase_if(attempts_, [&](const auto& entry) {
    const Job* job = state_.FindJob(entry.first);
    const Attempt* attempt = job == nullptr ? nullptr : job->live_attempt();
    return attempt == nullptr || attempt->number != entry.second.attempt;
  });
  for (const std::string& id : state_.live_jobs()) {
    if (!attempts_.contains(id)) attempts_[id] = RuntimeFromState(*state_.FindJob(id), last_now_);
  }
  std::erase_if(workers_,
                [&](const auto& entry) { return state_.FindWorker(entry.first) == nullptr; });
  needs_tick_ = true;
}

AttemptRuntime Controller::RuntimeFromState(const Job& job, Instant now) const {
  const Attempt& attempt = *job.live_attempt();
  const auto steady = [&](int64_t wall_ms) {
    return now.steady_ms - std::max<int64_t>(0, now.wall_ms - wall_ms);
  };
  AttemptRuntime runtime;
  runtime.attempt = attempt.number;
  runtime.step_at_ms = now.steady_ms;
  runtime.stop_at_ms = now.steady_ms;  // the grace time begins anew
  runtime.placed_at_ms = steady(attempt.placed_ms);
  runtime.started = attempt.started_ms != 0;
  if (runtime.started) runtime.started_at_ms = steady(attempt.started_ms);
  return runtime;
}

Status Controller::CheckEpoch(std::string_view job_id, int attempt_number, int64_t epoch) const {
  const Job* job = state_.FindJob(job_id);
  if (job == nullptr) return NotFoundError("job '" + std::string(job_id) + "' does not exist");
  const Attempt* attempt = job->FindAttempt(attempt_number);
  const auto stale = [&](const char* why) {
    return AbortedError(StrFormat("attempt %d of job %s with epoch %lld %s", attempt_number,
                                  job->id.c_str(), static_cast<long long>(epoch), why));
  };
  if (attempt == nullptr) return stale("is not known");
  if (attempt->epoch != epoch) return stale("has another epoch");
  for (const Share& share : attempt->shares) {
    if (share.phase == SharePhase::kEnded && share.outcome.kind == OutcomeKind::kLost) {
      return stale("was given up: its worker's lease expired or it was missing from the inventory");
    }
  }
  return OkStatus();
}

Availability Controller::Available() const {
  Availability available;
  for (const auto& [id, runtime] : workers_) {
    const Worker* worker = state_.FindWorker(id);
    if (worker == nullptr || runtime.session.empty()) continue;
    for (const auto& [device, until_ms] : runtime.unwanted_devices) {
      if (until_ms > last_now_.steady_ms) available.blocked_devices[id].insert(device);
    }
    if (worker->state == WorkerState::kActive && !worker->draining) {
      available.usable_workers.insert(id);
    }
  }
  return available;
}

Result<Explanation> Controller::Explain(std::string_view job_id, int64_t wall_ms) const {
  return core::Explain(state_, Available(), wall_ms, job_id);
}

Explanation Controller::ExplainSpec(const JobSpec& spec) const {
  return core::ExplainSpec(state_, Available(), spec);
}

int64_t Controller::RanMillis(const Job& job, Instant now) const {
  const AttemptRuntime* runtime = FindAttemptRuntime(job.id);
  if (job.live_attempt() == nullptr || runtime == nullptr || !runtime->started) return job.ran_ms;
  return job.ran_ms + std::max<int64_t>(0, now.steady_ms - runtime->started_at_ms);
}

const WorkerRuntime* Controller::FindWorkerRuntime(std::string_view worker_id) const {
  const auto found = workers_.find(worker_id);
  return found == workers_.end() ? nullptr : &found->second;
}

const AttemptRuntime* Controller::FindAttemptRuntime(std::string_view job_id) const {
  const auto found = attempts_.find(job_id);
  return found == attempts_.end() ? nullptr : &found->second;
}

}  // namespace nibble::core
