// SPDX-License-Identifier: Apache-2.0
//
// Estimates: what a job will cost and on which workers it fits, before it runs. Pure functions, but
// for a look at the data folder's index when the spec leaves the vocabulary to the tokenizer.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "nibble/v1/controller.pb.h"
#include "server/core/controller.h"
#include "server/rpc/session_table.h"
#include "server/rpc/spec.h"
#include "worker/spec/estimate.h"

namespace nibble::rpc {

struct JobEstimate {
  RunEstimate run;
  double efficiency = 1;  // share of a device's measured GEMM rate that a step reaches
  int threads = 0;        // asked by the spec; 0 = all of the slot
  std::vector<std::string> warnings;
};

// INVALID_ARGUMENT when the sizes cannot be estimated.
Result<JobEstimate> EstimateJob(const ResolvedSpec& resolved);

// Without fits.
v1::Estimate ToProto(const JobEstimate& job);

// One Fit per known worker: whether the job could run there if it were idle, else why not.
void AddFits(const core::Controller& controller, const std::map<std::string, WorkerFacts>& facts,
             const core::JobSpec& spec, const JobEstimate& job, v1::Estimate& estimate);

// One verdict per worker for a job of this spec now: free devices or why not.
std::vector<v1::NodeVerdict> Verdicts(const core::Controller& controller,
                                      const core::JobSpec& spec);

// Seconds of one optimizer step on a device; 0 when its rate is unknown.
double StepSeconds(const JobEstimate& job, double gflops, int device_threads);

}  // namespace nibble::rpc
