// SPDX-License-Identifier: Apache-2.0
//
// QuantizeContext: what a quantizer needs beside the numbers.
//
// Thread-safety: value types, thread-compatible; RandomReplay says its own. Ownership: borrows.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/quantized_tensor.h"

namespace nibble {

// A listed random source in place of the generator, to replay published sequences. Numbers are
// asked for by stream and index, in any order. Thread-safe: called from several threads at once.
class RandomReplay {
 public:
  virtual ~RandomReplay() = default;
  // Word of element or, for stochastic scales, of scale group `index`; te8 takes the low byte.
  virtual uint32_t Word(uint32_t stream, uint64_t index) const = 0;
  // Whether coordinate `index` of a rotation's group changes its sign.
  virtual bool Negative(uint32_t rotation_stream, int64_t index) const = 0;
};

// Past absolute maxima of one operand slot, for scale rule dly and for windows: what a layer keeps
// from step to step. Host memory. Layout as Transformer Engine: [current, oldest .. newest]. A held
// amax (Quant::hold) is the only entry, and enc the number of updates done when it was measured.
struct AmaxHistory {
  std::vector<float> amax;
  float enc = 1;
  int64_t seen = 0;  // quantizations so far
};

// What a quantizer needs beside the numbers. seed, step and stream feed the counter-based
// generator of stochastic rounding.
struct QuantizeContext {
  uint64_t seed = 0;
  uint32_t step = 0;
  uint32_t stream = 0;  // layer * 8 + slot
  // False: only scales and the decoded form are wanted (an operand used at once and dropped).
  bool keep_codes = true;
  // The axis the slot's GEMM sums over. kRows means: as if x were transposed, quantized along its
  // columns and turned back; element i of the random stream counts in the transposed order.
  Axis contraction = Axis::kCols;
  // Stream of the rotation's signs, the same for both operands of a GEMM.
  uint32_t rotation_stream = 0;
  // Folding: the other operand of the GEMM, whose codes enter it without their scales, so x is
  // divided by them first: G = fl(bf16(x) / enc), enc of the other operand's scale group (one per
  // element of the contraction axis). A group of zero codes makes G zero: its enc says nothing, and
  // nothing of x there reaches the product. A quotient past the largest FP32 number counts as a
  // non-finite amax. nullptr: nothing is folded.
  const QuantizedTensor* fold = nullptr;
  // False: x is quantized as it is, not rounded to BF16 first (rotated in FP32).
  bool round_source = true;
  // Of rules with a window or a held amax; read and advanced. nullptr: as in the first step.
  AmaxHistory* history = nullptr;
  // Optimizer updates done before this call; -1 outside training, where no amax is held.
  int64_t completed = -1;
  // nullptr: the counter-based generator.
  const RandomReplay* replay = nullptr;
};

}  // namespace nibble
