// SPDX-License-Identifier: Apache-2.0
//
// StatusPage: the worker's own HTTP port with /metrics (Prometheus text) and /healthz.
//
// docs/reference/metrics.md lists the metrics. Thread-safety: Update is thread-safe; scrapes are
// answered on the server's threads from what Update gave last. Ownership: owns threads and socket.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "worker/agent/attempt_table.h"

namespace nibble::agent {

struct WorkerStats {
  AttemptStats attempts;
  bool connected = false;
  int64_t reconnects = 0;
  int64_t disk_free_bytes = 0;
};

class StatusPage {
 public:
  // `address` is HOST:PORT; port 0 takes a free one. FAILED_PRECONDITION naming the address when
  // it cannot be bound.
  static Result<std::unique_ptr<StatusPage>> Start(const std::string& address,
                                                   const std::string& version);
  ~StatusPage();
  StatusPage(const StatusPage&) = delete;
  StatusPage& operator=(const StatusPage&) = delete;

  void Update(const WorkerStats& stats);
  // HOST:PORT as others reach it: the real port, and this host's name for a wildcard address.
  const std::string& address() const { return address_; }

 private:
  struct Impl;
  StatusPage();
  std::unique_ptr<Impl> impl_;
  std::string address_;
};

// This machine's name as the kernel knows it.
std::string HostName();

}  // namespace nibble::agent
