// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/snapshot.h"

namespace nibble::rpc {
namespace {

JobRow RowOf(const core::Job& job, const v1::JobSpec& spec) {
  JobRow row;
  row.id = job.id;
  row.name = job.spec.name;
  row.user = job.spec.user;
  row.queue = job.spec.queue;
  row.project = job.spec.project;
  row.recipe = spec.precision().recipe();
  row.running = job.state == core::JobState::kRunning;
  row.attempt = job.attempts.empty() ? 0 : job.attempts.back().number;
  row.stall_timeout_seconds = static_cast<double>(job.spec.stall_timeout_ms) / 1e3;
  row.steps_target = spec.schedule().steps();
  row.checkpoint_interval_steps = spec.checkpoint().every_steps();
  if (job.latest_checkpoint.has_value()) row.checkpoint_step = job.latest_checkpoint->step;
  return row;
}

std::string DeviceState(const core::Worker& worker, const core::Device& device,
                        const core::State& state) {
  if (worker.state != core::WorkerState::kActive) return "suspect";
  if (!state.DeviceHolder(worker.id, device.id).empty()) return "busy";
  return worker.draining ? "drained" : "free";
}

}  // namespace

Snapshot BuildSnapshot(const core::Controller& controller, core::Instant now,
                       int64_t series_grace_ms, SpecCache& specs) {
  const core::State& state = controller.state();
  Snapshot out;
  out.wall_ms = now.wall_ms;
  out.steady_ms = now.steady_ms;
  out.jobs_total = static_cast<int>(state.jobs().size());
  for (const auto& [id, job] : state.jobs()) {
    // The API knows no SCHEDULED; it shows STARTING.
    const bool placed = job.state == core::JobState::kScheduled;
    ++out.jobs[{job.spec.queue, placed ? core::JobState::kStarting : job.state}];
    const bool ended = core::IsTerminal(job.state);
    if (!ended) ++out.jobs_live;
    if (ended && now.wall_ms - job.ended_ms > series_grace_ms) continue;
    out.rows.push_back(RowOf(job, specs.Get(job.spec)));
  }
  for (const auto& [queue, keys] : state.queues()) {
    for (const core::QueueKey& key : keys) {
      const core::Job* job = state.FindJob(key.job_id);
      if (job == nullptr || job->not_before_ms > now.wall_ms) continue;  // a retry that waits
      out.queue_head_since_ms[queue] = job->state_since_ms;
      break;
    }
    out.queue_head_since_ms.try_emplace(queue, now.wall_ms);
  }
  for (const auto& [id, worker] : state.workers()) {
    out.workers_up[id] = worker.state == core::WorkerState::kActive;
    for (const core::Device& device : worker.devices) {
      ++out.devices[{worker.pool, std::string(core::Name(device.kind)),
                     DeviceState(worker, device, state)}];
    }
  }
  return out;
}

}  // namespace nibble::rpc
