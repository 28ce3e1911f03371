// SPDX-License-Identifier: Apache-2.0
#include "server/core/scheduler.h"

#include <algorithm>

#include "server/core/fit.h"

namespace nibble::core {
namespace {

bool Matches(const Device& device, const Resources& resources, const FitRules& rules) {
  if (resources.device_kind != DeviceKind::kAny && device.kind != resources.device_kind) {
    return false;
  }
  if (rules.memory && device.memory_bytes > 0 &&
      device.memory_bytes < resources.memory_bytes_per_device) {
    return false;
  }
  if (!rules.features) return true;
  return std::all_of(resources.required_features.begin(), resources.required_features.end(),
                     [&](const std::string& feature) {
                       return std::find(device.proved_features.begin(),
                                        device.proved_features.end(),
                                        feature) != device.proved_features.end();
                     });
}

bool IsExcluded(const Worker& worker, const Resources& resources) {
  return std::find(resources.exclude_workers.begin(), resources.exclude_workers.end(), worker.id) !=
         resources.exclude_workers.end();
}

// Takes the devices of a placement out of the what-if copy.
void Occupy(std::vector<Candidate>& pool, const std::vector<Share>& shares) {
  for (const Share& share : shares) {
    for (Candidate& candidate : pool) {
      if (candidate.worker->id != share.worker_id) continue;
      std::erase_if(candidate.free, [&](const Device* device) {
        return std::find(share.devices.begin(), share.devices.end(), device->id) !=
               share.devices.end();
      });
    }
  }
}

}  // namespace

std::vector<Candidate> PoolCandidates(const State& state, const Availability& available,
                                      const std::string& pool) {
  std::vector<Candidate> candidates;
  for (const auto& [id, worker] : state.workers()) {
    if (worker.pool != pool) continue;
    Candidate candidate{&worker, available.usable_workers.contains(id), {}};
    const auto blocked = available.blocked_devices.find(id);
    for (const Device& device : worker.devices) {
      if (!state.DeviceHolder(id, device.id).empty()) continue;
      if (blocked != available.blocked_devices.end() && blocked->second.contains(device.id)) {
        continue;
      }
      candidate.free.push_back(&device);
    }
    candidates.push_back(std::move(candidate));
  }
  return candidates;
}

std::vector<const Device*> MatchingDevices(const Candidate& candidate, const Resources& resources,
                                           const FitRules& rules) {
  std::vector<const Device*> devices;
  if (rules.usable && !candidate.usable) return devices;
  if (rules.exclude && IsExcluded(*candidate.worker, resources)) return devices;
  if (rules.free) {
    for (const Device* device : candidate.free) {
      if (Matches(*device, resources, rules)) devices.push_back(device);
    }
    return devices;
  }
  for (const Device& device : candidate.worker->devices) {
    if (Matches(device, resources, rules)) devices.push_back(&device);
  }
  return devices;
}

bool Fits(const std::vector<Candidate>& pool, const Resources& resources, const FitRules& rules) {
  int nodes = 0;
  for (const Candidate& candidate : pool) {
    const auto devices = MatchingDevices(candidate, resources, rules);
    if (static_cast<int>(devices.size()) >= resources.slots_per_node) ++nodes;
    if (nodes >= resources.nodes) return true;
  }
  return false;
}

std::vector<Share> Place(const std::vector<Candidate>& pool, const Resources& resources) {
  struct Fit {
    size_t left_over;
    const Worker* worker;
    std::vector<const Device*> devices;
  };
  const size_t slots = static_cast<size_t>(resources.slots_per_node);
  std::vector<Fit> fits;
  for (const Candidate& candidate : pool) {
    if (candidate.free.size() < slots) continue;
    auto devices = MatchingDevices(candidate, resources, FitRules{});
    if (devices.size() < slots) continue;
    fits.push_back({candidate.free.size() - slots, candidate.worker, std::move(devices)});
  }
  if (static_cast<int>(fits.size()) < resources.nodes) return {};
  // Candidates come by worker id, so a stable sort breaks ties by it.
  std::stable_sort(fits.begin(), fits.end(),
                   [](const Fit& a, const Fit& b) { return a.left_over < b.left_over; });
  std::vector<Share> shares;
  for (int node = 0; node < resources.nodes; ++node) {
    const Fit& fit = fits[static_cast<size_t>(node)];
    Share share;
    share.worker_id = fit.worker->id;
    share.first_rank = node * resources.slots_per_node;
    for (size_t slot = 0; slot < slots; ++slot) share.devices.push_back(fit.devices[slot]->id);
    shares.push_back(std::move(share));
  }
  return shares;
}

bool RetryIsDue(const Job& job, int64_t wall_ms) {
  const int64_t wait_ms = job.not_before_ms - wall_ms;
  return wait_ms <= 0 || wait_ms > job.spec.retry.backoff_max_ms;
}

std::vector<Placement> PlanPlacements(const State& state, const Availability& available,
                                      int64_t wall_ms) {
  std::vector<Placement> placements;
  for (const auto& [queue_name, queue] : state.queues()) {
    std::vector<Candidate> pool = PoolCandidates(state, available, queue_name);
    if (pool.empty()) continue;
    for (const QueueKey& key : queue) {
      const Job* job = state.FindJob(key.job_id);
      if (!RetryIsDue(*job, wall_ms)) continue;
      const Resources& resources = job->spec.resources;
      std::vector<Share> shares = Place(pool, resources);
      if (!shares.empty()) {
        Occupy(pool, shares);
        placements.push_back({job->id, std::move(shares)});
      } else if (FitRules idle{.free = false}; Fits(pool, resources, idle)) {
        break;  // the head of the line waits for devices, and the queue behind it waits for the
                // head
      }
    }
  }
  return placements;
}

}  // namespace nibble::core
