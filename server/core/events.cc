// SPDX-License-Identifier: Apache-2.0
#include "server/core/events.h"

#include <array>

#include "base/strings.h"
#include "server/core/json_fields.h"

namespace nibble::core {
namespace {

constexpr std::array<std::string_view, 24> kNames = {"JobSubmitted",
                                                     "JobPlaced",
                                                     "AttemptStarted",
                                                     "AttemptRunning",
                                                     "JobSuspected",
                                                     "JobReturned",
                                                     "CheckpointSaved",
                                                     "JobCancelRequested",
                                                     "JobPauseRequested",
                                                     "JobRequeueRequested",
                                                     "AttemptStopRequested",
                                                     "ShareEnded",
                                                     "AttemptEnded",
                                                     "JobRequeued",
                                                     "JobHeld",
                                                     "JobResumed",
                                                     "JobUpdated",
                                                     "JobEnded",
                                                     "WorkerRegistered",
                                                     "WorkerSuspected",
                                                     "WorkerReturned",
                                                     "LeaseExpired",
                                                     "WorkerDrained",
                                                     "WorkerUndrained"};
static_assert(kNames.size() == static_cast<size_t>(EventType::kWorkerUndrained) + 1);

// Writes the payload; std::visit picks the overload.
struct PayloadWriter {
  Json operator()(const std::monostate&) const { return Json(); }
  Json operator()(const Job& job) const { return ToJson(job); }
  Json operator()(const Worker& worker) const { return ToJson(worker); }
  Json operator()(const Checkpoint& checkpoint) const { return ToJson(checkpoint); }
  Json operator()(const StopRequest& stop) const { return ToJson(stop); }
  Json operator()(const Outcome& outcome) const { return ToJson(outcome); }
  Json operator()(const JobPlacedData& data) const {
    Json shares = Json::Array();
    for (const Share& share : data.shares) shares.Append(ToJson(share));
    return Json::Object({{"shares", std::move(shares)}, {"resume_step", data.resume_step}});
  }
  Json operator()(const AttemptEndedData& data) const {
    return Json::Object(
        {{"reason", Name(data.reason)}, {"charge", Name(data.charge)}, {"ran_ms", data.ran_ms}});
  }
  Json operator()(const JobRequeuedData& data) const {
    return Json::Object({{"state", Name(data.state)}, {"not_before_ms", data.not_before_ms}});
  }
  Json operator()(const JobUpdatedData& data) const {
    Json json = Json::Object();
    if (data.priority) json.Set("priority", *data.priority);
    if (data.time_limit_ms) json.Set("time_limit_ms", *data.time_limit_ms);
    return json;
  }
  Json operator()(const JobEndedData& data) const {
    return Json::Object({{"state", Name(data.state)}, {"reason", Name(data.reason)}});
  }
  Json operator()(const WorkerDrainedData& data) const {
    return Json::Object({{"reason", data.reason}, {"deadline_ms", data.deadline_ms}});
  }
};

template <typename T>
Result<Event::Payload> Wrap(Result<T> value) {
  if (!value.ok()) return value.status();
  return Event::Payload(std::move(value).value());
}

Result<Event::Payload> ReadPlaced(const Json& json) {
  FieldReader fields("JobPlaced", json);
  JobPlacedData data;
  fields.GetEach("shares", [&](const Json& item) {
    fields.Take(ShareFromJson(item), [&](Share share) { data.shares.push_back(share); });
  });
  fields.Get("resume_step", data.resume_step);
  RETURN_IF_ERROR(fields.status());
  return Event::Payload(std::move(data));
}

Result<Event::Payload> ReadAttemptEnded(const Json& json) {
  FieldReader fields("AttemptEnded", json);
  AttemptEndedData data;
  fields.GetEnum("reason", data.reason);
  fields.GetEnum("charge", data.charge);
  fields.Get("ran_ms", data.ran_ms);
  RETURN_IF_ERROR(fields.status());
  return Event::Payload(data);
}

Result<Event::Payload> ReadRequeued(const Json& json) {
  FieldReader fields("JobRequeued", json);
  JobRequeuedData data;
  fields.GetEnum("state", data.state);
  fields.Get("not_before_ms", data.not_before_ms);
  RETURN_IF_ERROR(fields.status());
  return Event::Payload(data);
}

Result<Event::Payload> ReadUpdated(const Json& json) {
  FieldReader fields("JobUpdated", json);
  JobUpdatedData data;
  if (json.Find("priority") != nullptr) fields.Get("priority", data.priority.emplace());
  if (json.Find("time_limit_ms") != nullptr) {
    fields.Get("time_limit_ms", data.time_limit_ms.emplace());
  }
  RETURN_IF_ERROR(fields.status());
  return Event::Payload(data);
}

Result<Event::Payload> ReadEnded(const Json& json) {
  FieldReader fields("JobEnded", json);
  JobEndedData data;
  fields.GetEnum("state", data.state);
  fields.GetEnum("reason", data.reason);
  RETURN_IF_ERROR(fields.status());
  return Event::Payload(data);
}

Result<Event::Payload> ReadDrained(const Json& json) {
  FieldReader fields("WorkerDrained", json);
  WorkerDrainedData data;
  fields.Get("reason", data.reason);
  fields.Get("deadline_ms", data.deadline_ms);
  RETURN_IF_ERROR(fields.status());
  return Event::Payload(std::move(data));
}

Result<Event::Payload> ReadPayload(EventType type, const Json& json) {
  switch (type) {
    case EventType::kJobSubmitted:
      return Wrap(JobFromJson(json));
    case EventType::kJobPlaced:
      return ReadPlaced(json);
    case EventType::kCheckpointSaved:
      return Wrap(CheckpointFromJson(json));
    case EventType::kJobCancelRequested:
    case EventType::kJobPauseRequested:
    case EventType::kJobRequeueRequested:
    case EventType::kAttemptStopRequested:
      return Wrap(StopRequestFromJson(json));
    case EventType::kShareEnded:
      return Wrap(OutcomeFromJson(json));
    case EventType::kAttemptEnded:
      return ReadAttemptEnded(json);
    case EventType::kJobRequeued:
      return ReadRequeued(json);
    case EventType::kJobUpdated:
      return ReadUpdated(json);
    case EventType::kJobEnded:
      return ReadEnded(json);
    case EventType::kWorkerRegistered:
      return Wrap(WorkerFromJson(json));
    case EventType::kWorkerDrained:
      return ReadDrained(json);
    case EventType::kAttemptStarted:
    case EventType::kAttemptRunning:
    case EventType::kJobSuspected:
    case EventType::kJobReturned:
    case EventType::kJobHeld:
    case EventType::kJobResumed:
    case EventType::kWorkerSuspected:
    case EventType::kWorkerReturned:
    case EventType::kLeaseExpired:
    case EventType::kWorkerUndrained:
      return Event::Payload();
  }
  return InternalError("event type without a reader");
}

}  // namespace

std::string_view Name(EventType type) { return kNames[static_cast<size_t>(type)]; }

std::optional<EventType> EventTypeFromName(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<EventType>(i);
  }
  return std::nullopt;
}

Json ToJson(const Event& event) {
  Json json = Json::Object();
  json.Set("v", kEventFormat);
  json.Set("type", Name(event.type));
  json.Set("time_ms", event.time_ms);
  PutUnless(json, "job", event.job_id, std::string());
  PutUnless(json, "worker", event.worker_id, std::string());
  PutUnless(json, "attempt", event.attempt, 0);
  PutUnless(json, "epoch", event.epoch, int64_t{0});
  PutUnless(json, "actor", event.actor, std::string());
  PutUnless(json, "detail", event.detail, std::string());
  Json data = std::visit(PayloadWriter{}, event.payload);
  if (!data.is_null()) json.Set("data", std::move(data));
  return json;
}

Result<Event> EventFromJson(const Json& json) {
  if (!json.is_object() || !json["v"].is_int() || !json["type"].is_string()) {
    return DataLossError("not an event: " + json.Dump().substr(0, 120));
  }
  if (json["v"].AsInt() > kEventFormat) {
    return FailedPreconditionError(
        StrFormat("the log has events of format %lld, this build reads up to %d: use a newer build",
                  static_cast<long long>(json["v"].AsInt()), kEventFormat));
  }
  const auto type = EventTypeFromName(json["type"].AsString());
  if (!type) {
    return FailedPreconditionError("the log has an event of unknown type '" +
                                   json["type"].AsString().substr(0, 80) +
                                   "': it was written by a newer build; use that one");
  }
  FieldReader fields("event " + json["type"].AsString(), json);
  Event event;
  event.type = *type;
  fields.Get("time_ms", event.time_ms);
  fields.Get("job", event.job_id);
  fields.Get("worker", event.worker_id);
  fields.Get("attempt", event.attempt);
  fields.Get("epoch", event.epoch);
  fields.Get("actor", event.actor);
  fields.Get("detail", event.detail);
  fields.Take(ReadPayload(*type, json["data"]),
              [&](Event::Payload payload) { event.payload = std::move(payload); });
  if (!fields.status().ok()) return DataLossError(fields.status().message());
  return event;
}

}  // namespace nibble::core
