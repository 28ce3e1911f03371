// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/log_source.h"

#include <utility>

#include "base/strings.h"

namespace nibble::rpc {

LogSource::LogSource(ControllerService* service, v1::StreamLogsRequest request,
                     std::function<void()> wake)
    : service_(service),
      request_(std::move(request)),
      wake_(std::move(wake)),
      attempt_(request_.attempt()) {}

void LogSource::Fetch(Reply done) {
  if (service_->stopping()) {
    return done({std::nullopt, true, UnavailableError("the controller is shutting down")});
  }
  if (!lines_.empty()) return Answer(done);
  if (request_.tail() < 0 || request_.rank() < 0) {
    return done({std::nullopt, true,
                 InvalidArgumentError(StrFormat("tail %d and rank %d must not be negative",
                                                request_.tail(), request_.rank()))});
  }
  Look(done);
}

void LogSource::Look(const Reply& done) {
  const std::string& name = job_id_.empty() ? request_.job() : job_id_;
  auto self = shared_from_this();
  service_->LookAtAttempt(
      name, attempt_, 0,
      [self, done](const Failure& failure, ControllerService::AttemptSight sight) {
        self->OnLook(failure, sight, done);
      });
}

void LogSource::OnLook(const Failure& failure, const ControllerService::AttemptSight& sight,
                       const Reply& done) {
  if (!failure.ok()) return done({std::nullopt, true, failure});
  if (subscription_ == nullptr && request_.follow()) {
    job_id_ = sight.job_id;
    auto subscribed = service_->hub().Subscribe(job_id_, false, wake_);
    if (!subscribed.ok()) return done({std::nullopt, true, subscribed.status()});
    subscription_ = std::move(*subscribed);
    return Look(done);
  }
  job_id_ = sight.job_id;
  attempt_ = sight.attempt;
  settled_ = sight.settled || !request_.follow();
  if (attempt_ == 0) return done({std::nullopt, settled_, Failure()});
  auto self = shared_from_this();
  const bool queued = service_->executor().Run([self, done] { self->Read(done); });
  if (!queued) done({std::nullopt, true, BusyFailure()});
}

void LogSource::Read(const Reply& done) {
  const store::StreamKey key{job_id_, attempt_, request_.rank()};
  if (!started_ && request_.tail() > 0) {
    const Result<int64_t> tail = service_->logs().TailOffset(key, request_.tail());
    if (!tail.ok()) return done({std::nullopt, true, tail.status()});
    offset_ = *tail;
  }
  started_ = true;
  Result<store::LogPage> page = service_->logs().Read(key, offset_);
  if (!page.ok()) return done({std::nullopt, true, page.status()});
  at_end_ = page->next_offset == offset_;
  offset_ = page->next_offset;
  for (store::LogLine& line : page->lines) {
    if (line.time_ms >= request_.since_ms()) lines_.push_back(std::move(line));
  }
  // A page of nothing but too old lines: the next one may have some.
  if (lines_.empty() && !at_end_) return Read(done);
  Answer(done);
}

void LogSource::Answer(const Reply& done) {
  if (lines_.empty()) return done({std::nullopt, settled_ && at_end_, Failure()});
  v1::StreamLogsResponse response;
  response.set_time_ms(lines_.front().time_ms);
  response.set_level(lines_.front().level);
  response.set_text(std::move(lines_.front().text));
  response.set_attempt(attempt_);
  response.set_rank(request_.rank());
  lines_.pop_front();
  done({std::move(response), false, Failure()});
}

}  // namespace nibble::rpc
