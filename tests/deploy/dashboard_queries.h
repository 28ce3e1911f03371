// SPDX-License-Identifier: Apache-2.0
//
// Dashboard queries: every expression of the Grafana boards and of the Prometheus rules, ready to
// be sent to a Prometheus, with the metrics it names.
//
// Pure functions over files; thread-safe.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace nibble::testing {

struct Dashboard {
  std::string file;  // "job.json"
  Json json;
};

struct DashboardQuery {
  std::string where;  // "nibble-job / Training loss / A" or "nibble-job / variable job"
  std::string raw;    // as in the file
  std::string expr;   // variables replaced: $queue and $job by ".*", intervals by fixed ones
};

struct AlertRule {
  std::string file;    // "jobs.yml"
  std::string name;    // alert or recording rule
  bool alert = false;  // false: a recording rule
  std::string expr;
  std::string severity;     // alerts only
  std::string summary;      // alerts only
  std::string description;  // alerts only
};

// All *.json of a folder, by file name.
Result<std::vector<Dashboard>> ReadDashboards(const std::string& folder);

// The queries of all panels (rows included) and of the variables' label_values(...).
std::vector<DashboardQuery> QueriesOf(const Dashboard& dashboard);

// All rules of a folder of *.yml rule files. INVALID_ARGUMENT for files of another form.
Result<std::vector<AlertRule>> ReadRules(const std::string& folder);

// Grafana's variables as a Prometheus understands them. A variable nobody knows stays, and the
// query then fails.
std::string SubstituteVariables(std::string_view expr);

// The names in an expression that begin with "nibble_" or "nibble:", the suffixes _bucket, _sum and
// _count cut off.
std::set<std::string> MetricNamesIn(std::string_view expr);

}  // namespace nibble::testing
