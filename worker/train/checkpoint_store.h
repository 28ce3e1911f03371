// SPDX-License-Identifier: Apache-2.0
//
// CheckpointStore: the checkpoints of one run, <run dir>/checkpoints/step-NNNNNNNN.
//
// Purpose: makes checkpoints appear and disappear as a whole, keeps the last and the best ones, and
// finds the newest one that is intact.
// Thread-safety: one thread of one process; the run folder's lock keeps others out.
// Invariants: a folder under its final name is complete and on disk (written under a hidden name,
// synced, renamed). A checkpoint is deleted only after a newer one is complete; deletion renames
// first, so a crash never leaves half a checkpoint under its name. The file `epoch` never goes
// back; a store of a lower epoch writes nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/spec/run_config.h"
#include "worker/train/checkpoint.h"
#include "worker/train/parameters.h"

namespace nibble {

struct SavedCheckpoint {
  std::string path;
  int64_t bytes = 0;
  bool best = false;  // smallest validation loss of those kept
};

class CheckpointStore {
 public:
  // Called with one sentence for each thing a person should know (a damaged checkpoint skipped).
  using Warn = std::function<void(const std::string&)>;

  // Creates the folder, claims `epoch`, and removes what a killed process left unfinished.
  // ABORTED when a higher epoch is recorded: another process owns this run now.
  static Result<CheckpointStore> Open(const std::string& run_dir, int64_t epoch,
                                      const CheckpointConfig& config, Warn warn);

  // Writes <step>, replacing one of the same step, then deletes what need not be kept.
  // ABORTED as in Open; RESOURCE_EXHAUSTED when the disk is full: then all older ones are intact
  // and nothing is left of the new one.
  Result<SavedCheckpoint> Save(Backend& backend, const Parameters& parameters,
                               const CheckpointContent& content);

  // Loads the newest intact checkpoint of the run, else config.resume_from. nullopt when there is
  // nothing to resume. Damaged ones are reported and set aside as `damaged-step-N`.
  // DATA_LOSS when there were candidates and none is intact; FAILED_PRECONDITION when one is intact
  // but of another model.
  Result<std::optional<TrainingState>> LoadNewest(Backend& backend, Parameters* parameters);

  // Steps of the complete checkpoints, newest first.
  Result<std::vector<int64_t>> Steps() const;
  std::string PathOf(int64_t step) const;

 private:
  CheckpointStore(std::string folder, int64_t epoch, CheckpointConfig config, Warn warn);
  Status CheckEpoch() const;
  Status Publish(const std::string& temporary, const std::string& final_path);
  // Deletes all but the last, the best and `saved`; returns whether `saved` is the best.
  bool Retain(int64_t saved);

  std::string folder_;
  int64_t epoch_;
  CheckpointConfig config_;
  Warn warn_;
};

// The checkpoint that `path` means: itself, or the newest one below a run folder or a folder of
// checkpoints. NOT_FOUND naming what was looked for.
Result<std::string> FindCheckpoint(const std::string& path);

}  // namespace nibble
