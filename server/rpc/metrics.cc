// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <utility>

#include "base/files.h"
#include "server/rpc/job_series.h"

namespace nibble::rpc {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets& QueueWaitBuckets() {
  static const Buckets kBuckets = {0.1, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400};
  return kBuckets;
}
const Buckets& CycleBuckets() {
  static const Buckets kBuckets = {0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1};
  return kBuckets;
}
const Buckets& CallBuckets() {
  static const Buckets kBuckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5};
  return kBuckets;
}
const Buckets& AppendBuckets() {
  static const Buckets kBuckets = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1};
  return kBuckets;
}

const char* DropReasonName(DropReason reason) {
  switch (reason) {
    case DropReason::kQueueFull:
      return "queue_full";
    case DropReason::kInvalid:
      return "invalid";
    case DropReason::kStoreError:
      return "store_error";
    case DropReason::kSeriesLimit:
      return "series_limit";
  }
  return "invalid";
}

}  // namespace

struct Metrics::Impl {
  explicit Impl(const std::string& version, std::string state_directory)
      : state_dir(std::move(state_directory)),
        transitions(prometheus::BuildCounter()
                        .Name("nibble_job_state_transitions_total")
                        .Help("State changes of jobs since the controller started.")
                        .Register(registry)),
        queue_wait(prometheus::BuildHistogram()
                       .Name("nibble_queue_wait_seconds")
                       .Help("Time from becoming PENDING to being scheduled.")
                       .Register(registry)),
        calls(prometheus::BuildHistogram()
                  .Name("nibble_rpc_duration_seconds")
                  .Help("Duration of unary calls from arrival to answer.")
                  .Register(registry)),
        dropped(prometheus::BuildCounter()
                    .Name("nibble_metrics_dropped_total")
                    .Help("Telemetry points that were not kept.")
                    .Register(registry)),
        cycle(prometheus::BuildHistogram()
                  .Name("nibble_scheduler_cycle_seconds")
                  .Help("Duration of one scheduling pass.")
                  .Register(registry)
                  .Add({}, CycleBuckets())),
        append(prometheus::BuildHistogram()
                   .Name("nibble_event_log_append_seconds")
                   .Help("Duration of one commit to the log, fsync included.")
                   .Register(registry)
                   .Add({}, AppendBuckets())),
        appended(prometheus::BuildCounter()
                     .Name("nibble_event_log_appends_total")
                     .Help("Events made durable in the log since the controller started.")
                     .Register(registry)
                     .Add({})) {
    prometheus::BuildGauge()
        .Name("nibble_build_info")
        .Help("Always 1; the labels say what runs.")
        .Register(registry)
        .Add({{"component", "controller"}, {"version", version}, {"revision", NIBBLE_REVISION}})
        .Set(1);
    for (const DropReason reason : {DropReason::kQueueFull, DropReason::kInvalid,
                                    DropReason::kStoreError, DropReason::kSeriesLimit}) {
      dropped.Add({{"reason", DropReasonName(reason)}});
    }
    CreateEndReasons();
  }

  // Every known end exists at 0, so that its first increase is seen by rate().
  void CreateEndReasons() {
    using core::EndReason;
    const auto add = [this](core::JobState to, EndReason reason) {
      transitions.Add(
          {{"to", std::string(core::Name(to))}, {"reason", std::string(core::Name(reason))}});
    };
    add(core::JobState::kSucceeded, EndReason::kCompleted);
    add(core::JobState::kCancelled, EndReason::kCancelledByUser);
    add(core::JobState::kCancelled, EndReason::kCancelledByAdmin);
    add(core::JobState::kTimedOut, EndReason::kTimeLimit);
    for (int i = static_cast<int>(EndReason::kUserError);
         i <= static_cast<int>(EndReason::kControllerBug); ++i) {
      const auto reason = static_cast<EndReason>(i);
      if (reason == EndReason::kTimeLimit || reason == EndReason::kCancelledByUser ||
          reason == EndReason::kCancelledByAdmin) {
        continue;
      }
      add(core::JobState::kFailed, reason);
    }
  }

  const std::string state_dir;
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& transitions;
  prometheus::Family<prometheus::Histogram>& queue_wait;
  prometheus::Family<prometheus::Histogram>& calls;
  prometheus::Family<prometheus::Counter>& dropped;
  prometheus::Histogram& cycle;
  prometheus::Histogram& append;
  prometheus::Counter& appended;
};

Metrics::Metrics(const std::string& version, const std::string& state_dir)
    : impl_(std::make_unique<Impl>(version, state_dir)) {}
Metrics::~Metrics() = default;

void Metrics::CountTransition(core::JobState to, const std::string& reason) {
  impl_->transitions.Add({{"to", std::string(core::Name(to))}, {"reason", reason}}).Increment();
}

void Metrics::ObserveQueueWait(const std::string& queue, double seconds) {
  impl_->queue_wait.Add({{"queue", queue}}, QueueWaitBuckets()).Observe(seconds);
}

void Metrics::ObserveCycle(double seconds) { impl_->cycle.Observe(seconds); }

void Metrics::ObserveAppend(double seconds, size_t events) {
  impl_->append.Observe(seconds);
  impl_->appended.Increment(static_cast<double>(events));
}

void Metrics::ObserveCall(const std::string& method, const std::string& code, double seconds) {
  impl_->calls.Add({{"method", method}, {"code", code}}, CallBuckets()).Observe(seconds);
}

void Metrics::CountDropped(DropReason reason, int points) {
  impl_->dropped.Add({{"reason", DropReasonName(reason)}}).Increment(points);
}

std::string Metrics::Render(const Snapshot& snapshot,
                            const std::map<std::string, WorkerFacts>& workers, const LiveJobs& live,
                            int64_t wall_ms, int64_t steady_ms) const {
  std::vector<prometheus::MetricFamily> families = impl_->registry.Collect();
  AddClusterSeries(snapshot, workers, wall_ms, steady_ms, families);
  AddJobSeries(snapshot, live, wall_ms, steady_ms, families);
  const Result<int64_t> free_bytes = FreeDiskBytes(impl_->state_dir);
  if (free_bytes.ok()) {
    AddDiskSeries(static_cast<double>(*free_bytes), families);
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace nibble::rpc
