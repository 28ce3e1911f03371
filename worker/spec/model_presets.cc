// SPDX-License-Identifier: Apache-2.0
//
// Model presets: LLaMA-2 shapes from 9M to 13B parameters (vocabulary 32000, untied head).
// 7b and 13b are the published models (width, depth and heads in arXiv 2302.13971, table 2; the
// SwiGLU width is 8/3 of the hidden size rounded up to 256). The smaller ones keep that rule,
// rounded up to 32, with heads of 64 (128 from 1.3b on).
#include "base/strings.h"
#include "worker/spec/run_config.h"

namespace nibble {
namespace {

struct Preset {
  const char* name;
  int hidden_size, intermediate_size, layers, heads;
};

constexpr Preset kPresets[] = {
    {"llama2-9m", 128, 352, 4, 2},       {"llama2-60m", 512, 1376, 8, 8},
    {"llama2-130m", 768, 2048, 12, 12},  {"llama2-400m", 1024, 2752, 24, 16},
    {"llama2-1.3b", 2048, 5504, 24, 16}, {"llama2-7b", 4096, 11008, 32, 32},
    {"llama2-13b", 5120, 13824, 40, 40}};
constexpr int kVocabSize = 32000;

}  // namespace

const std::vector<std::string>& ModelPresetNames() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> out;
    for (const Preset& preset : kPresets) out.emplace_back(preset.name);
    return out;
  }();
  return names;
}

Result<ModelConfig> ModelPreset(const std::string& name) {
  for (const Preset& preset : kPresets) {
    if (name != preset.name) continue;
    ModelConfig model;
    model.preset = name;
    model.vocab_size = kVocabSize;
    model.hidden_size = preset.hidden_size;
    model.intermediate_size = preset.intermediate_size;
    model.layers = preset.layers;
    model.heads = model.kv_heads = preset.heads;
    return model;
  }
  return NotFoundError(UnknownNameMessage("model preset", name, ModelPresetNames()));
}

}  // namespace nibble
