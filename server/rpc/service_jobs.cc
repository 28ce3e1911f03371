// SPDX-License-Identifier: Apache-2.0
//
// JobService, the part that changes jobs.
#include <google/protobuf/util/time_util.h>

#include <utility>

#include "base/strings.h"
#include "server/rpc/estimates.h"
#include "server/rpc/service.h"
#include "server/rpc/spec.h"

namespace nibble::rpc {
namespace {

constexpr size_t kMaxRequestIdBytes = 128;
constexpr int kMaxPriority = 1000;

Status CheckText(const char* field, const std::string& text, size_t limit) {
  if (text.size() <= limit) return OkStatus();
  return InvalidArgumentError(
      StrFormat("%s has %zu bytes; at most %zu", field, text.size(), limit));
}

Failure FromDecision(const Status& status) {
  Failure failure(status);
  if (status.code() == StatusCode::kNotFound) failure.reason = "UnknownJob";
  return failure;
}

}  // namespace

void ControllerService::SubmitJob(const v1::SubmitJobRequest& request, int64_t deadline,
                                  Done<v1::SubmitJobResponse> done) {
  for (const Status& status : {CheckText("request_id", request.request_id(), kMaxRequestIdBytes),
                               CheckText("user", request.user(), core::kMaxTextBytes)}) {
    if (!status.ok()) return done(status, {});
  }
  std::vector<FieldError> errors;
  const auto resolved = std::make_shared<const ResolvedSpec>(ResolveSpec(request.spec(), errors));
  if (!errors.empty()) return done(InvalidSpecFailure(std::move(errors)), {});
  const Result<JobEstimate> estimate = EstimateJob(*resolved);
  if (!estimate.ok()) return done(estimate.status(), {});
  const auto spec = std::make_shared<const core::JobSpec>(
      ToCoreSpec(*resolved, request.user(), estimate->run.memory.total()));

  if (request.dry_run()) {
    return Inspect<v1::SubmitJobResponse>(
        deadline, std::move(done),
        [this, resolved, spec, job = *estimate](const View& view, const auto& answer) {
          v1::SubmitJobResponse response;
          *response.mutable_estimate() = ToProto(job);
          AddFits(view.controller, sessions_.All(), *spec, job, *response.mutable_estimate());
          answer(Failure(), std::move(response));
        });
  }
  LoopRequest post;
  post.deadline_steady_ms = deadline;
  post.make = [spec, id = request.request_id(),
               user = request.user()](const View&) -> Result<std::vector<core::Input>> {
    core::SubmitJob input;
    input.spec = *spec;
    input.request_id = id;
    input.actor = user;
    return std::vector<core::Input>{std::move(input)};
  };
  post.reply = [this, done, job = *estimate](const Status& status,
                                             const std::vector<core::Decision>& decisions,
                                             const View& view) {
    if (!status.ok()) return done(status, {});
    const core::Decision& decision = decisions.front();
    if (!decision.reply.ok()) return done(FromDecision(decision.reply), {});
    v1::SubmitJobResponse response;
    const core::Job* stored = view.state.FindJob(decision.job_id);
    if (stored == nullptr) return done(InternalError("the submitted job is not there"), {});
    *response.mutable_job() = Describe(*stored, view);
    *response.mutable_estimate() = ToProto(job);
    done(Failure(), std::move(response));
  };
  if (!Post(std::move(post))) done(BusyFailure(), {});
}

void ControllerService::ChangeJob(const std::string& job, int64_t deadline,
                                  std::function<core::Input(const std::string& job_id)> make,
                                  Done<v1::Job> done) {
  const auto job_id = std::make_shared<std::string>();  // found by make, read by reply
  LoopRequest post;
  post.deadline_steady_ms = deadline;
  post.make = [job, job_id,
               make = std::move(make)](const View& view) -> Result<std::vector<core::Input>> {
    const core::Job* found = view.state.FindJobByIdOrName(job);
    if (found == nullptr) return UnknownJobFailure(job).status;
    *job_id = found->id;
    return std::vector<core::Input>{make(found->id)};
  };
  post.reply = [this, done, job_id](const Status& status,
                                    const std::vector<core::Decision>& decisions,
                                    const View& view) {
    if (!status.ok()) return done(FromDecision(status), {});
    if (!decisions.front().reply.ok()) return done(FromDecision(decisions.front().reply), {});
    const core::Job* changed = view.state.FindJob(*job_id);
    if (changed == nullptr) return done(InternalError("the job is not there any more"), {});
    done(Failure(), Describe(*changed, view));
  };
  if (!Post(std::move(post))) done(BusyFailure(), {});
}

void ControllerService::CancelJob(const v1::CancelJobRequest& request, int64_t deadline,
                                  Done<v1::Job> done) {
  const Status fits = CheckText("request_id", request.request_id(), kMaxRequestIdBytes);
  if (!fits.ok()) return done(fits, {});
  ChangeJob(
      request.job(), deadline,
      [request](const std::string& job_id) -> core::Input {
        return core::CancelJob{job_id,
                               request.now() ? core::StopMode::kKill : core::StopMode::kSave,
                               request.request_id(), request.actor()};
      },
      std::move(done));
}

void ControllerService::PauseJob(const v1::PauseJobRequest& request, int64_t deadline,
                                 Done<v1::Job> done) {
  ChangeJob(
      request.job(), deadline,
      [actor = request.actor()](const std::string& job_id) -> core::Input {
        return core::PauseJob{job_id, actor};
      },
      std::move(done));
}

void ControllerService::ResumeJob(const v1::ResumeJobRequest& request, int64_t deadline,
                                  Done<v1::Job> done) {
  ChangeJob(
      request.job(), deadline,
      [actor = request.actor()](const std::string& job_id) -> core::Input {
        return core::ResumeJob{job_id, actor};
      },
      std::move(done));
}

void ControllerService::UpdateJob(const v1::UpdateJobRequest& request, int64_t deadline,
                                  Done<v1::Job> done) {
  if (!request.has_priority() && !request.has_time_limit()) {
    return done(InvalidArgumentError("nothing to change: give priority or time_limit"), {});
  }
  if (std::abs(request.priority()) > kMaxPriority) {
    return done(InvalidArgumentError(StrFormat("priority %d is out of range; use -%d to %d",
                                               request.priority(), kMaxPriority, kMaxPriority)),
                {});
  }
  ChangeJob(
      request.job(), deadline,
      [request](const std::string& job_id) -> core::Input {
        core::UpdateJob update{job_id, {}, {}, request.actor()};
        if (request.has_priority()) update.priority = request.priority();
        if (request.has_time_limit()) {
          update.time_limit_ms =
              google::protobuf::util::TimeUtil::DurationToMilliseconds(request.time_limit());
        }
        return update;
      },
      std::move(done));
}

}  // namespace nibble::rpc
