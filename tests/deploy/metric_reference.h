// SPDX-License-Identifier: Apache-2.0
//
// MetricReference: docs/reference/metrics.md as data, so that tests compare boards, rules and what
// programs export with what the page promises.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble::testing {

struct MetricRow {
  std::string name;
  std::string type;  // gauge, counter or histogram
  std::string unit;
  std::set<std::string> labels;
  std::set<std::string> by;     // controller, worker
  std::set<std::string> shown;  // fleet, job, alert; empty: "not on a board"
  std::string meaning;
};

using MetricReference = std::map<std::string, MetricRow, std::less<>>;

// Reads the tables whose first column is "metric" and that have the seven columns of the page.
// INVALID_ARGUMENT names a row of another form and a metric listed twice.
Result<MetricReference> ParseMetricReference(std::string_view markdown);

}  // namespace nibble::testing
