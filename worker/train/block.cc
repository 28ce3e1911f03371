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
                                   const std::array<LinearRecipe, kLinearKinds>& recipes,
                                   int64_t layer, Parameters* parameters, const BlockViews& views,
                                   const Recompute& recompute, RecomputedInputs* recomputed)
    : backend_(workspace->backend()),
      model_(model),
      layer_(layer),
      parameters_(*parameters),
      views_(views) {
  if (layer + 1 < model.layers) recompute_ = recompute;
  const uint32_t stream = static_cast<uint32_t>(layer) * kStreamsPerBlock;
  // By LinearKind.
  static constexpr Input kSources[kLinearKinds] = {
      kAttentionIn, kAttentionIn, kAttentionIn, kAttentionOut, kMlpIn, kMlpIn, kMlpHidden};
  static constexpr size_t kFirstOf[kInputs] = {0, 3, 4, 6};  // a LinearKind
  std::vector<const LinearRecipe*> of_input;
  std::array<size_t, kInputs> used = {};
  const auto add = [&](Input source, const LinearRecipe& recipe, uint32_t number) {
    InputOperands* shared = nullptr;
    if (MakesAgain(recompute, source)) {
      std::deque<InputOperands>& operands = (*recomputed)[static_cast<size_t>(source)];
      const size_t index = used[static_cast<size_t>(source)]++;
      if (index == operands.size()) operands.emplace_back();
      shared = &operands[index];
    }
    of_input.push_back(&recipe);
    inputs_.emplace_back(workspace, recipe, stream + number, shared);
    input_sources_.push_back(source);
  };
  for (int i = 0; i < kInputs; ++i) {
    add(static_cast<Input>(i), recipes[kFirstOf[i]], static_cast<uint32_t>(i));
  }
  for (size_t kind = 0; kind < recipes.size(); ++kind) {
    size_t index = 0;
    while (index < inputs_.size() &&
           (input_sources_[index] != kSources[kind] || !(*of_input[index] == recipes[kind]))) {
      ++index;
    }
    if (index == inputs_.size()) {  // streams above those of inputs and layers
      const auto number = static_cast<uint32_t>(kLinearKinds) + static_cast<uint32_t>(index);
      add(kSources[kind], recipes[kind], number);
    }
    input_index_[kind] = index;
  }
  for (const BlockParameter which : kLinears) {
    const auto number = static_cast<uint32_t>(kInputs + LinearIndex(which));
    linears_.emplace_back(workspace, recipes[LinearIndex(which)], stream + number);
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

std::vector<NamedHistory> TransformerBlock::histories() {
  std::vector<NamedHistory> histories;
  static constexpr const char* kInputSlots[] = {"Xf", "Xw", "channels"};
  static constexpr const char* kLinearSlots[] = {"Wf", "Wd", "Gd", "Gw"};
  const auto add = [&](const char* kind, size_t index, const char* slot, AmaxHistory* history) {
    histories.push_back({std::string(kind) + "." + std::to_string(index) + "." + slot, history});
  };
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const auto of_input = inputs_[i].histories();
    for (size_t s = 0; s < of_input.size(); ++s) add("input", i, kInputSlots[s], of_input[s]);
  }
  for (size_t i = 0; i < linears_.size(); ++i) {
    const auto of_linear = linears_[i].histories();
    for (size_t s = 0; s < of_linear.size(); ++s) add("linear", i, kLinearSlots[s], of_linear[s]);
  }
  return histories;
}

bool TransformerBlock::MakesAgain(const Recompute& recompute, Input source) {
  switch (source) {
    case kAttentionIn:
      return recompute.attention_in();
    case kAttentionOut:
      return recompute.attention_core();
    case kMlpIn:
      return recompute.mlp_in();
    case kMlpHidden:
      break;
  }
  return recompute.mlp_hidden();
}

Status TransformerBlock::SetInputs(const BlockPass& pass, Input source, ConstTensorView x) {
  for (size_t i = 0; i < inputs_.size(); ++i) {
    if (input_sources_[i] != source) continue;
    RETURN_IF_ERROR(pass.again ? inputs_[i].SetAgain(pass.step, x) : inputs_[i].Set(pass.step, x));
  }
  return OkStatus();
}

Status TransformerBlock::FormInputs(const BlockPass& pass, Input source,
                                    const OperandSource& rows) {
  LinearInput* only = nullptr;
  int readers = 0;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    if (input_sources_[i] != source) continue;
    only = &inputs_[i];
    ++readers;
  }
  if (readers == 1) {
    return pass.again ? only->SetAgain(pass.step, rows) : only->Set(pass.step, rows);
  }
  RETURN_IF_ERROR(FormRows(backend_, rows));
  return SetInputs(pass, source, rows.rows);
}

QuantizedLinear::Call TransformerBlock::CallOf(BlockParameter which) {
  return {&linear(which), &input_of(which), weight(which), gradient(which)};
}

LinearInput& TransformerBlock::input_of(BlockParameter which) {
  return inputs_[input_index_[LinearIndex(which)]];
}

Status TransformerBlock::Project(const BlockPass& pass, BlockParameter which, TensorView y) {
  return linear(which).Forward(pass.step, input_of(which), weight(which), pass.weight_version, y);
}

Status TransformerBlock::Keep(const BlockPass& pass, TensorView x) {
  if (!pass.bf16_activations || x.dtype == DType::kBF16) return OkStatus();
  return backend_.RoundToBf16(x, x);
}

Status TransformerBlock::ProjectBackward(const BlockPass& pass, BlockParameter which,
                                         ConstTensorView dy, TensorView dx, bool accumulate_dx) {
  return linear(which).Backward(pass.step, dy, input_of(which), weight(which), pass.weight_version,
                                dx, accumulate_dx, gradient(which));
}

void TransformerBlock::AddPending(std::vector<PendingFactor>* pending) const {
  for (const BlockParameter which : kLinears) {
    const auto factor = linears_[LinearIndex(which)].Pending(weight(which), gradient(which));
    if (factor) pending->push_back(*factor);
  }
}

Result<bool> TransformerBlock::Update(const BlockPass& pass, BlockParameter which,
                                      const AdamWParams& params,
                                      const Parameters::Moments& moments) {
  return linear(which).Update(
      pass.step, {params, gradient(which), moments.first, moments.second, weight(which)},
      pass.weight_version);
}

Status TransformerBlock::DecodeWeight(const BlockPass& pass, LinearKind kind, TensorView out) {
  const auto index = static_cast<size_t>(kind);
  return linears_[index].DecodeWeight(pass.step, inputs_[input_index_[index]],
                                      weight(kLinears[index]), pass.weight_version, out);
}

RopeParams TransformerBlock::Rope(const BlockPass& pass, int64_t heads) const {
  return {pass.sequences, pass.seq_len, heads, model_.head_dim(), 0, model_.rope_theta};
}

AttentionParams TransformerBlock::Attention(const BlockPass& pass) const {
  return {pass.sequences,  pass.seq_len,      pass.seq_len, model_.heads,
          model_.kv_heads, model_.head_dim(), pass.mode};
}

Status TransformerBlock::FormAttentionIn(const BlockPass& pass) {
  const BlockViews& v = views_;
  return FormInputs(
      pass, kAttentionIn,
      OperandSource::RmsNorm(v.input, weight(BlockParameter::kInputNorm),
                             static_cast<float>(model_.norm_eps), v.input_rstd, v.attention_in));
}

Status TransformerBlock::FormAttention(const BlockPass& pass) {
  using P = BlockParameter;
  const BlockViews& v = views_;
  RETURN_IF_ERROR(Project(pass, P::kQuery, v.query_in));
  RETURN_IF_ERROR(Project(pass, P::kKey, v.key_in));
  RETURN_IF_ERROR(Project(pass, P::kValue, v.value));
  RETURN_IF_ERROR(backend_.RopeForward(Rope(pass, model_.heads), v.query_in, v.query));
  RETURN_IF_ERROR(backend_.RopeForward(Rope(pass, model_.kv_heads), v.key_in, v.key));
  for (const TensorView& x : {v.query, v.key, v.value}) RETURN_IF_ERROR(Keep(pass, x));
  RETURN_IF_ERROR(
      backend_.AttentionForward(Attention(pass), v.query, v.key, v.value, v.attention_out, v.lse));
  RETURN_IF_ERROR(Keep(pass, v.attention_out));
  return SetInputs(pass, kAttentionOut, v.attention_out);
}

Status TransformerBlock::FormMiddle(const BlockPass& pass) {
  const BlockViews& v = views_;
  RETURN_IF_ERROR(Project(pass, BlockParameter::kOutput, v.middle));
  return backend_.Add(v.middle, v.input, v.middle);
}

Status TransformerBlock::FormMiddleAndMlpIn(const BlockPass& pass) {
  const BlockViews& v = views_;
  RETURN_IF_ERROR(Project(pass, BlockParameter::kOutput, v.middle));
  return FormInputs(pass, kMlpIn,
                    OperandSource::AddRmsNorm(v.middle, v.input, weight(BlockParameter::kPostNorm),
                                              static_cast<float>(model_.norm_eps), v.middle,
                                              v.middle_rstd, v.mlp_in));
}

Status TransformerBlock::FormMlpIn(const BlockPass& pass) {
  const BlockViews& v = views_;
  return FormInputs(
      pass, kMlpIn,
      OperandSource::RmsNorm(v.middle, weight(BlockParameter::kPostNorm),
                             static_cast<float>(model_.norm_eps), v.middle_rstd, v.mlp_in));
}

Status TransformerBlock::FormGateUp(const BlockPass& pass) {
  RETURN_IF_ERROR(Project(pass, BlockParameter::kGate, views_.gate));
  RETURN_IF_ERROR(Project(pass, BlockParameter::kUp, views_.up));
  RETURN_IF_ERROR(Keep(pass, views_.gate));
  return Keep(pass, views_.up);
}

Status TransformerBlock::FormMlpHidden(const BlockPass& pass) {
  const BlockViews& v = views_;
  return FormInputs(pass, kMlpHidden, OperandSource::SwiGlu(v.gate, v.up, v.mlp_hidden));
}

Status TransformerBlock::Forward(const BlockPass& pass, TensorView output) {
  RETURN_IF_ERROR(FormAttentionIn(pass));
  RETURN_IF_ERROR(FormAttention(pass));
  RETURN_IF_ERROR(FormMiddleAndMlpIn(pass));
  RETURN_IF_ERROR(FormGateUp(pass));
  RETURN_IF_ERROR(FormMlpHidden(pass));
  RETURN_IF_ERROR(Project(pass, BlockParameter::kDown, output));
  return backend_.Add(output, views_.middle, output);
}

Status TransformerBlock::MlpBackward(const BlockPass& pass, const GradientViews& g) {
  using P = BlockParameter;
  const BlockViews& v = views_;
  BlockPass again = pass;
  again.again = true;
  again.step.measure_health = false;
  if (recompute_.middle()) {
    RETURN_IF_ERROR(FormAttentionIn(again));
    RETURN_IF_ERROR(FormAttention(again));
    RETURN_IF_ERROR(FormMiddle(again));
  }
  if (recompute_.mlp_in()) RETURN_IF_ERROR(FormMlpIn(again));
  if (recompute_.gate_up()) RETURN_IF_ERROR(FormGateUp(again));
  if (recompute_.mlp_hidden()) RETURN_IF_ERROR(FormMlpHidden(again));
  RETURN_IF_ERROR(ProjectBackward(pass, P::kDown, g.stream, g.hidden, false));
  const SwiGluGradientViews swiglu = {g.hidden, v.gate, v.up, v.gate_grad, v.up_grad};
  RETURN_IF_ERROR(QuantizedLinear::BackwardOfSwiGlu(pass.step, swiglu, CallOf(P::kGate),
                                                    CallOf(P::kUp), pass.weight_version, g.branch));
  // The residual path keeps the stream's gradient; the norm's path adds to it.
  return backend_.RmsNormBackward(g.branch, v.middle, weight(P::kPostNorm), v.middle_rstd, g.stream,
                                  true, gradient(P::kPostNorm));
}

Status TransformerBlock::AttentionBackward(const BlockPass& pass, const GradientViews& g) {
  using P = BlockParameter;
  const BlockViews& v = views_;
  BlockPass again = pass;
  again.again = true;
  again.step.measure_health = false;
  // With `block` they have been formed for the feed-forward part.
  const bool attention = recompute_.attention_core() && !recompute_.middle();
  if (attention) {
    RETURN_IF_ERROR(FormAttentionIn(again));
    RETURN_IF_ERROR(FormAttention(again));
  }
  RETURN_IF_ERROR(ProjectBackward(pass, P::kOutput, g.stream, g.branch, false));
  RETURN_IF_ERROR(backend_.AttentionBackward(Attention(pass), g.branch, v.query, v.key, v.value,
                                             v.attention_out, v.lse, g.query, g.key, g.value));
  RETURN_IF_ERROR(backend_.RopeBackward(Rope(pass, model_.heads), g.query));
  RETURN_IF_ERROR(backend_.RopeBackward(Rope(pass, model_.kv_heads), g.key));
  if (recompute_.attention_in() && !recompute_.attention_core()) {
    RETURN_IF_ERROR(FormAttentionIn(again));
  }
  RETURN_IF_ERROR(ProjectBackward(pass, P::kQuery, g.query, g.branch, false));
  RETURN_IF_ERROR(ProjectBackward(pass, P::kKey, g.key, g.branch, true));
  RETURN_IF_ERROR(ProjectBackward(pass, P::kValue, g.value, g.branch, true));
  return backend_.RmsNormBackward(g.branch, v.input, weight(P::kInputNorm), v.input_rstd, g.stream,
                                  true, gradient(P::kInputNorm));
}

Status TransformerBlock::Backward(const BlockPass& pass, const GradientViews& g) {
  RETURN_IF_ERROR(MlpBackward(pass, g));
  return AttentionBackward(pass, g);
}

}  // namespace nibble
