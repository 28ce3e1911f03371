// SPDX-License-Identifier: Apache-2.0
#include "worker/train/training_run.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "worker/spec/estimate.h"
#include "worker/train/divergence.h"
#include "worker/train/health.h"
#include "worker/train/host_memory.h"
#include "worker/train/memory_report.h"

namespace nibble {
namespace {

constexpr char kLockFileName[] = "trainer.lock";
// How long the end record is tried again when the journal cannot be written: 50 x 100 ms.
constexpr int kEndRecordTries = 50;
constexpr auto kEndRecordPause = std::chrono::milliseconds(100);

bool WaitsForNoise(const Recipe& recipe) {
  for (const Stage& stage : recipe.stages) {
    if (stage.noise_multiple > 0) return true;
  }
  return false;
}

}  // namespace

TrainingRun::TrainingRun(RunConfig config, RunEnvironment environment)
    : config_(std::move(config)), environment_(std::move(environment)) {}

TrainingRun::End TrainingRun::EndOf(const Status& status) const {
  if (status.code() != StatusCode::kResourceExhausted) return {kEndUserError, status.ToString()};
  const bool host = config_.run.backend == kBackendCpu;
  return {host ? kEndOutOfMemoryHost : kEndOutOfMemoryGpu, status.ToString()};
}

void TrainingRun::Warn(const std::string& text) {
  LogWarning(text);
  journal_.Write(LogRecord{"warning", text});
}

EndRecord TrainingRun::Execute() {
  MaybeEnd end;
  try {
    end = OpenRunFolder();
    if (!end) end = PrepareInputs();
    if (!end) end = PrepareModel();
    if (!end) end = ResumeOrInitialise();
    if (!end) end = RunSteps();
    if (!end) end = Finish();
  } catch (const std::bad_alloc&) {
    end = End{kEndOutOfMemoryHost,
              "the host has no memory left; a smaller micro-batch or sequence "
              "length needs less"};
  }
  return Close(end ? *std::move(end) : End{kEndCompleted, ""});
}

EndRecord TrainingRun::Close(End end) {
  EndRecord record;
  record.reason = std::move(end.reason);
  record.message = std::move(end.message);
  record.step = state_.step;
  record.final_loss = state_.train_loss;
  record.final_validation_loss = last_validation_loss_;
  const bool good = record.reason == kEndCompleted || record.reason == kEndPreempted;
  if (weights_ready_ && good) {
    const Result<std::string> fingerprint = parameters_->Fingerprint();
    if (fingerprint.ok()) record.weights_sha256 = *fingerprint;
  }
  // The end record is the journal's last line: what is printed after it goes nowhere else.
  if (environment_.progress != nullptr) environment_.progress->ForwardTo(nullptr);
  journal_.Write(record);
  Status flushed = journal_.Flush();
  for (int i = 0; !flushed.ok() && i < kEndRecordTries; ++i) {
    std::this_thread::sleep_for(kEndRecordPause);
    flushed = journal_.Flush();
  }
  if (!flushed.ok()) LogError("end record is lost", {{"error", flushed.ToString()}});
  if (environment_.progress != nullptr) environment_.progress->End(record);
  return record;
}

TrainingRun::MaybeEnd TrainingRun::OpenRunFolder() {
  if (config_.run.dir.empty()) return End{kEndInvalidSpec, "run.dir is missing; give --dir"};
  // Checkpoints are rank 0's; the journal of another rank lies below.
  const int64_t rank = config_.run.rank;
  const std::string dir =
      rank == 0 ? config_.run.dir
                : JoinPath(config_.run.dir, StrFormat("rank-%lld", static_cast<long long>(rank)));
  const Status made = MakeDirectories(dir);
  if (!made.ok()) return End{kEndUserError, made.message()};
  Result<FileLock> lock = FileLock::Acquire(JoinPath(dir, kLockFileName));
  if (!lock.ok()) {
    return End{kEndUserError, "another trainer uses " + dir + ": " + lock.status().message()};
  }
  lock_ = *std::move(lock);
  Result<JournalWriter> journal = JournalWriter::Open(dir, environment_.clock);
  if (!journal.ok()) return End{kEndUserError, "journal: " + journal.status().message()};
  journal_ = *std::move(journal);
  return std::nullopt;
}

TrainingRun::MaybeEnd TrainingRun::PrepareInputs() {
  Result<Recipe> recipe = RecipeOfConfig(config_);
  if (!recipe.ok()) return End{kEndInvalidSpec, "precision.recipe: " + recipe.status().message()};
  recipe_ = *std::move(recipe);
  Result<TokenizerInputs> tokenizer = FindTokenizer(config_.data);
  if (!tokenizer.ok()) return End{kEndDataUnreadable, "tokenizer: " + tokenizer.status().message()};
  tokenizer_ = *std::move(tokenizer);
  const Status vocab = ResolveVocabSize(tokenizer_, &config_.model);
  if (!vocab.ok()) return End{kEndInvalidSpec, vocab.message()};
  Result<Datasets> data = OpenDatasets(config_);
  if (!data.ok()) return End{kEndDataUnreadable, data.status().message()};
  data_.emplace(*std::move(data));
  if (!data_->validation) Warn("no validation shards: the run has no validation loss");
  return std::nullopt;
}

TrainingRun::MaybeEnd TrainingRun::CheckMemory() const {
  // A device answers for its own memory when it is asked for it.
  if (config_.run.backend != kBackendCpu) return std::nullopt;
  const Result<RunEstimate> estimate = EstimateRun(config_, recipe_);
  if (!estimate.ok()) return End{kEndInvalidSpec, estimate.status().message()};
  const MemoryBytes& m = estimate->memory;
  const int64_t limit = HostMemoryBytes();
  if (m.total() <= limit) return std::nullopt;
  const auto text = [](int64_t bytes) { return FormatBytes(static_cast<double>(bytes)); };
  return End{kEndOutOfMemoryHost, "the run needs " + text(m.total()) + " (weights " +
                                      text(m.weights) + ", gradients " + text(m.gradients) +
                                      ", optimizer " + text(m.optimizer) + ", activations " +
                                      text(m.activations) + ", quantized copies " +
                                      text(m.quantized) + "), this host has " + text(limit) +
                                      "; a smaller schedule.microBatch or data.seqLen needs less, "
                                      "and memory.recompute trades time for memory"};
}

TrainingRun::MaybeEnd TrainingRun::PrepareModel() {
  if (MaybeEnd end = CheckMemory()) return end;
  BackendOptions options;
  options.threads = static_cast<int>(config_.run.threads);
  if (config_.run.backend != kBackendCpu) {
    const Result<RunEstimate> estimate = EstimateRun(config_, recipe_);
    if (!estimate.ok()) return End{kEndInvalidSpec, estimate.status().message()};
    options.arena_bytes = estimate->memory.total();
  }
  Result<std::unique_ptr<Backend>> backend =
      environment_.make_backend(config_.run.backend, options);
  if (!backend.ok()) {
    const bool wrong = backend.status().code() == StatusCode::kInvalidArgument;
    return End{wrong ? kEndInvalidSpec : kEndUserError, backend.status().message()};
  }
  backend_ = *std::move(backend);
  Result<std::unique_ptr<Communicator>> communicator = environment_.make_communicator(
      config_.run.communicator, backend_.get(), static_cast<int>(config_.run.rank),
      static_cast<int>(config_.run.world_size),
      JoinPath(config_.run.dir,
               StrFormat("ranks/attempt-%lld", static_cast<long long>(config_.run.attempt))));
  if (!communicator.ok()) {
    const bool wrong = communicator.status().code() == StatusCode::kUnimplemented;
    return End{wrong ? kEndInvalidSpec : kEndUserError, communicator.status().message()};
  }
  communicator_ = *std::move(communicator);

  if (MaybeEnd end = PrepareParameters()) return end;
  if (config_.memory.activations == Activations::kBf16 && !backend_->StoresBf16()) {
    Warn("memory.activations: bf16 rounds activations on backend " + std::string(backend_->name()) +
         " and saves no memory there");
  }
  const Model::Options model_options = {config_.model,
                                        recipe_,
                                        config_.schedule.micro_batch,
                                        config_.data.seq_len,
                                        config_.memory.recompute,
                                        config_.memory.activations};
  Result<std::unique_ptr<Model>> model =
      Model::Create(backend_.get(), &*parameters_, model_options);
  if (!model.ok()) return EndOf(model.status());
  model_ = *std::move(model);
  step_ = std::make_unique<TrainingStep>(config_, backend_.get(), communicator_.get(),
                                         &*parameters_, model_.get());
  if (!recipe_.weight_rule.enabled) return std::nullopt;
  Result<std::unique_ptr<OscillationReset>> oscillation =
      OscillationReset::Create(backend_.get(), &*parameters_, model_.get(), config_.schedule.steps);
  if (!oscillation.ok()) return EndOf(oscillation.status());
  oscillation_ = *std::move(oscillation);
  return std::nullopt;
}

TrainingRun::MaybeEnd TrainingRun::PrepareParameters() {
  if (config_.memory.offload_optimizer && config_.run.backend == kBackendCpu) {
    Warn("memory.offloadOptimizer changes nothing on backend cpu: its memory is the host's");
  } else if (config_.memory.offload_optimizer) {
    BackendOptions options;
    options.threads = 1;
    Result<std::unique_ptr<Backend>> host = environment_.make_backend(kBackendCpu, options);
    if (!host.ok()) return EndOf(host.status());
    host_backend_ = *std::move(host);
  }
  Result<Parameters> parameters =
      Parameters::Create(backend_.get(), config_.model, true, recipe_.state, host_backend_.get());
  if (!parameters.ok()) return EndOf(parameters.status().WithContext("parameters"));
  parameters_.emplace(*std::move(parameters));
  return std::nullopt;
}

TrainingRun::MaybeEnd TrainingRun::ResumeOrInitialise() {
  // Rank 0 tidies the store first; the others read what it has left.
  if (communicator_->rank() > 0) {
    const Status tidied = communicator_->Barrier();
    if (!tidied.ok()) return EndOf(tidied);
  }
  Result<CheckpointStore> store =
      CheckpointStore::Open(config_.run.dir, config_.run.epoch, config_.checkpoint,
                            [this](const std::string& text) { Warn(text); });
  if (!store.ok()) return EndOf(store.status());
  store_.emplace(*std::move(store));
  Result<std::optional<TrainingState>> loaded = store_->LoadNewest(*backend_, &*parameters_);
  if (!loaded.ok()) {
    const bool other_model = loaded.status().code() == StatusCode::kFailedPrecondition;
    return End{other_model ? kEndInvalidSpec : kEndCheckpointUnreadable, loaded.status().message()};
  }
  const std::string fingerprint = data_->train.Fingerprint();
  bool same_recipe = false;
  if (loaded->has_value()) {
    state_ = **std::move(loaded);
    resumed_from_step_ = saved_step_ = state_.step;
    last_validation_loss_ = state_.validation_loss.value_or(0);
    const bool same_data = state_.data_fingerprint == fingerprint;
    if (!same_data || !data_->train.SetCursor(state_.cursor).ok()) {
      Warn("the checkpoint was made with other training data; the data order starts anew");
    }
    same_recipe = state_.recipe == recipe_.name;
    if (same_recipe) {
      const auto stages = static_cast<int64_t>(recipe_.stages.size());
      model_->SetStage(static_cast<int>(std::clamp<int64_t>(state_.stage, -1, stages - 1)));
      model_->RestoreHistories(state_.recipe_tensors);
    }
    if (state_.seed != config_.seed) {
      Warn(StrFormat("the checkpoint was made with seed %u, this run has %u", state_.seed,
                     config_.seed));
    }
  } else {
    const int64_t asked = config_.run.threads;
    const auto threads =
        asked > 0 ? static_cast<unsigned>(asked) : std::thread::hardware_concurrency();
    const Status initialised =
        parameters_->Initialise(config_.model, config_.seed, static_cast<int>(threads));
    if (!initialised.ok()) return EndOf(initialised);
  }
  if (communicator_->rank() == 0) {
    const Status tidied = communicator_->Barrier();
    if (!tidied.ok()) return EndOf(tidied);
  }
  const Status shared = communicator_->Broadcast(parameters_->all_weights(), 0);
  if (!shared.ok()) return EndOf(shared);
  weights_ready_ = true;
  state_.data_fingerprint = fingerprint;
  state_.seed = config_.seed;
  state_.recipe = recipe_.name;
  state_.stage = model_->stage();
  state_.attempt = config_.run.attempt;
  state_.epoch = config_.run.epoch;
  state_.spec = RunConfigToJson(config_);
  if (oscillation_ != nullptr) {
    const Status started =
        oscillation_->Start(state_.step, step_->StepFor(state_.step, 0),
                            same_recipe ? state_.recipe_tensors : RecipeTensors());
    if (!started.ok()) return EndOf(started);
  }
  WriteStart();
  return std::nullopt;
}

void TrainingRun::WriteStart() {
  StartRecord record;
  record.resumed_from_step = resumed_from_step_;
  record.steps_total = config_.schedule.steps;
  record.parameters = parameters_->count();
  record.tokens_per_step = config_.tokens_per_step();
  record.recipe = recipe_.name;
  const int layers = static_cast<int>(config_.model.layers);
  const int64_t tokens = config_.schedule.micro_batch * config_.data.seq_len;
  const Result<LinearPaths> paths =
      PathsOf(*backend_, recipe_.LinearFor(LinearKind::kQuery, layers / 2, layers, model_->stage()),
              tokens, config_.model.hidden_size, config_.model.intermediate_size);
  if (paths.ok()) {
    record.paths = {{"fprop", SupportName(paths->fprop.support)},
                    {"dgrad", SupportName(paths->dgrad.support)},
                    {"wgrad", SupportName(paths->wgrad.support)}};
  }
  const bool bf16 = model_->high_precision_mode() == GemmMode::kBf16;
  record.paths["attention"] = record.paths["head"] = bf16 ? "bf16" : "fp32";
  for (const std::string& warning : RecipeWarnings(recipe_, tokens, config_.model.hidden_size)) {
    Warn(warning);
  }
  if (WaitsForNoise(recipe_) && config_.metrics.health_every == 0) {
    Warn(
        "a stage of the recipe waits for quantization noise, and metrics.healthEvery 0 never "
        "measures it; give metrics.healthEvery");
  }
  journal_.Write(record);
  if (environment_.progress != nullptr) {
    // `nibble logs` shows what a person at the terminal would see.
    environment_.progress->ForwardTo([this](const std::string& line) {
      journal_.Write(LogRecord{"info", line});
    });
    environment_.progress->Start(record, "backend: " + backend_->description());
  }
}

TrainingRun::MaybeEnd TrainingRun::RunSteps() {
  if (state_.step == 0) {
    if (MaybeEnd end = Validate()) return end;
  }
  while (state_.step < config_.schedule.steps) {
    const Result<bool> stop = StopRequested();
    if (!stop.ok()) return EndOf(stop.status());
    if (*stop) return StopEnd();
    if (MaybeEnd end = Step()) return end;
    const bool last = state_.step == config_.schedule.steps;
    if (last || Due(config_.schedule.validate_every)) {
      if (MaybeEnd end = Validate()) return end;
    }
    if (!last && Due(config_.checkpoint.every_steps)) {
      if (MaybeEnd end = Save(false)) return end;
    }
  }
  return std::nullopt;
}

// Of any rank: all stop after the same step.
Result<bool> TrainingRun::StopRequested() {
  const bool here = environment_.stop_requested();
  if (communicator_->world_size() == 1) return here;
  ASSIGN_OR_RETURN(const float any, communicator_->AllReduceMax(here ? 1.0f : 0.0f));
  return any > 0;
}

TrainingRun::MaybeEnd TrainingRun::StopEnd() {
  if (saved_step_ != state_.step) {
    if (MaybeEnd end = Save(true)) return end;
  }
  return End{kEndPreempted, StrFormat("asked to stop; the state after step %lld is saved",
                                      static_cast<long long>(state_.step))};
}

TrainingRun::MaybeEnd TrainingRun::Step() {
  const int64_t number = state_.step + 1;
  const int64_t health_every = config_.metrics.health_every;
  const bool health = health_every > 0 && (number == 1 || number % health_every == 0);
  const auto started = std::chrono::steady_clock::now();
  const Result<StepOutcome> outcome = step_->Run(number, health, &data_->train);
  if (!outcome.ok()) return EndOf(outcome.status());
  if (!outcome->end_reason.empty()) return End{outcome->end_reason, outcome->end_message};
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - started;
  state_.step = number;
  state_.tokens += outcome->tokens;
  state_.cursor = data_->train.cursor();
  state_.train_loss = outcome->loss;
  state_.validation_loss.reset();
  ReportStep(*outcome, elapsed.count(), health);
  const int64_t stage = state_.stage;
  AdvanceStage(health);
  if (oscillation_ == nullptr) return std::nullopt;
  return ApplyWeightRule(stage != state_.stage);
}

TrainingRun::MaybeEnd TrainingRun::ApplyWeightRule(bool new_stage) {
  const Result<int64_t> reset =
      oscillation_->AfterUpdate(state_.step, step_->StepFor(state_.step, 0), new_stage);
  if (!reset.ok()) return EndOf(reset.status().WithContext("weight rule"));
  if (*reset < 0) return std::nullopt;
  journal_.Write(LogRecord{
      "info", StrFormat("after step %lld: %lld oscillating weights took their quantized value",
                        static_cast<long long>(state_.step), static_cast<long long>(*reset))});
  return std::nullopt;
}

void TrainingRun::AdvanceStage(bool measured) {
  const int64_t total = config_.schedule.steps;
  double ratio = kMaxGradientToNoise;  // not measured, not noisy
  if (measured) ratio = GradientToNoise(*model_).value_or(ratio);
  if (measured && communicator_->world_size() > 1 && WaitsForNoise(recipe_)) {
    // The smallest of the ranks'. A lost rank shows at the next collective.
    const auto mine = static_cast<float>(-ratio);
    ratio = -static_cast<double>(communicator_->AllReduceMax(mine).value_or(mine));
  }
  while (state_.step < total) {
    const auto next = static_cast<size_t>(state_.stage + 1);
    if (next >= recipe_.stages.size()) return;
    const Stage& stage = recipe_.stages[next];
    const double share = static_cast<double>(state_.step) / static_cast<double>(total);
    const bool planned = stage.from_share > 0 && share >= stage.from_share;
    const bool noisy = ratio < stage.noise_multiple;
    if (!planned && !noisy) return;
    const std::string why =
        planned ? StrFormat("%g of the steps are done", stage.from_share)
                : StrFormat("gradient norm is %.4g times its quantization error, under %.4g", ratio,
                            stage.noise_multiple);
    ++state_.stage;
    model_->SetStage(static_cast<int>(state_.stage));
    ratio = kMaxGradientToNoise;  // measured in the stage that has ended
    const std::string text = StrFormat(
        "after step %lld: stage %lld of recipe %s begins: %s", static_cast<long long>(state_.step),
        static_cast<long long>(state_.stage + 1), recipe_.name.c_str(), why.c_str());
    LogInfo(text);
    journal_.Write(LogRecord{"info", text});
  }
}

void TrainingRun::ReportStep(const StepOutcome& outcome, double seconds, bool health) {
  const int64_t total = config_.schedule.steps;
  StepRecord record;
  record.step = state_.step;
  record.loss = outcome.loss;
  record.grad_norm = outcome.gradient_norm;
  record.learning_rate = outcome.learning_rate;
  record.tokens = state_.tokens;
  record.step_seconds = seconds;
  record.tokens_per_second = static_cast<double>(outcome.tokens) / std::max(seconds, 1e-9);
  const bool first = state_.step == resumed_from_step_ + 1;
  if (first || state_.step == total || Due(config_.metrics.every)) journal_.Write(record);
  if (health) {
    for (HealthRecord& h : CollectHealth(*model_, state_.step)) journal_.Write(std::move(h));
  }
  if (environment_.progress != nullptr) environment_.progress->Step(record, total);
  if (first || state_.step == total) {
    const MemoryRecord memory = MemoryRecordOf(*backend_, *model_, *parameters_);
    journal_.Write(memory);
    if (environment_.progress != nullptr && state_.step == total) {
      environment_.progress->Memory(memory);
    }
  }
}

TrainingRun::MaybeEnd TrainingRun::Validate() {
  if (!data_->validation) return std::nullopt;
  const Result<StepOutcome> outcome = step_->Validate(state_.step, &*data_->validation);
  if (!outcome.ok()) return EndOf(outcome.status());
  if (!outcome->end_reason.empty()) return End{outcome->end_reason, outcome->end_message};
  last_validation_loss_ = outcome->loss;
  state_.validation_loss = outcome->loss;
  state_.best_validation_loss =
      std::min(outcome->loss, state_.best_validation_loss.value_or(outcome->loss));
  const ValidationRecord record{state_.step, outcome->loss};
  journal_.Write(record);
  if (environment_.progress != nullptr) environment_.progress->Validation(record);
  return std::nullopt;
}

TrainingRun::MaybeEnd TrainingRun::Save(bool must_succeed) {
  if (communicator_->rank() == 0) {
    if (MaybeEnd end = WriteCheckpoint(must_succeed)) return end;
  }
  const Status together = communicator_->Barrier();
  if (!together.ok()) return EndOf(together);
  // All ranks know whether there is a checkpoint of this step.
  const bool failed = communicator_->rank() == 0 && saved_step_ != state_.step;
  const Result<float> any = communicator_->AllReduceMax(failed ? 1.0f : 0.0f);
  if (!any.ok()) return EndOf(any.status());
  if (*any == 0) saved_step_ = state_.step;
  return std::nullopt;
}

TrainingRun::MaybeEnd TrainingRun::WriteCheckpoint(bool must_succeed) {
  const auto started = std::chrono::steady_clock::now();
  const Result<bool> finite = AllFinite(*backend_, parameters_->all_weights());
  if (!finite.ok()) return EndOf(finite.status());
  if (!*finite) {
    const Result<std::string> what = FindNonFinite(*backend_, *model_, *parameters_, true);
    return End{kEndDiverged,
               StrFormat("step %lld: %s is not finite after the update; the weights are not saved",
                         static_cast<long long>(state_.step), what.value_or("a weight").c_str())};
  }
  const Result<std::string> fingerprint = parameters_->Fingerprint();
  if (!fingerprint.ok()) return EndOf(fingerprint.status());
  state_.weights_sha256 = *fingerprint;
  state_.recipe_tensors = model_->SaveHistories();
  parameters_->SaveScales(&state_.recipe_tensors);
  if (oscillation_ != nullptr) {
    const Status kept = oscillation_->Save(state_.step, &state_.recipe_tensors);
    if (!kept.ok()) return EndOf(kept);
  }
  const CheckpointContent content = {state_,           config_.model,     config_.data.seq_len,
                                     tokenizer_.files, tokenizer_.bos_id, tokenizer_.eos_id};
  const Result<SavedCheckpoint> saved = store_->Save(*backend_, *parameters_, content);
  if (!saved.ok()) {
    const std::string text =
        StrFormat("checkpoint of step %lld was not saved: %s", static_cast<long long>(state_.step),
                  saved.status().ToString().c_str());
    if (must_succeed || saved.status().code() == StatusCode::kAborted) {
      return End{kEndUserError, text};
    }
    Warn(text + "; the run goes on, older checkpoints are intact");
    return std::nullopt;
  }
  saved_step_ = state_.step;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - started;
  const CheckpointRecord record{state_.step, saved->path, elapsed.count(), saved->bytes,
                                saved->best};
  journal_.Write(record);
  if (environment_.progress != nullptr) environment_.progress->Checkpoint(record);
  const Status flushed = journal_.Flush();
  if (!flushed.ok()) LogWarning("journal is not on disk", {{"error", flushed.ToString()}});
  return std::nullopt;
}

TrainingRun::MaybeEnd TrainingRun::Finish() {
  if (saved_step_ == state_.step) return std::nullopt;
  return Save(true);
}

}  // namespace nibble
