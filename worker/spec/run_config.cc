// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/run_config.h"

#include <cmath>
#include <limits>
#include <utility>

#include "base/strings.h"
#include "worker/spec/json_fields.h"

namespace nibble {
namespace {

// Limits: far above any LLaMA model, low enough that products stay inside int64.
constexpr int64_t kMaxVocabSize = 1 << 24;
constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxLayers = 1 << 12;
constexpr int64_t kMaxSeqLen = 1 << 20;
constexpr int64_t kMaxBatch = 1 << 20;
constexpr int64_t kMaxSteps = int64_t{1} << 40;
constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max();

void CheckModelSizes(JsonFields& fields, ModelConfig& m) {
  const auto required = [&](const char* key, int64_t value) {
    if (value == 0) fields.Error(key, "is missing; give it, or choose a preset");
    return value != 0;
  };
  if (m.kv_heads == 0) m.kv_heads = m.heads;
  // Both are reported, so both are asked.
  const bool has_hidden_size = required("hiddenSize", m.hidden_size);
  const bool has_heads = required("heads", m.heads);
  const bool sized = has_hidden_size && has_heads;
  required("intermediateSize", m.intermediate_size);
  required("layers", m.layers);
  if (!sized) return;
  const auto number = [](int64_t value) { return std::to_string(value); };
  if (m.hidden_size % m.heads != 0) {
    return fields.Error("heads", "is " + number(m.heads) + ", which does not divide hiddenSize " +
                                     number(m.hidden_size) + "; choose a divisor");
  }
  if (m.head_dim() % 2 != 0) {
    fields.Error("heads", "gives heads of size " + number(m.head_dim()) +
                              " (hiddenSize / heads); rotary embedding needs an even size");
  }
  if (m.heads % m.kv_heads != 0) {
    fields.Error("kvHeads", "is " + number(m.kv_heads) + ", which does not divide heads " +
                                number(m.heads) + "; choose a divisor");
  }
}

void ParseModel(const Json& json, ModelConfig& m, std::vector<FieldError>& errors) {
  JsonFields fields(json, "model", errors);
  std::string preset;
  fields.Read("preset", preset);
  if (!preset.empty()) {
    Result<ModelConfig> known = ModelPreset(preset);
    if (known.ok()) {
      m = std::move(*known);
    } else {
      fields.Error("preset", known.status().message());
    }
  }
  fields.ReadInt("vocabSize", m.vocab_size, 0, kMaxVocabSize);
  fields.ReadInt("hiddenSize", m.hidden_size, 0, kMaxWidth);
  fields.ReadInt("intermediateSize", m.intermediate_size, 0, kMaxWidth);
  fields.ReadInt("layers", m.layers, 0, kMaxLayers);
  const int64_t preset_heads = m.heads;
  fields.ReadInt("heads", m.heads, 0, kMaxWidth);
  if (m.heads != preset_heads) m.kv_heads = 0;  // follows heads unless given
  fields.ReadInt("kvHeads", m.kv_heads, 0, kMaxWidth);
  fields.ReadReal("ropeTheta", m.rope_theta, 1, 1e12);
  fields.ReadReal("normEps", m.norm_eps, 1e-12, 1);
  fields.Read("tiedEmbeddings", m.tied_embeddings);
  fields.ReadReal("initStd", m.init_std, 1e-9, 10);
  fields.Finish();
  if (preset.empty() || m.hidden_size != 0) CheckModelSizes(fields, m);
}

void ParseData(const Json& json, DataConfig& data, std::vector<FieldError>& errors) {
  JsonFields fields(json, "data", errors);
  fields.Read("path", data.path);
  fields.Read("train", data.train);
  fields.Read("validation", data.validation);
  fields.Read("tokenizer", data.tokenizer);
  fields.ReadInt("seqLen", data.seq_len, 1, kMaxSeqLen);
  fields.Finish();
  if (data.path.empty() && data.train.empty()) {
    fields.Error("path",
                 "is missing; name a folder written by `nibble tokenize`, or list shard "
                 "files under data.train");
  }
}

void ParseOptimizer(const Json& json, OptimizerConfig& o, std::vector<FieldError>& errors) {
  JsonFields fields(json, "optimizer", errors);
  fields.ReadReal("peakLr", o.peak_lr, 0, 1e6);
  fields.ReadReal("minLrRatio", o.min_lr_ratio, 0, 1);
  fields.ReadReal("warmupFraction", o.warmup_fraction, 0, 1);
  fields.ReadReal("weightDecay", o.weight_decay, 0, 10);
  fields.ReadReal("beta1", o.beta1, 0, 0.999999);
  fields.ReadReal("beta2", o.beta2, 0, 0.99999999);
  fields.ReadReal("eps", o.eps, 1e-30, 1);
  fields.ReadReal("clipNorm", o.clip_norm, 0, 1e12);
  fields.Finish();
}

void ParseSchedule(const Json& json, RunConfig& config, std::vector<FieldError>& errors) {
  JsonFields fields(json, "schedule", errors);
  ScheduleConfig& s = config.schedule;
  double tokens = 0;
  fields.ReadInt("steps", s.steps, 0, kMaxSteps);
  fields.ReadReal("tokens", tokens, 0, 1e18);
  fields.ReadInt("microBatch", s.micro_batch, 1, kMaxBatch);
  s.global_batch = s.micro_batch * config.run.world_size;
  fields.ReadInt("globalBatch", s.global_batch, 1, kMaxBatch);
  fields.ReadInt("validateEvery", s.validate_every, 0, kMaxCount);
  fields.ReadInt("validationBatches", s.validation_batches, 1, kMaxCount);
  fields.Finish();
  if ((s.steps > 0) == (tokens > 0)) {
    fields.Error("steps", s.steps > 0 ? "and tokens are both given; give one of them"
                                      : "is missing; give schedule.steps or schedule.tokens");
  }
  const int64_t unit = s.micro_batch * config.run.world_size;
  if (s.global_batch % unit != 0) {
    fields.Error("globalBatch", "is " + std::to_string(s.global_batch) + ", not a multiple of " +
                                    "microBatch x ranks = " + std::to_string(unit));
  }
  if (tokens > 0) {
    const double per_step = static_cast<double>(config.tokens_per_step());
    s.steps = static_cast<int64_t>(std::ceil(tokens / per_step));
  }
}

void ParsePrecision(const Json& json, RunConfig& config, std::vector<FieldError>& errors) {
  JsonFields fields(json, "precision", errors);
  // A name, or a recipe written out in place.
  if (json["recipe"].is_object()) {
    fields.Ignore("recipe");
    config.recipe_json = json["recipe"].Dump();
  } else {
    fields.Read("recipe", config.recipe);
  }
  fields.Read("recipeJson", config.recipe_json);
  fields.Finish();
}

void ParseCheckpoint(const Json& json, CheckpointConfig& c, std::vector<FieldError>& errors) {
  JsonFields fields(json, "checkpoint", errors);
  fields.ReadInt("everySteps", c.every_steps, 0, kMaxCount);
  fields.ReadInt("keepLast", c.keep_last, 1, 1000);
  fields.ReadInt("keepBest", c.keep_best, 0, 1000);
  fields.Read("resumeFrom", c.resume_from);
  fields.Finish();
}

void ParseMemory(const Json& json, MemoryConfig& memory, std::vector<FieldError>& errors) {
  JsonFields fields(json, "memory", errors);
  std::string recompute;
  fields.Read("recompute", recompute);
  Result<Recompute> parsed = ParseRecompute(recompute);
  if (parsed.ok()) {
    memory.recompute = *parsed;
  } else {
    fields.Error("recompute", parsed.status().message());
  }
  fields.Read("offloadOptimizer", memory.offload_optimizer);
  std::string activations = ActivationsName(memory.activations);
  fields.Read("activations", activations);
  if (activations == ActivationsName(Activations::kBf16)) {
    memory.activations = Activations::kBf16;
  } else if (!activations.empty() && activations != ActivationsName(Activations::kFp32)) {
    fields.Error("activations", "is \"" + activations + "\"; expected \"fp32\" or \"bf16\"");
  }
  fields.Finish();
}

void ParseRun(const Json& json, RunSection& run, std::vector<FieldError>& errors) {
  JsonFields fields(json, "run", errors);
  fields.Read("dir", run.dir);
  fields.Read("jobId", run.job_id);
  fields.ReadInt("attempt", run.attempt, 1, kMaxCount);
  fields.ReadInt("epoch", run.epoch, 0, std::numeric_limits<int64_t>::max());
  fields.ReadInt("worldSize", run.world_size, 1, 1 << 16);
  fields.ReadInt("rank", run.rank, 0, run.world_size - 1);
  fields.ReadInt("threads", run.threads, 0, 4096);
  fields.Read("backend", run.backend);
  if (run.backend != kBackendCpu && run.backend != kBackendCuda) {
    fields.Error("backend", "is \"" + run.backend + "\"; expected \"cpu\" or \"cuda\"");
  }
  fields.Read("journal", run.journal);
  fields.Read("communicator", run.communicator);
  if (run.communicator != kCommunicatorSingle && run.communicator != kCommunicatorNccl) {
    fields.Error("communicator",
                 "is \"" + run.communicator + "\"; expected \"single\" or \"nccl\"");
  } else if (run.communicator == kCommunicatorNccl && run.backend != kBackendCuda) {
    fields.Error("communicator",
                 "is \"nccl\", which moves memory of backend \"cuda\"; the run's "
                 "is \"" +
                     run.backend + "\"");
  }
  fields.Finish();
}

// Keys of JobSpec that the scheduler reads and a trainer does not.
constexpr const char* kSchedulerKeys[] = {"queue",     "priority",  "priorityClass", "resources",
                                          "placement", "timeLimit", "startTimeout",  "stallTimeout",
                                          "retry",     "env"};

}  // namespace

const char* ActivationsName(Activations activations) {
  return activations == Activations::kBf16 ? "bf16" : "fp32";
}

RunConfig ParseRunConfig(const Json& json, std::vector<FieldError>& errors) {
  RunConfig config;
  JsonFields fields(json, "", errors);
  std::string api_version = "nibble/v1", kind = "TrainJob";
  fields.Read("apiVersion", api_version);
  fields.Read("kind", kind);
  if (api_version != "nibble/v1") {
    fields.Error("apiVersion", "is '" + api_version + "'; this release reads nibble/v1");
  }
  if (kind != "TrainJob") fields.Error("kind", "is '" + kind + "'; this release reads TrainJob");
  const Json& metadata = fields.Section("metadata");
  config.name = metadata["name"].AsString();
  for (const char* key : kSchedulerKeys) fields.Ignore(key);
  int64_t seed = config.seed;
  fields.ReadInt("seed", seed, 0, std::numeric_limits<uint32_t>::max());
  config.seed = static_cast<uint32_t>(seed);
  ParseRun(fields.Section("run"), config.run, errors);
  ParseModel(fields.Section("model"), config.model, errors);
  ParseData(fields.Section("data"), config.data, errors);
  ParseOptimizer(fields.Section("optimizer"), config.optimizer, errors);
  ParseSchedule(fields.Section("schedule"), config, errors);
  ParsePrecision(fields.Section("precision"), config, errors);
  ParseCheckpoint(fields.Section("checkpoint"), config.checkpoint, errors);
  JsonFields metrics(fields.Section("metrics"), "metrics", errors);
  metrics.ReadInt("every", config.metrics.every, 1, kMaxCount);
  metrics.ReadInt("healthEvery", config.metrics.health_every, 0, kMaxCount);
  metrics.Finish();
  ParseMemory(fields.Section("memory"), config.memory, errors);
  fields.Finish();
  return config;
}

Result<RunConfig> RunConfigFromJson(const Json& json) {
  std::vector<FieldError> errors;
  RunConfig config = ParseRunConfig(json, errors);
  if (errors.empty()) return config;
  std::vector<std::string> lines;
  for (const FieldError& error : errors) lines.push_back(error.field + " " + error.description);
  return InvalidArgumentError(StrJoin(lines, "\n"));
}

Json RunConfigToJson(const RunConfig& c) {
  const auto strings = [](const std::vector<std::string>& texts) {
    Json array = Json::Array();
    for (const std::string& text : texts) array.Append(text);
    return array;
  };
  Json model = Json::Object({{"preset", c.model.preset},
                             {"vocabSize", c.model.vocab_size},
                             {"hiddenSize", c.model.hidden_size},
                             {"intermediateSize", c.model.intermediate_size},
                             {"layers", c.model.layers},
                             {"heads", c.model.heads},
                             {"kvHeads", c.model.kv_heads},
                             {"ropeTheta", c.model.rope_theta},
                             {"normEps", c.model.norm_eps},
                             {"tiedEmbeddings", c.model.tied_embeddings},
                             {"initStd", c.model.init_std}});
  Json data = Json::Object({{"path", c.data.path},
                            {"train", strings(c.data.train)},
                            {"validation", strings(c.data.validation)},
                            {"tokenizer", c.data.tokenizer},
                            {"seqLen", c.data.seq_len}});
  Json optimizer = Json::Object({{"peakLr", c.optimizer.peak_lr},
                                 {"minLrRatio", c.optimizer.min_lr_ratio},
                                 {"warmupFraction", c.optimizer.warmup_fraction},
                                 {"weightDecay", c.optimizer.weight_decay},
                                 {"beta1", c.optimizer.beta1},
                                 {"beta2", c.optimizer.beta2},
                                 {"eps", c.optimizer.eps},
                                 {"clipNorm", c.optimizer.clip_norm}});
  Json schedule = Json::Object({{"steps", c.schedule.steps},
                                {"microBatch", c.schedule.micro_batch},
                                {"globalBatch", c.schedule.global_batch},
                                {"validateEvery", c.schedule.validate_every},
                                {"validationBatches", c.schedule.validation_batches}});
  Json checkpoint = Json::Object({{"everySteps", c.checkpoint.every_steps},
                                  {"keepLast", c.checkpoint.keep_last},
                                  {"keepBest", c.checkpoint.keep_best},
                                  {"resumeFrom", c.checkpoint.resume_from}});
  Json run = Json::Object({{"dir", c.run.dir},
                           {"jobId", c.run.job_id},
                           {"attempt", c.run.attempt},
                           {"epoch", c.run.epoch},
                           {"rank", c.run.rank},
                           {"worldSize", c.run.world_size},
                           {"threads", c.run.threads},
                           {"backend", c.run.backend},
                           {"journal", c.run.journal},
                           {"communicator", c.run.communicator}});
  return Json::Object(
      {{"apiVersion", "nibble/v1"},
       {"kind", "TrainJob"},
       {"metadata", Json::Object({{"name", c.name}})},
       {"seed", static_cast<int64_t>(c.seed)},
       {"model", std::move(model)},
       {"data", std::move(data)},
       {"optimizer", std::move(optimizer)},
       {"schedule", std::move(schedule)},
       {"precision", Json::Object({{"recipe", c.recipe}, {"recipeJson", c.recipe_json}})},
       {"checkpoint", std::move(checkpoint)},
       {"metrics",
        Json::Object({{"every", c.metrics.every}, {"healthEvery", c.metrics.health_every}})},
       {"memory", Json::Object({{"recompute", RecomputeText(c.memory.recompute)},
                                {"offloadOptimizer", c.memory.offload_optimizer},
                                {"activations", ActivationsName(c.memory.activations)}})},
       {"run", std::move(run)}});
}

}  // namespace nibble
