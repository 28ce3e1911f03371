// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/buffer_plan.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr int64_t kElementBytes = 4;
constexpr int64_t kAlignBytes = 64;

// Hands out places one after the other.
class Arena {
 public:
  PlannedBuffer Take(int64_t rows, int64_t cols) {
    const PlannedBuffer buffer{size_bytes_, rows, cols};
    const int64_t bytes = rows * cols * kElementBytes;
    size_bytes_ += (bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
    return buffer;
  }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  int64_t size_bytes_ = 0;
};

BlockBuffers PlanBlock(Arena& arena, const ModelConfig& model, const BufferPlan& shared, bool keep,
                       int64_t sequences, int64_t seq_len) {
  const int64_t t = shared.tokens, d = model.hidden_size, f = model.intermediate_size;
  const int64_t kv = model.kv_size();
  BlockBuffers b;
  b.input = arena.Take(t, d);
  b.input_rstd = arena.Take(1, t);
  b.query = arena.Take(t, d);
  b.key = arena.Take(t, kv);
  b.value = arena.Take(t, kv);
  b.attention_out = arena.Take(t, d);
  b.lse = arena.Take(sequences * model.heads, seq_len);
  b.middle = arena.Take(t, d);
  b.middle_rstd = arena.Take(1, t);
  b.gate = arena.Take(t, f);
  b.up = arena.Take(t, f);
  // What a layer has quantized is not needed again, and the gradient buffers are free in forward.
  b.attention_in = keep ? arena.Take(t, d) : shared.branch_grad;
  b.mlp_in = keep ? arena.Take(t, d) : shared.branch_grad;
  b.mlp_hidden = keep ? arena.Take(t, f) : shared.hidden_grad;
  return b;
}

}  // namespace

bool KeepsLinearInput(const LinearRecipe& recipe) {
  return !recipe.Resolved(Slot::kXf).has_scale() || !recipe.Resolved(Slot::kXw).has_scale();
}

BufferPlan PlanBuffers(const ModelConfig& model, const Recipe& recipe, int64_t sequences,
                       int64_t seq_len) {
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
  plan.hidden_grad = arena.Take(t, f);
  const int layers = static_cast<int>(model.layers);
  for (int layer = 0; layer < layers; ++layer) {
    // One layer that borrows its input, in any stage, keeps those of the block.
    bool keep = false;
    for (int stage = -1; stage < static_cast<int>(recipe.stages.size()); ++stage) {
      for (int kind = 0; kind < kLinearKinds; ++kind) {
        keep |=
            KeepsLinearInput(recipe.LinearFor(static_cast<LinearKind>(kind), layer, layers, stage));
      }
    }
    plan.blocks.push_back(PlanBlock(arena, model, plan, keep, sequences, seq_len));
  }
  plan.output = arena.Take(t, d);
  plan.output_rstd = arena.Take(1, t);
  plan.head_in = arena.Take(t, d);
  plan.losses = arena.Take(1, t);
  const int64_t rows =
      std::min(std::clamp<int64_t>(kLogitsElements / model.vocab_size, 1, t), kLogitsRows);
  plan.logits = arena.Take(rows, model.vocab_size);
  plan.arena_bytes = arena.size_bytes();
  return plan;
}

}  // namespace nibble
