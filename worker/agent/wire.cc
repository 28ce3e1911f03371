// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/wire.h"

#include <variant>

namespace nibble::agent {
namespace {

// One overload per record type; the visitor below picks it.
void Fill(const StartRecord& from, v1::JournalRecord& record) {
  v1::StartEvent& to = *record.mutable_start();
  to.set_resumed_from_step(from.resumed_from_step);
  to.set_steps_total(from.steps_total);
  to.set_parameters(from.parameters);
  to.set_recipe(from.recipe);
  to.set_tokens_per_step(from.tokens_per_step);
  for (const auto& [gemm, path] : from.paths) (*to.mutable_paths())[gemm] = path;
}

void Fill(const StepRecord& from, v1::JournalRecord& record) {
  v1::StepPoint& to = *record.mutable_step();
  to.set_step(from.step);
  to.set_loss(from.loss);
  to.set_grad_norm(from.grad_norm);
  to.set_learning_rate(from.learning_rate);
  to.set_tokens(from.tokens);
  to.set_step_seconds(from.step_seconds);
  to.set_tokens_per_second(from.tokens_per_second);
}

void Fill(const ValidationRecord& from, v1::JournalRecord& record) {
  record.mutable_validation()->set_step(from.step);
  record.mutable_validation()->set_loss(from.loss);
}

void Fill(const HealthRecord& from, v1::JournalRecord& record) {
  v1::HealthPoint& to = *record.mutable_health();
  to.set_step(from.step);
  to.set_tensor_class(from.tensor_class);
  to.set_underflow_ratio(from.underflow_ratio);
  to.set_saturation_ratio(from.saturation_ratio);
  to.set_mse(from.mse);
  to.set_snr_db(from.snr_db);
  to.set_cosine(from.cosine);
  to.set_scale_min(from.scale_min);
  to.set_scale_max(from.scale_max);
  to.set_grad_noise_ratio(from.grad_noise_ratio);
  to.set_nonfinite_amax(from.nonfinite_amax);
}

void Fill(const CheckpointRecord& from, v1::JournalRecord& record) {
  v1::CheckpointEvent& to = *record.mutable_checkpoint();
  to.set_step(from.step);
  to.set_path(from.path);
  to.set_save_seconds(from.save_seconds);
  to.set_bytes(from.bytes);
  to.set_best(from.best);
}

void Fill(const MemoryRecord& from, v1::JournalRecord& record) {
  auto& bytes = *record.mutable_memory()->mutable_bytes();
  for (const auto& [name, value] : from.bytes) bytes[name] = value;
}

void Fill(const LogRecord& from, v1::JournalRecord& record) {
  record.mutable_log()->set_level(from.level);
  record.mutable_log()->set_text(from.text);
}

void Fill(const EndRecord& from, v1::JournalRecord& record) {
  v1::EndEvent& to = *record.mutable_end();
  to.set_reason(from.reason);
  to.set_message(from.message);
  to.set_step(from.step);
  to.set_weights_sha256(from.weights_sha256);
  to.set_final_loss(from.final_loss);
  to.set_final_validation_loss(from.final_validation_loss);
}

}  // namespace

v1::AttemptKey ToProto(const AttemptKey& key) {
  v1::AttemptKey proto;
  proto.set_job_id(key.job_id);
  proto.set_attempt(key.attempt);
  proto.set_epoch(key.epoch);
  return proto;
}

v1::AttemptReport ToProto(const AttemptReport& report) {
  v1::AttemptReport proto;
  *proto.mutable_key() = ToProto(report.key);
  proto.set_state(report.state);
  proto.set_step(report.step);
  proto.set_exit_code(report.exit_code);
  proto.set_signal(report.signal);
  proto.set_end_reason(report.end_reason);
  proto.set_end_message(report.end_message);
  proto.set_start_failed(report.start_failed);
  if (report.checkpoint.has_value()) *proto.mutable_checkpoint() = ToProto(*report.checkpoint);
  return proto;
}

v1::Device ToProto(const DeviceInfo& device) {
  v1::Device proto;
  proto.set_index(device.index);
  proto.set_kind(device.kind);
  proto.set_name(device.name);
  proto.set_memory_bytes(device.memory_bytes);
  proto.set_threads(device.threads);
  proto.set_gflops(device.gflops);
  for (const std::string& feature : device.features) proto.add_features(feature);
  return proto;
}

v1::JournalRecord ToProto(const JournalRecord& record) {
  v1::JournalRecord proto;
  proto.set_seq(record.seq);
  proto.set_time_ms(record.time_ms);
  std::visit([&proto](const auto& event) { Fill(event, proto); }, record.event);
  return proto;
}

v1::Telemetry ToProto(const TelemetryBatch& batch) {
  v1::Telemetry proto;
  *proto.mutable_key() = ToProto(batch.key);
  proto.set_rank(batch.rank);
  for (const JournalRecord& record : batch.records) *proto.add_records() = ToProto(record);
  return proto;
}

AttemptKey FromProto(const v1::AttemptKey& key) {
  return {key.job_id(), key.attempt(), key.epoch()};
}

StartRequest FromProto(const v1::StartAttempt& start) {
  StartRequest request;
  request.key = FromProto(start.key());
  request.run_json = start.run_json();
  request.devices.assign(start.device_indices().begin(), start.device_indices().end());
  request.env.insert(start.env().begin(), start.env().end());
  request.resume_from = start.resume_from();
  request.world_size = start.world_size() > 0 ? start.world_size() : 1;
  request.job_name = start.job_name();
  return request;
}

StopRequest FromProto(const v1::StopAttempt& stop) {
  return {FromProto(stop.key()), stop.save(), stop.grace_ms(), stop.reason()};
}

}  // namespace nibble::agent
