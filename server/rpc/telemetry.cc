// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/telemetry.h"

#include <utility>

#include "base/log.h"
#include "server/rpc/points.h"

namespace nibble::rpc {
namespace {

// Messages stored under one fsync at most, and how often values are offered to the disk when idle.
constexpr size_t kMaxSyncBatch = 256;
constexpr std::chrono::milliseconds kIdleSave{1000};

struct Ack {
  std::string worker_id;
  std::string session;
  v1::ControllerMessage message;
};

// Consecutive numbers from 1 within the stream: what the protocol promises.
bool IsValid(const v1::Telemetry& message) {
  if (message.records_size() == 0 || message.records_size() > kMaxRecordsPerMessage) return false;
  if (message.rank() < 0 || message.records(0).seq() < 1) return false;
  for (int i = 1; i < message.records_size(); ++i) {
    if (message.records(i).seq() != message.records(i - 1).seq() + 1) return false;
  }
  return true;
}

bool IsForWatchers(const v1::JournalRecord& record) {
  return record.has_step() || record.has_validation() || record.has_health() ||
         record.has_checkpoint() || record.has_memory();
}

}  // namespace

TelemetrySink::TelemetrySink(Options options)
    : options_(std::move(options)), queue_(kMaxQueuedTelemetry) {}

TelemetrySink::~TelemetrySink() {
  closing_ = true;
  queue_.Close();
  if (thread_.joinable()) thread_.join();
}

void TelemetrySink::Start() {
  thread_ = std::thread([this] { Run(); });
}

void TelemetrySink::Offer(TelemetryItem item) {
  const int points = item.message.records_size();
  if (!queue_.TryPush(std::move(item))) options_.count_dropped(DropReason::kQueueFull, points);
}

void TelemetrySink::Run() {
  for (;;) {
    const bool closing = closing_;
    std::optional<TelemetryItem> item = queue_.PopFor(kIdleSave);
    const bool last = closing && !item.has_value();
    std::vector<Ack> acks;
    while (item.has_value()) {
      if (auto ack = Store(*item)) {
        acks.push_back({item->worker_id, item->session, std::move(*ack)});
      }
      item.reset();
      if (acks.size() < kMaxSyncBatch && queue_.size() > 0) {
        item = queue_.PopFor(std::chrono::milliseconds(0));
      }
    }
    if (!acks.empty()) {
      const Status synced = options_.metrics->Sync();
      if (synced.ok()) {
        for (Ack& ack : acks) options_.send(ack.worker_id, ack.session, std::move(ack.message));
      } else {
        LogError("metrics are not on disk; workers will send them again",
                 {{"error", synced.ToString()}});
      }
    }
    options_.live->Save();
    if (last) return;
  }
}

std::optional<v1::ControllerMessage> TelemetrySink::Store(const TelemetryItem& item) {
  const v1::Telemetry& message = item.message;
  const int points = message.records_size();
  if (!IsValid(message)) {
    options_.count_dropped(DropReason::kInvalid, points);
    return std::nullopt;
  }
  const store::StreamKey key{message.key().job_id(), message.key().attempt(), message.rank()};
  const std::vector<v1::JournalRecord> records(message.records().begin(), message.records().end());
  const auto failed = [&](const Status& status) {
    LogWarning("telemetry is not kept; the worker will send it again",
               {{"job", key.job_id}, {"worker", item.worker_id}, {"error", status.ToString()}});
    options_.count_dropped(DropReason::kStoreError, points);
    return std::nullopt;
  };
  const Result<int64_t> before = options_.metrics->Cursor(key);
  if (!before.ok()) return failed(before.status());
  // Logs first: the cursor that covers both is kept with the points.
  const std::vector<store::LogLine> lines = ToLogLines(records);
  if (!lines.empty()) {
    const Result<int> logged = options_.logs->Append(key, lines);
    if (!logged.ok()) return failed(logged.status());
  }
  const Result<store::AppendResult> stored =
      options_.metrics->Append(key, ToPoints(records), records.back().seq());
  if (!stored.ok()) return failed(stored.status());
  // Watchers before LiveJobs: once a job counts as settled, its last records have been published.
  Publish(message, *before);
  const int refused =
      options_.live->Apply(key.job_id, key.attempt, key.rank, records) + stored->dropped_over_limit;
  if (refused > 0) options_.count_dropped(DropReason::kSeriesLimit, refused);
  if (records.back().has_end()) {
    options_.hub->PublishJob(key.job_id);
    options_.hub->PublishLogs(key.job_id);
  }

  v1::ControllerMessage ack;
  *ack.mutable_telemetry_ack()->mutable_key() = message.key();
  ack.mutable_telemetry_ack()->set_rank(message.rank());
  ack.mutable_telemetry_ack()->set_cursor(stored->cursor);
  return ack;
}

void TelemetrySink::Publish(const v1::Telemetry& message, int64_t after_seq) {
  std::vector<v1::MetricRecord> fresh;
  bool logs = false;
  for (const v1::JournalRecord& record : message.records()) {
    if (record.seq() <= after_seq) continue;
    logs = logs || record.has_log();
    if (!IsForWatchers(record)) continue;
    v1::MetricRecord& out = fresh.emplace_back();
    out.set_attempt(message.key().attempt());
    out.set_rank(message.rank());
    *out.mutable_record() = record;
  }
  const std::string& job_id = message.key().job_id();
  if (!fresh.empty()) options_.hub->PublishRecords(job_id, fresh);
  if (logs) options_.hub->PublishLogs(job_id);
}

}  // namespace nibble::rpc
