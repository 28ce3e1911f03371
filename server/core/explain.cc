// SPDX-License-Identifier: Apache-2.0
//
// Explain: the first pending reason that holds, with the numbers behind it.
#include <algorithm>

#include "base/strings.h"
#include "server/core/fit.h"
#include "server/core/scheduler.h"

namespace nibble::core {
namespace {

// Everything assumed but presence in the pool and kind of device.
constexpr FitRules kKindOnly{
    .features = false, .memory = false, .exclude = false, .usable = false, .free = false};
constexpr FitRules kProved{.memory = false, .exclude = false, .usable = false, .free = false};
constexpr FitRules kBigEnough{.exclude = false, .usable = false, .free = false};
constexpr FitRules kAllowed{.usable = false, .free = false};
constexpr FitRules kIdle{.free = false};

int CountDevices(const std::vector<Candidate>& pool, const Resources& resources,
                 const FitRules& rules) {
  size_t count = 0;
  for (const Candidate& candidate : pool) {
    count += MatchingDevices(candidate, resources, rules).size();
  }
  return static_cast<int>(count);
}

std::string Asked(const Resources& resources) {
  const std::string kind = resources.device_kind == DeviceKind::kAny
                               ? ""
                               : std::string(Name(resources.device_kind)) + " ";
  return StrFormat("%d %sdevice%s on each of %d worker%s", resources.slots_per_node, kind.c_str(),
                   resources.slots_per_node == 1 ? "" : "s", resources.nodes,
                   resources.nodes == 1 ? "" : "s");
}

int64_t LargestDeviceBytes(const std::vector<Candidate>& pool) {
  int64_t largest = 0;
  for (const Candidate& candidate : pool) {
    for (const Device& device : candidate.worker->devices) {
      largest = std::max(largest, device.memory_bytes);
    }
  }
  return largest;
}

// Why one worker cannot take a share of the job, or how much of it is free.
std::string WorkerLine(const Candidate& candidate, const Resources& resources) {
  const Worker& worker = *candidate.worker;
  const std::string id = worker.id + ": ";
  const auto count = [&](const FitRules& rules) {
    return MatchingDevices(candidate, resources, rules).size();
  };
  const size_t slots = static_cast<size_t>(resources.slots_per_node);
  if (count(kKindOnly) == 0) {
    const std::string why = worker.notes.empty() ? "" : "; " + worker.notes.front();
    return id + "has no " + std::string(Name(resources.device_kind)) + " device" + why;
  }
  if (count(kProved) < slots && count(kKindOnly) >= slots) {
    return id + "has not proved " + StrJoin(resources.required_features, ", ") + " on " +
           std::to_string(slots) + " of its devices";
  }
  if (count(kBigEnough) < slots && count(kProved) >= slots) {
    return id + "has too little memory: " + FormatBytes(double(LargestDeviceBytes({candidate}))) +
           " a device, " + FormatBytes(double(resources.memory_bytes_per_device)) + " asked";
  }
  if (count(kAllowed) == 0) return id + "is excluded by the job";
  if (worker.state != WorkerState::kActive) return id + "is " + std::string(Name(worker.state));
  if (worker.draining) {
    return id + "is draining (" + worker.drain_actor + ": " + worker.drain_reason + ")";
  }
  if (!candidate.usable) return id + "has not connected since the controller started";
  return id + StrFormat("%zu of %zu matching devices free", count(FitRules{}), count(kIdle));
}

Explanation Numbers(const std::vector<Candidate>& pool, const Resources& resources) {
  Explanation answer;
  answer.asked_nodes = resources.nodes;
  answer.asked_slots_per_node = resources.slots_per_node;
  answer.free_slots = CountDevices(pool, resources, FitRules{});
  answer.usable_slots = CountDevices(pool, resources, kIdle);
  answer.total_slots = CountDevices(pool, resources, kAllowed);
  for (const Candidate& candidate : pool)
    answer.workers.push_back(WorkerLine(candidate, resources));
  return answer;
}

void Say(Explanation& answer, PendingReason reason, std::string message, std::string next_event) {
  answer.reason = reason;
  answer.message = std::move(message);
  answer.next_event = std::move(next_event);
}

// The reasons that no wait ends: they hold even if the whole pool were idle. False when none does.
bool SayWhyNever(const std::vector<Candidate>& pool, const JobSpec& spec, Explanation& answer) {
  const Resources& asked = spec.resources;
  const std::string in_pool = " in pool '" + spec.queue + "'";
  const std::string joins = "a worker with such devices joins pool '" + spec.queue + "'";
  if (pool.empty()) {
    Say(answer, PendingReason::kNoMatchingPool,
        "no worker has ever joined pool '" + spec.queue + "'",
        "a worker joins pool '" + spec.queue + "', or the job is submitted to another queue");
    return true;
  }
  if (CountDevices(pool, asked, kKindOnly) == 0) {
    Say(answer, PendingReason::kNoMatchingPool,
        "no " + std::string(Name(asked.device_kind)) + " device" + in_pool, joins);
    return true;
  }
  if (!Fits(pool, asked, kProved)) {
    if (Fits(pool, asked, kKindOnly)) {
      Say(answer, PendingReason::kCapabilityNotProved,
          "asked " + Asked(asked) + " with " + StrJoin(asked.required_features, ", ") +
              "; too few devices" + in_pool + " have proved it",
          "a worker proves it at registration");
    } else {
      Say(answer, PendingReason::kExceedsPoolCapacity,
          "asked " + Asked(asked) +
              StrFormat("; the %zu workers%s have %d matching devices in all", pool.size(),
                        in_pool.c_str(), CountDevices(pool, asked, kKindOnly)),
          joins);
    }
    return true;
  }
  if (!Fits(pool, asked, kBigEnough)) {
    Say(answer, PendingReason::kMemoryEstimateTooLarge,
        "the estimate is " + FormatBytes(double(asked.memory_bytes_per_device)) +
            " a device; the largest device" + in_pool + " has " +
            FormatBytes(double(LargestDeviceBytes(pool))),
        joins + ", or the job is made smaller");
    return true;
  }
  return false;
}

bool SayExcluded(const std::vector<Candidate>& pool, const JobSpec& spec, Explanation& answer) {
  if (Fits(pool, spec.resources, kAllowed)) return false;
  Say(answer, PendingReason::kExcludedNodesOnly,
      "only workers that the job excludes could take it: " +
          StrJoin(spec.resources.exclude_workers, ", "),
      "another worker joins pool '" + spec.queue + "'");
  return true;
}

// The reasons that waiting ends.
void SayWhyNotNow(const std::vector<Candidate>& pool, const JobSpec& spec, Explanation& answer) {
  const Resources& asked = spec.resources;
  const bool fits_now = !Place(pool, asked).empty();
  const std::string numbers =
      "asked " + Asked(asked) +
      StrFormat("; %d of %d matching devices are free", answer.free_slots, answer.usable_slots);
  if (!fits_now && answer.free_slots >= asked.ranks()) {
    Say(answer, PendingReason::kFragmented, numbers + ", but not enough of them on one worker each",
        "a job of pool '" + spec.queue + "' ends");
  } else if (answer.jobs_ahead > 0) {
    Say(answer, PendingReason::kPriority,
        StrFormat("%d job%s ahead in queue '%s'; ", answer.jobs_ahead,
                  answer.jobs_ahead == 1 ? "" : "s", spec.queue.c_str()) +
            numbers,
        answer.jobs_ahead_ids.front() + " starts");
  } else if (!fits_now && answer.usable_slots < answer.total_slots) {
    Say(answer, PendingReason::kResources,
        numbers + StrFormat("; %d more are on workers that are silent, lost or draining",
                            answer.total_slots - answer.usable_slots),
        "a job of pool '" + spec.queue + "' ends, or such a worker returns");
  } else if (!fits_now) {
    Say(answer, PendingReason::kResources, numbers, "a job of pool '" + spec.queue + "' ends");
  } else {
    Say(answer, PendingReason::kPendingEvaluation, numbers + "; it starts with the next decision",
        "the next scheduling cycle, within a second");
  }
}

void CountJobsAhead(const State& state, const std::vector<Candidate>& pool, const Job& job,
                    int64_t wall_ms, Explanation& answer) {
  const auto queue = state.queues().find(job.spec.queue);
  if (queue == state.queues().end()) return;
  for (const QueueKey& key : queue->second) {
    if (key.job_id == job.id) return;
    const Job* ahead = state.FindJob(key.job_id);
    if (!RetryIsDue(*ahead, wall_ms) || !Fits(pool, ahead->spec.resources, kIdle)) continue;
    ++answer.jobs_ahead;
    if (answer.jobs_ahead_ids.size() < kMaxJobsAheadListed) {
      answer.jobs_ahead_ids.push_back(key.job_id);
    }
  }
}

}  // namespace

Result<Explanation> Explain(const State& state, const Availability& available, int64_t wall_ms,
                            std::string_view job_id) {
  const Job* job = state.FindJob(job_id);
  if (job == nullptr) return NotFoundError("job '" + std::string(job_id) + "' does not exist");
  if (!IsQueued(job->state) && job->state != JobState::kHeld) {
    return FailedPreconditionError("job " + job->id + " is " + std::string(Name(job->state)) +
                                   ": only PENDING, RECOVERING and HELD jobs wait for something");
  }
  const std::vector<Candidate> pool = PoolCandidates(state, available, job->spec.queue);
  Explanation answer = Numbers(pool, job->spec.resources);
  if (job->state == JobState::kHeld) {
    Say(answer, PendingReason::kHeldByUser, "held since " + FormatUtc(job->state_since_ms),
        "`nibble resume " + job->id + "`");
    return answer;
  }
  CountJobsAhead(state, pool, *job, wall_ms, answer);
  if (SayWhyNever(pool, job->spec, answer)) return answer;
  if (!RetryIsDue(*job, wall_ms)) {
    const double wait_s = double(job->not_before_ms - wall_ms) / 1000;
    Say(answer, PendingReason::kRetryBackoff,
        StrFormat("attempt %d ended with %s; the next may start in ", job->attempts.back().number,
                  std::string(Name(job->last_failure)).c_str()) +
            FormatDuration(wait_s),
        "the wait ends at " + FormatUtc(job->not_before_ms) + ", or `nibble requeue " + job->id +
            "`");
    return answer;
  }
  if (SayExcluded(pool, job->spec, answer)) return answer;
  SayWhyNotNow(pool, job->spec, answer);
  return answer;
}

Explanation ExplainSpec(const State& state, const Availability& available, const JobSpec& spec) {
  const std::vector<Candidate> pool = PoolCandidates(state, available, spec.queue);
  Explanation answer = Numbers(pool, spec.resources);
  const auto queue = state.queues().find(spec.queue);
  if (queue != state.queues().end()) {
    for (const QueueKey& key : queue->second) {
      if (key.priority < spec.priority) break;
      const Job* ahead = state.FindJob(key.job_id);
      if (!Fits(pool, ahead->spec.resources, kIdle)) continue;
      ++answer.jobs_ahead;
      if (answer.jobs_ahead_ids.size() < kMaxJobsAheadListed) {
        answer.jobs_ahead_ids.push_back(key.job_id);
      }
    }
  }
  if (SayWhyNever(pool, spec, answer) || SayExcluded(pool, spec, answer)) return answer;
  SayWhyNotNow(pool, spec, answer);
  return answer;
}

}  // namespace nibble::core
