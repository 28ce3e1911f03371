// SPDX-License-Identifier: Apache-2.0
//
// JSON of the domain types. Writers leave out what equals its default; readers keep the default
// for what is missing, so old rows stay readable when a field is added.
#include "base/strings.h"
#include "server/core/json_fields.h"
#include "server/core/types.h"

namespace nibble::core {
namespace {

Json ToJson(const Resources& resources) {
  const Resources defaults;
  Json json = Json::Object();
  json.Set("nodes", resources.nodes);
  json.Set("slots", resources.slots_per_node);
  json.Set("kind", Name(resources.device_kind));
  PutStrings(json, "requires", resources.required_features);
  PutUnless(json, "memory", resources.memory_bytes_per_device, defaults.memory_bytes_per_device);
  PutStrings(json, "exclude", resources.exclude_workers);
  return json;
}

Resources ResourcesFromJson(FieldReader& fields) {
  Resources resources;
  fields.Get("nodes", resources.nodes);
  fields.Get("slots", resources.slots_per_node);
  fields.GetEnum("kind", resources.device_kind);
  fields.Get("requires", resources.required_features);
  fields.Get("memory", resources.memory_bytes_per_device);
  fields.Get("exclude", resources.exclude_workers);
  return resources;
}

Json ToJson(const RetryPolicy& retry) {
  Json json = Json::Object();
  json.Set("user", retry.user);
  json.Set("infra", retry.infra_per_day);
  Json codes = Json::Array();
  for (const int code : retry.on_exit_codes) codes.Append(code);
  json.Set("codes", std::move(codes));
  json.Set("base_ms", retry.backoff_base_ms);
  json.Set("max_ms", retry.backoff_max_ms);
  return json;
}

RetryPolicy RetryFromJson(FieldReader& fields) {
  RetryPolicy retry;
  fields.Get("user", retry.user);
  fields.Get("infra", retry.infra_per_day);
  fields.Get("codes", retry.on_exit_codes);
  fields.Get("base_ms", retry.backoff_base_ms);
  fields.Get("max_ms", retry.backoff_max_ms);
  return retry;
}

Json ToJson(const Attempt& attempt) {
  const Attempt defaults;
  Json json = Json::Object();
  json.Set("number", attempt.number);
  json.Set("epoch", attempt.epoch);
  Json shares = Json::Array();
  for (const Share& share : attempt.shares) shares.Append(core::ToJson(share));
  json.Set("shares", std::move(shares));
  json.Set("placed_ms", attempt.placed_ms);
  PutUnless(json, "started_ms", attempt.started_ms, defaults.started_ms);
  PutUnless(json, "running_ms", attempt.running_ms, defaults.running_ms);
  PutUnless(json, "ended_ms", attempt.ended_ms, defaults.ended_ms);
  PutUnless(json, "ran_ms", attempt.ran_ms, defaults.ran_ms);
  PutUnless(json, "resume_step", attempt.resume_step, defaults.resume_step);
  if (attempt.end_reason != EndReason::kNone) json.Set("reason", Name(attempt.end_reason));
  if (attempt.charge != Charge::kNone) json.Set("charge", Name(attempt.charge));
  PutUnless(json, "detail", attempt.detail, defaults.detail);
  return json;
}

Attempt AttemptFromJson(FieldReader& fields) {
  Attempt attempt;
  fields.Get("number", attempt.number);
  fields.Get("epoch", attempt.epoch);
  fields.GetEach("shares", [&](const Json& item) {
    fields.Take(ShareFromJson(item), [&](Share share) { attempt.shares.push_back(share); });
  });
  fields.Get("placed_ms", attempt.placed_ms);
  fields.Get("started_ms", attempt.started_ms);
  fields.Get("running_ms", attempt.running_ms);
  fields.Get("ended_ms", attempt.ended_ms);
  fields.Get("ran_ms", attempt.ran_ms);
  fields.Get("resume_step", attempt.resume_step);
  fields.GetEnum("reason", attempt.end_reason);
  fields.GetEnum("charge", attempt.charge);
  fields.Get("detail", attempt.detail);
  return attempt;
}

Json ToJson(const Device& device) {
  Json json = Json::Object();
  json.Set("id", device.id);
  json.Set("kind", Name(device.kind));
  PutUnless(json, "model", device.model, std::string());
  PutUnless(json, "memory", device.memory_bytes, int64_t{0});
  PutStrings(json, "proved", device.proved_features);
  return json;
}

Device DeviceFromJson(FieldReader& fields) {
  Device device;
  fields.Get("id", device.id);
  fields.GetEnum("kind", device.kind);
  fields.Get("model", device.model);
  fields.Get("memory", device.memory_bytes);
  fields.Get("proved", device.proved_features);
  return device;
}

}  // namespace

Json ToJson(const JobSpec& spec) {
  const JobSpec defaults;
  Json json = Json::Object();
  json.Set("name", spec.name);
  json.Set("project", spec.project);
  PutUnless(json, "user", spec.user, defaults.user);
  json.Set("queue", spec.queue);
  PutUnless(json, "priority", spec.priority, defaults.priority);
  PutUnless(json, "priority_class", spec.priority_class, defaults.priority_class);
  json.Set("resources", ToJson(spec.resources));
  json.Set("retry", ToJson(spec.retry));
  PutUnless(json, "time_limit_ms", spec.time_limit_ms, defaults.time_limit_ms);
  PutUnless(json, "start_timeout_ms", spec.start_timeout_ms, defaults.start_timeout_ms);
  PutUnless(json, "stall_timeout_ms", spec.stall_timeout_ms, defaults.stall_timeout_ms);
  json.Set("stop_grace_ms", spec.stop_grace_ms);
  if (!spec.labels.empty()) {
    Json labels = Json::Array();
    for (const auto& [key, value] : spec.labels) labels.Append(Json::Array({key, value}));
    json.Set("labels", std::move(labels));
  }
  json.Set("spec", spec.spec_json);
  json.Set("spec_hash", spec.spec_hash);
  return json;
}

Result<JobSpec> JobSpecFromJson(const Json& json) {
  FieldReader fields("job spec", json);
  JobSpec spec;
  fields.Get("name", spec.name);
  fields.Get("project", spec.project);
  fields.Get("user", spec.user);
  fields.Get("queue", spec.queue);
  fields.Get("priority", spec.priority);
  fields.Get("priority_class", spec.priority_class);
  fields.GetObject("resources", [&](FieldReader& r) { spec.resources = ResourcesFromJson(r); });
  fields.GetObject("retry", [&](FieldReader& r) { spec.retry = RetryFromJson(r); });
  fields.Get("time_limit_ms", spec.time_limit_ms);
  fields.Get("start_timeout_ms", spec.start_timeout_ms);
  fields.Get("stall_timeout_ms", spec.stall_timeout_ms);
  fields.Get("stop_grace_ms", spec.stop_grace_ms);
  fields.GetEach("labels", [&](const Json& item) {
    if (item.size() == 2) spec.labels.emplace_back(item.At(0).AsString(), item.At(1).AsString());
  });
  fields.Get("spec", spec.spec_json);
  fields.Get("spec_hash", spec.spec_hash);
  RETURN_IF_ERROR(fields.status());
  return spec;
}

Json ToJson(const Outcome& outcome) {
  const Outcome defaults;
  Json json = Json::Object();
  json.Set("kind", Name(outcome.kind));
  PutUnless(json, "exit_code", outcome.exit_code, defaults.exit_code);
  PutUnless(json, "signal", outcome.signal, defaults.signal);
  if (outcome.reported != EndReason::kNone) json.Set("reported", Name(outcome.reported));
  PutUnless(json, "rank", outcome.rank, defaults.rank);
  PutUnless(json, "last_step", outcome.last_step, defaults.last_step);
  PutUnless(json, "message", outcome.message, defaults.message);
  return json;
}

Result<Outcome> OutcomeFromJson(const Json& json) {
  FieldReader fields("outcome", json);
  Outcome outcome;
  fields.GetEnum("kind", outcome.kind);
  fields.Get("exit_code", outcome.exit_code);
  fields.Get("signal", outcome.signal);
  fields.GetEnum("reported", outcome.reported);
  fields.Get("rank", outcome.rank);
  fields.Get("last_step", outcome.last_step);
  fields.Get("message", outcome.message);
  RETURN_IF_ERROR(fields.status());
  return outcome;
}

Json ToJson(const Share& share) {
  Json json = Json::Object();
  json.Set("worker", share.worker_id);
  PutStrings(json, "devices", share.devices);
  PutUnless(json, "first_rank", share.first_rank, 0);
  json.Set("phase", Name(share.phase));
  if (share.phase == SharePhase::kEnded) json.Set("outcome", ToJson(share.outcome));
  return json;
}

Result<Share> ShareFromJson(const Json& json) {
  FieldReader fields("share", json);
  Share share;
  fields.Get("worker", share.worker_id);
  fields.Get("devices", share.devices);
  fields.Get("first_rank", share.first_rank);
  fields.GetEnum("phase", share.phase);
  if (json.Find("outcome") != nullptr) {
    fields.Take(OutcomeFromJson(json["outcome"]),
                [&](Outcome outcome) { share.outcome = std::move(outcome); });
  }
  RETURN_IF_ERROR(fields.status());
  return share;
}

Json ToJson(const Checkpoint& checkpoint) {
  Json json = Json::Object();
  json.Set("step", checkpoint.step);
  json.Set("attempt", checkpoint.attempt);
  json.Set("path", checkpoint.path);
  PutUnless(json, "size", checkpoint.size_bytes, int64_t{0});
  PutUnless(json, "val_loss", checkpoint.validation_loss, 0.0);
  PutUnless(json, "saved_ms", checkpoint.saved_ms, int64_t{0});
  return json;
}

Result<Checkpoint> CheckpointFromJson(const Json& json) {
  FieldReader fields("checkpoint", json);
  Checkpoint checkpoint;
  fields.Get("step", checkpoint.step);
  fields.Get("attempt", checkpoint.attempt);
  fields.Get("path", checkpoint.path);
  fields.Get("size", checkpoint.size_bytes);
  fields.Get("val_loss", checkpoint.validation_loss);
  fields.Get("saved_ms", checkpoint.saved_ms);
  RETURN_IF_ERROR(fields.status());
  return checkpoint;
}

Json ToJson(const StopRequest& stop) {
  Json json = Json::Object();
  json.Set("cause", Name(stop.cause));
  json.Set("mode", Name(stop.mode));
  PutUnless(json, "actor", stop.actor, std::string());
  PutUnless(json, "request", stop.request_id, std::string());
  PutUnless(json, "asked_ms", stop.asked_ms, int64_t{0});
  return json;
}

Result<StopRequest> StopRequestFromJson(const Json& json) {
  FieldReader fields("stop request", json);
  StopRequest stop;
  fields.GetEnum("cause", stop.cause);
  fields.GetEnum("mode", stop.mode);
  fields.Get("actor", stop.actor);
  fields.Get("request", stop.request_id);
  fields.Get("asked_ms", stop.asked_ms);
  RETURN_IF_ERROR(fields.status());
  return stop;
}

Json ToJson(const Job& job) {
  const Job defaults;
  Json json = Json::Object();
  json.Set("id", job.id);
  json.Set("number", job.number);
  json.Set("spec", ToJson(job.spec));
  PutUnless(json, "request", job.request_id, defaults.request_id);
  PutUnless(json, "body_hash", job.body_hash, defaults.body_hash);
  json.Set("state", Name(job.state));
  json.Set("submitted_ms", job.submitted_ms);
  PutUnless(json, "state_since_ms", job.state_since_ms, defaults.state_since_ms);
  PutUnless(json, "first_started_ms", job.first_started_ms, defaults.first_started_ms);
  PutUnless(json, "ended_ms", job.ended_ms, defaults.ended_ms);
  if (job.end_reason != EndReason::kNone) json.Set("end_reason", Name(job.end_reason));
  PutUnless(json, "end_detail", job.end_detail, defaults.end_detail);
  if (job.stop.cause != StopCause::kNone) json.Set("stop", ToJson(job.stop));
  if (!job.attempts.empty()) {
    Json attempts = Json::Array();
    for (const Attempt& attempt : job.attempts) attempts.Append(ToJson(attempt));
    json.Set("attempts", std::move(attempts));
  }
  if (job.latest_checkpoint) json.Set("checkpoint", ToJson(*job.latest_checkpoint));
  PutUnless(json, "not_before_ms", job.not_before_ms, defaults.not_before_ms);
  if (job.last_failure != EndReason::kNone) json.Set("last_failure", Name(job.last_failure));
  PutUnless(json, "user_failures", job.user_failures, defaults.user_failures);
  if (!job.infra_failures_ms.empty()) {
    Json times = Json::Array();
    for (const int64_t time : job.infra_failures_ms) times.Append(time);
    json.Set("infra_failures_ms", std::move(times));
  }
  PutUnless(json, "preemptions", job.preemptions, defaults.preemptions);
  PutUnless(json, "failures_in_row", job.failures_in_row, defaults.failures_in_row);
  PutUnless(json, "ran_ms", job.ran_ms, defaults.ran_ms);
  if (!job.cancel_requests.empty()) {
    Json uses = Json::Array();
    for (const RequestUse& use : job.cancel_requests) {
      uses.Append(Json::Array({use.request_id, use.body_hash}));
    }
    json.Set("cancel_requests", std::move(uses));
  }
  return json;
}

Result<Job> JobFromJson(const Json& json) {
  FieldReader fields("job", json);
  Job job;
  fields.Get("id", job.id);
  fields.Get("number", job.number);
  fields.Take(JobSpecFromJson(json["spec"]), [&](JobSpec spec) { job.spec = std::move(spec); });
  fields.Get("request", job.request_id);
  fields.Get("body_hash", job.body_hash);
  fields.GetEnum("state", job.state);
  fields.Get("submitted_ms", job.submitted_ms);
  fields.Get("state_since_ms", job.state_since_ms);
  fields.Get("first_started_ms", job.first_started_ms);
  fields.Get("ended_ms", job.ended_ms);
  fields.GetEnum("end_reason", job.end_reason);
  fields.Get("end_detail", job.end_detail);
  if (json.Find("stop") != nullptr) {
    fields.Take(StopRequestFromJson(json["stop"]),
                [&](StopRequest stop) { job.stop = std::move(stop); });
  }
  fields.GetEach("attempts", [&](const Json& item) {
    FieldReader attempt_fields("attempt", item);
    job.attempts.push_back(AttemptFromJson(attempt_fields));
    fields.Note(attempt_fields.status());
  });
  if (json.Find("checkpoint") != nullptr) {
    fields.Take(CheckpointFromJson(json["checkpoint"]),
                [&](Checkpoint checkpoint) { job.latest_checkpoint = std::move(checkpoint); });
  }
  fields.Get("not_before_ms", job.not_before_ms);
  fields.GetEnum("last_failure", job.last_failure);
  fields.Get("user_failures", job.user_failures);
  fields.Get("infra_failures_ms", job.infra_failures_ms);
  fields.Get("preemptions", job.preemptions);
  fields.Get("failures_in_row", job.failures_in_row);
  fields.Get("ran_ms", job.ran_ms);
  fields.GetEach("cancel_requests", [&](const Json& item) {
    if (item.size() != 2) return fields.Note(InvalidArgumentError("job: bad cancel_requests"));
    job.cancel_requests.push_back({item.At(0).AsString(), item.At(1).AsString()});
  });
  RETURN_IF_ERROR(fields.status());
  if (job.id.empty()) return InvalidArgumentError("job: 'id' is missing");
  return job;
}

Json ToJson(const Worker& worker) {
  const Worker defaults;
  Json json = Json::Object();
  json.Set("id", worker.id);
  PutUnless(json, "host", worker.host, defaults.host);
  PutUnless(json, "address", worker.address, defaults.address);
  PutUnless(json, "version", worker.version, defaults.version);
  json.Set("pool", worker.pool);
  Json devices = Json::Array();
  for (const Device& device : worker.devices) devices.Append(ToJson(device));
  json.Set("devices", std::move(devices));
  PutStrings(json, "notes", worker.notes);
  json.Set("state", Name(worker.state));
  PutUnless(json, "draining", worker.draining, defaults.draining);
  PutUnless(json, "drain_reason", worker.drain_reason, defaults.drain_reason);
  PutUnless(json, "drain_actor", worker.drain_actor, defaults.drain_actor);
  PutUnless(json, "drain_deadline_ms", worker.drain_deadline_ms, defaults.drain_deadline_ms);
  PutUnless(json, "registered_ms", worker.registered_ms, defaults.registered_ms);
  PutUnless(json, "state_since_ms", worker.state_since_ms, defaults.state_since_ms);
  return json;
}

Result<Worker> WorkerFromJson(const Json& json) {
  FieldReader fields("worker", json);
  Worker worker;
  fields.Get("id", worker.id);
  fields.Get("host", worker.host);
  fields.Get("address", worker.address);
  fields.Get("version", worker.version);
  fields.Get("pool", worker.pool);
  fields.GetEach("devices", [&](const Json& item) {
    FieldReader device_fields("device", item);
    worker.devices.push_back(DeviceFromJson(device_fields));
    fields.Note(device_fields.status());
  });
  fields.Get("notes", worker.notes);
  fields.GetEnum("state", worker.state);
  fields.Get("draining", worker.draining);
  fields.Get("drain_reason", worker.drain_reason);
  fields.Get("drain_actor", worker.drain_actor);
  fields.Get("drain_deadline_ms", worker.drain_deadline_ms);
  fields.Get("registered_ms", worker.registered_ms);
  fields.Get("state_since_ms", worker.state_since_ms);
  RETURN_IF_ERROR(fields.status());
  if (worker.id.empty()) return InvalidArgumentError("worker: 'id' is missing");
  return worker;
}

}  // namespace nibble::core
