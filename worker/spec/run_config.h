// SPDX-License-Identifier: Apache-2.0
//
// RunConfig: everything one training run needs to know, and its JSON form run.json.
//
// run.json is the JSON form of nibble.v1.JobSpec (proto/nibble/v1/job.proto, lowerCamelCase) plus a
// "run" section. Keys that only the scheduler reads (queue, resources, ...) are accepted and
// ignored here; keys nobody knows are refused by name. docs/reference/job-spec.md lists all.
// Thread-safety: value types, thread-compatible.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "worker/spec/recompute.h"

namespace nibble {

// Sizes of a LLaMA-architecture decoder. head_dim = hidden_size / heads.
struct ModelConfig {
  std::string preset;      // "" when all sizes were given
  int64_t vocab_size = 0;  // 0 = take it from the tokenizer (resolved by the trainer)
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;  // divides heads
  double rope_theta = 10000;
  double norm_eps = 1e-5;
  bool tied_embeddings = false;
  double init_std = 0.02;

  int64_t head_dim() const { return hidden_size / heads; }
  int64_t kv_size() const { return kv_heads * head_dim(); }
};

struct DataConfig {
  std::string path;                     // folder written by `nibble tokenize`
  std::vector<std::string> train;       // files or globs; default path/train-*.bin
  std::vector<std::string> validation;  // files or globs; default path/val-*.bin; may be empty
  std::string tokenizer;                // default: the file path/index.json names
  int64_t seq_len = 256;
};

struct OptimizerConfig {
  double peak_lr = 3e-4;
  double min_lr_ratio = 0.1;
  double warmup_fraction = 0.05;
  double weight_decay = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double clip_norm = 1.0;  // 0 = off
};

struct ScheduleConfig {
  int64_t steps = 0;           // resolved: never 0 after ParseRunConfig
  int64_t micro_batch = 8;     // sequences
  int64_t global_batch = 8;    // sequences per optimizer step, multiple of micro_batch * ranks
  int64_t validate_every = 0;  // steps; 0 = first and last only
  int64_t validation_batches = 8;
};

struct CheckpointConfig {
  int64_t every_steps = 0;  // 0 = at the end and when stopped
  int64_t keep_last = 2;
  int64_t keep_best = 1;
  std::string resume_from;  // checkpoint folder; "" = the newest in the run folder, else scratch
};

struct MetricsConfig {
  int64_t every = 1;
  int64_t health_every = 50;  // 0 = off
};

// What a block keeps for backward of its projections: query and key after their rotation, value,
// the output of attention, gate and up. kBf16: their values are rounded to BF16, nearest even,
// once, before anything reads them. The residual stream, statistics of rows and gradients stay
// FP32.
enum class Activations : uint8_t { kFp32, kBf16 };
const char* ActivationsName(Activations activations);  // "fp32", "bf16"

struct MemoryConfig {
  Recompute recompute;             // parts of the forward pass formed again in backward
  bool offload_optimizer = false;  // a device's AdamW moments stay in host memory
  Activations activations = Activations::kFp32;
};

inline constexpr char kBackendCpu[] = "cpu";
inline constexpr char kBackendCuda[] = "cuda";

inline constexpr char kCommunicatorSingle[] = "single";
inline constexpr char kCommunicatorNccl[] = "nccl";

// What the worker adds: who and where this process is.
struct RunSection {
  std::string dir;     // journal, checkpoints and logs go below it
  std::string job_id;  // "" when run by hand
  int64_t attempt = 1;
  int64_t epoch = 0;
  int64_t rank = 0;
  int64_t world_size = 1;
  int64_t threads = 0;                             // 0 = all cores
  std::string backend = kBackendCpu;               // or kBackendCuda: the device the step runs on
  bool journal = false;                            // write dir/journal.jsonl
  std::string communicator = kCommunicatorSingle;  // or kCommunicatorNccl, with kBackendCuda
};

struct RunConfig {
  std::string name;
  ModelConfig model;
  DataConfig data;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  std::string recipe = "fp4_foldi8";  // name of a built-in recipe
  std::string recipe_json;            // or a recipe written out; then `recipe` is its name
  CheckpointConfig checkpoint;
  MetricsConfig metrics;
  MemoryConfig memory;
  uint32_t seed = 1234;
  RunSection run;

  int64_t tokens_per_step() const { return schedule.global_batch * data.seq_len; }
  int64_t accumulation_steps() const {
    return schedule.global_batch / (schedule.micro_batch * run.world_size);
  }
};

// One mistake in a spec: the path of the field ("model.heads") and value, limit and fix.
struct FieldError {
  std::string field;
  std::string description;
};

// Parses and validates; every mistake is reported, not only the first. On success `errors` is
// empty. Missing keys take the defaults above; presets are resolved; tokens become steps.
RunConfig ParseRunConfig(const Json& json, std::vector<FieldError>& errors);

// The same for a caller that wants a Status: INVALID_ARGUMENT listing every mistake.
Result<RunConfig> RunConfigFromJson(const Json& json);

// The inverse: RunConfigFromJson(RunConfigToJson(c)) == c in every field.
Json RunConfigToJson(const RunConfig& config);

// llama2-9m, llama2-60m, llama2-130m, llama2-400m, llama2-1.3b, llama2-7b, llama2-13b.
const std::vector<std::string>& ModelPresetNames();
// NOT_FOUND listing the known names.
Result<ModelConfig> ModelPreset(const std::string& name);

}  // namespace nibble
