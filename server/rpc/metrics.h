// SPDX-License-Identifier: Apache-2.0
//
// Metrics: what the controller serves on /metrics; docs/reference/metrics.md is the contract.
//
// Thread-safety: thread-safe. Counters and histograms are updated where things happen; gauges are
// read from a Snapshot and LiveJobs at the scrape. No gRPC in it.
// Invariant: label values come from bounded sets, but for job ids, which vanish after the job.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "server/core/events.h"
#include "server/rpc/live_jobs.h"
#include "server/rpc/session_table.h"
#include "server/rpc/snapshot.h"
#include "server/rpc/telemetry.h"

namespace nibble::rpc {

class Metrics {
 public:
  Metrics(const std::string& version, const std::string& state_dir);
  ~Metrics();

  void CountTransition(core::JobState to, const std::string& reason);
  void ObserveQueueWait(const std::string& queue, double seconds);
  void ObserveCycle(double seconds);
  void ObserveAppend(double seconds, size_t events);
  void ObserveCall(const std::string& method, const std::string& code, double seconds);
  void CountDropped(DropReason reason, int points);

  // The page, in Prometheus text format.
  std::string Render(const Snapshot& snapshot, const std::map<std::string, WorkerFacts>& workers,
                     const LiveJobs& live, int64_t wall_ms, int64_t steady_ms) const;

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::rpc
