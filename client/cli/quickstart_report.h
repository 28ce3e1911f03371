// SPDX-License-Identifier: Apache-2.0
//
// What the quickstart tells at its end, for people and as one JSON object.
// Thread-safety: value types and pure functions.
#pragma once

#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "base/json.h"
#include "client/cli/comparison.h"
#include "nibble/v1/job.pb.h"
#include "nibble/v1/metrics.pb.h"

namespace nibble::cli {

struct QuickstartRun {
  v1::Job job;
  RunSummary summary;
  std::map<std::string, v1::HealthPoint> health;
  std::vector<std::string> health_lines;
  double wall_seconds = 0;  // from submission to the end
};

struct QuickstartReport {
  std::vector<QuickstartRun> runs;  // the first is the one asked for
  std::string prompt;
  std::string sample;       // the prompt's continuation; "" when there is none
  double wall_seconds = 0;  // of the whole quickstart
  std::string state_dir;
  std::string program;  // how `nibble` was called, for the next commands
};

Json QuickstartJson(const QuickstartReport& report);
void PrintQuickstart(std::ostream& out, const QuickstartReport& report);

}  // namespace nibble::cli
