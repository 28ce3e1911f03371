// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/points.h"

namespace nibble::rpc {
namespace {

store::StepPoint ToPoint(const v1::StepPoint& in, int64_t time_ms) {
  store::StepPoint out;
  out.step = in.step();
  out.time_ms = time_ms;
  out.loss = in.loss();
  out.grad_norm = in.grad_norm();
  out.learning_rate = in.learning_rate();
  out.tokens = in.tokens();
  out.tokens_per_second = in.tokens_per_second();
  out.step_seconds = in.step_seconds();
  return out;
}

store::HealthPoint ToPoint(const v1::HealthPoint& in, int64_t time_ms) {
  store::HealthPoint out;
  out.step = in.step();
  out.time_ms = time_ms;
  out.tensor_class = in.tensor_class();
  out.underflow_ratio = in.underflow_ratio();
  out.saturation_ratio = in.saturation_ratio();
  out.mse = in.mse();
  out.snr_db = in.snr_db();
  out.cosine = in.cosine();
  out.scale_min = in.scale_min();
  out.scale_max = in.scale_max();
  out.nonfinite = in.nonfinite_amax();
  out.gradient_to_noise = in.grad_noise_ratio();
  return out;
}

store::CheckpointPoint ToPoint(const v1::CheckpointEvent& in, int64_t time_ms) {
  store::CheckpointPoint out;
  out.step = in.step();
  out.time_ms = time_ms;
  out.size_bytes = in.bytes();
  out.save_seconds = in.save_seconds();
  out.path = in.path();
  return out;
}

}  // namespace

store::PointBatch ToPoints(const std::vector<v1::JournalRecord>& records) {
  store::PointBatch batch;
  for (const v1::JournalRecord& record : records) {
    const int64_t time_ms = record.time_ms();
    if (record.has_step()) {
      batch.steps.push_back(ToPoint(record.step(), time_ms));
    } else if (record.has_validation()) {
      batch.validations.push_back(
          {record.validation().step(), time_ms, record.validation().loss(), 0});
    } else if (record.has_health()) {
      batch.healths.push_back(ToPoint(record.health(), time_ms));
    } else if (record.has_checkpoint()) {
      batch.checkpoints.push_back(ToPoint(record.checkpoint(), time_ms));
    }
  }
  return batch;
}

std::vector<store::LogLine> ToLogLines(const std::vector<v1::JournalRecord>& records) {
  std::vector<store::LogLine> lines;
  for (const v1::JournalRecord& record : records) {
    if (!record.has_log()) continue;
    lines.push_back({record.seq(), record.time_ms(), record.log().level(), record.log().text()});
  }
  return lines;
}

v1::JournalRecord FromPoint(const store::StepPoint& point) {
  v1::JournalRecord record;
  record.set_time_ms(point.time_ms);
  v1::StepPoint& out = *record.mutable_step();
  out.set_step(point.step);
  out.set_loss(point.loss);
  out.set_grad_norm(point.grad_norm);
  out.set_learning_rate(point.learning_rate);
  out.set_tokens(point.tokens);
  out.set_tokens_per_second(point.tokens_per_second);
  out.set_step_seconds(point.step_seconds);
  return record;
}

v1::JournalRecord FromPoint(const store::ValidationPoint& point) {
  v1::JournalRecord record;
  record.set_time_ms(point.time_ms);
  record.mutable_validation()->set_step(point.step);
  record.mutable_validation()->set_loss(point.loss);
  return record;
}

v1::JournalRecord FromPoint(const store::HealthPoint& point) {
  v1::JournalRecord record;
  record.set_time_ms(point.time_ms);
  v1::HealthPoint& out = *record.mutable_health();
  out.set_step(point.step);
  out.set_tensor_class(point.tensor_class);
  out.set_underflow_ratio(point.underflow_ratio);
  out.set_saturation_ratio(point.saturation_ratio);
  out.set_mse(point.mse);
  out.set_snr_db(point.snr_db);
  out.set_cosine(point.cosine);
  out.set_scale_min(point.scale_min);
  out.set_scale_max(point.scale_max);
  out.set_nonfinite_amax(point.nonfinite);
  out.set_grad_noise_ratio(point.gradient_to_noise);
  return record;
}

v1::JournalRecord FromPoint(const store::CheckpointPoint& point) {
  v1::JournalRecord record;
  record.set_time_ms(point.time_ms);
  v1::CheckpointEvent& out = *record.mutable_checkpoint();
  out.set_step(point.step);
  out.set_path(point.path);
  out.set_save_seconds(point.save_seconds);
  out.set_bytes(point.size_bytes);
  return record;
}

int64_t StepOf(const v1::JournalRecord& record) {
  switch (record.event_case()) {
    case v1::JournalRecord::kStep:
      return record.step().step();
    case v1::JournalRecord::kValidation:
      return record.validation().step();
    case v1::JournalRecord::kHealth:
      return record.health().step();
    case v1::JournalRecord::kCheckpoint:
      return record.checkpoint().step();
    default:
      return -1;
  }
}

}  // namespace nibble::rpc
