// SPDX-License-Identifier: Apache-2.0
//
// Model: a LLaMA decoder trained under a recipe: embedding, blocks, final norm, head, loss.
//
// Linear layers inside the blocks follow the recipe (blocks it excludes run in BF16); embedding,
// norms, attention products and head stay in high precision.
// Thread-safety: one thread, the backend's caller. Ownership: owns the arena of activations and the
// quantized copies; borrows backend and parameters, which must outlive it.
// Invariants: after the first training pass no call allocates; results are a pure function of
// parameters, batch and LinearStep.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/linear.h"
#include "worker/spec/buffer_plan.h"
#include "worker/spec/run_config.h"
#include "worker/train/block.h"
#include "worker/train/parameters.h"

namespace nibble {

// A micro-batch: (sequences, seq_len) row-major ids; kIgnoreTarget targets count nothing.
struct Batch {
  std::span<const int32_t> inputs;
  std::span<const int32_t> targets;
};

class Model {
 public:
  struct Options {
    ModelConfig model;  // vocab_size resolved
    Recipe recipe;
    int64_t sequences = 1;  // of a micro-batch
    int64_t seq_len = 1;
    Recompute recompute = {};  // memory and time only: results are the same bits
    Activations activations = Activations::kFp32;
  };

  // Allocates the arena. RESOURCE_EXHAUSTED when the backend has no memory left.
  static Result<std::unique_ptr<Model>> Create(Backend* backend, Parameters* parameters,
                                               const Options& options);

  // Sum of the losses of all targets (natural log). INVALID_ARGUMENT for a batch of another size,
  // OUT_OF_RANGE for an id outside the vocabulary. Amax histories stay as they are.
  Result<double> Forward(const LinearStep& step, const Batch& batch);
  // The same, and adds gradient_scale times the gradient of that sum to the parameter gradients.
  // measure_health in `step` samples the first, middle and last block only.
  Result<double> ForwardBackward(const LinearStep& step, const Batch& batch, float gradient_scale);

  // Gradients of passes with LinearStep::defer_factor lack these, in their order in memory. Valid
  // until a weight or the stage changes.
  void PendingFactors(std::vector<PendingFactor>* pending) const;

  // AdamW of a parameter by the layer that keeps codes of it, made in the same pass for the forward
  // passes from `next` on; false: the layer leaves the update to the caller. WeightsChanged must
  // follow the last one.
  Result<bool> UpdateWeight(const LinearStep& next, size_t parameter, const AdamWParams& params,
                            const Parameters::Moments& moments);

  // Must be called when a weight has changed: quantized copies are made anew.
  void WeightsChanged() { ++weight_version_; }

  // Linear layers follow stage `stage` of the recipe from here on (-1: before the first). Quantized
  // copies and past maxima start anew. Precondition: -1 <= stage < recipe.stages.size().
  void SetStage(int stage);
  int stage() const { return stage_; }

  // Whether the forward pass of a linear layer rounds its weight, in the present stage.
  bool QuantizesWeight(int64_t layer, LinearKind kind) const;
  // out = that weight as the forward pass of `step` sees it, on its own axes.
  Status DecodeWeight(const LinearStep& step, int64_t layer, LinearKind kind, TensorView out);

  // Past maxima of every slot that has seen any, under names that are unique in the model: what a
  // checkpoint keeps of a recipe with windows.
  RecipeTensors SaveHistories();
  // Takes them back; slots without an entry start anew.
  void RestoreHistories(const RecipeTensors& tensors);

  // Losses of the last pass, one per token; host copy.
  Result<std::vector<float>> TokenLosses();

  const Options& options() const { return options_; }
  const std::vector<TransformerBlock>& blocks() const { return blocks_; }
  TensorView output() const { return output_; }  // (T, D) after the last block
  // The blocks that stand for first, middle and last: 0, layers / 2, layers - 1, without repeats.
  std::vector<int64_t> SampledBlocks() const;

  int64_t activation_bytes() const { return arena_.capacity_bytes(); }
  GemmMode high_precision_mode() const { return mode_; }

 private:
  Model(Backend* backend, Parameters* parameters, const Options& options);
  void PlaceViews();
  TensorView ViewOf(const PlannedBuffer& buffer, DType type = DType::kF32) const;
  BlockPass PassFor(const LinearStep& step, int64_t layer) const;
  Status Embed(const Batch& batch);
  Status RunBlocks(const LinearStep& step);
  // x as the head's products take it: rounded into `buffer` where the backend stores BF16.
  Result<ConstTensorView> HeadOperand(ConstTensorView x, Buffer* buffer);
  // Whether the head's operands lie in memory as BF16.
  bool HeadInBf16() const { return mode_ == GemmMode::kBf16 && backend_.StoresBf16(); }
  // The head's weight so, once per version.
  Result<ConstTensorView> HeadWeight();
  // Head and loss, chunk by chunk; with `gradient_scale` != nullptr also their backward passes,
  // which leave the gradient of output_ in gradients_.stream.
  Status HeadAndLoss(const float* gradient_scale);

  Backend& backend_;
  Parameters& parameters_;
  Options options_;
  GemmMode mode_;
  LinearWorkspace workspace_;
  Buffer arena_;
  BufferPlan plan_;
  int stage_ = -1;
  RecomputedInputs recomputed_;
  std::vector<TransformerBlock> blocks_;
  uint64_t weight_version_ = 1;
  Buffer head_weight_, head_rows_, head_gradient_;  // in BF16
  uint64_t head_version_ = 0;                       // of head_weight_
  TensorView ids_, targets_, output_, output_rstd_, head_in_, logits_, losses_;
  GradientViews gradients_;
};

}  // namespace nibble
