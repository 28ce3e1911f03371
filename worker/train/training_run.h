// SPDX-License-Identifier: Apache-2.0
//
// TrainingRun: one run from its config to its end record.
//
//   open run folder -> find inputs -> resume or initialise -> steps with validation, health and
//   checkpoints -> final checkpoint -> end record
//
// Thread-safety: one thread. Ownership: owns everything of the run. Invariants: exactly one end
// record per process, the last one of its journal; weights that are not finite are never saved;
// what fails beside the training itself (journal, progress, a checkpoint in between) is reported
// and does not stop it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/files.h"
#include "base/status.h"
#include "kernels/backend.h"
#include "worker/spec/journal.h"
#include "worker/spec/run_config.h"
#include "worker/train/checkpoint_store.h"
#include "worker/train/communicator.h"
#include "worker/train/journal_writer.h"
#include "worker/train/model.h"
#include "worker/train/oscillation.h"
#include "worker/train/parameters.h"
#include "worker/train/progress.h"
#include "worker/train/run_inputs.h"
#include "worker/train/training_step.h"

namespace nibble {

struct RunEnvironment {
  const Clock* clock = &Clock::Real();
  std::function<bool()> stop_requested = [] { return false; };
  ProgressPrinter* progress = nullptr;  // borrowed; nullptr prints nothing
  std::function<Result<std::unique_ptr<Backend>>(std::string_view, const BackendOptions&)>
      make_backend = MakeBackend;
  // Name, backend, rank, ranks, and the folder in which ranks meet.
  std::function<Result<std::unique_ptr<Communicator>>(std::string_view, Backend*, int, int,
                                                      const std::string&)>
      make_communicator = MakeCommunicator;
};

class TrainingRun {
 public:
  TrainingRun(RunConfig config, RunEnvironment environment);

  // Runs to the end and returns the end record, which is also journalled. Never fails otherwise.
  EndRecord Execute();

  // After Execute, for tests.
  const Parameters* parameters() const { return parameters_ ? &*parameters_ : nullptr; }

 private:
  // Why the run ends: an end reason and its message. nullopt: go on.
  struct End {
    std::string reason;
    std::string message;
  };
  using MaybeEnd = std::optional<End>;

  MaybeEnd OpenRunFolder();
  MaybeEnd PrepareInputs();
  // Refuses what cannot fit before the kernel ends the process for it.
  MaybeEnd CheckMemory() const;
  MaybeEnd PrepareModel();
  MaybeEnd PrepareParameters();
  MaybeEnd ResumeOrInitialise();
  MaybeEnd RunSteps();
  MaybeEnd Step();
  MaybeEnd Validate();
  // Saves at the present step. `must_succeed`: a failure ends the run.
  MaybeEnd Save(bool must_succeed);
  MaybeEnd WriteCheckpoint(bool must_succeed);
  MaybeEnd Finish();

  Result<bool> StopRequested();
  MaybeEnd StopEnd();
  EndRecord Close(End end);

  void WriteStart();
  // Goes on to the next stages of the recipe that are due after this step.
  void AdvanceStage(bool measured);
  // The periodic weight rule of the recipe, after this step's update.
  MaybeEnd ApplyWeightRule(bool new_stage);
  void ReportStep(const StepOutcome& outcome, double seconds, bool health);
  void Warn(const std::string& text);
  bool Due(int64_t every) const { return every > 0 && state_.step % every == 0; }
  // The end that a failed call of the backend or a collective means.
  End EndOf(const Status& status) const;

  RunConfig config_;
  RunEnvironment environment_;
  FileLock lock_;
  JournalWriter journal_;
  Recipe recipe_;
  TokenizerInputs tokenizer_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> host_backend_;  // holds offloaded moments; nullptr: none are
  std::unique_ptr<Communicator> communicator_;
  std::optional<Datasets> data_;
  std::optional<Parameters> parameters_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<TrainingStep> step_;
  std::unique_ptr<OscillationReset> oscillation_;  // nullptr: the recipe has no weight rule
  std::optional<CheckpointStore> store_;
  TrainingState state_;
  int64_t resumed_from_step_ = 0;
  int64_t saved_step_ = -1;  // of the newest checkpoint
  double last_validation_loss_ = 0;
  bool weights_ready_ = false;
};

}  // namespace nibble
