// SPDX-License-Identifier: Apache-2.0
//
// Checkpoint: one folder that holds everything a run needs to go on, or another program to use the
// model. docs/reference/checkpoints.md specifies the files.
//
// Thread-safety: free functions; one thread, the backend's caller.
// Invariants: manifest.json is written last and lists size and SHA-256 of every other file; a
// folder without it, or with a file that differs from it, is no checkpoint.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "kernels/backend.h"
#include "worker/data/token_dataset.h"
#include "worker/spec/run_config.h"
#include "worker/train/hashed_file.h"
#include "worker/train/model_config_file.h"
#include "worker/train/parameters.h"

namespace nibble {

inline constexpr char kManifestFileName[] = "manifest.json";
inline constexpr char kStateFileName[] = "state.json";
inline constexpr char kConfigFileName[] = "config.json";
inline constexpr char kWeightsFileName[] = "model.safetensors";
inline constexpr char kOptimizerFileName[] = "optimizer.safetensors";
inline constexpr char kRecipeFileName[] = "recipe.safetensors";  // only where a recipe has state

// What is no tensor: state.json.
struct TrainingState {
  int64_t step = 0;  // optimizer steps done
  int64_t tokens = 0;
  DataCursor cursor;
  std::string data_fingerprint;
  uint32_t seed = 0;
  std::string recipe;
  int64_t stage = -1;                          // of the recipe; -1: before the first
  double train_loss = 0;                       // of the last step
  std::optional<double> validation_loss;       // measured after this very step
  std::optional<double> best_validation_loss;  // smallest of the run so far
  std::string weights_sha256;
  int64_t attempt = 1;
  int64_t epoch = 0;
  Json spec;                     // the run config
  RecipeTensors recipe_tensors;  // a file of their own

  Json ToJson() const;
  // DATA_LOSS naming the key.
  static Result<TrainingState> FromJson(const Json& json);
};

// What a checkpoint is made of, beside the tensors.
struct CheckpointContent {
  TrainingState state;
  ModelConfig model;
  int64_t seq_len = 0;
  std::vector<std::string> tokenizer_files;  // copied under their own names
  int32_t bos_id = -1;
  int32_t eos_id = -1;
};

// Writes all files into `folder`, which must exist and be empty; everything is on disk afterwards.
// Returns the bytes written. RESOURCE_EXHAUSTED when the disk is full; the folder is then partial.
Result<int64_t> WriteCheckpoint(const std::string& folder, Backend& backend,
                                const Parameters& parameters, const CheckpointContent& content);

struct ManifestEntry {
  std::string name;
  FileDigest digest;
};
// Reads manifest.json. NOT_FOUND without one; DATA_LOSS when malformed.
Result<std::vector<ManifestEntry>> ReadManifest(const std::string& folder);

// Compares every file with the manifest. DATA_LOSS naming the file and both digests or sizes.
Result<std::vector<ManifestEntry>> VerifyCheckpoint(const std::string& folder);

// recipe.safetensors; empty without the file. DATA_LOSS for a damaged one.
Result<RecipeTensors> ReadRecipeTensors(const std::string& folder);

// state.json and config.json of a folder; DATA_LOSS or INVALID_ARGUMENT naming the file.
Result<TrainingState> ReadTrainingState(const std::string& folder);
Result<HuggingFaceModel> ReadModelConfig(const std::string& folder);

// The safetensors name of a type; codes (u8) are E4M3.
const char* CheckpointType(DType type);

// Fills `parameters` from the folder: weights, and both moments when `with_optimizer`. Weights may
// be F32, BF16 or F16. FAILED_PRECONDITION when a tensor is missing or has another shape than the
// model, or a moment another type than the recipe's; DATA_LOSS for damaged files.
Status LoadTensors(const std::string& folder, Backend& backend, bool with_optimizer,
                   Parameters* parameters);

}  // namespace nibble
