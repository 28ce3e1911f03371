// SPDX-License-Identifier: Apache-2.0
#include "worker/train/model_config_file.h"

#include "base/strings.h"

namespace nibble {

Json ModelConfigToHuggingFace(const ModelConfig& model, int64_t max_positions, int32_t bos_id,
                              int32_t eos_id) {
  Json json = Json::Object({{"architectures", Json::Array({"LlamaForCausalLM"})},
                            {"model_type", "llama"},
                            {"torch_dtype", "float32"},
                            {"vocab_size", model.vocab_size},
                            {"hidden_size", model.hidden_size},
                            {"intermediate_size", model.intermediate_size},
                            {"num_hidden_layers", model.layers},
                            {"num_attention_heads", model.heads},
                            {"num_key_value_heads", model.kv_heads},
                            {"head_dim", model.head_dim()},
                            {"hidden_act", "silu"},
                            {"max_position_embeddings", max_positions},
                            {"rms_norm_eps", model.norm_eps},
                            {"rope_theta", model.rope_theta},
                            {"attention_bias", false},
                            {"mlp_bias", false},
                            {"tie_word_embeddings", model.tied_embeddings},
                            {"initializer_range", model.init_std},
                            {"use_cache", true}});
  if (bos_id >= 0) json.Set("bos_token_id", bos_id);
  if (eos_id >= 0) json.Set("eos_token_id", eos_id);
  return json;
}

Result<HuggingFaceModel> ModelConfigFromHuggingFace(const Json& json) {
  const auto refuse = [](const std::string& why) {
    return InvalidArgumentError("config.json: " + why);
  };
  const std::string& type = json["model_type"].AsString();
  if (type != "llama") return refuse("model_type is '" + type + "'; this program reads llama");
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (json[key].AsBool()) return refuse(std::string(key) + " is true; biases are not supported");
  }
  if (!json["rope_scaling"].is_null()) return refuse("rope_scaling is set; it is not supported");
  const std::string& act = json["hidden_act"].AsString();
  if (act != "silu") return refuse("hidden_act is '" + act + "'; this program has silu");

  HuggingFaceModel out;
  ModelConfig& m = out.model;
  m.kv_heads = json["num_attention_heads"].AsInt();
  const std::pair<const char*, int64_t*> sizes[] = {
      {"vocab_size", &m.vocab_size},
      {"hidden_size", &m.hidden_size},
      {"intermediate_size", &m.intermediate_size},
      {"num_hidden_layers", &m.layers},
      {"num_attention_heads", &m.heads},
      {"num_key_value_heads", &m.kv_heads},
      {"max_position_embeddings", &out.max_positions}};
  for (const auto& [key, value] : sizes) {
    *value = json[key].AsInt(*value);
    if (*value < 1 || *value > (int64_t{1} << 31)) {
      return refuse(StrFormat("%s is %lld or missing", key, static_cast<long long>(*value)));
    }
  }
  if (m.hidden_size % m.heads != 0 || m.heads % m.kv_heads != 0 || m.head_dim() % 2 != 0 ||
      json["head_dim"].AsInt(m.head_dim()) != m.head_dim()) {
    return refuse("hidden_size, num_attention_heads, num_key_value_heads and head_dim do not fit");
  }
  m.norm_eps = json["rms_norm_eps"].AsDouble(m.norm_eps);
  m.rope_theta = json["rope_theta"].AsDouble(m.rope_theta);
  m.tied_embeddings = json["tie_word_embeddings"].AsBool();
  m.init_std = json["initializer_range"].AsDouble(m.init_std);
  return out;
}

}  // namespace nibble
