// SPDX-License-Identifier: Apache-2.0
//
// Scheduler: which queued jobs start where, and why the others wait. Pure functions.
//
// Policy: one total order per queue (priority, submit time, job number). A job is placed whole or
// not at all, on a what-if copy of the free devices. The first job that could run on the pool's
// usable workers if they were idle, but not now, blocks the rest of its queue, and only that
// queue. Jobs that cannot fit at all, wait for a retry, or are held never block others.
// Placement: distinct workers, best fit (fewest devices left over), ties by worker id.
// This release has no backfill, no preemption and no quotas.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "server/core/state.h"
#include "server/core/types.h"

namespace nibble::core {

// Workers that may take work now: registered in a session since the controller started, not
// suspect, lost or draining. Devices held by processes nobody wants are listed as blocked.
struct Availability {
  std::set<std::string> usable_workers;
  std::map<std::string, std::set<std::string>> blocked_devices;  // worker -> devices
};

struct Placement {
  std::string job_id;
  std::vector<Share> shares;
};

// All placements possible now, in order. Deterministic.
std::vector<Placement> PlanPlacements(const State& state, const Availability& available,
                                      int64_t wall_ms);

// Why a job waits.
struct Explanation {
  PendingReason reason = PendingReason::kPendingEvaluation;
  std::string message;     // one sentence with the numbers
  std::string next_event;  // what can change the answer
  int asked_nodes = 0;
  int asked_slots_per_node = 0;
  int free_slots = 0;                       // matching devices free now on usable workers
  int usable_slots = 0;                     // matching devices on usable workers, busy or not
  int total_slots = 0;                      // matching devices in the pool, usable or not
  int jobs_ahead = 0;                       // queued before it in its queue and able to run
  std::vector<std::string> jobs_ahead_ids;  // the first kMaxJobsAheadListed of them
  // One line per worker of the pool: "w-1: 0 of 1 devices free" or why it cannot take the job.
  std::vector<std::string> workers;
};
inline constexpr size_t kMaxJobsAheadListed = 20;

// FAILED_PRECONDITION when the job is neither queued nor held; NOT_FOUND.
Result<Explanation> Explain(const State& state, const Availability& available, int64_t wall_ms,
                            std::string_view job_id);

// The same question for a job that is not submitted: which workers of its queue fit it (for a dry
// run). `reason` is kPendingEvaluation when it could start at once.
Explanation ExplainSpec(const State& state, const Availability& available, const JobSpec& spec);

}  // namespace nibble::core
