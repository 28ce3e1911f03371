// SPDX-License-Identifier: Apache-2.0
//
// BufferPlan: every activation and work buffer of one training step, with its place in one arena.
//
// Purpose: the model allocates exactly this and the estimate adds up exactly this, so the two
// cannot drift. Lifetimes decide what shares memory: what
// backward needs has its own place per block; what lives within a block, or is formed again in
// backward, has one place for all.
// Thread-safety: value types and pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/recipe/recipe.h"
#include "worker/spec/recompute.h"
#include "worker/spec/run_config.h"

namespace nibble {

// Rows x cols elements at `offset` bytes from the start of the arena.
struct PlannedBuffer {
  int64_t offset = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t element_bytes = 4;  // f32 or i32; 2: bf16
};

// T tokens, D hidden, K key-value width, F feed-forward width, B sequences, H heads.
// Forward leaves them for backward. What the run recomputes is shared by all blocks, whatever the
// comment says. `narrow`: BF16 in memory, where Activations::kBf16 is more than a rounding.
struct BlockBuffers {
  PlannedBuffer input;          // (T, D) residual stream entering the block
  PlannedBuffer input_rstd;     // (1, T)
  PlannedBuffer attention_in;   // (T, D) normalised input; shared by all blocks unless kept
  PlannedBuffer query_in;       // (T, D) before rotation; query, or shared by all when narrow
  PlannedBuffer key_in;         // (T, K) before rotation; key, or shared by all when narrow
  PlannedBuffer query;          // (T, D) narrow
  PlannedBuffer key;            // (T, K) narrow
  PlannedBuffer value;          // (T, K) narrow
  PlannedBuffer attention_out;  // (T, D) narrow
  PlannedBuffer lse;            // (B * H, seq)
  PlannedBuffer middle;         // (T, D) residual stream between attention and feed-forward
  PlannedBuffer middle_rstd;    // (1, T)
  PlannedBuffer mlp_in;         // (T, D) shared by all blocks unless kept
  PlannedBuffer gate;           // (T, F) narrow
  PlannedBuffer up;             // (T, F) narrow
  PlannedBuffer gate_grad;      // (T, F) gate, or shared by all when narrow
  PlannedBuffer up_grad;        // (T, F) up, or shared by all when narrow
  PlannedBuffer mlp_hidden;     // (T, F) silu(gate) * up; shared by all blocks unless kept
};

struct BufferPlan {
  int64_t tokens = 0;  // of one micro-batch
  std::vector<BlockBuffers> blocks;
  PlannedBuffer ids;          // (1, T) i32
  PlannedBuffer targets;      // (1, T) i32
  PlannedBuffer output;       // (T, D) residual stream after the last block
  PlannedBuffer output_rstd;  // (1, T)
  PlannedBuffer head_in;      // (T, D)
  PlannedBuffer logits;       // (R, V): as the LogitsChunk allows
  PlannedBuffer losses;       // (1, T)
  PlannedBuffer stream_grad;  // (T, D) gradient of the residual stream
  PlannedBuffer branch_grad;  // (T, D) gradient entering a norm or leaving attention
  PlannedBuffer query_grad;   // (T, D)
  PlannedBuffer key_grad;     // (T, K)
  PlannedBuffer value_grad;   // (T, K)
  PlannedBuffer hidden_grad;  // (T, F)
  PlannedBuffer up_grad;      // (T, F) when narrow, over query_grad and what follows it
  int64_t arena_bytes = 0;
};

// Logits exist for this many elements and rows at a time.
struct LogitsChunk {
  int64_t elements, rows;
};
// 64 MiB of f32: the head's weight, which every chunk packs and rounds again, serves enough rows;
// more memory buys nothing.
inline constexpr LogitsChunk kCpuLogits{int64_t{1} << 24, 512};
// 256 MiB: every chunk reads and writes the gradient of the head, 8 bytes a weight, which should be
// little beside 6 FLOPs per weight and row at tensor-core rate.
inline constexpr LogitsChunk kDeviceLogits{int64_t{1} << 26, 4096};

// True when a linear layer's input stays in memory as it is until backward: its FP32 and BF16
// operands are read from there and not copied.
bool KeepsLinearInput(const LinearRecipe& recipe);

BufferPlan PlanBuffers(const ModelConfig& model, const Recipe& recipe, int64_t sequences,
                       int64_t seq_len, const Recompute& recompute = {},
                       const LogitsChunk& logits = kCpuLogits, bool narrow = false);

}  // namespace nibble
