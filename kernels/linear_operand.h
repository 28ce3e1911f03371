// SPDX-License-Identifier: Apache-2.0
//
// SlotOperand: one operand slot of one tensor, from its source to the two forms a product can take.
//
// Purpose: every operand of every product of a linear layer is made, kept and handed out here.
//   source   X, W or dY as the caller holds it: FP32, X also BF16 where the backend stores that.
//   codes    what Backend::Quantize makes of the source. Kept from forward to backward by X and W;
//            by dY for the length of one backward pass, in the workspace.
//   decoded  the same as FP32, in a workspace buffer that all operands of its role share: written
//            together with the codes when asked for at once, from the codes when asked for later.
// A slot without codes (fp32, bf16) borrows its source: its decoded form is the source itself or
// the source rounded to BF16. Whatever else happens to an operand before its rounding belongs
// between source and codes, in SlotOperand::Make.
// Thread-safety: one thread, the backend's caller. Ownership: owns codes and workspace buffers;
// borrows the backend, which must outlive it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/linear_split.h"
#include "kernels/quantized_tensor.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

// Where in training a call happens; feeds stochastic rounding and sampling.
struct LinearStep {
  uint64_t seed = 0;
  uint32_t step = 0;  // optimizer step (times micro-batches, if those must differ)
  // Optimizer updates done before this call; -1 outside training, where nothing is carried from
  // call to call and what a recipe gathers over steps is taken from the tensors at hand.
  int64_t completed = -1;
  // True on sampled steps: Set, Forward and Backward also measure quantization health.
  bool measure_health = false;
  // False in validation: past maxima give the scales that training would use now, and stay as they
  // are.
  bool advance_histories = true;
  // True: Backward leaves weight gradients without their estimator's factor where it can come once,
  // after the last micro-batch (QuantizedLinear::Pending).
  bool defer_factor = false;
  // nullptr: the counter-based generator.
  const RandomReplay* replay = nullptr;
};

// What Make is to leave behind, beside what the slot needs anyway.
struct OperandForms {
  bool codes = true;  // false: the operand is used at once, decoded, and dropped
  bool decoded = false;
  bool health = false;
};

// An update of a weight (N, K) that is still to be done. Views are borrowed.
struct WeightUpdate {
  AdamWParams params;
  ConstTensorView gradient;
  TensorView m, v, weight;
};

// What an operand depends on beyond its recipe and its source.
struct OperandExtras {
  // Whose random stream gives a rotation's signs: both operands of a product name the same layer.
  uint32_t signs_layer = 0;
  // Past maxima of dY, whose operand serves every layer; nullptr: the operand keeps its own.
  AmaxHistory* history = nullptr;
  // The columns that a split of channels takes, ascending; nullptr: the operand chooses.
  const std::vector<int64_t>* channels = nullptr;
  // Nothing is split off yet, whatever the slot says.
  bool whole = false;
};

class LinearWorkspace;

class SlotOperand {
 public:
  // The operand of `slot` made from `source`. `fold`: the other operand of the product when the
  // slot's quantizer folds its scales, else nullptr. FAILED_PRECONDITION when it folds and there is
  // nothing to fold.
  Status Make(LinearWorkspace& workspace, const LinearRecipe& recipe, Slot slot, uint32_t layer,
              const LinearStep& step, const SlotOperand* fold, OperandForms forms,
              ConstTensorView source, const OperandExtras& extras = {});
  // Codes of rows that are formed for this operand alone. The slot neither splits nor looks at past
  // maxima.
  Status MakeFormed(LinearWorkspace& workspace, const LinearRecipe& recipe, Slot slot,
                    uint32_t layer, const LinearStep& step, const OperandSource& source);
  // Gd and Gw of one dy, codes only, as two calls of Make would, in fewer passes over dy. Neither
  // slot may rotate or look at past maxima.
  static Status MakeBoth(LinearWorkspace& workspace, const LinearRecipe& recipe, uint32_t layer,
                         const LinearStep& step, const SlotOperand& dgrad_fold,
                         const SlotOperand& wgrad_fold, ConstTensorView dy, SlotOperand* dgrad,
                         SlotOperand* wgrad);
  // The same operands before their codes are made: who makes them by these targets has made both.
  static Result<std::array<QuantizeTarget, 2>> PrepareBoth(
      LinearWorkspace& workspace, const LinearRecipe& recipe, uint32_t layer,
      const LinearStep& step, const SlotOperand& dgrad_fold, const SlotOperand& wgrad_fold,
      ConstTensorView dy, SlotOperand* dgrad, SlotOperand* wgrad);

  // Wf of the weight that `update` leaves, which it does: as AdamW and Make, codes only, in one
  // pass. Precondition: QuantizesInUpdate.
  Status MakeUpdating(LinearWorkspace& workspace, const LinearRecipe& recipe, uint32_t layer,
                      const LinearStep& step, const WeightUpdate& update);
  // Whether Wf is a function of the weight alone, and the backend makes it while it updates the
  // weight.
  static bool QuantizesInUpdate(const Backend& backend, const LinearRecipe& recipe);

  bool made() const { return stamp_ != 0; }
  bool has_codes() const { return quant_.has_scale(); }
  const QuantizedTensor& codes() const { return codes_; }
  // Changes with every Make; 0 before the first.
  uint64_t stamp() const { return stamp_; }
  const OperandSplit& split() const { return split_; }
  AmaxHistory& history() { return history_; }
  // Gradients reach the source through the mask and the inverse rotation of a forward operand.
  // `rotated`: the gradient was formed with this operand's decoded form, so it is one of the
  // rotated values.
  bool NeedsPullBack(bool rotated) const {
    return (has_codes() && codes_.has_mask) || (rotated && quant_.rotation.size > 0);
  }
  Status PullBack(Backend& backend, bool rotated, TensorView gradient) const;
  // The decoded form without the slot's rotation: what the codes stand for on the source's axes.
  Status DecodedSource(LinearWorkspace& workspace, TensorView out);
  // Valid until another operand of the same role is decoded.
  Result<ConstTensorView> Decoded(LinearWorkspace& workspace);
  // Whether the operand is its source rounded to BF16 and nothing else, which a backend that stores
  // BF16 multiplies as it is.
  bool is_bf16() const { return quant_.elem == Elem::kBf16 && quant_.rotation.size == 0; }
  // That as DType::kBF16. Valid as long as Decoded. Preconditions: is_bf16, StoresBf16.
  Result<ConstTensorView> InBf16(LinearWorkspace& workspace);

  int64_t saved_bytes() const { return made() && has_codes() ? codes_.size_bytes() : 0; }
  int64_t nonfinite_amax() const { return has_codes() ? codes_.nonfinite_amax : 0; }
  // Of the last Make with forms.health; elements == 0 when never measured.
  const QuantizationHealth& health() const { return health_; }

 private:
  // Sets quantizer, context and stamp; the source of a slot without codes is kept.
  Status Prepare(LinearWorkspace& workspace, const LinearRecipe& recipe, Slot slot, uint32_t layer,
                 const LinearStep& step, const SlotOperand* fold, ConstTensorView source,
                 const OperandExtras& extras);

  Slot slot_ = Slot::kXf;
  Quant quant_;
  QuantizeContext context_;
  ConstTensorView source_;
  QuantizedTensor codes_;
  QuantizationHealth health_;
  AmaxHistory history_;
  OperandSplit split_;
  bool splits_ = false;  // the last Make split something off
  uint64_t stamp_ = 0;   // changes with every Make; 0 before the first
};

// Gd and Gw of one dY.
struct GradientOperands {
  SlotOperand dgrad, wgrad;
};

// Decoded operands and the operands of dY; one per backend, shared by every layer.
class LinearWorkspace {
 public:
  // `path` says how products on codes are formed: kFast by the backend's kernels, kReference by the
  // same sums in FP32 GEMMs. Both give the same bits.
  explicit LinearWorkspace(Backend* backend, Support path = Support::kFast)
      : backend_(*backend), path_(path) {}
  Backend& backend() { return backend_; }
  Support path() const { return path_; }
  int64_t size_bytes() const;

  // `which`: 0, or 1 for the second of two dY that are quantized together.
  GradientOperands& gradients(size_t which) { return gradients_[which]; }
  Result<TensorView> Product(int64_t rows, int64_t cols) {
    return product_.View(backend_, rows, cols);
  }

 private:
  friend class SlotOperand;
  // Memory of one role (X, W, dY of dgrad, dY of wgrad) and the stamp of the operand it holds now.
  struct DecodedBuffer {
    Buffer memory;
    uint64_t content = 0;  // 0: nothing
  };
  using DecodedBuffers = std::array<DecodedBuffer, 4>;
  static size_t RoleOf(Slot slot);
  uint64_t NextStamp() { return ++last_stamp_; }

  Backend& backend_;
  Support path_;
  DecodedBuffers decoded_;
  DecodedBuffers bf16_;  // the same of operands that are multiplied in BF16
  Buffer product_;       // a gradient before its estimator, mask or inverse rotation
  Buffer rotated_;       // room for a source under its rotation, used at once
  Buffer rest_;          // a source less the part split off, used at once
  std::array<GradientOperands, 2> gradients_;
  AmaxHistory peeked_;  // copy of a history that must not advance
  uint64_t last_stamp_ = 0;
};

}  // namespace nibble
