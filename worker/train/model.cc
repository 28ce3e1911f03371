// SPDX-License-Identifier: Apache-2.0
#include "worker/train/model.h"

#include <algorithm>

#include "base/strings.h"
#include "worker/spec/recipe_fit.h"

namespace nibble {
namespace {

std::string HistoryName(size_t block, const std::string& slot) {
  return "amax.layers." + std::to_string(block) + "." + slot;
}

}  // namespace

Result<std::unique_ptr<Model>> Model::Create(Backend* backend, Parameters* parameters,
                                             const Options& options) {
  RETURN_IF_ERROR(
      CheckRecipeFits(options.model, options.recipe, options.sequences * options.seq_len));
  const int layers = static_cast<int>(options.model.layers);
  for (int stage = -1; stage < static_cast<int>(options.recipe.stages.size()); ++stage) {
    for (int layer = 0; layer < layers; ++layer) {
      for (int kind = 0; kind < kLinearKinds; ++kind) {
        const LinearRecipe& recipe =
            options.recipe.LinearFor(static_cast<LinearKind>(kind), layer, layers, stage);
        if (!LinearInput::BorrowsSource(recipe) || KeepsLinearInput(recipe)) continue;
        return InternalError("recipe '" + options.recipe.name +
                             "' needs linear inputs that the buffer plan does not keep");
      }
    }
  }
  std::unique_ptr<Model> model(new Model(backend, parameters, options));
  model->plan_ =
      PlanBuffers(options.model, options.recipe, options.sequences, options.seq_len,
                  options.recompute, backend->name() == kBackendCpu ? kCpuLogits : kDeviceLogits,
                  options.activations == Activations::kBf16 && backend->StoresBf16());
  const Status reserved = model->arena_.Reserve(*backend, model->plan_.arena_bytes);
  if (!reserved.ok()) {
    return reserved.WithContext(StrFormat(
        "activations of %lld sequences x %lld tokens (a smaller micro-batch needs less)",
        static_cast<long long>(options.sequences), static_cast<long long>(options.seq_len)));
  }
  model->PlaceViews();
  model->SetStage(-1);
  return model;
}

Model::Model(Backend* backend, Parameters* parameters, const Options& options)
    : backend_(*backend),
      parameters_(*parameters),
      options_(options),
      mode_(options.recipe.rounds_to_bf16() ? GemmMode::kBf16 : GemmMode::kF32),
      workspace_(backend) {}

TensorView Model::ViewOf(const PlannedBuffer& buffer, DType type) const {
  if (buffer.element_bytes == SizeOf(DType::kBF16)) type = DType::kBF16;
  return {static_cast<uint8_t*>(arena_.data()) + buffer.offset, buffer.rows, buffer.cols, type};
}

void Model::PlaceViews() {
  const BufferPlan& plan = plan_;
  const auto view = [&](const PlannedBuffer& b, DType type = DType::kF32) {
    return ViewOf(b, type);
  };
  ids_ = view(plan.ids, DType::kI32);
  targets_ = view(plan.targets, DType::kI32);
  output_ = view(plan.output);
  output_rstd_ = view(plan.output_rstd);
  head_in_ = view(plan.head_in);
  logits_ = view(plan.logits);
  losses_ = view(plan.losses);
  gradients_ = {view(plan.stream_grad), view(plan.branch_grad), view(plan.query_grad),
                view(plan.key_grad),    view(plan.value_grad),  view(plan.hidden_grad)};
}

void Model::SetStage(int stage) {
  stage_ = stage;
  const auto view = [&](const PlannedBuffer& b) { return ViewOf(b); };
  const int layers = static_cast<int>(options_.model.layers);
  blocks_.clear();
  for (auto& operands : recomputed_) operands.clear();
  blocks_.reserve(plan_.blocks.size());
  for (int layer = 0; layer < layers; ++layer) {
    const BlockBuffers& b = plan_.blocks[static_cast<size_t>(layer)];
    const BlockViews views = {view(b.input),     view(b.input_rstd), view(b.attention_in),
                              view(b.query_in),  view(b.key_in),     view(b.query),
                              view(b.key),       view(b.value),      view(b.attention_out),
                              view(b.lse),       view(b.middle),     view(b.middle_rstd),
                              view(b.mlp_in),    view(b.gate),       view(b.up),
                              view(b.gate_grad), view(b.up_grad),    view(b.mlp_hidden)};
    std::array<LinearRecipe, kLinearKinds> recipes;
    for (size_t kind = 0; kind < recipes.size(); ++kind) {
      recipes[kind] =
          options_.recipe.LinearFor(static_cast<LinearKind>(kind), layer, layers, stage);
    }
    blocks_.emplace_back(&workspace_, options_.model, recipes, layer, &parameters_, views,
                         options_.recompute, &recomputed_);
  }
}

std::vector<int64_t> Model::SampledBlocks() const {
  const int64_t layers = options_.model.layers;
  std::vector<int64_t> sampled = {0, layers / 2, layers - 1};
  sampled.erase(std::unique(sampled.begin(), sampled.end()), sampled.end());
  return sampled;
}

BlockPass Model::PassFor(const LinearStep& step, int64_t layer) const {
  BlockPass pass{step, weight_version_, options_.sequences, options_.seq_len, mode_};
  pass.bf16_activations = options_.activations == Activations::kBf16;
  const int64_t layers = options_.model.layers;
  pass.step.measure_health =
      step.measure_health && (layer == 0 || layer == layers / 2 || layer == layers - 1);
  return pass;
}

Status Model::Embed(const Batch& batch) {
  const auto tokens = static_cast<size_t>(ids_.size());
  if (batch.inputs.size() != tokens || batch.targets.size() != tokens) {
    return InvalidArgumentError(StrFormat("batch has %zu inputs and %zu targets, the model %zu",
                                          batch.inputs.size(), batch.targets.size(), tokens));
  }
  RETURN_IF_ERROR(backend_.CopyIn(ids_.data, batch.inputs.data(), ids_.size_bytes()));
  RETURN_IF_ERROR(backend_.CopyIn(targets_.data, batch.targets.data(), targets_.size_bytes()));
  const TensorView first = blocks_.empty() ? output_ : blocks_.front().views().input;
  return backend_.EmbeddingForward(parameters_.weight(parameters_.embedding()), ids_, first);
}

Status Model::RunBlocks(const LinearStep& step) {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const TensorView output = i + 1 < blocks_.size() ? blocks_[i + 1].views().input : output_;
    RETURN_IF_ERROR(blocks_[i].Forward(PassFor(step, static_cast<int64_t>(i)), output));
  }
  return backend_.RmsNormForward(output_, parameters_.weight(parameters_.final_norm()),
                                 static_cast<float>(options_.model.norm_eps), head_in_,
                                 output_rstd_);
}

Result<ConstTensorView> Model::HeadOperand(ConstTensorView x, Buffer* buffer) {
  if (!HeadInBf16()) return x;
  ASSIGN_OR_RETURN(const TensorView rounded, buffer->View(backend_, x.rows, x.cols, DType::kBF16));
  RETURN_IF_ERROR(backend_.RoundToBf16(x, rounded));
  return ConstTensorView(rounded);
}

Result<ConstTensorView> Model::HeadWeight() {
  const ConstTensorView weight = parameters_.weight(parameters_.head());
  if (head_version_ == weight_version_) {
    return ConstTensorView(head_weight_.data(), weight.rows, weight.cols, DType::kBF16);
  }
  ASSIGN_OR_RETURN(const ConstTensorView operand, HeadOperand(weight, &head_weight_));
  if (operand.dtype == DType::kBF16) head_version_ = weight_version_;
  return operand;
}

Status Model::HeadAndLoss(const float* gradient_scale) {
  ASSIGN_OR_RETURN(const ConstTensorView weight, HeadWeight());
  const bool backward = gradient_scale != nullptr;
  for (int64_t row = 0; row < head_in_.rows; row += logits_.rows) {
    const int64_t rows = std::min(logits_.rows, head_in_.rows - row);
    ASSIGN_OR_RETURN(const ConstTensorView x, HeadOperand(head_in_.Rows(row, rows), &head_rows_));
    const TensorView logits = logits_.Rows(0, rows);
    const TensorView losses = losses_.Reshaped(losses_.size(), 1).Rows(row, rows);
    const ConstTensorView targets = targets_.Reshaped(targets_.size(), 1).Rows(row, rows);
    RETURN_IF_ERROR(
        backend_.Gemm(mode_, x, Transpose::kNo, weight, Transpose::kYes, false, logits));
    TensorView gradient;
    if (backward && HeadInBf16()) {
      ASSIGN_OR_RETURN(gradient, head_gradient_.View(backend_, rows, logits.cols, DType::kBF16));
    } else if (backward) {
      gradient = logits;
    }
    RETURN_IF_ERROR(backend_.CrossEntropy(logits, targets, backward ? *gradient_scale : 0.0f,
                                          gradient, losses));
    if (!backward) continue;
    RETURN_IF_ERROR(backend_.Gemm(mode_, gradient, Transpose::kNo, weight, Transpose::kNo, false,
                                  gradients_.branch.Rows(row, rows)));
    RETURN_IF_ERROR(backend_.Gemm(mode_, gradient, Transpose::kYes, x, Transpose::kNo, true,
                                  parameters_.gradient(parameters_.head())));
  }
  if (!backward) return OkStatus();
  return backend_.RmsNormBackward(
      gradients_.branch, output_, parameters_.weight(parameters_.final_norm()), output_rstd_,
      gradients_.stream, false, parameters_.gradient(parameters_.final_norm()));
}

Result<double> Model::Forward(const LinearStep& step, const Batch& batch) {
  LinearStep validation = step;
  validation.advance_histories = false;
  RETURN_IF_ERROR(Embed(batch));
  RETURN_IF_ERROR(RunBlocks(validation));
  RETURN_IF_ERROR(HeadAndLoss(nullptr));
  return backend_.Sum(losses_);
}

Result<double> Model::ForwardBackward(const LinearStep& step, const Batch& batch,
                                      float gradient_scale) {
  RETURN_IF_ERROR(Embed(batch));
  RETURN_IF_ERROR(RunBlocks(step));
  RETURN_IF_ERROR(HeadAndLoss(&gradient_scale));
  for (size_t i = blocks_.size(); i-- > 0;) {
    RETURN_IF_ERROR(blocks_[i].Backward(PassFor(step, static_cast<int64_t>(i)), gradients_));
  }
  RETURN_IF_ERROR(backend_.EmbeddingBackward(ids_, gradients_.stream,
                                             parameters_.gradient(parameters_.embedding())));
  return backend_.Sum(losses_);
}

void Model::PendingFactors(std::vector<PendingFactor>* pending) const {
  pending->clear();
  for (const TransformerBlock& block : blocks_) block.AddPending(pending);
}

Result<bool> Model::UpdateWeight(const LinearStep& next, size_t parameter,
                                 const AdamWParams& params, const Parameters::Moments& moments) {
  const ParameterInfo& info = parameters_.list()[parameter];
  if (info.layer < 0 || info.is_norm) return false;
  const size_t first = parameters_.IndexOf(info.layer, static_cast<BlockParameter>(0));
  BlockPass pass = PassFor(next, info.layer);
  ++pass.weight_version;
  return blocks_[static_cast<size_t>(info.layer)].Update(
      pass, static_cast<BlockParameter>(parameter - first), params, moments);
}

bool Model::QuantizesWeight(int64_t layer, LinearKind kind) const {
  const auto& linears = blocks_[static_cast<size_t>(layer)].linears();
  return linears[static_cast<size_t>(kind)].recipe().slot(Slot::kWf).has_scale();
}

Status Model::DecodeWeight(const LinearStep& step, int64_t layer, LinearKind kind, TensorView out) {
  LinearStep reading = step;
  reading.advance_histories = false;
  return blocks_[static_cast<size_t>(layer)].DecodeWeight(PassFor(reading, layer), kind, out);
}

// An entry is [enc, quantizations seen, maxima ...]. Rules compare the count with a window only, so
// it may stop where FP32 no longer counts.
RecipeTensors Model::SaveHistories() {
  constexpr int64_t kLargestCount = 1 << 24;
  RecipeTensors tensors;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    for (const NamedHistory& entry : blocks_[i].histories()) {
      const AmaxHistory& history = *entry.history;
      if (history.seen == 0) continue;
      std::vector<float>& out = tensors[HistoryName(i, entry.name)];
      out = {history.enc, static_cast<float>(std::min(history.seen, kLargestCount))};
      out.insert(out.end(), history.amax.begin(), history.amax.end());
    }
  }
  return tensors;
}

void Model::RestoreHistories(const RecipeTensors& tensors) {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    for (const NamedHistory& entry : blocks_[i].histories()) {
      const auto found = tensors.find(HistoryName(i, entry.name));
      if (found == tensors.end() || found->second.size() < 2) continue;
      const std::vector<float>& values = found->second;
      *entry.history = {
          {values.begin() + 2, values.end()}, values[0], static_cast<int64_t>(values[1])};
    }
  }
}

Result<std::vector<float>> Model::TokenLosses() {
  std::vector<float> losses(static_cast<size_t>(losses_.size()));
  RETURN_IF_ERROR(backend_.CopyOut(losses.data(), losses_.data, losses_.size_bytes()));
  return losses;
}

}  // namespace nibble
