// SPDX-License-Identifier: Apache-2.0
//
// JobService, the part that only looks: jobs, lists, explanations, events.
#include <algorithm>
#include <utility>

#include "base/sha256.h"
#include "base/strings.h"
#include "server/rpc/estimates.h"
#include "server/rpc/page_token.h"
#include "server/rpc/service.h"

namespace nibble::rpc {
namespace {

bool HasLabels(const core::JobSpec& spec, const v1::ListJobsRequest& request) {
  return std::all_of(request.labels().begin(), request.labels().end(), [&spec](const auto& asked) {
    return std::any_of(spec.labels.begin(), spec.labels.end(), [&asked](const auto& label) {
      return label.first == asked.first && label.second == asked.second;
    });
  });
}

bool Selects(const v1::ListJobsRequest& request, const core::Job& job) {
  if (!request.queue().empty() && request.queue() != job.spec.queue) return false;
  const auto& states = request.states();
  if (!states.empty() && std::none_of(states.begin(), states.end(), [&job](int state) {
        return Matches(static_cast<v1::JobState>(state), job.state);
      })) {
    return false;
  }
  return HasLabels(job.spec, request);
}

// What a page token is bound to: the same question, else it would skip or repeat jobs.
std::string QuestionOf(const v1::ListJobsRequest& request) {
  std::vector<std::string> parts = {"jobs", request.queue()};
  for (const int state : request.states()) parts.push_back(std::to_string(state));
  std::vector<std::string> labels;
  for (const auto& [key, value] : request.labels()) labels.push_back(key + "=" + value);
  std::sort(labels.begin(), labels.end());
  parts.insert(parts.end(), labels.begin(), labels.end());
  return StrJoin(parts, "\n");
}

Result<int> PageSize(int asked) {
  if (asked < 0) {
    return InvalidArgumentError(
        StrFormat("page_size %d is negative; use 1 to %d", asked, kMaxPageSize));
  }
  return asked == 0 ? kDefaultPageSize : std::min(asked, kMaxPageSize);
}

}  // namespace

v1::Job ControllerService::Describe(const core::Job& job, const View& view) {
  v1::Job out = ToProto(job, specs_.Get(job.spec), live_->Find(job.id));
  if (!core::IsQueued(job.state) && job.state != core::JobState::kHeld) return out;
  const Result<core::Explanation> why = view.controller.Explain(job.id, view.now.wall_ms);
  if (!why.ok()) return out;
  out.set_reason(std::string(core::Name(why->reason)));
  out.set_message(why->message);
  if (core::IsQueued(job.state)) out.set_queue_position(why->jobs_ahead + 1);
  return out;
}

void ControllerService::GetJob(const v1::GetJobRequest& request, int64_t deadline,
                               Done<v1::Job> done) {
  Inspect<v1::Job>(deadline, std::move(done),
                   [this, name = request.job()](const View& view, const auto& answer) {
                     const core::Job* job = view.state.FindJobByIdOrName(name);
                     if (job == nullptr) return answer(UnknownJobFailure(name), {});
                     answer(Failure(), Describe(*job, view));
                   });
}

void ControllerService::ListJobs(const v1::ListJobsRequest& request, int64_t deadline,
                                 Done<v1::ListJobsResponse> done) {
  const Result<int> page_size = PageSize(request.page_size());
  if (!page_size.ok()) return done(page_size.status(), {});
  const std::string question = QuestionOf(request);
  const Result<int64_t> before = ReadPageToken(request.page_token(), question);
  if (!before.ok()) return done(before.status(), {});
  Inspect<v1::ListJobsResponse>(
      deadline, std::move(done),
      [this, request, question, limit = static_cast<size_t>(*page_size), before = *before](
          const View& view, const auto& answer) {
        std::vector<const core::Job*> found;
        for (const auto& [id, job] : view.state.jobs()) {
          if ((before == 0 || job.number < before) && Selects(request, job)) found.push_back(&job);
        }
        const size_t count = std::min(limit, found.size());
        std::partial_sort(
            found.begin(), found.begin() + static_cast<int64_t>(count), found.end(),
            [](const core::Job* a, const core::Job* b) { return a->number > b->number; });
        v1::ListJobsResponse response;
        for (size_t i = 0; i < count; ++i) *response.add_jobs() = Describe(*found[i], view);
        if (found.size() > count) {
          response.set_next_page_token(MakePageToken(found[count - 1]->number, question));
        }
        answer(Failure(), std::move(response));
      });
}

void ControllerService::ExplainJob(const v1::ExplainJobRequest& request, int64_t deadline,
                                   Done<v1::ExplainJobResponse> done) {
  Inspect<v1::ExplainJobResponse>(
      deadline, std::move(done),
      [this, name = request.job()](const View& view, const auto& answer) {
        const core::Job* job = view.state.FindJobByIdOrName(name);
        if (job == nullptr) return answer(UnknownJobFailure(name), {});
        v1::ExplainJobResponse out;
        out.set_job_id(job->id);
        out.set_state(ToProto(job->state));
        const Result<core::Explanation> why = view.controller.Explain(job->id, view.now.wall_ms);
        if (why.ok()) {
          out.set_reason(std::string(core::Name(why->reason)));
          out.set_message(why->message);
          out.set_next_event(why->next_event);
          for (const std::string& id : why->jobs_ahead_ids) out.add_jobs_ahead(id);
          for (v1::NodeVerdict& verdict : Verdicts(view.controller, job->spec)) {
            *out.add_nodes() = std::move(verdict);
          }
          return answer(Failure(), std::move(out));
        }
        const v1::Job described = Describe(*job, view);
        out.set_reason(described.reason());
        out.set_message(described.message());
        if (core::IsTerminal(job->state)) {
          out.set_next_event("nothing: the job has ended");
        } else if (job->live_attempt() != nullptr) {
          const core::Attempt& attempt = *job->live_attempt();
          const std::string where =
              attempt.shares.empty() ? "" : " on " + attempt.shares.front().worker_id;
          if (out.message().empty()) {
            out.set_message(StrFormat("attempt %d is placed%s, in state %s", attempt.number,
                                      where.c_str(), std::string(core::Name(job->state)).c_str()));
          }
          out.set_next_event("the attempt ends, or is stopped");
        }
        answer(Failure(), std::move(out));
      });
}

void ControllerService::ListJobEvents(const v1::ListJobEventsRequest& request, int64_t deadline,
                                      Done<v1::ListJobEventsResponse> done) {
  const Result<int> page_size = PageSize(request.page_size());
  if (!page_size.ok()) return done(page_size.status(), {});
  const std::string question = "events\n" + request.job();
  const Result<int64_t> after = ReadPageToken(request.page_token(), question);
  if (!after.ok()) return done(after.status(), {});
  Inspect<v1::ListJobEventsResponse>(
      deadline, std::move(done),
      [this, name = request.job(), question, limit = *page_size, after = *after](
          const View& view, const auto& answer) {
        const core::Job* job = view.state.FindJobByIdOrName(name);
        if (job == nullptr) return answer(UnknownJobFailure(name), {});
        const bool queued = executor_->Run([this, id = job->id, question, limit, after, answer] {
          const auto events = log_->History(id, "", after, limit + 1);
          if (!events.ok()) return answer(events.status(), {});
          v1::ListJobEventsResponse response;
          const size_t count = std::min(events->size(), static_cast<size_t>(limit));
          for (size_t i = 0; i < count; ++i) *response.add_events() = ToProto((*events)[i]);
          if (events->size() > count) {
            response.set_next_page_token(MakePageToken((*events)[count - 1].sequence, question));
          }
          answer(Failure(), std::move(response));
        });
        if (!queued) answer(BusyFailure(), {});
      });
}

void ControllerService::LookAt(const std::string& name, int64_t deadline, Done<JobSight> done) {
  Inspect<JobSight>(deadline, std::move(done), [this, name](const View& view, const auto& answer) {
    const core::Job* job = view.state.FindJobByIdOrName(name);
    if (job == nullptr) return answer(UnknownJobFailure(name), {});
    const core::Attempt* last = job->attempts.empty() ? nullptr : &job->attempts.back();
    JobSight sight;
    sight.job = Describe(*job, view);
    sight.settled = core::IsTerminal(job->state) && IsSettled(*job, last, view);
    answer(Failure(), std::move(sight));
  });
}

void ControllerService::LookAtAttempt(const std::string& name, int attempt, int64_t deadline,
                                      Done<AttemptSight> done) {
  Inspect<AttemptSight>(
      deadline, std::move(done), [this, name, attempt](const View& view, const auto& answer) {
        const core::Job* job = view.state.FindJobByIdOrName(name);
        if (job == nullptr) return answer(UnknownJobFailure(name), {});
        const int last = job->attempts.empty() ? 0 : job->attempts.back().number;
        if (attempt < 0 || attempt > last) {
          return answer(NotFoundError(StrFormat("job %s has no attempt %d; its last is %d",
                                                job->id.c_str(), attempt, last)),
                        {});
        }
        AttemptSight sight;
        sight.job_id = job->id;
        sight.attempt = attempt == 0 ? last : attempt;
        const core::Attempt* found = sight.attempt == 0 ? nullptr : job->FindAttempt(sight.attempt);
        // An attempt too old to be kept in the state ended long ago.
        sight.settled =
            sight.attempt != 0 && found == nullptr ? true : IsSettled(*job, found, view);
        answer(Failure(), sight);
      });
}

}  // namespace nibble::rpc
