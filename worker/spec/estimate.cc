// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/estimate.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "kernels/recipe/product_path.h"
#include "worker/spec/buffer_plan.h"
#include "worker/spec/device_workspace.h"
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

int64_t LargestParameter(const ModelConfig& m) {
  int64_t largest = m.vocab_size * m.hidden_size;
  for (const LinearShape& shape : BlockLinears(m)) {
    largest = std::max(largest, shape.in * shape.out);
  }
  return largest;
}

// Bytes of a quantized copy of (rows, cols): codes, scales and room for the residual.
int64_t CopyBytes(const Quant& quant, int64_t rows, int64_t cols) {
  if (!quant.has_scale()) return 0;
  int64_t bytes = rows * ((cols * ElemBits(quant.elem) + 7) / 8);
  if (quant.block == Block::kGroup || quant.block == Block::kTile) {
    // A multiplier of each group and, with scale codes, the code and its value.
    const bool plain = quant.scale == ScaleRule::kF32 || quant.scale == ScaleRule::kP2 ||
                       quant.scale == ScaleRule::kCurrent || quant.scale == ScaleRule::kCurrentP2;
    const int64_t members = quant.block == Block::kTile ? quant.group * quant.group : quant.group;
    bytes += rows * cols / members * (plain ? kFloatBytes : 2 * kFloatBytes + 1);
    if (quant.outer == Outer::k128) bytes += rows * cols / 128 * kFloatBytes;
  } else {
    bytes += (quant.block == Block::kTensor ? 1 : rows) * kFloatBytes;
  }
  if (quant.mask != Mask::kNone) bytes += rows * cols;
  if (!quant.pre.enabled || quant.pre.comp == OccComp::kNone) return bytes;
  // A column index and a value for twice the share that both quantiles clamp (kernels/backend.h
  // reserves as much, so that ordinary steps never grow it), and where each row begins.
  const double share = 4.0 * (1.0 - quant.pre.alpha);
  const auto entries = static_cast<int64_t>(share * static_cast<double>(rows * cols));
  return bytes + (rows + 1) * kFloatBytes +
         entries * (kFloatBytes + (quant.pre.comp == OccComp::kBf16 ? kFloatBytes : 1));
}

// The four inputs of a block: of query, key, value; of the output; of gate, up; of down.
constexpr int kInputs = 4;
constexpr int kInputOf[kLinearKinds] = {0, 0, 0, 1, 2, 2, 3};

// Which inputs are quantized again in backward and so exist once for all blocks.
std::array<bool, kInputs> MadeAgain(const Recompute& recompute) {
  return {recompute.attention_in(), recompute.attention_core(), recompute.mlp_in(),
          recompute.mlp_hidden()};
}

// Quantized copies of one block's inputs and weights.
struct BlockCopies {
  int64_t weights = 0;
  std::array<int64_t, kInputs> inputs = {};
};

// Layers with the same input and recipe share its copy.
BlockCopies CopiesOfBlock(const ModelConfig& m,
                          const std::array<LinearRecipe, kLinearKinds>& recipes, int64_t tokens) {
  const std::array<LinearShape, kLinearKinds> shapes = BlockLinears(m);
  BlockCopies bytes;
  for (size_t kind = 0; kind < recipes.size(); ++kind) {
    const LinearRecipe& recipe = recipes[kind];
    const LinearShape& shape = shapes[kind];
    bytes.weights += CopyBytes(recipe.slot(Slot::kWf), shape.out, shape.in);
    if (!recipe.SharesCodes(Slot::kWd)) {
      bytes.weights += CopyBytes(recipe.slot(Slot::kWd), shape.out, shape.in);
    }
    bool shared = false;
    for (size_t other = 0; other < kind; ++other) {
      shared |= kInputOf[other] == kInputOf[kind] && recipes[other] == recipe;
    }
    if (shared) continue;
    int64_t& input = bytes.inputs[static_cast<size_t>(kInputOf[kind])];
    input += CopyBytes(recipe.slot(Slot::kXf), tokens, shape.in);
    if (!recipe.SharesCodes(Slot::kXw)) {
      input += CopyBytes(recipe.slot(Slot::kXw), tokens, shape.in);
    }
  }
  return bytes;
}

// Whether the product of two slots is formed from decoded operands.
bool Decodes(const LinearRecipe& recipe, Slot left, Slot right, bool device) {
  return !MultipliesCodes(recipe, left, right, device ? CudaMultipliesCodes : CpuMultipliesCodes);
}

// What all layers of the model share: decoded operands where a product does not run on codes, codes
// of dY where it does, an operand under its rotation, and a gradient on its way through estimator
// or mask.
using SharedBuffers = std::array<int64_t, 8>;
// `device`: BF16 operands are stored as such.
SharedBuffers SharedBytes(const ModelConfig& m, const LinearRecipe& recipe, int64_t tokens,
                          bool device) {
  const int64_t widest = std::max(m.hidden_size, m.intermediate_size);
  const int64_t operand = tokens * widest * kFloatBytes;
  const int64_t weight = m.hidden_size * widest * kFloatBytes;
  const auto low = [&](Slot slot) { return recipe.Resolved(slot).elem != Elem::kF32; };
  const auto stored = [&](Slot slot, int64_t bytes) {
    const Quant& quant = recipe.Resolved(slot);
    return device && quant.elem == Elem::kBf16 && quant.rotation.size == 0 ? bytes / 2 : bytes;
  };
  const auto requant = [&](Slot slot) { return recipe.slot(slot).source == Source::kRequant; };
  const bool fprop = Decodes(recipe, Slot::kXf, Slot::kWf, device);
  const bool dgrad = Decodes(recipe, Slot::kGd, Slot::kWd, device);
  const bool wgrad = Decodes(recipe, Slot::kGw, Slot::kXw, device);
  SharedBuffers bytes = {};
  if (fprop && low(Slot::kXf)) bytes[0] = stored(Slot::kXf, operand);
  if (wgrad && low(Slot::kXw)) bytes[0] = std::max(bytes[0], stored(Slot::kXw, operand));
  if (requant(Slot::kXw)) bytes[0] = operand;
  if (fprop && low(Slot::kWf)) bytes[1] = stored(Slot::kWf, weight);
  if (dgrad && low(Slot::kWd)) bytes[1] = std::max(bytes[1], stored(Slot::kWd, weight));
  if (requant(Slot::kWd)) bytes[1] = weight;
  const bool shared = recipe.SharesCodes(Slot::kGw);
  if ((dgrad || (wgrad && shared)) && low(Slot::kGd)) bytes[2] = stored(Slot::kGd, operand);
  if (wgrad && !shared && low(Slot::kGw)) bytes[3] = stored(Slot::kGw, operand);
  if (!dgrad || (!wgrad && shared)) bytes[4] = CopyBytes(recipe.slot(Slot::kGd), tokens, widest);
  if (!wgrad && !shared) bytes[5] = CopyBytes(recipe.slot(Slot::kGw), tokens, widest);
  bool rotates = false;
  for (const Quant& quant : recipe.slots) rotates |= quant.rotation.size > 0;
  if (rotates) bytes[6] = std::max(operand, weight);
  const bool masked = recipe.slot(Slot::kXf).mask != Mask::kNone;
  // Of a shared factor nothing but the gradient itself waits.
  const bool estimated = (recipe.weight_estimator.kind != Estimator::kSte ||
                          recipe.weight_estimator.max_gradient != MaxGradient::kIgnore) &&
                         !recipe.HasSharedFactor();
  const bool pulled = recipe.slot(Slot::kWf).mask != Mask::kNone;
  if (masked) {
    bytes[7] = std::max(tokens * m.hidden_size * kFloatBytes, weight);
  } else if (estimated || pulled) {
    bytes[7] = weight;
  }
  return bytes;
}

// Codes of dY that exist beside those which all layers share: a device quantizes the gradients of
// gate and up together, so those of up have places of their own
// (QuantizedLinear::BackwardOfSwiGlu).
int64_t PairedGradientBytes(const ModelConfig& m,
                            const std::array<LinearRecipe, kLinearKinds>& recipes, int64_t tokens) {
  for (const LinearKind kind : {LinearKind::kGate, LinearKind::kUp}) {
    const LinearRecipe& recipe = recipes[static_cast<size_t>(kind)];
    const Quant& gd = recipe.slot(Slot::kGd);
    const Quant& gw = recipe.slot(Slot::kGw);
    if (recipe.SharesCodes(Slot::kGw) || Decodes(recipe, Slot::kGd, Slot::kWd, true) ||
        Decodes(recipe, Slot::kGw, Slot::kXw, true) || gd.rotation.size > 0 ||
        gw.rotation.size > 0 || gd.has_history() || gw.has_history()) {
      return 0;
    }
  }
  const LinearRecipe& up = recipes[static_cast<size_t>(LinearKind::kUp)];
  return CopyBytes(up.slot(Slot::kGd), tokens, m.intermediate_size) +
         CopyBytes(up.slot(Slot::kGw), tokens, m.intermediate_size);
}

// The head's operands in BF16 on a device: its weight, rows of its input and of its gradient.
int64_t HeadBytes(const ModelConfig& m, const Recipe& recipe, const BufferPlan& plan) {
  constexpr int64_t kBf16Bytes = 2;
  if (!recipe.rounds_to_bf16()) return 0;
  const int64_t rows = plan.logits.rows;
  return kBf16Bytes * ((m.vocab_size + rows) * m.hidden_size + rows * m.vocab_size);
}

int64_t QuantizedBytes(const ModelConfig& m, const Recipe& recipe, int64_t tokens, int stage,
                       const Recompute& recompute, bool device) {
  const std::array<bool, kInputs> again = MadeAgain(recompute);
  int64_t copies = 0;
  std::array<int64_t, kInputs> once = {};  // largest of any block
  SharedBuffers shared = {};
  int64_t paired = 0;
  const int layers = static_cast<int>(m.layers);
  for (int layer = 0; layer < layers; ++layer) {
    std::array<LinearRecipe, kLinearKinds> recipes;
    for (size_t kind = 0; kind < recipes.size(); ++kind) {
      recipes[kind] = recipe.LinearFor(static_cast<LinearKind>(kind), layer, layers, stage);
      const SharedBuffers needed = SharedBytes(m, recipes[kind], tokens, device);
      for (size_t i = 0; i < shared.size(); ++i) shared[i] = std::max(shared[i], needed[i]);
    }
    if (device) paired = std::max(paired, PairedGradientBytes(m, recipes, tokens));
    const BlockCopies block = CopiesOfBlock(m, recipes, tokens);
    copies += block.weights;
    for (size_t i = 0; i < once.size(); ++i) {
      if (again[i]) {
        once[i] = std::max(once[i], block.inputs[i]);
      } else {
        copies += block.inputs[i];
      }
    }
  }
  copies = std::accumulate(once.begin(), once.end(), copies + paired);
  return std::accumulate(shared.begin(), shared.end(), copies);
}

// Both operands of a product on codes as it packs them, a byte a code and a bias per group; a CPU
// without dot products of bytes takes twice that.
int64_t PackedCodesBytes(const ModelConfig& m, const LinearRecipe& recipe, int64_t tokens) {
  const int64_t widest = std::max(m.hidden_size, m.intermediate_size);
  int64_t left = 0, right = 0;
  const auto add = [&](Slot a, Slot b, int64_t right_elements) {
    if (Decodes(recipe, a, b, false)) return;
    const int group = recipe.Resolved(a).group;
    const auto bytes = [&](int64_t n) { return n + (group > 0 ? n / group * kFloatBytes : 0); };
    left = std::max(left, bytes(tokens * widest));
    right = std::max(right, bytes(right_elements));
  };
  add(Slot::kXf, Slot::kWf, m.hidden_size * widest);
  add(Slot::kGd, Slot::kWd, m.hidden_size * widest);
  add(Slot::kGw, Slot::kXw, tokens * widest);
  return left + right;
}

// Counts of every BF16 value, and room for an eighth of the tensor at both ends, while the quantile
// of a whole tensor is looked for.
int64_t QuantileBytes(const ModelConfig& m, const LinearRecipe& recipe, int64_t tokens) {
  for (const Quant& quant : recipe.slots) {
    if (!quant.pre.enabled || quant.pre.scope != OccScope::kTensor) continue;
    return (int64_t{4} << 16) + tokens * std::max(m.hidden_size, m.intermediate_size) / 2;
  }
  return 0;
}

// Work memory of the CPU backend: the packed operands of a product, the same for every model, and
// the keys and values of a micro-batch as attention packs them, dimensions and positions rounded up
// to the 12 lanes of a register tile.
int64_t WorkspaceBytes(const ModelConfig& m, const Recipe& recipe, const BufferPlan& plan,
                       int64_t seq_len) {
  constexpr int64_t kPackedOperandBytes = int64_t{6} << 20;
  constexpr int64_t kLanes = 12;
  const auto round_up = [](int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; };
  const int64_t head = round_up(seq_len) * m.head_dim() + seq_len * round_up(m.head_dim());
  // Groups along the tokens are quantized from a turned copy, with codes and decoded values to turn
  // back and a statistic per group.
  int64_t groups = 0;
  for (const Slot slot : {Slot::kGw, Slot::kXw}) {
    const Quant& quant = recipe.linear.slot(slot);
    if (quant.block != Block::kGroup) continue;
    const int64_t elements = plan.tokens * std::max(m.hidden_size, m.intermediate_size);
    groups = std::max(groups, elements * (2 * kFloatBytes + 2) + elements / quant.group * 12);
  }
  return groups + PackedCodesBytes(m, recipe.linear, plan.tokens) +
         QuantileBytes(m, recipe.linear, plan.tokens) + kPackedOperandBytes +
         plan.tokens / seq_len * m.kv_heads * head * kFloatBytes;
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
  const int64_t moment_bytes = StateElemBytes(recipe.state.m) + StateElemBytes(recipe.state.v);
  estimate.memory.optimizer = PaddedParameters(model) * moment_bytes;
  const bool device = config.run.backend != kBackendCpu;
  if (config.memory.offload_optimizer && device) {
    estimate.memory.host = estimate.memory.optimizer;
    estimate.memory.optimizer = 2 * LargestParameter(model) * moment_bytes;  // two places
  }
  const BufferPlan plan =
      PlanBuffers(model, recipe, config.schedule.micro_batch, config.data.seq_len,
                  config.memory.recompute, device ? kDeviceLogits : kCpuLogits,
                  device && config.memory.activations == Activations::kBf16);
  estimate.memory.activations =
      plan.arena_bytes + (device ? DeviceWorkspaceBytes(model, recipe, plan, config.data.seq_len)
                                 : WorkspaceBytes(model, recipe, plan, config.data.seq_len));
  for (int stage = -1; stage < static_cast<int>(recipe.stages.size()); ++stage) {
    estimate.memory.quantized = std::max(
        estimate.memory.quantized,
        QuantizedBytes(model, recipe, plan.tokens, stage, config.memory.recompute, device));
  }
  if (device) estimate.memory.quantized += HeadBytes(model, recipe, plan);
  estimate.memory.quantized += WeightRuleBytes(model, recipe);
  return estimate;
}

}  // namespace nibble
