// SPDX-License-Identifier: Apache-2.0
//
// TrainingStep: one optimizer step and one validation pass over a dataset.
//
// A step takes global_batch windows as micro-batches, accumulates gradients of the mean loss over
// all their tokens, sums them over ranks, clips, and updates the weights.
// Thread-safety: one thread, the backend's caller. Ownership: borrows everything it is given.
// Invariants: the outcome is a pure function of (weights, moments, step number, data cursor, seed);
// so a resumed run repeats an uninterrupted one bit for bit. Allocates nothing after the first
// call.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/data/token_dataset.h"
#include "worker/spec/run_config.h"
#include "worker/train/communicator.h"
#include "worker/train/model.h"
#include "worker/train/parameters.h"

namespace nibble {

struct StepOutcome {
  double loss = 0;           // mean over all tokens of the step
  double gradient_norm = 0;  // before clipping
  double learning_rate = 0;
  int64_t tokens = 0;
  // Why training cannot go on: "" or an end reason of worker/spec/journal.h (Diverged,
  // DataUnreadable) with its message. Then no weight has changed.
  std::string end_reason;
  std::string end_message;
};

class TrainingStep {
 public:
  TrainingStep(const RunConfig& config, Backend* backend, Communicator* communicator,
               Parameters* parameters, Model* model);

  // Update number `step` (1 for the first). Errors are the backend's or a lost peer's.
  Result<StepOutcome> Run(int64_t step, bool measure_health, TokenDataset* data);

  // Mean loss over the first validation_batches micro-batches of `data`, always the same ones.
  // `completed` updates are done. Only loss and the end fields of the outcome are set.
  Result<StepOutcome> Validate(int64_t completed, TokenDataset* data);

  // Where in training micro-batch `micro_batch` after `completed` updates stands.
  LinearStep StepFor(int64_t completed, int64_t micro_batch) const;

 private:
  // Run, whether the backend gathers the step or not.
  Result<StepOutcome> RunOnce(int64_t step, bool measure_health, TokenDataset* data);
  // Sums gradients over ranks and completes them with the factors of weight estimators, which are
  // the same on every rank: after an FP32 sum, in one pass with the norm, but before gradients are
  // rounded for the wire. Returns the norm.
  Result<double> CompleteGradients();
  // Reads a micro-batch; on failure fills the end fields and returns false.
  bool ReadBatch(TokenDataset* data, StepOutcome& outcome);

  const RunConfig& config_;
  Backend& backend_;
  Communicator& communicator_;
  Parameters& parameters_;
  Model& model_;
  std::vector<int32_t> inputs_;
  std::vector<int32_t> targets_;
  std::vector<PendingFactor> pending_;
};

}  // namespace nibble
