// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/journal.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

constexpr size_t kMaxTextBytes = kMaxJournalLineBytes / 8;  // worst case of escaping is 6x

std::string Cut(const std::string& text) { return text.substr(0, kMaxTextBytes); }

Json TextMap(const std::map<std::string, std::string>& map) {
  Json json = Json::Object();
  for (const auto& [key, value] : map) json.Set(key, value);
  return json;
}

// Writes the type name and the fields of one record type.
struct Writer {
  Json& out;

  void operator()(const StartRecord& r) const {
    out.Set("type", "start").Set("resumedFromStep", r.resumed_from_step);
    out.Set("stepsTotal", r.steps_total).Set("parameters", r.parameters);
    out.Set("tokensPerStep", r.tokens_per_step).Set("recipe", r.recipe);
    out.Set("paths", TextMap(r.paths));
  }
  void operator()(const StepRecord& r) const {
    out.Set("type", "step").Set("step", r.step).Set("loss", r.loss).Set("gradNorm", r.grad_norm);
    out.Set("learningRate", r.learning_rate).Set("tokens", r.tokens);
    out.Set("stepSeconds", r.step_seconds).Set("tokensPerSecond", r.tokens_per_second);
  }
  void operator()(const ValidationRecord& r) const {
    out.Set("type", "validation").Set("step", r.step).Set("loss", r.loss);
  }
  void operator()(const HealthRecord& r) const {
    out.Set("type", "health").Set("step", r.step).Set("tensorClass", r.tensor_class);
    out.Set("underflowRatio", r.underflow_ratio).Set("saturationRatio", r.saturation_ratio);
    out.Set("mse", r.mse).Set("snrDb", r.snr_db).Set("cosine", r.cosine);
    out.Set("scaleMin", r.scale_min).Set("scaleMax", r.scale_max);
    out.Set("gradNoiseRatio", r.grad_noise_ratio).Set("nonfiniteAmax", r.nonfinite_amax);
  }
  void operator()(const CheckpointRecord& r) const {
    out.Set("type", "checkpoint").Set("step", r.step).Set("path", r.path);
    out.Set("saveSeconds", r.save_seconds).Set("bytes", r.bytes).Set("best", r.best);
  }
  void operator()(const MemoryRecord& r) const {
    Json bytes = Json::Object();
    for (const auto& [name, value] : r.bytes) bytes.Set(name, value);
    out.Set("type", "memory").Set("bytes", std::move(bytes));
  }
  void operator()(const LogRecord& r) const {
    out.Set("type", "log").Set("level", r.level).Set("text", Cut(r.text));
  }
  void operator()(const EndRecord& r) const {
    out.Set("type", "end").Set("reason", r.reason).Set("message", Cut(r.message));
    out.Set("step", r.step).Set("weightsSha256", r.weights_sha256);
    out.Set("finalLoss", r.final_loss).Set("finalValidationLoss", r.final_validation_loss);
  }
};

StartRecord ReadStart(const Json& json) {
  StartRecord r;
  r.resumed_from_step = json["resumedFromStep"].AsInt();
  r.steps_total = json["stepsTotal"].AsInt();
  r.parameters = json["parameters"].AsInt();
  r.tokens_per_step = json["tokensPerStep"].AsInt();
  r.recipe = json["recipe"].AsString();
  for (const auto& [key, value] : json["paths"].members()) r.paths[key] = value.AsString();
  return r;
}

StepRecord ReadStep(const Json& json) {
  StepRecord r;
  r.step = json["step"].AsInt();
  r.loss = json["loss"].AsDouble();
  r.grad_norm = json["gradNorm"].AsDouble();
  r.learning_rate = json["learningRate"].AsDouble();
  r.tokens = json["tokens"].AsInt();
  r.step_seconds = json["stepSeconds"].AsDouble();
  r.tokens_per_second = json["tokensPerSecond"].AsDouble();
  return r;
}

HealthRecord ReadHealth(const Json& json) {
  HealthRecord r;
  r.step = json["step"].AsInt();
  r.tensor_class = json["tensorClass"].AsString();
  r.underflow_ratio = json["underflowRatio"].AsDouble();
  r.saturation_ratio = json["saturationRatio"].AsDouble();
  r.mse = json["mse"].AsDouble();
  r.snr_db = json["snrDb"].AsDouble();
  r.cosine = json["cosine"].AsDouble();
  r.scale_min = json["scaleMin"].AsDouble();
  r.scale_max = json["scaleMax"].AsDouble();
  r.grad_noise_ratio = json["gradNoiseRatio"].AsDouble();
  r.nonfinite_amax = json["nonfiniteAmax"].AsInt();
  return r;
}

CheckpointRecord ReadCheckpoint(const Json& json) {
  CheckpointRecord r;
  r.step = json["step"].AsInt();
  r.path = json["path"].AsString();
  r.save_seconds = json["saveSeconds"].AsDouble();
  r.bytes = json["bytes"].AsInt();
  r.best = json["best"].AsBool();
  return r;
}

EndRecord ReadEnd(const Json& json) {
  EndRecord r;
  r.reason = json["reason"].AsString();
  r.message = json["message"].AsString();
  r.step = json["step"].AsInt();
  r.weights_sha256 = json["weightsSha256"].AsString();
  r.final_loss = json["finalLoss"].AsDouble();
  r.final_validation_loss = json["finalValidationLoss"].AsDouble();
  return r;
}

}  // namespace

std::string EncodeJournalLine(const JournalRecord& record) {
  Json json = Json::Object({{"seq", record.seq}, {"t", record.time_ms}});
  std::visit(Writer{json}, record.event);
  return json.Dump() + "\n";
}

Result<JournalRecord> DecodeJournalLine(std::string_view line) {
  const auto bad = [&](const std::string& why) {
    return DataLossError("journal line '" + std::string(line.substr(0, 80)) + "': " + why);
  };
  const Result<Json> json = Json::Parse(line);
  if (!json.ok()) return bad(json.status().message());
  JournalRecord record;
  record.seq = (*json)["seq"].AsInt();
  record.time_ms = (*json)["t"].AsInt();
  if (record.seq < 1) return bad("no seq");
  const std::string& type = (*json)["type"].AsString();
  if (type == "start") {
    record.event = ReadStart(*json);
  } else if (type == "step") {
    record.event = ReadStep(*json);
  } else if (type == "validation") {
    record.event = ValidationRecord{(*json)["step"].AsInt(), (*json)["loss"].AsDouble()};
  } else if (type == "health") {
    record.event = ReadHealth(*json);
  } else if (type == "checkpoint") {
    record.event = ReadCheckpoint(*json);
  } else if (type == "memory") {
    MemoryRecord memory;
    for (const auto& [key, value] : (*json)["bytes"].members()) memory.bytes[key] = value.AsInt();
    record.event = std::move(memory);
  } else if (type == "log") {
    record.event = LogRecord{(*json)["level"].AsString(), (*json)["text"].AsString()};
  } else if (type == "end") {
    record.event = ReadEnd(*json);
  } else {
    return bad("unknown type '" + type + "'");
  }
  return record;
}

int TrainerExitCode(std::string_view end_reason) {
  static constexpr std::pair<std::string_view, int> kCodes[] = {
      {kEndCompleted, 0},        {kEndPreempted, 0},       {kEndInvalidSpec, 2},
      {kEndDiverged, 10},        {kEndDataUnreadable, 11}, {kEndCheckpointUnreadable, 12},
      {kEndOutOfMemoryHost, 13}, {kEndOutOfMemoryGpu, 14}};
  for (const auto& [reason, code] : kCodes) {
    if (reason == end_reason) return code;
  }
  return 1;
}

}  // namespace nibble
