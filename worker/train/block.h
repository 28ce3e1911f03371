// SPDX-License-Identifier: Apache-2.0
//
// TransformerBlock: one transformer block, forward and backward, written by hand.
//
//   middle = input + o(attention(rope(q(n1)), rope(k(n1)), v(n1))),   n1 = rmsnorm(input)
//   output = middle + down(silu(gate(n2)) * up(n2)),                  n2 = rmsnorm(middle)
//
// Thread-safety: one thread, the backend's caller. Ownership: owns the quantized copies of its
// layers; borrows backend, workspace, parameters and the arena, which must outlive it.
// Order: Forward, then at most one Backward for the same micro-batch.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/linear.h"
#include "worker/spec/buffer_plan.h"
#include "worker/spec/recompute.h"
#include "worker/spec/run_config.h"
#include "worker/train/parameters.h"

namespace nibble {

// Views of a BlockBuffers in the arena; see there for shapes.
struct BlockViews {
  TensorView input, input_rstd, attention_in, query_in, key_in, query, key, value, attention_out;
  TensorView lse, middle, middle_rstd, mlp_in, gate, up, gate_grad, up_grad, mlp_hidden;
};

// Work buffers of backward, shared by all blocks; see BufferPlan.
struct GradientViews {
  TensorView stream, branch, query, key, value, hidden;
};

// Past maxima of one slot; part of what a checkpoint keeps.
struct NamedHistory {
  std::string name;
  AmaxHistory* history;
};

// What all blocks of a pass have in common.
struct BlockPass {
  LinearStep step;
  uint64_t weight_version = 0;
  int64_t sequences = 0;
  int64_t seq_len = 0;
  GemmMode mode = GemmMode::kF32;  // of attention
  bool again = false;              // forms what forward has already formed once
  bool bf16_activations = false;   // as Activations::kBf16 says
};

// Quantized inputs that are made again in backward: memory that all blocks of a model share, by
// source, in the order in which a block needs them.
using RecomputedInputs = std::array<std::deque<InputOperands>, 4>;

class TransformerBlock {
 public:
  // `recipes` by LinearKind. Layers that read the same X share its quantized copy when their
  // recipes are equal; otherwise each recipe has its own. What `recompute` drops lies in memory
  // that the blocks share: the views of it, and the operands of `recomputed`, which is borrowed and
  // grows as needed. The last block's are still there when backward begins.
  TransformerBlock(LinearWorkspace* workspace, const ModelConfig& model,
                   const std::array<LinearRecipe, kLinearKinds>& recipes, int64_t layer,
                   Parameters* parameters, const BlockViews& views, const Recompute& recompute,
                   RecomputedInputs* recomputed);

  // Reads views.input; writes `output` (T, D), which may be the next block's input.
  Status Forward(const BlockPass& pass, TensorView output);
  // gradients.stream holds the gradient of the output and, afterwards, of the input. Parameter
  // gradients accumulate. Overwrites views.gate, views.up and the views of their gradients.
  Status Backward(const BlockPass& pass, const GradientViews& gradients);

  // Adds the factors that Backward has left out (LinearStep::defer_factor).
  void AddPending(std::vector<PendingFactor>* pending) const;

  // Whether the layer has taken the update of its weight over; pass.weight_version is that of the
  // new weight.
  Result<bool> Update(const BlockPass& pass, BlockParameter which, const AdamWParams& params,
                      const Parameters::Moments& moments);

  // out = the layer's weight as its forward pass sees it, on its own axes.
  Status DecodeWeight(const BlockPass& pass, LinearKind kind, TensorView out);

  const BlockViews& views() const { return views_; }
  const std::vector<LinearInput>& inputs() const { return inputs_; }
  // Whether inputs()[index] belongs to attention, not to the MLP.
  bool is_attention_input(size_t index) const { return input_sources_[index] <= kAttentionOut; }
  const std::vector<QuantizedLinear>& linears() const { return linears_; }
  // Past maxima of every slot and channel norms, named "input.0.Xf", "input.0.channels" or
  // "linear.6.Gd".
  std::vector<NamedHistory> histories();

 private:
  // The four distinct inputs of linear layers, in forward order.
  enum Input { kAttentionIn, kAttentionOut, kMlpIn, kMlpHidden };
  QuantizedLinear& linear(BlockParameter which);
  TensorView weight(BlockParameter which) const;
  TensorView gradient(BlockParameter which) const;
  static bool MakesAgain(const Recompute& recompute, Input source);
  // Quantizes x for every layer that reads it.
  Status SetInputs(const BlockPass& pass, Input source, ConstTensorView x);
  // The same of rows that nothing else reads.
  Status FormInputs(const BlockPass& pass, Input source, const OperandSource& rows);
  QuantizedLinear::Call CallOf(BlockParameter which);
  LinearInput& input_of(BlockParameter which);
  Status Project(const BlockPass& pass, BlockParameter which, TensorView y);
  // Rounds x when the run keeps such tensors in BF16 and x, as FP32, has not been rounded yet.
  Status Keep(const BlockPass& pass, TensorView x);
  Status ProjectBackward(const BlockPass& pass, BlockParameter which, ConstTensorView dy,
                         TensorView dx, bool accumulate_dx);
  RopeParams Rope(const BlockPass& pass, int64_t heads) const;
  AttentionParams Attention(const BlockPass& pass) const;
  // The parts of the forward pass, in order; each reads what the one before left.
  Status FormAttentionIn(const BlockPass& pass);
  Status FormAttention(const BlockPass& pass);
  Status FormMiddle(const BlockPass& pass);
  Status FormMlpIn(const BlockPass& pass);
  // Both in fewer passes over memory; the same bits.
  Status FormMiddleAndMlpIn(const BlockPass& pass);
  Status FormGateUp(const BlockPass& pass);
  Status FormMlpHidden(const BlockPass& pass);
  Status MlpBackward(const BlockPass& pass, const GradientViews& gradients);
  Status AttentionBackward(const BlockPass& pass, const GradientViews& gradients);

  Backend& backend_;
  ModelConfig model_;
  int64_t layer_;
  Parameters& parameters_;
  BlockViews views_;
  Recompute recompute_;  // in this block's backward
  // The first recipe of each Input, in order; then further ones, where layers differ.
  std::vector<LinearInput> inputs_;
  std::vector<Input> input_sources_;                // of inputs_
  std::array<size_t, kLinearKinds> input_index_{};  // into inputs_
  std::vector<QuantizedLinear> linears_;            // q, k, v, o, gate, up, down
};

}  // namespace nibble
