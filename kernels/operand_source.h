// SPDX-License-Identifier: Apache-2.0
//
// OperandSource: where the rows of a linear layer's operand come from, when they are formed only to
// be quantized.
//
// Purpose: a backend that sees the operation before the quantizer need not bring the rows to memory
// in FP32. Thread-safety: value types, thread-compatible. Ownership: borrows every view.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/quantize_context.h"
#include "kernels/recipe/recipe.h"
#include "kernels/tensor.h"

namespace nibble {

class Backend;

// Views and arithmetic are those of the Backend operation of that name.
struct OperandSource {
  enum class Form : uint8_t { kRmsNorm, kAddRmsNorm, kSwiGlu };
  Form form;
  ConstTensorView a, b;    // x; the two summands; gate and up
  ConstTensorView weight;  // of the norms
  float epsilon = 0;
  TensorView sum, rstd;  // of the norms: written, too
  TensorView rows;       // (R, C) f32, where the rows go

  static OperandSource RmsNorm(ConstTensorView x, ConstTensorView weight, float epsilon,
                               TensorView rstd, TensorView rows) {
    return {Form::kRmsNorm, x, {}, weight, epsilon, {}, rstd, rows};
  }
  static OperandSource AddRmsNorm(ConstTensorView a, ConstTensorView b, ConstTensorView weight,
                                  float epsilon, TensorView sum, TensorView rstd, TensorView rows) {
    return {Form::kAddRmsNorm, a, b, weight, epsilon, sum, rstd, rows};
  }
  static OperandSource SwiGlu(ConstTensorView gate, ConstTensorView up, TensorView rows) {
    return {Form::kSwiGlu, gate, up, {}, 0, {}, {}, rows};
  }
};

// source.rows, and what else the operation that forms them writes.
Status FormRows(Backend& backend, const OperandSource& source);

// SwiGLU's backward pass: the gradient of its output, what forward left, and where the gradients of
// that go. All (T, F), as Backend::SwiGluBackward takes them.
struct SwiGluGradientViews {
  TensorView dout, gate, up, dgate, dup;
};

// One quantization of a tensor.
struct QuantizeTarget {
  const Quant* quant;
  const QuantizeContext* context;
  QuantizedTensor* out;
};

}  // namespace nibble
