// SPDX-License-Identifier: Apache-2.0
//
// FakeServer: a controller for the command line's tests: answers what the test put in, fails as the
// test wants, and records what was asked. Thread-safe through one mutex.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "nibble/v1/controller.pb.h"
#include "nibble/v1/errors.pb.h"

namespace nibble::cli {

// What the next calls do. Copied under the lock, so tests set it between calls only.
struct FakeBehaviour {
  Status status;           // every unary call answers this when not OK
  v1::ErrorDetail detail;  // beside it
  int unavailable = 0;     // so many calls fail with UNAVAILABLE first
  int delay_ms = 0;        // before each unary answer
  std::vector<v1::Job> jobs;
  v1::Estimate estimate;
  v1::ExplainJobResponse explain;
  std::vector<v1::JobEvent> events;
  std::vector<v1::Node> nodes;
  v1::GetMetricsResponse metrics;
  std::vector<v1::WatchJobResponse> watch;   // messages beyond the request's cursor are sent
  std::vector<v1::StreamLogsResponse> logs;  // lines not older than since_ms are sent
  int break_stream_after = 0;  // the first stream ends with UNAVAILABLE after so many messages
  bool hold_stream = false;    // streams stay open until the client goes away
};

struct FakeRecord {
  int calls = 0;
  std::vector<std::string> authorization;
  v1::SubmitJobRequest submit;
  v1::ListJobsRequest list;
  v1::CancelJobRequest cancel;
  v1::UpdateJobRequest update;
  v1::DrainNodeRequest drain;
  std::vector<v1::WatchJobRequest> watches;
  std::vector<v1::StreamLogsRequest> logs;
};

class FakeServer {
 public:
  FakeServer();
  ~FakeServer();
  const std::string& address() const;
  void Set(const FakeBehaviour& behaviour);
  FakeRecord record() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::cli
