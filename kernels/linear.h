// SPDX-License-Identifier: Apache-2.0
//
// QuantizedLinear: one linear layer trained under a recipe.
//
// Purpose: Y = X W^T and its gradients with each operand rounded as the recipe says. Structure:
//   six SlotOperands (linear_operand.h)   Xf, Xw of a LinearInput; Wf, Wd of a QuantizedLinear; Gd,
//                                         Gw of the workspace. Made once, handed out as codes or
//                                         decoded.
//   three products (linear_product.h)     fprop, dgrad, wgrad: each takes two operands and runs on
//                                         codes or decoded, as recipe and Backend::Supports decide.
//   this file                             who makes which operand when, and what happens to a
//                                         product afterwards (the weight estimator).
// A slot that reuses another's codes has no operand of its own. Operands are rounded to BF16 at
// entry unless their slot is fp32; X, and Y of Forward, may be of DType::kBF16 where the backend
// stores it, all other results are FP32.
// Objects: LinearWorkspace, one per backend. LinearInput: layers that read the same X (query, key,
// value; gate, up) share one, so X is quantized once; one per distinct X and live micro-batch.
// QuantizedLinear: the weight side of one layer, quantized when the weight's version changes.
// Thread-safety: one thread, the backend's caller. Ownership: borrows backend, workspace, weights;
// owns its quantized copies. Destroy before the backend.
// Order per micro-batch: input.Set(x); layer.Forward(input, ...) for each layer; ...;
// layer.Backward(dy, input, ...) for each layer, in any order.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/linear_operand.h"
#include "kernels/linear_product.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

// Xf and Xw of an input that is made again in backward instead of kept: memory that inputs share
// which are never needed at the same time. Whoever was set last owns the content.
struct InputOperands {
  SlotOperand forward;
  SlotOperand wgrad;  // only when Xw has its own quantizer
};

class LinearInput {
 public:
  // `layer` numbers the random stream (layer * 8 + slot). `shared` is borrowed and must outlive the
  // object; nullptr: the input keeps operands of its own.
  LinearInput(LinearWorkspace* workspace, const LinearRecipe& recipe, uint32_t layer,
              InputOperands* shared = nullptr);

  // Quantizes x (T, K). x is borrowed for this call only, except when the recipe keeps FP32 or BF16
  // operands: borrows_source() tells; then x must stay unchanged until the last Backward.
  Status Set(const LinearStep& step, ConstTensorView x);
  // The same of rows formed for this input alone. Where its recipe needs nothing of them but codes,
  // source.rows holds anything afterwards.
  Status Set(const LinearStep& step, const OperandSource& source);
  // Makes the operands of the last Set again, bit for bit, after another input has used the shared
  // memory. `step` and the values of x are those of that Set; past maxima and health stay.
  Status SetAgain(const LinearStep& step, ConstTensorView x);
  Status SetAgain(const LinearStep& step, const OperandSource& source);
  bool borrows_source() const;
  // Whether a recipe borrows, without an object (for memory planning).
  static bool BorrowsSource(const LinearRecipe& recipe);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  // Quantized copies of its own; 0 when the source is borrowed or the operands are shared.
  int64_t saved_bytes() const;
  int64_t nonfinite_amax() const { return forward_nonfinite_ + wgrad_nonfinite_; }
  // Past maxima of Xf and Xw, and the norms of X's channels: what training carries from step to
  // step. Empty where a slot has none.
  std::array<AmaxHistory*, 3> histories() {
    return {&forward_history_, &wgrad_history_, &channel_norms_};
  }
  // Of the last Set with measure_health; elements == 0 when never measured.
  const QuantizationHealth& health() const { return health_; }

 private:
  friend class QuantizedLinear;
  InputOperands& operands() { return shared_ != nullptr ? *shared_ : own_; }
  // Xf or Xw; a requantized Xw is made when it is first asked for. FAILED_PRECONDITION before the
  // first Set, and when another input owns the shared operands.
  Result<SlotOperand*> Operand(const LinearStep& step, Slot slot);
  Status CheckRows(ConstTensorView x) const;
  Status CheckAgain(ConstTensorView x) const;
  Status MakeOperands(const LinearStep& step, ConstTensorView x, AmaxHistory* forward,
                      AmaxHistory* wgrad);
  // Whether a Set of (rows, cols) needs nothing of x but the codes of Xf.
  bool TakesCodesAlone(const LinearStep& step, int64_t rows, int64_t cols) const;
  Status MakeFormed(const LinearStep& step, const OperandSource& source);
  bool RequantizesWgrad() const { return recipe_.slot(Slot::kXw).source == Source::kRequant; }
  // The slot that says which channels X splits off.
  const Quant& SplitQuant() const;
  bool GathersChannels(const LinearStep& step) const {
    return SplitQuant().split == Split::kChannels && SplitQuant().split_window > 0 &&
           step.completed >= 0;
  }
  // Adds x to the norms from which training chooses the channels.
  Status GatherNorms(const LinearStep& step, ConstTensorView x);
  // For an operand of X's products. `follows`: it takes the columns that this X has chosen.
  OperandExtras Extras(const LinearStep& step, uint32_t signs_layer, bool follows);
  OperandExtras OwnExtras(const LinearStep& step, AmaxHistory* history);

  LinearWorkspace& workspace_;
  LinearRecipe recipe_;
  uint32_t layer_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  InputOperands own_;
  InputOperands* shared_;
  uint64_t stamp_ = 0;  // of the forward operand as this input made it; 0: never
  AmaxHistory forward_history_, wgrad_history_;
  AmaxHistory forward_before_, wgrad_before_;  // as the last Set found them; shared operands only
  QuantizationHealth health_;
  int64_t forward_nonfinite_ = 0, wgrad_nonfinite_ = 0;
  AmaxHistory channel_norms_;  // amax: sums of channel norms; seen: how many calls they come from
  std::vector<int64_t> channels_;       // chosen from them; empty: not yet
  std::vector<int64_t> last_channels_;  // that the last Set split off
  uint64_t requantized_ = 0;  // stamp of the forward operand that a requantized Xw came from
};

// Health of one layer's own operands after a sampled step.
struct LinearHealth {
  QuantizationHealth weight;
  QuantizationHealth gradient;  // dY as dgrad sees it
  // dY as wgrad sees it, where it has its own quantizer.
  QuantizationHealth gradient_wgrad;
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
  // accumulates dY^T X, times the estimator's factor when the recipe has one and it is not
  // deferred. weight and version as in the Forward of this micro-batch. dy is borrowed and not
  // changed.
  Status Backward(const LinearStep& step, ConstTensorView dy, LinearInput& input,
                  ConstTensorView weight, uint64_t weight_version, TensorView dx,
                  bool accumulate_dx, TensorView dweight);

  // The factor that Backward left out of `dweight` with LinearStep::defer_factor, until the weight
  // changes; nothing for recipes whose factor is not the same in every micro-batch of an update, or
  // that have none. Deferring changes no bit of one micro-batch's gradient.
  std::optional<PendingFactor> Pending(ConstTensorView weight, TensorView dweight) const;

  // Updates the weight and makes its codes for Forward in one pass, where the backend and the
  // recipe let it: returns whether it has. `weight_version` is that of the new weight.
  Result<bool> Update(const LinearStep& step, const WeightUpdate& update, uint64_t weight_version);

  // Backward of the two layers before a SwiGLU, from the gradient of silu(gate) * up, their
  // outputs: dx = dGate Wgate + dUp Wup. All of `views` holds anything afterwards. The bits of
  // SwiGluBackward and of two calls of Backward.
  struct Call {
    QuantizedLinear* layer;
    LinearInput* input;
    ConstTensorView weight;
    TensorView dweight;
  };
  static Status BackwardOfSwiGlu(const LinearStep& step, const SwiGluGradientViews& views,
                                 const Call& of_gate, const Call& of_up, uint64_t weight_version,
                                 TensorView dx);

  // out (N, K) = what the quantized weight stands for in fprop, on the weight's own axes. Makes the
  // copy that the next Forward of this version uses.
  Status DecodeWeight(const LinearStep& step, LinearInput& input, ConstTensorView weight,
                      uint64_t weight_version, TensorView out);

  const LinearRecipe& recipe() const { return recipe_; }
  int64_t quantized_weight_bytes() const;
  int64_t nonfinite_amax() const { return nonfinite_amax_; }  // since construction
  const LinearHealth& health() const { return health_; }
  // Past maxima of Wf, Wd, Gd and Gw.
  std::array<AmaxHistory*, 4> histories() {
    return {&weight_.history(), &weight_dgrad_.history(), &dgrad_history_, &wgrad_history_};
  }

 private:
  Status CheckShapes(const char* op, const LinearInput& input, ConstTensorView weight,
                     ConstTensorView y) const;
  // Wf. `input` names the signs its rotation shares with Xf.
  Status PrepareWeight(const LinearStep& step, LinearInput& input, ConstTensorView weight,
                       uint64_t version);
  // Wd, after Wf.
  Status PrepareWeightDgrad(const LinearStep& step, ConstTensorView weight, uint64_t version);
  // Whether an operand made for `made` still serves: same weight and, where chance is involved,
  // same draw.
  struct WeightDraw {
    bool valid = false;
    uint64_t version = 0;
    uint64_t seed = 0;
    uint32_t step = 0;
    uint64_t split = 0;     // number of the columns split off
    bool advanced = false;  // histories went on with it
  };
  bool Serves(const SlotOperand& operand, const WeightDraw& made, Slot slot, const LinearStep& step,
              uint64_t version) const;
  // Whether the operand of Wd or Xw comes from the forward codes, and lives where they do.
  bool FromForward(Slot slot) const {
    return recipe_.SharesCodes(slot) || recipe_.slot(slot).source == Source::kRequant;
  }
  Status InputGradient(const ProductForm& form, SlotOperand& gradient, const SlotOperand& input,
                       bool accumulate, TensorView dx);
  // The operand of Wf or Wd.
  SlotOperand& Weight(Slot slot) { return recipe_.SharesCodes(slot) ? weight_ : weight_dgrad_; }
  struct BackwardForms {
    ProductForm dgrad, wgrad;
  };
  BackwardForms FormsOf(ConstTensorView dy, ConstTensorView weight) const;
  // What the two products of Backward are formed from, dY apart.
  struct BackwardOperands {
    SlotOperand *forward, *x;
    BackwardForms forms;
  };
  // `dy` for its shape.
  Result<BackwardOperands> PrepareBackward(const LinearStep& step, ConstTensorView dy,
                                           LinearInput& input, ConstTensorView weight,
                                           uint64_t weight_version, TensorView dweight);
  // Whether Gd and Gw are needed as codes alone, each of its own, straight from dY.
  bool TakesGradientCodes(const LinearStep& step, const BackwardForms& forms) const;
  // Makes Gd and Gw.
  Status PrepareGradients(const LinearStep& step, const BackwardOperands& operands,
                          const LinearInput& input, ConstTensorView dy,
                          GradientOperands* gradients);
  // BackwardOfSwiGlu where both take codes.
  static Status BackwardToCodes(const LinearStep& step, const SwiGluGradientViews& views,
                                const std::array<const Call*, 2>& calls, uint64_t weight_version,
                                TensorView dx);
  Status BackwardProducts(const LinearStep& step, const BackwardOperands& operands,
                          GradientOperands& gradients, ConstTensorView weight, TensorView dx,
                          bool accumulate_dx, TensorView dweight);
  Status WeightGradient(const LinearStep& step, const ProductForm& form, SlotOperand& gradient,
                        SlotOperand& input, ConstTensorView weight, TensorView dweight);

  LinearWorkspace& workspace_;
  LinearRecipe recipe_;
  uint32_t layer_;
  WeightDraw draw_, dgrad_draw_;
  SlotOperand weight_;                         // Wf
  SlotOperand weight_dgrad_;                   // only when Wd has its own quantizer
  AmaxHistory dgrad_history_, wgrad_history_;  // of dY
  LinearHealth health_;
  int64_t nonfinite_amax_ = 0;
};

// How each product of a (T, K) -> (T, N) layer is formed on this backend; UNIMPLEMENTED when the
// backend cannot, INVALID_ARGUMENT when the sizes do not fit the recipe's blocks.
struct LinearPaths {
  ProductForm fprop, dgrad, wgrad;
};
Result<LinearPaths> PathsOf(const Backend& backend, const LinearRecipe& recipe, int64_t tokens,
                            int64_t in, int64_t out);

}  // namespace nibble
