// SPDX-License-Identifier: Apache-2.0
//
// Curves: telemetry of a job read back from the metric store.
#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "server/rpc/points.h"
#include "server/rpc/service.h"

namespace nibble::rpc {
namespace {

constexpr int kMaxPointsAsked = 100'000;
constexpr int kMinPointsAsked = 4;

template <typename Point>
Status AddPoints(const Result<std::vector<store::Attributed<Point>>>& points,
                 std::vector<v1::MetricRecord>& out) {
  if (!points.ok()) return points.status();
  for (const auto& [attempt, point] : *points) {
    v1::MetricRecord& record = out.emplace_back();
    record.set_attempt(attempt);
    *record.mutable_record() = FromPoint(point);
  }
  return OkStatus();
}

// Steps, then validations, health and checkpoints, each by step.
Status ReadCurves(store::MetricStore& metrics, const std::string& job_id,
                  const store::CurveQuery& query, std::vector<v1::MetricRecord>& out) {
  RETURN_IF_ERROR(AddPoints(metrics.Steps(job_id, query), out));
  RETURN_IF_ERROR(AddPoints(metrics.Validations(job_id, query), out));
  RETURN_IF_ERROR(AddPoints(metrics.Healths(job_id, query), out));
  return AddPoints(metrics.Checkpoints(job_id, query), out);
}

void AddMemory(const std::optional<LiveValues>& live, std::vector<v1::MetricRecord>& out) {
  if (!live.has_value() || live->progress.memory_bytes().empty()) return;
  v1::MetricRecord& record = out.emplace_back();
  record.set_attempt(live->attempt);
  *record.mutable_record()->mutable_memory()->mutable_bytes() = live->progress.memory_bytes();
}

}  // namespace

void ControllerService::GetMetrics(const v1::GetMetricsRequest& request, int64_t deadline,
                                   Done<v1::GetMetricsResponse> done) {
  if (request.from_step() < 0 || request.max_points() < 0 ||
      request.max_points() > kMaxPointsAsked) {
    return done(
        InvalidArgumentError(StrFormat(
            "from_step %lld and max_points %d must be positive, max_points at most %d",
            static_cast<long long>(request.from_step()), request.max_points(), kMaxPointsAsked)),
        {});
  }
  Inspect<v1::GetMetricsResponse>(
      deadline, std::move(done), [this, request](const View& view, const auto& answer) {
        const core::Job* job = view.state.FindJobByIdOrName(request.job());
        if (job == nullptr) return answer(UnknownJobFailure(request.job()), {});
        const int attempts = job->attempts.empty() ? 0 : job->attempts.back().number;
        const bool queued = executor_->Run([this, id = job->id, attempts, request, answer] {
          store::CurveQuery query;
          query.from_step = request.from_step();
          if (request.max_points() > 0) {
            query.max_points = std::max(request.max_points(), kMinPointsAsked);
          }
          std::vector<v1::MetricRecord> records;
          Status read;
          for (int attempt = request.raw() ? 1 : 0; attempt <= (request.raw() ? attempts : 0);
               ++attempt) {
            query.attempt = attempt;
            read = ReadCurves(*metric_store_, id, query, records);
            if (!read.ok()) return answer(read, {});
          }
          AddMemory(live_->Find(id), records);
          v1::GetMetricsResponse response;
          response.set_job_id(id);
          for (v1::MetricRecord& record : records) *response.add_records() = std::move(record);
          answer(Failure(), std::move(response));
        });
        if (!queued) answer(BusyFailure(), {});
      });
}

void ControllerService::ReadRecords(const std::string& job_id, int64_t cursor,
                                    Done<std::vector<v1::MetricRecord>> done) {
  const bool queued = executor_->Run([this, job_id, cursor, done] {
    std::vector<v1::MetricRecord> records;
    const Status read = ReadCurves(*metric_store_, job_id, {}, records);
    if (!read.ok()) return done(read, {});
    const auto key = [](const v1::MetricRecord& record) {
      return WatchCursor(record.attempt(), StepOf(record.record()));
    };
    // Everything but steps may follow its step late: what has the cursor's own step is sent again.
    std::erase_if(records, [&](const v1::MetricRecord& record) {
      return cursor > 0 &&
             (record.record().has_step() ? key(record) <= cursor : key(record) < cursor);
    });
    std::stable_sort(records.begin(), records.end(),
                     [&](const auto& a, const auto& b) { return key(a) < key(b); });
    AddMemory(live_->Find(job_id), records);
    done(Failure(), std::move(records));
  });
  if (!queued) done(BusyFailure(), {});
}

}  // namespace nibble::rpc
