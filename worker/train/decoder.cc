// SPDX-License-Identifier: Apache-2.0
#include "worker/train/decoder.h"

#include <algorithm>

#include "base/strings.h"

namespace nibble {

Result<Decoder> Decoder::Create(Backend* backend, const Parameters* parameters,
                                const ModelConfig& model, int64_t max_positions) {
  Decoder decoder(backend, parameters, model, max_positions);
  const int64_t rows = model.layers * max_positions;
  RETURN_IF_ERROR(decoder.keys_.View(*backend, rows, model.kv_size()).status());
  RETURN_IF_ERROR(decoder.values_.View(*backend, rows, model.kv_size()).status());
  RETURN_IF_ERROR(decoder.ViewsFor(std::min(kChunkTokens, max_positions)).status());
  return decoder;
}

Result<Decoder::Views> Decoder::ViewsFor(int64_t tokens) {
  const int64_t d = model_.hidden_size, f = model_.intermediate_size;
  Views v;
  ASSIGN_OR_RETURN(v.x, x_.View(backend_, tokens, d));
  ASSIGN_OR_RETURN(v.norm, norm_.View(backend_, tokens, d));
  ASSIGN_OR_RETURN(v.rstd, rstd_.View(backend_, 1, tokens));
  ASSIGN_OR_RETURN(v.query, query_.View(backend_, tokens, d));
  ASSIGN_OR_RETURN(v.attention, attention_.View(backend_, tokens, d));
  ASSIGN_OR_RETURN(v.lse, lse_.View(backend_, model_.heads, tokens));
  ASSIGN_OR_RETURN(v.gate, gate_.View(backend_, tokens, f));
  ASSIGN_OR_RETURN(v.up, up_.View(backend_, tokens, f));
  ASSIGN_OR_RETURN(v.logits, logits_.View(backend_, tokens, model_.vocab_size));
  ASSIGN_OR_RETURN(v.ids, ids_.View(backend_, 1, tokens, DType::kI32));
  return v;
}

Status Decoder::RunBlock(int64_t layer, const Views& v, int64_t tokens) {
  using P = BlockParameter;
  const auto weight = [&](P which) {
    return parameters_.weight(parameters_.IndexOf(layer, which));
  };
  const auto project = [&](TensorView x, P which, TensorView y) {
    return backend_.Gemm(GemmMode::kF32, x, Transpose::kNo, weight(which), Transpose::kYes, false,
                         y);
  };
  const float epsilon = static_cast<float>(model_.norm_eps);
  const int64_t cache_rows = model_.layers * max_positions_;
  const TensorView all_keys{keys_.data(), cache_rows, model_.kv_size(), DType::kF32};
  const TensorView all_values{values_.data(), cache_rows, model_.kv_size(), DType::kF32};
  const TensorView keys = all_keys.Rows(layer * max_positions_, position_ + tokens);
  const TensorView values = all_values.Rows(layer * max_positions_, position_ + tokens);
  const TensorView new_keys = keys.Rows(position_, tokens);

  RETURN_IF_ERROR(backend_.RmsNormForward(v.x, weight(P::kInputNorm), epsilon, v.norm, v.rstd));
  RETURN_IF_ERROR(project(v.norm, P::kQuery, v.query));
  RETURN_IF_ERROR(project(v.norm, P::kKey, new_keys));
  RETURN_IF_ERROR(project(v.norm, P::kValue, values.Rows(position_, tokens)));
  RopeParams rope{1, tokens, model_.heads, model_.head_dim(), position_, model_.rope_theta};
  RETURN_IF_ERROR(backend_.RopeForward(rope, v.query, v.query));
  rope.heads = model_.kv_heads;
  RETURN_IF_ERROR(backend_.RopeForward(rope, new_keys, new_keys));
  const AttentionParams attention{1,
                                  tokens,
                                  position_ + tokens,
                                  model_.heads,
                                  model_.kv_heads,
                                  model_.head_dim(),
                                  GemmMode::kF32};
  RETURN_IF_ERROR(backend_.AttentionForward(attention, v.query, keys, values, v.attention, v.lse));
  RETURN_IF_ERROR(project(v.attention, P::kOutput, v.norm));
  RETURN_IF_ERROR(backend_.Add(v.x, v.norm, v.x));

  RETURN_IF_ERROR(backend_.RmsNormForward(v.x, weight(P::kPostNorm), epsilon, v.norm, v.rstd));
  RETURN_IF_ERROR(project(v.norm, P::kGate, v.gate));
  RETURN_IF_ERROR(project(v.norm, P::kUp, v.up));
  RETURN_IF_ERROR(backend_.SwiGluForward(v.gate, v.up, v.gate));
  RETURN_IF_ERROR(project(v.gate, P::kDown, v.norm));
  return backend_.Add(v.x, v.norm, v.x);
}

Status Decoder::AppendChunk(std::span<const int32_t> ids, float* logits) {
  const auto tokens = static_cast<int64_t>(ids.size());
  ASSIGN_OR_RETURN(const Views v, ViewsFor(tokens));
  RETURN_IF_ERROR(backend_.CopyIn(v.ids.data, ids.data(), v.ids.size_bytes()));
  RETURN_IF_ERROR(
      backend_.EmbeddingForward(parameters_.weight(parameters_.embedding()), v.ids, v.x));
  for (int64_t layer = 0; layer < model_.layers; ++layer) {
    RETURN_IF_ERROR(RunBlock(layer, v, tokens));
  }
  RETURN_IF_ERROR(backend_.RmsNormForward(v.x, parameters_.weight(parameters_.final_norm()),
                                          static_cast<float>(model_.norm_eps), v.norm, v.rstd));
  RETURN_IF_ERROR(backend_.Gemm(GemmMode::kF32, v.norm, Transpose::kNo,
                                parameters_.weight(parameters_.head()), Transpose::kYes, false,
                                v.logits));
  RETURN_IF_ERROR(backend_.CopyOut(logits, v.logits.data, v.logits.size_bytes()));
  position_ += tokens;
  return OkStatus();
}

Result<std::vector<float>> Decoder::Append(std::span<const int32_t> ids) {
  const auto count = static_cast<int64_t>(ids.size());
  if (position_ + count > max_positions_) {
    return OutOfRangeError(
        StrFormat("%lld tokens after %lld exceed the %lld positions of the "
                  "model",
                  static_cast<long long>(count), static_cast<long long>(position_),
                  static_cast<long long>(max_positions_)));
  }
  std::vector<float> logits(ids.size() * static_cast<size_t>(model_.vocab_size));
  for (int64_t begin = 0; begin < count; begin += kChunkTokens) {
    const int64_t tokens = std::min(kChunkTokens, count - begin);
    RETURN_IF_ERROR(
        AppendChunk(ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(tokens)),
                    logits.data() + begin * model_.vocab_size));
  }
  return logits;
}

}  // namespace nibble
