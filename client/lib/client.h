// SPDX-License-Identifier: Apache-2.0
//
// Client: the controller's API as C++ calls with deadlines, retries and resuming streams.
//
// Every call carries a deadline. UNAVAILABLE is tried again, at most kMaxCallAttempts times with
// jittered backoff; all calls are idempotent (submit and cancel by their request id, which the
// client adds when the caller gave none). Streams reconnect at their cursor.
// Thread-safety: one thread, except that the Interrupt given to Connect may be triggered from any
// thread: the running call then ends with CANCELLED. Ownership: borrows the Interrupt.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "client/lib/connection.h"
#include "client/lib/interrupt.h"
#include "nibble/v1/controller.pb.h"
#include "nibble/v1/errors.pb.h"

namespace nibble {

inline constexpr int kMaxCallAttempts = 5;
// A stream gives up after so many reconnections in a row that brought nothing (about a minute).
inline constexpr int kMaxStreamReconnects = 30;

class Client {
 public:
  // Reads the CA file; does not connect yet. `interrupt` outlives the client.
  static Result<std::unique_ptr<Client>> Connect(const ConnectionOptions& options,
                                                 Interrupt& interrupt);
  ~Client();

  Result<v1::SubmitJobResponse> SubmitJob(v1::SubmitJobRequest request);
  Result<v1::Job> GetJob(const std::string& job);
  // Follows page tokens until `limit` jobs are there (0 = all, up to kMaxListedJobs).
  Result<std::vector<v1::Job>> ListJobs(v1::ListJobsRequest request, int limit);
  Result<v1::Job> CancelJob(v1::CancelJobRequest request);
  Result<v1::Job> PauseJob(const v1::PauseJobRequest& request);
  Result<v1::Job> ResumeJob(const v1::ResumeJobRequest& request);
  Result<v1::Job> UpdateJob(const v1::UpdateJobRequest& request);
  Result<v1::ExplainJobResponse> ExplainJob(const std::string& job);
  Result<std::vector<v1::JobEvent>> ListJobEvents(const std::string& job);
  Result<v1::GetMetricsResponse> GetMetrics(const v1::GetMetricsRequest& request);
  Result<std::vector<v1::Node>> ListNodes();
  Result<v1::Node> DrainNode(const v1::DrainNodeRequest& request);
  Result<v1::Node> UndrainNode(const v1::UndrainNodeRequest& request);
  Result<v1::ServerInfo> GetServerInfo();

  // Calls `handler` for each message until it answers false or the server ends the stream (both
  // OK). CANCELLED when interrupted.
  Status WatchJob(v1::WatchJobRequest request,
                  const std::function<bool(const v1::WatchJobResponse&)>& handler);
  // After a lost connection no line comes twice.
  Status StreamLogs(v1::StreamLogsRequest request,
                    const std::function<bool(const v1::StreamLogsResponse&)>& handler);

  // The details of the last failed call; empty when it had none.
  const v1::ErrorDetail& last_error() const;
  const ConnectionOptions& options() const;

 private:
  struct Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
