// SPDX-License-Identifier: Apache-2.0
//
// Whole training steps on one backend: time, memory and the shares of operations.
// Thread-safety: one thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "worker/spec/run_config.h"

namespace nibble::bench {

struct StepCases {
  RunConfig config;                  // model, data, schedule and memory of every case
  std::vector<std::string> recipes;  // built-in names; empty: the config's recipe
  std::vector<int64_t> layers;       // depths of the model; empty: the config's
  double seconds = 3;                // of measured steps, for each case
  bool shares = false;  // also steps whose operations are waited for one by one, for their shares
};

// Calls `emit` with one row for each recipe and depth: {"name": "step", "recipe", "layers",
// "activations", "tokens", "ms", "tokens_per_s", "memory", "peak_bytes", "estimated_bytes",
// "share_by_op", "op_ms"}, or with "skipped" and its reason. Weights are new for every case.
// INVALID_ARGUMENT and NOT_FOUND for data that cannot be read.
Status MeasureSteps(const std::string& backend, const StepCases& cases,
                    const std::function<void(const Json&)>& emit);

}  // namespace nibble::bench
