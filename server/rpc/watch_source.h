// SPDX-License-Identifier: Apache-2.0
//
// WatchSource: the messages of one WatchJob call: the job now and whenever it changed, and metric
// records from a cursor on.
//
// Ownership: shares itself with what it waits for; borrows the service, which outlives streams.
// Invariants: the terminal job is always sent, last; records come in order of (attempt, step) and
// are not skipped: a reader too slow for the live buffer continues from the store.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "server/rpc/service.h"
#include "server/rpc/stream_source.h"

namespace nibble::rpc {

inline constexpr int kMaxRecordsPerResponse = 500;

class WatchSource : public StreamSource<v1::WatchJobResponse>,
                    public std::enable_shared_from_this<WatchSource> {
 public:
  using Reply = std::function<void(StreamItem<v1::WatchJobResponse>)>;

  WatchSource(ControllerService* service, v1::WatchJobRequest request, std::function<void()> wake);
  void Fetch(Reply done) override;

 private:
  void Look(const Reply& done);
  void OnLook(const Failure& failure, ControllerService::JobSight sight, const Reply& done);
  void ReadStore(const Reply& done);
  // Answers with what is known: the job when it changed, records, the end, or nothing.
  void Answer(const Reply& done);
  void Queue(std::vector<v1::MetricRecord> records);

  ControllerService* const service_;
  const v1::WatchJobRequest request_;
  const std::function<void()> wake_;

  std::string job_id_;
  std::shared_ptr<Subscription> subscription_;
  bool must_read_store_ = false;
  bool settled_ = false;
  bool job_changed_ = false;
  v1::Job job_;
  std::string sent_job_;  // serialized, to see whether it changed
  int64_t cursor_ = 0;
  std::deque<v1::MetricRecord> records_;
  // Newest step queued, by attempt, kind and tensor class: what the store and the live buffer both
  // have is sent once.
  std::map<std::tuple<int, int, std::string>, int64_t> seen_;
};

}  // namespace nibble::rpc
