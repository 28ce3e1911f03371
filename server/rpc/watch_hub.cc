// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/watch_hub.h"

#include <utility>

#include "base/strings.h"

namespace nibble::rpc {

News Subscription::Take() {
  MutexLock lock(mutex_);
  return std::exchange(news_, News());
}

void Subscription::AddJob() {
  {
    MutexLock lock(mutex_);
    news_.job = true;
  }
  wake_();
}

void Subscription::AddLogs() {
  {
    MutexLock lock(mutex_);
    news_.logs = true;
  }
  wake_();
}

void Subscription::AddRecords(const std::vector<v1::MetricRecord>& records) {
  if (!wants_records_) return;
  {
    MutexLock lock(mutex_);
    if (news_.overflowed) return;  // the store has them
    if (news_.records.size() + records.size() > kMaxBufferedRecords) {
      news_.records.clear();
      news_.overflowed = true;
    } else {
      news_.records.insert(news_.records.end(), records.begin(), records.end());
    }
  }
  wake_();
}

Result<std::shared_ptr<Subscription>> WatchHub::Subscribe(const std::string& job_id, bool records,
                                                          std::function<void()> wake) {
  auto subscription = std::make_shared<Subscription>(records, std::move(wake));
  MutexLock lock(mutex_);
  std::erase_if(subscriptions_, [](const auto& entry) { return entry.second.expired(); });
  if (subscriptions_.size() >= kMaxSubscriptions) {
    return ResourceExhaustedError(
        StrFormat("%d streams are open, the limit; close some, or poll GetJob", kMaxSubscriptions));
  }
  subscriptions_.emplace(job_id, subscription);
  return subscription;
}

std::vector<std::shared_ptr<Subscription>> WatchHub::Of(const std::string& job_id) {
  std::vector<std::shared_ptr<Subscription>> found;
  MutexLock lock(mutex_);
  const auto [begin, end] = subscriptions_.equal_range(job_id);
  for (auto it = begin; it != end; ++it) {
    if (auto subscription = it->second.lock()) found.push_back(std::move(subscription));
  }
  return found;
}

void WatchHub::PublishJob(const std::string& job_id) {
  for (const auto& subscription : Of(job_id)) subscription->AddJob();
}

void WatchHub::PublishLogs(const std::string& job_id) {
  for (const auto& subscription : Of(job_id)) subscription->AddLogs();
}

void WatchHub::PublishRecords(const std::string& job_id,
                              const std::vector<v1::MetricRecord>& records) {
  for (const auto& subscription : Of(job_id)) subscription->AddRecords(records);
}

void WatchHub::PublishAll() {
  std::vector<std::shared_ptr<Subscription>> all;
  {
    MutexLock lock(mutex_);
    for (const auto& [job_id, weak] : subscriptions_) {
      if (auto subscription = weak.lock()) all.push_back(std::move(subscription));
    }
  }
  for (const auto& subscription : all) {
    subscription->AddLogs();
    subscription->AddJob();
  }
}

}  // namespace nibble::rpc
