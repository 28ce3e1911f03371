// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/buffer_plan.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr int64_t kFloatBytes = 4, kBf16Bytes = 2;
constexpr int64_t kAlignBytes = 64;

// Hands out places one after the other.
class Arena {
 public:
  PlannedBuffer Take(int64_t rows, int64_t cols, int64_t element_bytes = kFloatBytes) {
    return TakeAt(size_bytes_, rows, cols, element_bytes);
  }
  // Over what has been taken from `offset` on.
  PlannedBuffer TakeAt(int64_t offset, int64_t rows, int64_t cols, int64_t element_bytes) {
    const int64_t bytes = rows * cols * element_bytes;
    const int64_t end = offset + (bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
    size_bytes_ = std::max(size_bytes_, end);
    return {offset, rows, cols, element_bytes};
  }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  int64_t size_bytes_ = 0;
};

// One layer that borrows its input, in any stage, keeps those of the block.
bool KeepsInputs(const Recipe& recipe, int layer, int layers) {
  for (int stage = -1; stage < static_cast<int>(recipe.stages.size()); ++stage) {
    for (int kind = 0; kind < kLinearKinds; ++kind) {
      if (KeepsLinearInput(recipe.LinearFor(static_cast<LinearKind>(kind), layer, layers, stage))) {
        return true;
      }
    }
  }
  return false;
}

// Places the buffers of block after block.
class BlockPlanner {
 public:
  BlockPlanner(Arena& arena, const ModelConfig& model, const BufferPlan& shared, int64_t sequences,
               int64_t seq_len, const Recompute& recompute, bool narrow)
      : arena_(arena),
        model_(model),
        shared_(shared),
        lse_rows_(sequences * model.heads),
        seq_len_(seq_len),
        recompute_(recompute),
        narrow_(narrow) {}

  BlockBuffers Plan(bool keep) {
    const int64_t t = shared_.tokens, d = model_.hidden_size, f = model_.intermediate_size;
    const int64_t kv = model_.kv_size();
    const bool core = recompute_.attention_core();
    BlockBuffers b;
    b.input = arena_.Take(t, d);
    b.input_rstd = arena_.Take(1, t);
    const int64_t kept = narrow_ ? kBf16Bytes : kFloatBytes;
    b.query = Place(core, &BlockBuffers::query, t, d, kept);
    b.key = Place(core, &BlockBuffers::key, t, kv, kept);
    b.value = Place(core, &BlockBuffers::value, t, kv, kept);
    b.attention_out = Place(core, &BlockBuffers::attention_out, t, d, kept);
    b.lse = Place(core, &BlockBuffers::lse, lse_rows_, seq_len_);
    b.middle = Place(recompute_.middle(), &BlockBuffers::middle, t, d);
    b.middle_rstd = arena_.Take(1, t);
    b.gate = Place(recompute_.gate_up(), &BlockBuffers::gate, t, f, kept);
    b.up = Place(recompute_.gate_up(), &BlockBuffers::up, t, f, kept);
    // FP32 on their way into and out of the narrow ones: in forward and in the backward pass of the
    // feed-forward part nothing lies in the gradients of attention, and dgate replaces the gradient
    // of the hidden tensor.
    b.query_in = narrow_ ? shared_.query_grad : b.query;
    b.key_in = narrow_ ? shared_.key_grad : b.key;
    b.gate_grad = narrow_ ? shared_.hidden_grad : b.gate;
    b.up_grad = narrow_ ? shared_.up_grad : b.up;
    // What a layer has quantized is not needed again, and these gradient buffers are free whenever
    // the input is formed.
    b.attention_in = shared_.branch_grad;
    b.mlp_in = shared_.branch_grad;
    b.mlp_hidden = shared_.hidden_grad;
    if (!keep) return b;
    b.attention_in = Place(recompute_.attention_in(), &BlockBuffers::attention_in, t, d);
    b.mlp_in = Place(recompute_.mlp_in(), &BlockBuffers::mlp_in, t, d);
    b.mlp_hidden = Place(recompute_.mlp_hidden(), &BlockBuffers::mlp_hidden, t, f);
    return b;
  }

 private:
  // One place for all blocks where `again`, else a new one.
  PlannedBuffer Place(bool again, PlannedBuffer BlockBuffers::*which, int64_t rows, int64_t cols,
                      int64_t element_bytes = kFloatBytes) {
    if (!again) return arena_.Take(rows, cols, element_bytes);
    PlannedBuffer& one = recomputed_.*which;
    if (one.rows == 0) one = arena_.Take(rows, cols, element_bytes);
    return one;
  }

  Arena& arena_;
  const ModelConfig& model_;
  const BufferPlan& shared_;
  int64_t lse_rows_;
  int64_t seq_len_;
  Recompute recompute_;
  bool narrow_;
  BlockBuffers recomputed_;
};

}  // namespace

bool KeepsLinearInput(const LinearRecipe& recipe) {
  return !recipe.Resolved(Slot::kXf).has_scale() || !recipe.Resolved(Slot::kXw).has_scale();
}

BufferPlan PlanBuffers(const ModelConfig& model, const Recipe& recipe, int64_t sequences,
                       int64_t seq_len, const Recompute& recompute, const LogitsChunk& logits,
                       bool narrow) {
  Arena arena;
  BufferPlan plan;
  const int64_t t = sequences * seq_len, d = model.hidden_size, f = model.intermediate_size;
  plan.tokens = t;
  plan.ids = arena.Take(1, t);
  plan.targets = arena.Take(1, t);
  plan.stream_grad = arena.Take(t, d);
  plan.branch_grad = arena.Take(t, d);
  plan.query_grad = arena.Take(t, d);
  plan.key_grad = arena.Take(t, model.kv_size());
  plan.value_grad = arena.Take(t, model.kv_size());
  if (narrow) plan.up_grad = arena.TakeAt(plan.query_grad.offset, t, f, kFloatBytes);
  plan.hidden_grad = arena.Take(t, f);
  const int layers = static_cast<int>(model.layers);
  BlockPlanner planner(arena, model, plan, sequences, seq_len, recompute, narrow);
  for (int layer = 0; layer < layers; ++layer) {
    plan.blocks.push_back(planner.Plan(KeepsInputs(recipe, layer, layers)));
  }
  plan.output = arena.Take(t, d);
  plan.output_rstd = arena.Take(1, t);
  plan.head_in = arena.Take(t, d);
  plan.losses = arena.Take(1, t);
  const int64_t rows =
      std::min(std::clamp<int64_t>(logits.elements / model.vocab_size, 1, t), logits.rows);
  plan.logits = arena.Take(rows, model.vocab_size);
  plan.arena_bytes = arena.size_bytes();
  return plan;
}

}  // namespace nibble
