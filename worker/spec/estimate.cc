// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/estimate.h"

#include <algorithm>
#include <array>
#include <vector>

#include "worker/spec/buffer_plan.h"
#include "worker/spec/recipe_fit.h"

namespace nibble {
namespace {

constexpr int64_t kFloatBytes = 4;
constexpr int64_t kAlignElements = 16;  // tensors start on 64 bytes

int64_t MatmulParameters(const ModelConfig& m) {
  int64_t count = m.vocab_size * m.hidden_size;  // the head, tied or not
  for (const LinearShape& shape : BlockLinears(m)) count += m.layers * shape.in * shape.out;
  return count;
}

// Elements of one allocation of all parameters: every tensor is padded to the alignment.
int64_t PaddedParameters(const ModelConfig& m) {
  const auto padded = [](int64_t n) {
    return (n + kAlignElements - 1) / kAlignElements * kAlignElements;
  };
  int64_t block = 2 * padded(m.hidden_size);
  for (const LinearShape& shape : BlockLinears(m)) block += padded(shape.in * shape.out);
  const int64_t tables = m.tied_embeddings ? 1 : 2;
  return tables * padded(m.vocab_size * m.hidden_size) + m.layers * block + padded(m.hidden_size);
}

// Bytes of a quantized copy of (rows, cols): codes, scales and room for the residual.
int64_t CopyBytes(const Quant& quant, int64_t rows, int64_t cols) {
  if (!quant.has_scale()) return 0;
  int64_t bytes = rows * ((cols * ElemBits(quant.elem) + 7) / 8);
  bytes += (quant.block == Block::kTensor ? 1 : rows) * kFloatBytes;
  if (!quant.pre.enabled || quant.pre.comp == OccComp::kNone) return bytes;
  // A column index and a value for twice the share that both quantiles clamp (kernels/backend.h
  // reserves as much, so that ordinary steps never grow it), and where each row begins.
  const double share = 4.0 * (1.0 - quant.pre.alpha);
  const auto entries = static_cast<int64_t>(share * static_cast<double>(rows * cols));
  return bytes + (rows + 1) * kFloatBytes +
         entries * (kFloatBytes + (quant.pre.comp == OccComp::kE4M3 ? 1 : kFloatBytes));
}

// Quantized copies of one block's inputs and weights. Layers with the same input and recipe share
// its copy.
int64_t BlockQuantizedBytes(const ModelConfig& m,
                            const std::array<LinearRecipe, kLinearKinds>& recipes, int64_t tokens) {
  static constexpr int kInputOf[kLinearKinds] = {0, 0, 0, 1, 2, 2, 3};
  const std::array<LinearShape, kLinearKinds> shapes = BlockLinears(m);
  int64_t bytes = 0;
  for (size_t kind = 0; kind < recipes.size(); ++kind) {
    const LinearRecipe& recipe = recipes[kind];
    const LinearShape& shape = shapes[kind];
    bytes += CopyBytes(recipe.slot(Slot::kWf), shape.out, shape.in);
    if (!recipe.SharesCodes(Slot::kWd)) {
      bytes += CopyBytes(recipe.slot(Slot::kWd), shape.out, shape.in);
    }
    bool shared = false;
    for (size_t other = 0; other < kind; ++other) {
      shared |= kInputOf[other] == kInputOf[kind] && recipes[other] == recipe;
    }
    if (shared) continue;
    bytes += CopyBytes(recipe.slot(Slot::kXf), tokens, shape.in);
    if (!recipe.SharesCodes(Slot::kXw)) {
      bytes += CopyBytes(recipe.slot(Slot::kXw), tokens, shape.in);
    }
  }
  return bytes;
}

// Decoded operands of the layer at work, shared by all layers of the model.
int64_t DecodedBytes(const ModelConfig& m, const LinearRecipe& recipe, int64_t tokens) {
  const auto decoded = [&](Slot slot) { return recipe.Resolved(slot).elem != Elem::kF32; };
  const int64_t operand = tokens * std::max(m.hidden_size, m.intermediate_size) * kFloatBytes;
  const int64_t weight = m.hidden_size * std::max(m.hidden_size, m.intermediate_size) * kFloatBytes;
  int64_t bytes = 0;
  if (decoded(Slot::kXf) || decoded(Slot::kXw)) bytes += operand;
  if (decoded(Slot::kWf) || decoded(Slot::kWd)) bytes += weight;
  if (decoded(Slot::kGd)) bytes += operand;
  if (decoded(Slot::kGw) && !recipe.SharesCodes(Slot::kGw)) bytes += operand;
  if (recipe.weight_estimator.dge()) bytes += weight;
  return bytes;
}

int64_t QuantizedBytes(const ModelConfig& m, const Recipe& recipe, int64_t tokens, int stage) {
  int64_t copies = 0, decoded = 0;
  const int layers = static_cast<int>(m.layers);
  for (int layer = 0; layer < layers; ++layer) {
    std::array<LinearRecipe, kLinearKinds> recipes;
    for (size_t kind = 0; kind < recipes.size(); ++kind) {
      recipes[kind] = recipe.LinearFor(static_cast<LinearKind>(kind), layer, layers, stage);
      decoded = std::max(decoded, DecodedBytes(m, recipes[kind], tokens));
    }
    copies += BlockQuantizedBytes(m, recipes, tokens);
  }
  return copies + decoded;
}

// Work memory of the CPU backend: the packed operands of a product, the same for every model, and
// the keys and values of a micro-batch as attention packs them, dimensions and positions rounded up
// to the 12 lanes of a register tile.
int64_t WorkspaceBytes(const ModelConfig& m, const BufferPlan& plan, int64_t seq_len) {
  constexpr int64_t kPackedOperandBytes = int64_t{6} << 20;
  constexpr int64_t kLanes = 12;
  const auto round_up = [](int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; };
  const int64_t head = round_up(seq_len) * m.head_dim() + seq_len * round_up(m.head_dim());
  return kPackedOperandBytes + plan.tokens / seq_len * m.kv_heads * head * kFloatBytes;
}

// What the weight rule keeps: four values per weight of a linear layer, and one weight of scratch.
int64_t WeightRuleBytes(const ModelConfig& model, const Recipe& recipe) {
  if (!recipe.weight_rule.enabled) return 0;
  int64_t elements = 0, largest = 0;
  for (const LinearShape& shape : BlockLinears(model)) {
    elements += 4 * model.layers * shape.in * shape.out;
    largest = std::max(largest, shape.in * shape.out);
  }
  return (elements + largest) * kFloatBytes;
}

}  // namespace

int64_t CountParameters(const ModelConfig& m) {
  int64_t block = 2 * m.hidden_size;
  for (const LinearShape& shape : BlockLinears(m)) block += shape.in * shape.out;
  const int64_t tables = m.tied_embeddings ? 1 : 2;
  return tables * m.vocab_size * m.hidden_size + m.layers * block + m.hidden_size;
}

Result<RunEstimate> EstimateRun(const RunConfig& config, const Recipe& recipe) {
  const ModelConfig& model = config.model;
  if (model.vocab_size <= 0) {
    return InvalidArgumentError(
        "model.vocabSize is 0: the estimate needs it; give model.vocabSize or a tokenizer");
  }
  RunEstimate estimate;
  estimate.parameters = CountParameters(model);
  estimate.tokens_per_step = config.tokens_per_step();
  estimate.steps = config.schedule.steps;
  // Two FLOPs a multiply-add, once forward and twice backward; attention's two products see every
  // position of the sequence (causality is not counted as a saving), as in arXiv 2204.02311, B.
  const auto attention = static_cast<double>(model.layers * model.hidden_size) *
                         static_cast<double>(config.data.seq_len);
  estimate.flops_per_token = 6.0 * static_cast<double>(MatmulParameters(model)) + 12.0 * attention;

  const int64_t state_bytes = PaddedParameters(model) * kFloatBytes;
  estimate.memory.weights = state_bytes;
  estimate.memory.gradients = state_bytes;
  estimate.memory.optimizer =
      PaddedParameters(model) * (StateElemBytes(recipe.state.m) + StateElemBytes(recipe.state.v));
  const BufferPlan plan =
      PlanBuffers(model, recipe, config.schedule.micro_batch, config.data.seq_len);
  estimate.memory.activations = plan.arena_bytes + WorkspaceBytes(model, plan, config.data.seq_len);
  for (int stage = -1; stage < static_cast<int>(recipe.stages.size()); ++stage) {
    estimate.memory.quantized =
        std::max(estimate.memory.quantized, QuantizedBytes(model, recipe, plan.tokens, stage));
  }
  estimate.memory.quantized += WeightRuleBytes(model, recipe);
  return estimate;
}

}  // namespace nibble
