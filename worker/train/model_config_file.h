// SPDX-License-Identifier: Apache-2.0
//
// config.json of a checkpoint: the model's sizes as Hugging Face's LlamaForCausalLM reads them.
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "base/json.h"
#include "base/status.h"
#include "worker/spec/run_config.h"

namespace nibble {

// `max_positions` is the length trained on; token ids of kNoToken (-1) are left out.
Json ModelConfigToHuggingFace(const ModelConfig& model, int64_t max_positions, int32_t bos_id,
                              int32_t eos_id);

struct HuggingFaceModel {
  ModelConfig model;
  int64_t max_positions = 0;
};

// The inverse. INVALID_ARGUMENT naming the key for another architecture, a missing size, or a
// feature this model lacks (attention or MLP bias, scaled RoPE, another activation).
Result<HuggingFaceModel> ModelConfigFromHuggingFace(const Json& json);

}  // namespace nibble
