// SPDX-License-Identifier: Apache-2.0
//
// ControllerService: everything the controller does, free of gRPC. The gRPC handlers call it and
// answer with what it calls back; tests call it directly, also under ThreadSanitizer.
//
// How a request runs: checked on the caller's thread, decided on the loop's thread (one fsync for
// all that is queued), answered from there. What reads files runs on the executor.
// Thread-safety: thread-safe between Start and Stop. Ownership: owns log, stores, loop, telemetry
// sink and executor. A `done` callback is called exactly once, from any thread, possibly before
// the method returns.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/mutex.h"
#include "nibble/v1/controller.pb.h"
#include "nibble/v1/worker.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/executor.h"
#include "server/rpc/failure.h"
#include "server/rpc/live_jobs.h"
#include "server/rpc/loop.h"
#include "server/rpc/metrics.h"
#include "server/rpc/options.h"
#include "server/rpc/session_table.h"
#include "server/rpc/snapshot.h"
#include "server/rpc/telemetry.h"
#include "server/rpc/watch_hub.h"
#include "server/store/event_log.h"
#include "server/store/log_store.h"
#include "server/store/metric_store.h"

namespace nibble::rpc {

inline constexpr int kMaxPageSize = 1000;
inline constexpr int kDefaultPageSize = 200;
inline constexpr int64_t kDefaultCallMs = 30'000;  // for calls without a deadline of their own

template <typename Response>
using Done = std::function<void(const Failure&, Response)>;

// The key of a watcher's place in the telemetry of a job: attempt, then step.
constexpr int64_t WatchCursor(int attempt, int64_t step) {
  return (static_cast<int64_t>(attempt) << 40) + step;
}

class ControllerService : public Loop::Observer {
 public:
  // Opens the state directory and replays the log. FAILED_PRECONDITION when another controller
  // holds it; DATA_LOSS when it is damaged.
  static Result<std::unique_ptr<ControllerService>> Open(const ControllerOptions& options,
                                                         const Clock& clock);
  ~ControllerService() override;  // as Stop

  void Start();
  // Ends sessions and streams, refuses to be ready; calls are still answered.
  void BeginStop();
  bool stopping() const { return stopping_; }
  // Answers what is queued, stores telemetry, ends all threads. After the last call and stream.
  void Stop();

  // ---- JobService. `deadline` is on the steady clock; see Loop.
  void SubmitJob(const v1::SubmitJobRequest& request, int64_t deadline,
                 Done<v1::SubmitJobResponse> done);
  void GetJob(const v1::GetJobRequest& request, int64_t deadline, Done<v1::Job> done);
  void ListJobs(const v1::ListJobsRequest& request, int64_t deadline,
                Done<v1::ListJobsResponse> done);
  void CancelJob(const v1::CancelJobRequest& request, int64_t deadline, Done<v1::Job> done);
  void PauseJob(const v1::PauseJobRequest& request, int64_t deadline, Done<v1::Job> done);
  void ResumeJob(const v1::ResumeJobRequest& request, int64_t deadline, Done<v1::Job> done);
  void UpdateJob(const v1::UpdateJobRequest& request, int64_t deadline, Done<v1::Job> done);
  void ExplainJob(const v1::ExplainJobRequest& request, int64_t deadline,
                  Done<v1::ExplainJobResponse> done);
  void ListJobEvents(const v1::ListJobEventsRequest& request, int64_t deadline,
                     Done<v1::ListJobEventsResponse> done);
  void GetMetrics(const v1::GetMetricsRequest& request, int64_t deadline,
                  Done<v1::GetMetricsResponse> done);

  // ---- ClusterService
  void ListNodes(int64_t deadline, Done<v1::ListNodesResponse> done);
  void DrainNode(const v1::DrainNodeRequest& request, int64_t deadline, Done<v1::Node> done);
  void UndrainNode(const v1::UndrainNodeRequest& request, int64_t deadline, Done<v1::Node> done);
  v1::ServerInfo GetServerInfo() const;
  void set_http_address(std::string address) { http_address_ = std::move(address); }

  // ---- WorkerService; one session is one stream. `session` is unique per stream.
  // Refusals and stale sessions close the outbox; nothing else is answered here.
  void OnWorkerMessage(const std::string& session, const std::string& worker_id,
                       v1::WorkerMessage message, const std::shared_ptr<Outbox>& outbox);
  void OnSessionClosed(const std::string& session, const std::string& worker_id);

  // ---- For streams (watch_stream.h, log_stream.h)
  struct JobSight {
    v1::Job job;
    bool settled = false;  // ended, and its telemetry has arrived or is not awaited any more
  };
  void LookAt(const std::string& job, int64_t deadline, Done<JobSight> done);
  // As LookAt, for the end of one attempt (0 = the newest, which is answered in `attempt`).
  struct AttemptSight {
    std::string job_id;
    int attempt = 0;  // 0 = the job has none yet
    bool settled = false;
  };
  void LookAtAttempt(const std::string& job, int attempt, int64_t deadline,
                     Done<AttemptSight> done);
  // Records after the cursor, by (attempt, step); on the executor.
  void ReadRecords(const std::string& job_id, int64_t cursor,
                   Done<std::vector<v1::MetricRecord>> done);
  WatchHub& hub() { return hub_; }
  store::LogStore& logs() { return *logs_; }
  Executor& executor() { return *executor_; }
  const Clock& clock() const { return clock_; }
  Metrics& metrics() { return metrics_; }

  // ---- HTTP
  std::string RenderMetrics() const;
  std::string RenderServiceDiscovery() const;
  // OK, or why the controller cannot take changes now.
  Status Ready() const;

 private:
  ControllerService(const ControllerOptions& options, const Clock& clock);
  void OnDecision(const core::Decision& decision, const View& view) override;
  void OnTurn(const View& view, const Status& log_health) override;
  void OnStep(double seconds, size_t events) override;
  void CountEvent(const core::Event& event, const View& view);

  bool Post(LoopRequest request) { return loop_->Post(std::move(request)); }
  // A read on the loop's thread; `done` gets BusyFailure when it cannot be queued.
  template <typename Response, typename Body>
  void Inspect(int64_t deadline, Done<Response> done, Body body);
  // Decides on one input made for a job named by id or name; answers with the job.
  void ChangeJob(const std::string& job, int64_t deadline,
                 std::function<core::Input(const std::string& job_id)> make, Done<v1::Job> done);
  void ChangeNode(const std::string& worker_id, int64_t deadline, core::Input input,
                  Done<v1::Node> done);
  v1::Job Describe(const core::Job& job, const View& view);
  bool IsSettled(const core::Job& job, const core::Attempt* attempt, const View& view) const;
  void SendCommand(const core::Command& command, const View& view);

  void OnRegister(const std::string& session, const v1::Register& message,
                  const std::shared_ptr<Outbox>& outbox);
  void OnHeartbeat(const std::string& session, const std::string& worker_id,
                   const v1::Heartbeat& message);
  void OnAttempt(const std::string& session, const std::string& worker_id,
                 const v1::AttemptReport& message);
  void OnTelemetry(const std::string& session, const std::string& worker_id, v1::Telemetry message);

  const ControllerOptions options_;
  const Clock& clock_;
  const int64_t start_wall_ms_;
  std::string http_address_;
  std::atomic<bool> started_ = false;
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> stopped_ = false;

  // Self-synchronised.
  std::unique_ptr<store::SqliteEventLog> log_;
  std::unique_ptr<store::MetricStore> metric_store_;
  std::unique_ptr<store::LogStore> logs_;
  std::unique_ptr<LiveJobs> live_;
  Metrics metrics_;
  SessionTable sessions_;
  WatchHub hub_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<TelemetrySink> telemetry_;
  std::unique_ptr<Loop> loop_;

  // The loop's thread only.
  SpecCache specs_;
  std::map<std::string, int64_t> waiting_since_ms_;  // queued jobs, for the queue wait
  int64_t snapshot_steady_ms_ = 0;
  int64_t woken_steady_ms_ = 0;
  bool changed_ = true;

  mutable Mutex snapshot_mutex_;
  std::shared_ptr<const Snapshot> snapshot_ GUARDED_BY(snapshot_mutex_);  // shared with scrapes
};

template <typename Response, typename Body>
void ControllerService::Inspect(int64_t deadline, Done<Response> done, Body body) {
  LoopRequest request;
  request.deadline_steady_ms = deadline;
  request.reply = [done, body = std::move(body)](
                      const Status& status, const std::vector<core::Decision>&, const View& view) {
    if (!status.ok()) return done(status, Response());
    body(view, done);
  };
  if (!Post(std::move(request))) done(BusyFailure(), Response());
}

}  // namespace nibble::rpc
