// SPDX-License-Identifier: Apache-2.0
#include "worker/study/run_record.h"

#include <algorithm>
#include <map>
#include <utility>
#include <variant>

#include "base/files.h"
#include "base/strings.h"

namespace nibble {
namespace {

constexpr const char* kStateNames[] = {"unfinished", "completed", "diverged", "not_run"};

template <typename T>
std::vector<T> Values(std::map<int64_t, T>&& by_step) {
  std::vector<T> values;
  for (auto& [step, value] : by_step) values.push_back(std::move(value));
  return values;
}

// The records of a journal, later ones over earlier ones.
struct JournalFold {
  std::map<int64_t, StepRecord> steps;
  std::map<int64_t, ValidationRecord> validations;
  std::map<std::pair<int64_t, std::string>, HealthRecord> health;
  RunRecord run;

  void operator()(const StartRecord& start) {
    run.parameters = start.parameters;
    run.state = RunState::kUnfinished;  // an earlier end was not the last word
    run.message.clear();
  }
  void operator()(const StepRecord& step) { steps[step.step] = step; }
  void operator()(const ValidationRecord& validation) { validations[validation.step] = validation; }
  void operator()(const HealthRecord& record) {
    health[{record.step, record.tensor_class}] = record;
  }
  void operator()(const CheckpointRecord&) {}
  void operator()(const MemoryRecord&) {}
  void operator()(const LogRecord&) {}
  void operator()(const EndRecord& end) {
    const bool done = end.reason == kEndCompleted;
    const bool stopped = end.reason == kEndPreempted;
    run.state = done                         ? RunState::kCompleted
                : end.reason == kEndDiverged ? RunState::kDiverged
                : stopped                    ? RunState::kUnfinished
                                             : RunState::kNotRun;
    run.message = end.message;
    run.final_validation_loss = end.final_validation_loss;
    run.weights_sha256 = end.weights_sha256;
  }
};

Json StepToJson(const StepRecord& s) {
  return Json::Array({s.step, s.loss, s.grad_norm, s.learning_rate});
}

Json HealthToJson(const HealthRecord& h) {
  return Json::Object({{"step", h.step},
                       {"class", h.tensor_class},
                       {"underflow", h.underflow_ratio},
                       {"saturation", h.saturation_ratio},
                       {"mse", h.mse},
                       {"snr_db", h.snr_db},
                       {"cosine", h.cosine},
                       {"grad_noise", h.grad_noise_ratio}});
}

HealthRecord HealthFromJson(const Json& json) {
  HealthRecord h;
  h.step = json["step"].AsInt();
  h.tensor_class = json["class"].AsString();
  h.underflow_ratio = json["underflow"].AsDouble();
  h.saturation_ratio = json["saturation"].AsDouble();
  h.mse = json["mse"].AsDouble();
  h.snr_db = json["snr_db"].AsDouble();
  h.cosine = json["cosine"].AsDouble();
  h.grad_noise_ratio = json["grad_noise"].AsDouble();
  return h;
}

}  // namespace

const char* RunStateName(RunState state) { return kStateNames[static_cast<size_t>(state)]; }

Result<RunRecord> ReadRunJournal(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  JournalFold fold;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const auto record = DecodeJournalLine(std::string_view(text).substr(begin, end - begin));
    if (record.ok()) std::visit(fold, record->event);
    begin = end + 1;
  }
  RunRecord run = std::move(fold.run);
  for (const auto& [step, record] : fold.steps) {
    run.train_seconds += record.step_seconds;
    run.tokens = std::max(run.tokens, record.tokens);
    run.steps = step;
  }
  if (run.train_seconds > 0) {
    run.tokens_per_second = static_cast<double>(run.tokens) / run.train_seconds;
  }
  run.curve = Values(std::move(fold.steps));
  run.validation = Values(std::move(fold.validations));
  for (auto& [key, record] : fold.health) run.health.push_back(std::move(record));
  return run;
}

Json RunRecordToJson(const RunRecord& r) {
  Json curve = Json::Array();
  for (const StepRecord& step : r.curve) curve.Append(StepToJson(step));
  Json validation = Json::Array();
  for (const ValidationRecord& v : r.validation) {
    validation.Append(Json::Array({v.step, v.loss}));
  }
  Json health = Json::Array();
  for (const HealthRecord& h : r.health) health.Append(HealthToJson(h));
  return Json::Object(
      {{"state", RunStateName(r.state)},
       {"message", r.message},
       {"hash", r.hash},
       {"revision", r.revision},
       {"parameters", r.parameters},
       {"steps", r.steps},
       {"tokens", r.tokens},
       {"train_seconds", r.train_seconds},
       {"tokens_per_second", r.tokens_per_second},
       {"final_validation_loss", r.final_validation_loss},
       {"weights_sha256", r.weights_sha256},
       {"spec", r.spec},
       {"curve_fields", Json::Array({"step", "loss", "grad_norm", "learning_rate"})},
       {"curve", std::move(curve)},
       {"validation_fields", Json::Array({"step", "loss"})},
       {"validation", std::move(validation)},
       {"health", std::move(health)}});
}

Result<RunRecord> RunRecordFromJson(const Json& json) {
  RunRecord r;
  const auto name =
      std::find(std::begin(kStateNames), std::end(kStateNames), json["state"].AsString());
  if (name == std::end(kStateNames) || !json["curve"].is_array() ||
      !json["validation"].is_array() || !json["hash"].is_string()) {
    return DataLossError("a run record lacks state, hash, curve or validation");
  }
  r.state = static_cast<RunState>(name - std::begin(kStateNames));
  r.message = json["message"].AsString();
  r.hash = json["hash"].AsString();
  r.revision = json["revision"].AsString();
  r.spec = json["spec"];
  r.parameters = json["parameters"].AsInt();
  r.steps = json["steps"].AsInt();
  r.tokens = json["tokens"].AsInt();
  r.train_seconds = json["train_seconds"].AsDouble();
  r.tokens_per_second = json["tokens_per_second"].AsDouble();
  r.final_validation_loss = json["final_validation_loss"].AsDouble();
  r.weights_sha256 = json["weights_sha256"].AsString();
  for (const Json& item : json["curve"].items()) {
    if (!item.is_array() || item.size() != 4) return DataLossError("a curve point is malformed");
    StepRecord step;
    step.step = item.At(0).AsInt();
    step.loss = item.At(1).AsDouble();
    step.grad_norm = item.At(2).AsDouble();
    step.learning_rate = item.At(3).AsDouble();
    r.curve.push_back(step);
  }
  for (const Json& item : json["validation"].items()) {
    if (!item.is_array() || item.size() != 2) return DataLossError("a validation is malformed");
    r.validation.push_back({item.At(0).AsInt(), item.At(1).AsDouble()});
  }
  for (const Json& item : json["health"].items()) r.health.push_back(HealthFromJson(item));
  return r;
}

}  // namespace nibble
