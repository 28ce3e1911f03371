// SPDX-License-Identifier: Apache-2.0
//
// Fit: does a job fit a set of workers, and which devices would it take? Shared by placement and
// by Explain so that they cannot disagree. Pure functions; pointers borrow from the State.
#pragma once

#include <string>
#include <vector>

#include "server/core/scheduler.h"
#include "server/core/state.h"

namespace nibble::core {

// Which conditions count. What is off is assumed to hold.
struct FitRules {
  bool features = true;
  bool memory = true;
  bool exclude = true;
  bool usable = true;  // the worker must be usable now
  bool free = true;    // the device must be free
};

// One worker of a pool with the devices that are free in the what-if copy.
struct Candidate {
  const Worker* worker = nullptr;
  bool usable = false;
  std::vector<const Device*> free;
};

// The workers of a pool, by id.
std::vector<Candidate> PoolCandidates(const State& state, const Availability& available,
                                      const std::string& pool);

// Devices of the candidate that the job may use under the rules.
std::vector<const Device*> MatchingDevices(const Candidate& candidate, const Resources& resources,
                                           const FitRules& rules);

// True when `resources.nodes` workers have `resources.slots_per_node` devices each.
bool Fits(const std::vector<Candidate>& pool, const Resources& resources, const FitRules& rules);

// The gang's shares on free devices of usable workers, or none when it does not fit whole.
std::vector<Share> Place(const std::vector<Candidate>& pool, const Resources& resources);

// The wait before a retry is over. A time further away than the longest backoff is not believed:
// the wall clock was set back.
bool RetryIsDue(const Job& job, int64_t wall_ms);

}  // namespace nibble::core
