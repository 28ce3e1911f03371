// SPDX-License-Identifier: Apache-2.0
//
// Recompute: which parts of a block's forward pass are formed again in backward instead of kept.
//
// Purpose: memory for arithmetic, without a change of results: every part is a pure function of
// what is kept, so a run gives the same bits whatever is chosen. Value type, thread-safe.
#pragma once

#include <string>

#include "base/status.h"

namespace nibble {

// What each choice drops, per block (T tokens, D hidden, F feed-forward width):
//   swiglu     silu(gate) * up                                        (T, F)
//   norm       the two normalised inputs                              2 (T, D)
//   ffn        norm, gate, up and SwiGLU of the feed-forward part
//   attention  norm, query, key, value and output of attention
//   block      everything but the residual stream that enters the block
// Where a recipe quantizes an operand, dropping it means dropping its codes.
struct Recompute {
  bool swiglu = false;
  bool norm = false;
  bool ffn = false;
  bool attention = false;
  bool block = false;

  // What they amount to, tensor by tensor.
  bool mlp_hidden() const { return swiglu || ffn || block; }
  bool gate_up() const { return ffn || block; }
  bool mlp_in() const { return norm || ffn || block; }
  bool middle() const { return block; }
  bool attention_core() const { return attention || block; }  // query to attention_out
  bool attention_in() const { return norm || attention || block; }

  friend bool operator==(const Recompute&, const Recompute&) = default;
};

// "none" or "" for nothing, or choices joined by '+': "norm+swiglu". INVALID_ARGUMENT names the
// choices.
Result<Recompute> ParseRecompute(const std::string& text);
// The inverse, in the order above; "none" for nothing.
std::string RecomputeText(const Recompute& recompute);

}  // namespace nibble
