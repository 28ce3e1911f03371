// SPDX-License-Identifier: Apache-2.0
#include "worker/train/training_step.h"

#include <algorithm>
#include <cmath>

#include "base/strings.h"
#include "worker/spec/journal.h"
#include "worker/train/divergence.h"
#include "worker/train/gradient_exchange.h"
#include "worker/train/optimizer.h"
#include "worker/train/schedule.h"

namespace nibble {

TrainingStep::TrainingStep(const RunConfig& config, Backend* backend, Communicator* communicator,
                           Parameters* parameters, Model* model)
    : config_(config),
      backend_(*backend),
      communicator_(*communicator),
      parameters_(*parameters),
      model_(*model) {
  const auto tokens = static_cast<size_t>(config.schedule.micro_batch * config.data.seq_len);
  inputs_.resize(tokens);
  targets_.resize(tokens);
}

// Every micro-batch of every rank draws its own random numbers. A validation pass after `completed`
// updates uses those of the next training pass: weights quantized for one are then valid for the
// other, and a resumed run without that validation draws the same.
LinearStep TrainingStep::StepFor(int64_t completed, int64_t micro_batch) const {
  LinearStep step;
  step.seed = config_.seed;
  step.completed = completed;
  const int64_t batch = completed * config_.accumulation_steps() + micro_batch;
  step.step = static_cast<uint32_t>(batch * communicator_.world_size() + communicator_.rank());
  return step;
}

bool TrainingStep::ReadBatch(TokenDataset* data, StepOutcome& outcome) {
  const Status status = data->NextBatch(config_.schedule.micro_batch, inputs_, targets_);
  if (status.ok()) return true;
  outcome.end_reason = kEndDataUnreadable;
  outcome.end_message = status.message();
  return false;
}

Result<StepOutcome> TrainingStep::Run(int64_t step, bool measure_health, TokenDataset* data) {
  // A sampled step is not like the others.
  if (measure_health) return RunOnce(step, true, data);
  RETURN_IF_ERROR(backend_.BeginStep());
  Result<StepOutcome> outcome = RunOnce(step, false, data);
  const Status ended = backend_.EndStep();
  return outcome.ok() && !ended.ok() ? Result<StepOutcome>(ended) : std::move(outcome);
}

Result<double> TrainingStep::CompleteGradients() {
  const Communication communication = model_.options().recipe.communication;
  model_.PendingFactors(&pending_);
  // Of several ranks each has its own codes of a weight that is rounded at random.
  if (communication != Communication::kF32 || communicator_.world_size() > 1) {
    for (const PendingFactor& factor : pending_) RETURN_IF_ERROR(backend_.DgeScale(factor));
    pending_.clear();
  }
  RETURN_IF_ERROR(ExchangeGradients(backend_, communicator_, communication, &parameters_));
  return GradientNorm(backend_, parameters_, pending_);
}

Result<StepOutcome> TrainingStep::RunOnce(int64_t step, bool measure_health, TokenDataset* data) {
  StepOutcome outcome;
  outcome.tokens = config_.tokens_per_step();
  outcome.learning_rate = LearningRate(config_.optimizer, step, config_.schedule.steps);
  const auto scale = static_cast<float>(1.0 / static_cast<double>(outcome.tokens));
  const int64_t micro_batches = config_.accumulation_steps();

  RETURN_IF_ERROR(backend_.Fill(parameters_.all_gradients(), 0.0f));
  double loss_sum = 0;
  for (int64_t micro = 0; micro < micro_batches; ++micro) {
    if (!ReadBatch(data, outcome)) return outcome;
    LinearStep linear_step = StepFor(step - 1, micro);
    linear_step.measure_health = measure_health && micro == micro_batches - 1;
    linear_step.defer_factor = true;
    ASSIGN_OR_RETURN(const double loss,
                     model_.ForwardBackward(linear_step, {inputs_, targets_}, scale));
    loss_sum += loss;
    if (!std::isfinite(loss)) break;  // later micro-batches would hide where it began
  }
  ASSIGN_OR_RETURN(loss_sum, communicator_.AllReduceSum(loss_sum));
  outcome.loss = loss_sum / static_cast<double>(outcome.tokens);
  ASSIGN_OR_RETURN(outcome.gradient_norm, CompleteGradients());

  const bool finite_loss = std::isfinite(outcome.loss);
  if (!finite_loss || !std::isfinite(outcome.gradient_norm)) {
    ASSIGN_OR_RETURN(const std::string what,
                     FindNonFinite(backend_, model_, parameters_, finite_loss));
    outcome.end_reason = kEndDiverged;
    outcome.end_message = StrFormat(
        "step %lld: %s is not finite (loss %g, gradient norm %g, learning rate %g); "
        "lower optimizer.peakLr or set optimizer.clipNorm",
        static_cast<long long>(step), what.c_str(), outcome.loss, outcome.gradient_norm,
        outcome.learning_rate);
    return outcome;
  }
  const double clip = ClipFactor(outcome.gradient_norm, config_.optimizer.clip_norm);
  RETURN_IF_ERROR(ApplyAdamW(backend_, config_.optimizer, step, outcome.learning_rate, clip,
                             &parameters_, config_.seed, {&model_, StepFor(step, 0)}));
  model_.WeightsChanged();
  return outcome;
}

Result<StepOutcome> TrainingStep::Validate(int64_t completed, TokenDataset* data) {
  StepOutcome outcome;
  // The very first windows each time, and none twice.
  const int64_t per_batch = config_.schedule.micro_batch * communicator_.world_size();
  const int64_t available = std::max<int64_t>(1, data->window_count() / per_batch);
  const int64_t batches = std::min(config_.schedule.validation_batches, available);
  RETURN_IF_ERROR(data->SetCursor({}));
  double loss_sum = 0;
  for (int64_t batch = 0; batch < batches; ++batch) {
    if (!ReadBatch(data, outcome)) return outcome;
    ASSIGN_OR_RETURN(const double loss, model_.Forward(StepFor(completed, 0), {inputs_, targets_}));
    loss_sum += loss;
  }
  ASSIGN_OR_RETURN(loss_sum, communicator_.AllReduceSum(loss_sum));
  const double tokens = static_cast<double>(batches * per_batch * config_.data.seq_len);
  outcome.loss = loss_sum / tokens;
  if (std::isfinite(outcome.loss)) return outcome;
  ASSIGN_OR_RETURN(const std::string what, FindNonFinite(backend_, model_, parameters_, false));
  outcome.end_reason = kEndDiverged;
  outcome.end_message = StrFormat("validation after step %lld: %s is not finite",
                                  static_cast<long long>(completed), what.c_str());
  return outcome;
}

}  // namespace nibble
