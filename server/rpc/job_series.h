// SPDX-License-Identifier: Apache-2.0
//
// Gauges computed at the scrape, as Prometheus metric families. Pure functions.
#pragma once

#include <prometheus/metric_family.h>

#include <map>
#include <string>
#include <vector>

#include "server/rpc/live_jobs.h"
#include "server/rpc/session_table.h"
#include "server/rpc/snapshot.h"

namespace nibble::rpc {

// Jobs by state, queue heads, workers, devices.
void AddClusterSeries(const Snapshot& snapshot, const std::map<std::string, WorkerFacts>& workers,
                      int64_t wall_ms, int64_t steady_ms,
                      std::vector<prometheus::MetricFamily>& families);

// The series of each job in the snapshot. What a trainer has not reported has no series.
void AddJobSeries(const Snapshot& snapshot, const LiveJobs& live, int64_t wall_ms,
                  int64_t steady_ms, std::vector<prometheus::MetricFamily>& families);

void AddDiskSeries(double free_bytes, std::vector<prometheus::MetricFamily>& families);

}  // namespace nibble::rpc
