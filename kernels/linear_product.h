// SPDX-License-Identifier: Apache-2.0
//
// The three products of a linear layer, each formed from two slot operands.
//
// Purpose: one place decides whether a product multiplies codes (Backend::QuantizedGemm) or
// decoded FP32 operands (Backend::Gemm), from the recipe and Backend::Supports alone, and one place
// carries it out. `reason` tells why a product is not on codes, so nothing falls back silently.
// Thread-safety: pure functions; Multiply runs on the backend's caller thread.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/linear_operand.h"

namespace nibble {

// out = op(left) op(right).
struct LinearProduct {
  const char* name;
  Slot left, right;
  Transpose transpose_left, transpose_right;
};
inline constexpr LinearProduct kFprop{"fprop", Slot::kXf, Slot::kWf, Transpose::kNo,
                                      Transpose::kYes};  // Y (T, N) = X W^T
inline constexpr LinearProduct kDgrad{"dgrad", Slot::kGd, Slot::kWd, Transpose::kNo,
                                      Transpose::kNo};  // dX (T, K) = dY W
inline constexpr LinearProduct kWgrad{"wgrad", Slot::kGw, Slot::kXw, Transpose::kYes,
                                      Transpose::kNo};  // dW (N, K) = dY^T X

struct ProductForm {
  bool on_codes = false;
  const char* reason = "";           // why decoded; "" on codes
  Support support = Support::kFast;  // of what runs: codes or FP32 kFast, decoded kReference
};
// rows x cols of the output, depth of the sum; 0 = any. On codes when each operand's codes are
// integers whose scales are constant along the sum, or per group of it (equal groups of 8, 16, ..,
// 128 in both operands), or folded into the other operand, and the backend multiplies such codes.
// kNone when the backend cannot form the product at all.
ProductForm FormOf(const Backend& backend, const LinearRecipe& recipe, const LinearProduct& product,
                   int64_t rows, int64_t cols, int64_t depth);

// out = or += the product, in the form FormOf gave.
Status Multiply(LinearWorkspace& workspace, const LinearRecipe& recipe,
                const LinearProduct& product, const ProductForm& form, SlotOperand& left,
                SlotOperand& right, bool accumulate, TensorView out);

}  // namespace nibble
