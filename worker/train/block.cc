// SPDX-License-Identifier: Apache-2.0
#include "worker/train/block.h"

namespace nibble {
namespace {

// Random streams: each quantized tensor of the model has its own number. A block has four inputs
// and seven layers; 16 leaves room.
constexpr uint32_t kStreamsPerBlock = 16;
constexpr int kInputs = 4;
constexpr BlockParameter kLinears[] = {
    BlockParameter::kQuery, BlockParameter::kKey, BlockParameter::kValue, BlockParameter::kOutput,
    BlockParameter::kGate,  BlockParameter::kUp,  BlockParameter::kDown};

// Position in kLinears: the two norms are left out.
size_t LinearIndex(BlockParameter which) {
  const auto position = static_cast<size_t>(which);
  return position < static_cast<size_t>(BlockParameter::kPostNorm) ? position - 1 : position - 2;
}

}  // namespace

TransformerBlock::TransformerBlock(LinearWorkspace* workspace, const ModelConfig& model,
                                   const LinearRecipe& recipe, int64_t layer,
                                   Parameters* parameters, const BlockViews& views)
    : backend_(workspace->backend()),
      model_(model),
      layer_(layer),
      parameters_(*parameters),
      views_(views) {
  const uint32_t stream = static_cast<uint32_t>(layer) * kStreamsPerBlock;
  for (int i = 0; i < kInputs; ++i) {
    inputs_.emplace_back(workspace, recipe, stream + static_cast<uint32_t>(i));
  }
  for (const BlockParameter which : kLinears) {
    const auto number = static_cast<uint32_t>(kInputs + LinearIndex(which));
    linears_.emplace_back(workspace, recipe, stream + number);
  }
}

QuantizedLinear& TransformerBlock::linear(BlockParameter which) {
  return linears_[LinearIndex(which)];
}

TensorView TransformerBlock::weight(BlockParameter which) const {
  return parameters_.weight(parameters_.IndexOf(layer_, which));
}

TensorView TransformerBlock::gradient(BlockParameter which) const {
  return parameters_.gradient(parameters_.IndexOf(layer_, which));
}

Status TransformerBlock::Project(const BlockPass& pass, BlockParameter which, Input input,
                                 TensorView y) {
  return linear(which).Forward(pass.step, inputs_[input], weight(which), pass.weight_version, y);
}

Status TransformerBlock::ProjectBackward(const BlockPass& pass, BlockParameter which, Input input,
                                         ConstTensorView dy, TensorView dx, bool accumulate_dx) {
  return linear(which).Backward(pass.step, dy, inputs_[input], weight(which), pass.weight_version,
                                dx, accumulate_dx, gradient(which));
}

RopeParams TransformerBlock::Rope(const BlockPass& pass, int64_t heads) const {
  return {pass.sequences, pass.seq_len, heads, model_.head_dim(), 0, model_.rope_theta};
}

AttentionParams TransformerBlock::Attention(const BlockPass& pass) const {
  return {pass.sequences,  pass.seq_len,      pass.seq_len, model_.heads,
          model_.kv_heads, model_.head_dim(), pass.mode};
}

Status TransformerBlock::Forward(const BlockPass& pass, TensorView output) {
  using P = BlockParameter;
  const float epsilon = static_cast<float>(model_.norm_eps);
  const BlockViews& v = views_;

  RETURN_IF_ERROR(backend_.RmsNormForward(v.input, weight(P::kInputNorm), epsilon, v.attention_in,
                                          v.input_rstd));
  RETURN_IF_ERROR(inputs_[kAttentionIn].Set(pass.step, v.attention_in));
  RETURN_IF_ERROR(Project(pass, P::kQuery, kAttentionIn, v.query));
  RETURN_IF_ERROR(Project(pass, P::kKey, kAttentionIn, v.key));
  RETURN_IF_ERROR(Project(pass, P::kValue, kAttentionIn, v.value));
  RETURN_IF_ERROR(backend_.RopeForward(Rope(pass, model_.heads), v.query));
  RETURN_IF_ERROR(backend_.RopeForward(Rope(pass, model_.kv_heads), v.key));
  RETURN_IF_ERROR(
      backend_.AttentionForward(Attention(pass), v.query, v.key, v.value, v.attention_out, v.lse));
  RETURN_IF_ERROR(inputs_[kAttentionOut].Set(pass.step, v.attention_out));
  RETURN_IF_ERROR(Project(pass, P::kOutput, kAttentionOut, v.middle));
  RETURN_IF_ERROR(backend_.Add(v.middle, v.input, v.middle));

  RETURN_IF_ERROR(
      backend_.RmsNormForward(v.middle, weight(P::kPostNorm), epsilon, v.mlp_in, v.middle_rstd));
  RETURN_IF_ERROR(inputs_[kMlpIn].Set(pass.step, v.mlp_in));
  RETURN_IF_ERROR(Project(pass, P::kGate, kMlpIn, v.gate));
  RETURN_IF_ERROR(Project(pass, P::kUp, kMlpIn, v.up));
  RETURN_IF_ERROR(backend_.SwiGluForward(v.gate, v.up, v.mlp_hidden));
  RETURN_IF_ERROR(inputs_[kMlpHidden].Set(pass.step, v.mlp_hidden));
  RETURN_IF_ERROR(Project(pass, P::kDown, kMlpHidden, output));
  return backend_.Add(output, v.middle, output);
}

Status TransformerBlock::MlpBackward(const BlockPass& pass, const GradientViews& g) {
  using P = BlockParameter;
  const BlockViews& v = views_;
  RETURN_IF_ERROR(ProjectBackward(pass, P::kDown, kMlpHidden, g.stream, g.hidden, false));
  RETURN_IF_ERROR(backend_.SwiGluBackward(g.hidden, v.gate, v.up, v.gate, v.up));
  RETURN_IF_ERROR(ProjectBackward(pass, P::kGate, kMlpIn, v.gate, g.branch, false));
  RETURN_IF_ERROR(ProjectBackward(pass, P::kUp, kMlpIn, v.up, g.branch, true));
  // The residual path keeps the stream's gradient; the norm's path adds to it.
  return backend_.RmsNormBackward(g.branch, v.middle, weight(P::kPostNorm), v.middle_rstd, g.stream,
                                  true, gradient(P::kPostNorm));
}

Status TransformerBlock::Backward(const BlockPass& pass, const GradientViews& g) {
  using P = BlockParameter;
  const BlockViews& v = views_;
  RETURN_IF_ERROR(MlpBackward(pass, g));
  RETURN_IF_ERROR(ProjectBackward(pass, P::kOutput, kAttentionOut, g.stream, g.branch, false));
  RETURN_IF_ERROR(backend_.AttentionBackward(Attention(pass), g.branch, v.query, v.key, v.value,
                                             v.attention_out, v.lse, g.query, g.key, g.value));
  RETURN_IF_ERROR(backend_.RopeBackward(Rope(pass, model_.heads), g.query));
  RETURN_IF_ERROR(backend_.RopeBackward(Rope(pass, model_.kv_heads), g.key));
  RETURN_IF_ERROR(ProjectBackward(pass, P::kQuery, kAttentionIn, g.query, g.branch, false));
  RETURN_IF_ERROR(ProjectBackward(pass, P::kKey, kAttentionIn, g.key, g.branch, true));
  RETURN_IF_ERROR(ProjectBackward(pass, P::kValue, kAttentionIn, g.value, g.branch, true));
  return backend_.RmsNormBackward(g.branch, v.input, weight(P::kInputNorm), v.input_rstd, g.stream,
                                  true, gradient(P::kInputNorm));
}

}  // namespace nibble
