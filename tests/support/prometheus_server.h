// SPDX-License-Identifier: Apache-2.0
//
// PrometheusServer: a real Prometheus on a free port of 127.0.0.1, with its data in a folder of the
// test. Tests scrape real programs with it and run the queries of dashboards and rules.
//
// Thread-compatible. Ownership: ends the process and waits for it when destroyed.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/process.h"
#include "base/status.h"

namespace nibble::testing {

// Path of a program in $PATH, "" when there is none.
std::string FindProgram(std::string_view name);

class PrometheusServer {
 public:
  // Writes `config` (the text of a prometheus.yml; rule_files must be absolute paths) to `folder`
  // and starts the program. Ready when this returns. NOT_FOUND when Prometheus is not installed.
  static Result<PrometheusServer> Start(const std::string& folder, const std::string& config);

  ~PrometheusServer();
  PrometheusServer(PrometheusServer&& other) noexcept;
  PrometheusServer& operator=(PrometheusServer&&) = delete;

  int port() const { return port_; }
  // The "data.result" of an instant query: an array of {"metric": {...}, "value": [time, "text"]}.
  // INVALID_ARGUMENT with the server's words when the expression is refused.
  Result<Json> Query(std::string_view expression) const;
  // Repeats Query until the result is not empty. DEADLINE_EXCEEDED naming the expression otherwise.
  Result<Json> QueryUntilNotEmpty(std::string_view expression,
                                  std::chrono::milliseconds timeout) const;

 private:
  PrometheusServer(Process process, int port) : process_(std::move(process)), port_(port) {}
  std::optional<Process> process_;
  int port_ = 0;
};

}  // namespace nibble::testing
