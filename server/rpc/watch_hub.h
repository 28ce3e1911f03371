// SPDX-License-Identifier: Apache-2.0
//
// WatchHub: tells open streams that a job, its metrics or its logs moved.
//
// Thread-safety: thread-safe. Ownership: the hub shares each Subscription with its stream; dropping
// the stream's reference ends it. Wake functions are called without any lock of the hub held.
// Invariants: state is never lost, because a stream only learns "the job changed" and asks for its
// present state; metric records are buffered up to kMaxBufferedRecords per stream, and a reader too
// slow for that is told to read on from the store instead.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "nibble/v1/controller.pb.h"

namespace nibble::rpc {

inline constexpr size_t kMaxBufferedRecords = 4096;
inline constexpr int kMaxSubscriptions = 10'000;

// What is new since the last Take.
struct News {
  bool job = false;
  bool logs = false;
  bool overflowed = false;  // records were dropped: read them from the store
  std::vector<v1::MetricRecord> records;
};

class Subscription {
 public:
  // `records`: buffer metric records too. `wake` may be called from any thread, often for nothing.
  Subscription(bool records, std::function<void()> wake)
      : wants_records_(records), wake_(std::move(wake)) {}

  News Take() EXCLUDES(mutex_);

 private:
  friend class WatchHub;
  void AddJob() EXCLUDES(mutex_);
  void AddLogs() EXCLUDES(mutex_);
  void AddRecords(const std::vector<v1::MetricRecord>& records) EXCLUDES(mutex_);

  const bool wants_records_;
  const std::function<void()> wake_;
  Mutex mutex_;
  News news_ GUARDED_BY(mutex_);
};

class WatchHub {
 public:
  // RESOURCE_EXHAUSTED above kMaxSubscriptions.
  Result<std::shared_ptr<Subscription>> Subscribe(const std::string& job_id, bool records,
                                                  std::function<void()> wake) EXCLUDES(mutex_);

  void PublishJob(const std::string& job_id);
  void PublishLogs(const std::string& job_id);
  void PublishRecords(const std::string& job_id, const std::vector<v1::MetricRecord>& records);
  // Wakes every stream of every job: for the passing of time and for shutdown.
  void PublishAll();

 private:
  std::vector<std::shared_ptr<Subscription>> Of(const std::string& job_id) EXCLUDES(mutex_);

  Mutex mutex_;
  std::multimap<std::string, std::weak_ptr<Subscription>> subscriptions_ GUARDED_BY(mutex_);
};

}  // namespace nibble::rpc
