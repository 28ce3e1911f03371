// SPDX-License-Identifier: Apache-2.0
//
// The part of the self-test that compares a backend with the reference: layers of whole recipes,
// the rounded optimizer state, gradients on the wire, the weight rule.
// Thread-safety: one thread, the caller of both backends. Memory is reached through the backend.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

// A matrix of the backend's that the host writes and reads by copies.
class DeviceMatrix {
 public:
  static Result<DeviceMatrix> Create(Backend& backend, int64_t rows, int64_t cols,
                                     const std::vector<float>& values);
  TensorView view() const { return view_; }
  Result<std::vector<float>> Read(Backend& backend) const;

 private:
  Buffer buffer_;
  TensorView view_;
};

// BF16 values, uniform in [-scale, scale), every 53rd eight times as large.
std::vector<float> SelfTestValues(uint32_t stream, int64_t size, float scale);

// Every different layer of the recipe at a grid of shapes, forward and backward: Y, dX and dW as
// `reference` gives them without kernels for codes. INTERNAL names recipe, shape, product and
// error; UNIMPLEMENTED when the backend has no such path.
Status ProveRecipe(Backend& backend, Backend& reference, const Recipe& recipe);

// Two updates of AdamW with rounded states; E4M3 gradients; the weight rule. Errors as above.
Status ProveRoundedState(Backend& backend, Backend& reference);
Status ProveWire(Backend& backend, Backend& reference);
Status ProveWeightRule(Backend& backend, Backend& reference);

}  // namespace nibble
