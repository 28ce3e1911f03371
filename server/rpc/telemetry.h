// SPDX-License-Identifier: Apache-2.0
//
// TelemetrySink: one thread that keeps what trainers journalled: curves and logs to their stores,
// newest values to LiveJobs, news to watchers, and then the acknowledgement to the worker.
//
// Thread-safety: Offer is thread-safe and never waits. Ownership: borrows everything in Options.
// Invariant: a cursor is acknowledged only after an fsync of what it covers. The caller has checked
// the epoch. Limits: kMaxQueuedTelemetry messages; beyond that a message is dropped and counted,
// and the worker, which got no acknowledgement, sends it again.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"
#include "nibble/v1/worker.pb.h"
#include "server/rpc/live_jobs.h"
#include "server/rpc/watch_hub.h"
#include "server/store/log_store.h"
#include "server/store/metric_store.h"

namespace nibble::rpc {

inline constexpr size_t kMaxQueuedTelemetry = 1024;
inline constexpr int kMaxRecordsPerMessage = 500;

enum class DropReason { kQueueFull, kInvalid, kStoreError, kSeriesLimit };

struct TelemetryItem {
  std::string worker_id;
  std::string session;
  v1::Telemetry message;
};

class TelemetrySink {
 public:
  struct Options {
    store::MetricStore* metrics = nullptr;
    store::LogStore* logs = nullptr;
    LiveJobs* live = nullptr;
    WatchHub* hub = nullptr;
    std::function<void(const std::string& worker_id, const std::string& session,
                       v1::ControllerMessage message)>
        send;
    std::function<void(DropReason reason, int points)> count_dropped;
  };

  explicit TelemetrySink(Options options);
  ~TelemetrySink();  // stores what is queued, then ends the thread

  void Start();
  void Offer(TelemetryItem item);

 private:
  void Run();
  // The acknowledgement to send once synced; nullopt when nothing was kept.
  std::optional<v1::ControllerMessage> Store(const TelemetryItem& item);
  void Publish(const v1::Telemetry& message, int64_t after_seq);

  const Options options_;
  BoundedQueue<TelemetryItem> queue_;
  std::atomic<bool> closing_ = false;
  std::thread thread_;
};

}  // namespace nibble::rpc
