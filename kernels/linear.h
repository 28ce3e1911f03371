// SPDX-License-Identifier: Apache-2.0
//
// QuantizedLinear: one linear layer trained under a recipe.
//
// Purpose: Y = X W^T and its gradients with each operand rounded as the recipe says. Operands are
// rounded to BF16 at entry unless their slot is fp32; FP4 and FP8 operands are decoded to FP32 and
// multiplied in FP32 (path "reference"); results are FP32.
// Three objects:
//   LinearWorkspace  decoded operands; one per backend, shared by every layer.
//   LinearInput      X as wgrad will need it (codes, scales, residual). Layers that read the same X
//                    (query, key, value; gate, up) share one, so X is quantized once. One per
//                    distinct X and live micro-batch.
//   QuantizedLinear  the weight side of one layer, cached until the weight's version changes.
// Thread-safety: one thread, the backend's caller. Ownership: borrows backend, workspace, weights;
// owns its quantized copies. Destroy before the backend.
// Order per micro-batch: input.Set(x); layer.Forward(input, ...) for each layer; ...;
// layer.Backward(dy, input, ...) for each layer, in any order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/quantized_tensor.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

// Where in training a call happens; feeds stochastic rounding and sampling.
struct LinearStep {
  uint64_t seed = 0;
  uint32_t step = 0;  // optimizer step (times micro-batches, if those must differ)
  // True on sampled steps: Set, Forward and Backward also measure quantization health.
  bool measure_health = false;
};

class LinearWorkspace {
 public:
  explicit LinearWorkspace(Backend* backend) : backend_(*backend) {}
  Backend& backend() { return backend_; }
  int64_t size_bytes() const;

 private:
  friend class LinearInput;
  friend class QuantizedLinear;
  // What a decoded buffer holds now: the stamp of the writer and its slot.
  struct Content {
    uint64_t stamp = 0;  // 0: nothing
    Slot slot = Slot::kXf;
    friend bool operator==(const Content&, const Content&) = default;
  };
  uint64_t NextStamp() { return ++last_stamp_; }

  Backend& backend_;
  // Decoded operands; neighbours that share an operand find it still there.
  Buffer input_, weight_, gradient_, gradient_wgrad_, product_;
  Content input_content_, weight_content_;
  QuantizedTensor gradient_codes_;  // scales only: dY is used at once
  uint64_t last_stamp_ = 0;
};

class LinearInput {
 public:
  // `layer` numbers the random stream (layer * 8 + slot).
  LinearInput(LinearWorkspace* workspace, const LinearRecipe& recipe, uint32_t layer);

  // Quantizes x (T, K). x is borrowed for this call only, except when the recipe keeps FP32 or BF16
  // operands: borrows_source() tells; then x must stay unchanged until the last Backward.
  Status Set(const LinearStep& step, ConstTensorView x);
  bool borrows_source() const;
  // Whether a recipe borrows, without an object (for memory planning).
  static bool BorrowsSource(const LinearRecipe& recipe);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t saved_bytes() const;  // quantized copies held; 0 when the source is borrowed
  int64_t nonfinite_amax() const;
  // Of the last Set with measure_health; elements == 0 when never measured.
  const QuantizationHealth& health() const { return health_; }

 private:
  friend class QuantizedLinear;
  // Decoded Xf or Xw in the workspace, or the borrowed FP32 source. Valid until the workspace's
  // input buffer serves another LinearInput.
  Result<ConstTensorView> Operand(Slot slot);
  Status QuantizeSlot(const LinearStep& step, Slot slot, ConstTensorView x, QuantizedTensor* out);

  LinearWorkspace& workspace_;
  LinearRecipe recipe_;
  uint32_t layer_;
  ConstTensorView source_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  uint64_t stamp_ = 0;  // changes with every Set; 0 before the first
  QuantizedTensor forward_;
  QuantizedTensor wgrad_;  // only when Xw has its own quantizer
  QuantizationHealth health_;
};

// Health of one layer's own operands after a sampled step.
struct LinearHealth {
  QuantizationHealth weight;
  QuantizationHealth gradient;  // dY as dgrad sees it
  // Norm of dY over the norm of its quantization error; 0 when never measured, kMaxSnrDb-like cap
  // of kMaxGradientToNoise when the error is 0. Below sqrt(3) the noise starts to dominate.
  double gradient_to_noise = 0;
};
inline constexpr double kMaxGradientToNoise = 1e15;

class QuantizedLinear {
 public:
  // `layer` numbers the random stream.
  QuantizedLinear(LinearWorkspace* workspace, const LinearRecipe& recipe, uint32_t layer);

  // y (T, N) = X W^T. weight (N, K); weight_version changes whenever the weight's values do: an
  // equal version reuses the quantized copy. INVALID_ARGUMENT for shapes that do not fit.
  Status Forward(const LinearStep& step, LinearInput& input, ConstTensorView weight,
                 uint64_t weight_version, TensorView y);

  // dx (T, K) = dY W, overwritten or accumulated; dx.data == nullptr skips it. dweight (N, K)
  // accumulates dY^T X, times the DGE factor when the recipe has one. weight and version as in the
  // Forward of this micro-batch. dy is borrowed and not changed.
  Status Backward(const LinearStep& step, ConstTensorView dy, LinearInput& input,
                  ConstTensorView weight, uint64_t weight_version, TensorView dx,
                  bool accumulate_dx, TensorView dweight);

  const LinearRecipe& recipe() const { return recipe_; }
  int64_t quantized_weight_bytes() const;
  int64_t nonfinite_amax() const { return nonfinite_amax_; }  // since construction
  const LinearHealth& health() const { return health_; }

 private:
  Status CheckShapes(const char* op, const LinearInput& input, ConstTensorView weight,
                     ConstTensorView y) const;
  Status PrepareWeight(const LinearStep& step, ConstTensorView weight, uint64_t version);
  Status QuantizeWeight(const LinearStep& step, Slot slot, ConstTensorView weight,
                        QuantizedTensor* out);
  Result<ConstTensorView> WeightOperand(Slot slot, ConstTensorView weight);
  Result<ConstTensorView> GradientOperand(Slot slot, const LinearStep& step, ConstTensorView dy,
                                          Buffer& buffer);
  Status WeightGradient(ConstTensorView gradient, ConstTensorView input, ConstTensorView weight,
                        TensorView dweight);

  LinearWorkspace& workspace_;
  LinearRecipe recipe_;
  uint32_t layer_;
  uint64_t version_ = 0;
  uint64_t stamp_ = 0;            // changes with every quantization; 0 before the first
  QuantizedTensor weight_;        // Wf
  QuantizedTensor weight_dgrad_;  // only when Wd has its own quantizer
  LinearHealth health_;
  int64_t nonfinite_amax_ = 0;
};

// Which execution path each GEMM of a (T, K) -> (T, N) layer takes on this backend:
// {"fprop": "reference", "dgrad": ..., "wgrad": ...}; UNIMPLEMENTED when the backend cannot.
struct LinearPaths {
  Support fprop, dgrad, wgrad;
};
Result<LinearPaths> PathsOf(const Backend& backend, const LinearRecipe& recipe, int64_t tokens,
                            int64_t in, int64_t out);

}  // namespace nibble
