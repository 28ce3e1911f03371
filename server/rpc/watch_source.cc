// SPDX-License-Identifier: Apache-2.0
//
// Steps of one Fetch: queued records first; else look at the job, read the store when the live
// buffer does not reach back far enough, and answer with whatever is new.
#include "server/rpc/watch_source.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <utility>

#include "server/rpc/points.h"

namespace nibble::rpc {
namespace {

// Equal messages give equal bytes. Plain serialization orders map fields by chance, and a job that
// seems to change with every look would be sent without end.
std::string StableBytes(const v1::Job& job) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream out(&bytes);
    google::protobuf::io::CodedOutputStream coded(&out);
    coded.SetSerializationDeterministic(true);
    job.SerializeToCodedStream(&coded);
  }
  return bytes;
}

}  // namespace

WatchSource::WatchSource(ControllerService* service, v1::WatchJobRequest request,
                         std::function<void()> wake)
    : service_(service),
      request_(std::move(request)),
      wake_(std::move(wake)),
      must_read_store_(request_.metrics()),
      cursor_(request_.cursor()) {}

void WatchSource::Fetch(Reply done) {
  if (service_->stopping()) {
    return done({std::nullopt, true, UnavailableError("the controller is shutting down")});
  }
  if (!records_.empty()) return Answer(done);
  Look(done);
}

void WatchSource::Look(const Reply& done) {
  const std::string& name = job_id_.empty() ? request_.job() : job_id_;
  auto self = shared_from_this();
  service_->LookAt(name, 0,
                   [self, done](const Failure& failure, ControllerService::JobSight sight) {
                     self->OnLook(failure, std::move(sight), done);
                   });
}

void WatchSource::OnLook(const Failure& failure, ControllerService::JobSight sight,
                         const Reply& done) {
  if (!failure.ok()) return done({std::nullopt, true, failure});
  if (subscription_ == nullptr) {
    job_id_ = sight.job.id();
    auto subscribed = service_->hub().Subscribe(job_id_, request_.metrics(), wake_);
    if (!subscribed.ok()) return done({std::nullopt, true, subscribed.status()});
    subscription_ = std::move(*subscribed);
    return Look(done);  // what changed between the look and the subscription
  }
  std::string serialized = StableBytes(sight.job);
  if (serialized != sent_job_) {
    job_ = std::move(sight.job);
    sent_job_ = std::move(serialized);
    job_changed_ = true;
  }
  settled_ = sight.settled;
  News news = subscription_->Take();
  if (news.overflowed) must_read_store_ = true;
  if (must_read_store_) return ReadStore(done);
  Queue(std::move(news.records));
  Answer(done);
}

void WatchSource::ReadStore(const Reply& done) {
  auto self = shared_from_this();
  service_->ReadRecords(
      job_id_, cursor_,
      [self, done](const Failure& failure, std::vector<v1::MetricRecord> records) {
        if (!failure.ok()) return done({std::nullopt, true, failure});
        self->must_read_store_ = false;
        self->Queue(std::move(records));
        self->Answer(done);
      });
}

void WatchSource::Queue(std::vector<v1::MetricRecord> records) {
  for (v1::MetricRecord& record : records) {
    const int64_t step = StepOf(record.record());
    if (step >= 0) {
      const std::string tensor_class =
          record.record().has_health() ? record.record().health().tensor_class() : "";
      const auto [seen, added] = seen_.try_emplace(
          {record.attempt(), static_cast<int>(record.record().event_case()), tensor_class}, step);
      if (!added && seen->second >= step) continue;
      seen->second = step;
    }
    records_.push_back(std::move(record));
  }
}

void WatchSource::Answer(const Reply& done) {
  const bool any = job_changed_ || !records_.empty();
  if (!any) return done({std::nullopt, settled_, Failure()});
  v1::WatchJobResponse response;
  while (!records_.empty() && response.records_size() < kMaxRecordsPerResponse) {
    const v1::MetricRecord& next = records_.front();
    const int64_t step = StepOf(next.record());
    if (step >= 0) cursor_ = std::max(cursor_, WatchCursor(next.attempt(), step));
    *response.add_records() = std::move(records_.front());
    records_.pop_front();
  }
  response.set_cursor(cursor_);
  // The job goes with the last of the records, so that a terminal state ends the stream.
  const bool last = records_.empty();
  if (job_changed_ && last) {
    *response.mutable_job() = job_;
    job_changed_ = false;
  }
  done({std::move(response), settled_ && last, Failure()});
}

}  // namespace nibble::rpc
