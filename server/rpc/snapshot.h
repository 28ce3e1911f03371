// SPDX-License-Identifier: Apache-2.0
//
// Snapshot: what /metrics needs of the core's state, copied now and then by the loop's thread, so
// that a scrape never waits for the scheduler nor makes it wait.
//
// Thread-safety: an immutable value once built; shared by shared_ptr between the loop's thread and
// HTTP threads.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "base/status.h"
#include "server/core/controller.h"
#include "server/rpc/convert.h"

namespace nibble::rpc {

// A job that has series of its own: not ended, or ended less than the grace time ago.
struct JobRow {
  std::string id;
  std::string name;
  std::string user;
  std::string queue;
  std::string project;
  std::string recipe;
  bool running = false;
  int attempt = 0;
  double stall_timeout_seconds = 0;
  int64_t steps_target = 0;
  int64_t checkpoint_interval_steps = 0;
  int64_t checkpoint_step = 0;
};

struct Snapshot {
  Status log_health;
  int64_t wall_ms = 0;
  int64_t steady_ms = 0;
  int jobs_live = 0;
  int jobs_total = 0;
  std::map<std::pair<std::string, core::JobState>, int> jobs;  // by queue and state
  std::map<std::string, int64_t> queue_head_since_ms;          // wall time; queues that wait
  std::map<std::string, bool> workers_up;
  // By pool, kind and state (free, busy, suspect, drained).
  std::map<std::tuple<std::string, std::string, std::string>, int> devices;
  std::vector<JobRow> rows;
};

Snapshot BuildSnapshot(const core::Controller& controller, core::Instant now,
                       int64_t series_grace_ms, SpecCache& specs);

}  // namespace nibble::rpc
