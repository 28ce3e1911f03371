// SPDX-License-Identifier: Apache-2.0
//
// World: the invariants, checked after every step of the controller.
#include "base/strings.h"
#include "tests/sim/world.h"

namespace nibble::sim {

void World::Fail(const std::string& what) {
  if (!report_.violation.empty()) return;
  report_.violation =
      StrFormat("seed %llu, second %lld: ", static_cast<unsigned long long>(options_.seed),
                static_cast<long long>(steady_ms_ / 1000)) +
      what;
}

std::string World::Dump(const core::State& state) const {
  std::string dump;
  for (const auto& [id, job] : state.jobs()) dump += core::ToJson(job).Dump() + "\n";
  for (const auto& [id, worker] : state.workers()) dump += core::ToJson(worker).Dump() + "\n";
  dump += StrFormat("%lld %lld %lld %lld", static_cast<long long>(state.next_job_number()),
                    static_cast<long long>(state.next_epoch()),
                    static_cast<long long>(state.last_sequence()),
                    static_cast<long long>(state.active_jobs()));
  return dump;
}

void World::CheckInvariants() {
  if (engine_ == nullptr) return;
  const core::State& state = engine_->state();
  std::set<std::pair<std::string, std::string>> held;
  for (const auto& [id, job] : state.jobs()) {
    CheckJob(job);
    const core::Attempt* live = job.live_attempt();
    if (live == nullptr) continue;
    for (const core::Share& share : live->shares) {
      if (share.phase == core::SharePhase::kEnded) continue;
      for (const std::string& device : share.devices) {
        if (!held.emplace(share.worker_id, device).second) {
          Fail("device " + share.worker_id + "/" + device + " is in two live attempts");
        }
        if (state.DeviceHolder(share.worker_id, device) != id) {
          Fail("the device index does not know that " + id + " holds " + device);
        }
      }
      const core::Worker* worker = state.FindWorker(share.worker_id);
      if (worker == nullptr || worker->state == core::WorkerState::kLost) {
        Fail("job " + id + " is " + std::string(core::Name(job.state)) + " on " + share.worker_id +
             " without a lease");
      }
    }
  }
}

void World::CheckJob(const core::Job& job) {
  for (size_t i = 0; i + 1 < job.attempts.size(); ++i) {
    if (!job.attempts[i].ended()) Fail("job " + job.id + " has two live attempts");
    if (job.attempts[i].epoch >= job.attempts[i + 1].epoch) Fail("epochs of " + job.id + " fell");
  }
  for (const core::Attempt& attempt : job.attempts) CheckCheckpoint(job, attempt);
  const bool live = job.live_attempt() != nullptr;
  if (live != core::IsLive(job.state)) {
    Fail("job " + job.id + " is " + std::string(core::Name(job.state)) +
         (live ? " with" : " without") + " a live attempt");
  }
  const bool queued = [&] {
    const auto queue = engine_->state().queues().find(job.spec.queue);
    return queue != engine_->state().queues().end() &&
           queue->second.contains({job.spec.priority, job.submitted_ms, job.number, job.id});
  }();
  if (queued != core::IsQueued(job.state)) {
    Fail("the queue is wrong about job " + job.id);
  }
  if (job.user_failures > truth_.user_errors[job.id]) {
    Fail("job " + job.id + " was charged for what was not its fault");
  }
  if (job.state == core::JobState::kSucceeded && !truth_.completed.contains(job.id)) {
    Fail("job " + job.id + " SUCCEEDED without having completed");
  }
  if (!core::IsTerminal(job.state)) {
    if (ended_jobs_.contains(job.id)) Fail("job " + job.id + " came back from its end");
    return;
  }
  const std::string end = std::string(core::Name(job.state)) + "/" +
                          std::string(core::Name(job.end_reason)) + "/" +
                          std::to_string(job.ended_ms);
  const auto [known, is_new] = ended_jobs_.emplace(job.id, end);
  if (!is_new && known->second != end) {
    Fail("job " + job.id + " ended as " + known->second + " and later as " + end);
  }
}

// An end that its worker told is never known without the newest checkpoint before it.
void World::CheckCheckpoint(const core::Job& job, const core::Attempt& attempt) {
  const auto saved = truth_.saved.find(job.id);
  if (saved == truth_.saved.end()) return;
  for (const core::Share& share : attempt.shares) {
    if (share.phase == core::SharePhase::kEnded && share.outcome.kind == core::OutcomeKind::kLost) {
      return;  // given up as a whole: nothing of it is taken any more
    }
  }
  for (const core::Share& share : attempt.shares) {
    if (share.phase != core::SharePhase::kEnded) continue;
    if (share.outcome.kind != core::OutcomeKind::kExited) continue;
    const auto found = saved->second.find({attempt.epoch, share.worker_id});
    if (found == saved->second.end()) continue;
    const auto known = job.latest_checkpoint
                           ? std::pair(job.latest_checkpoint->attempt, job.latest_checkpoint->step)
                           : std::pair(0, int64_t{0});
    if (known < std::pair(attempt.number, found->second)) {
      Fail("attempt " + std::to_string(attempt.number) + " of job " + job.id +
           " ended without its checkpoint of step " + std::to_string(found->second));
    }
  }
}

void World::CheckAcknowledged() {
  std::set<std::string> request_ids;
  for (const auto& [id, job] : engine_->state().jobs()) {
    if (!request_ids.insert(job.request_id).second) {
      Fail("request " + job.request_id + " made two jobs");
    }
  }
  for (const auto& [id, request] : requests_) {
    if (request.acknowledged && engine_->state().FindJob(request.job_id) == nullptr) {
      Fail("acknowledged job " + request.job_id + " is lost");
    }
  }
  const auto from_beginning = log_->LoadFromBeginning();
  if (!from_beginning.ok()) {
    Fail("the log cannot be replayed from its beginning: " + from_beginning.status().ToString());
  } else if (Dump(*from_beginning) != Dump(engine_->state())) {
    Fail("snapshots and the whole log disagree");
  }
}

}  // namespace nibble::sim
