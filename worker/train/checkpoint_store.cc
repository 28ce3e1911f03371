// SPDX-License-Identifier: Apache-2.0
#include "worker/train/checkpoint_store.h"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/files.h"
#include "base/strings.h"

namespace nibble {
namespace {

constexpr char kFolderName[] = "checkpoints";
constexpr char kEpochFileName[] = "epoch";
constexpr char kStepPrefix[] = "step-";
constexpr char kDamagedPrefix[] = "damaged-";
// Unfinished and half-deleted folders; a dot keeps them out of listings.
constexpr char kTemporaryPrefix[] = ".writing-";
constexpr char kRemovedPrefix[] = ".removed-";

std::string StepName(int64_t step) {
  return StrFormat("%s%08lld", kStepPrefix, static_cast<long long>(step));
}

// The step of "step-00000100"; nullopt for another name.
std::optional<int64_t> StepOfName(const std::string& name) {
  const std::string_view prefix = kStepPrefix;
  if (name.rfind(prefix, 0) != 0) return std::nullopt;
  const Result<int64_t> step = ParseInt(std::string_view(name).substr(prefix.size()));
  if (!step.ok() || *step < 0 || StepName(*step) != name) return std::nullopt;
  return *step;
}

// Steps with a manifest below `folder`, newest first.
Result<std::vector<int64_t>> ListSteps(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(folder));
  std::vector<int64_t> steps;
  for (const std::string& name : names) {
    const std::optional<int64_t> step = StepOfName(name);
    if (step.has_value()) steps.push_back(*step);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

Result<int64_t> ReadEpoch(const std::string& path) {
  if (!PathExists(path)) return int64_t{0};
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 64));
  const Result<int64_t> epoch = ParseInt(StrTrim(text));
  if (!epoch.ok() || *epoch < 0) {
    return DataLossError(path + " holds '" + text + "', not an epoch; delete it to go on");
  }
  return *epoch;
}

// Errors that say "this checkpoint is bad", as opposed to "this run cannot use it".
bool IsDamage(const Status& status) {
  return status.code() == StatusCode::kDataLoss || status.code() == StatusCode::kNotFound ||
         status.code() == StatusCode::kInvalidArgument;
}

// Verifies and loads one folder.
Result<TrainingState> LoadOne(const std::string& folder, Backend& backend, Parameters* parameters) {
  RETURN_IF_ERROR([&] {
    const auto verified = VerifyCheckpoint(folder);
    return verified.ok() ? OkStatus() : verified.status();
  }());
  ASSIGN_OR_RETURN(TrainingState state, ReadTrainingState(folder));
  RETURN_IF_ERROR(LoadTensors(folder, backend, true, parameters));
  ASSIGN_OR_RETURN(state.recipe_tensors, ReadRecipeTensors(folder));
  RETURN_IF_ERROR(parameters->RestoreScales(state.recipe_tensors));
  return state;
}

}  // namespace

CheckpointStore::CheckpointStore(std::string folder, int64_t epoch, CheckpointConfig config,
                                 Warn warn)
    : folder_(std::move(folder)),
      epoch_(epoch),
      config_(std::move(config)),
      warn_(std::move(warn)) {}

Result<CheckpointStore> CheckpointStore::Open(const std::string& run_dir, int64_t epoch,
                                              const CheckpointConfig& config, Warn warn) {
  CheckpointStore store(JoinPath(run_dir, kFolderName), epoch, config, std::move(warn));
  RETURN_IF_ERROR(MakeDirectories(store.folder_));
  RETURN_IF_ERROR(store.CheckEpoch());
  const std::string epoch_path = JoinPath(store.folder_, kEpochFileName);
  if (epoch > 0) RETURN_IF_ERROR(AtomicWriteFile(epoch_path, std::to_string(epoch) + "\n"));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(store.folder_));
  for (const std::string& name : names) {
    if (name.rfind(kTemporaryPrefix, 0) == 0 || name.rfind(kRemovedPrefix, 0) == 0) {
      RETURN_IF_ERROR(RemoveTree(JoinPath(store.folder_, name)));
    }
  }
  return store;
}

std::string CheckpointStore::PathOf(int64_t step) const {
  return JoinPath(folder_, StepName(step));
}

Result<std::vector<int64_t>> CheckpointStore::Steps() const { return ListSteps(folder_); }

Status CheckpointStore::CheckEpoch() const {
  ASSIGN_OR_RETURN(const int64_t recorded, ReadEpoch(JoinPath(folder_, kEpochFileName)));
  if (recorded <= epoch_) return OkStatus();
  return AbortedError(
      StrFormat("epoch %lld of this process is stale: %s is owned by epoch %lld; "
                "nothing was written",
                static_cast<long long>(epoch_), folder_.c_str(), static_cast<long long>(recorded)));
}

Status CheckpointStore::Publish(const std::string& temporary, const std::string& final_path) {
  RETURN_IF_ERROR(CheckEpoch());
  if (PathExists(final_path)) {
    const std::string removed = JoinPath(folder_, kRemovedPrefix + BaseName(final_path));
    RETURN_IF_ERROR(RemoveTree(removed));
    RETURN_IF_ERROR(RenamePath(final_path, removed));
  }
  RETURN_IF_ERROR(RenamePath(temporary, final_path));
  return SyncDirectory(folder_);
}

Result<SavedCheckpoint> CheckpointStore::Save(Backend& backend, const Parameters& parameters,
                                              const CheckpointContent& content) {
  RETURN_IF_ERROR(CheckEpoch());
  const std::string name = StepName(content.state.step);
  const std::string temporary = JoinPath(folder_, kTemporaryPrefix + name);
  RETURN_IF_ERROR(RemoveTree(temporary));
  RETURN_IF_ERROR(MakeDirectories(temporary));
  const Result<int64_t> bytes = WriteCheckpoint(temporary, backend, parameters, content);
  const Status status = bytes.ok() ? Publish(temporary, JoinPath(folder_, name)) : bytes.status();
  if (!status.ok()) {
    const Status removed = RemoveTree(temporary);
    if (!removed.ok()) warn_("unfinished checkpoint stays behind: " + removed.ToString());
    return status;
  }
  SavedCheckpoint saved{JoinPath(folder_, name), *bytes};
  saved.best = Retain(content.state.step);
  return saved;
}

bool CheckpointStore::Retain(int64_t saved) {
  const Result<std::vector<int64_t>> steps = Steps();
  if (!steps.ok()) return false;
  std::vector<std::pair<double, int64_t>> by_loss;  // best first; of equals the newer
  for (const int64_t step : *steps) {
    const Result<TrainingState> state = ReadTrainingState(PathOf(step));
    if (state.ok() && state->validation_loss.has_value()) {
      by_loss.emplace_back(*state->validation_loss, -step);
    }
  }
  std::sort(by_loss.begin(), by_loss.end());
  std::vector<int64_t> keep = {saved};
  int64_t newer = 0;
  for (const int64_t step : *steps) {
    if (step <= saved && newer < config_.keep_last) keep.push_back(step), ++newer;
  }
  const auto best_count = std::min(by_loss.size(), static_cast<size_t>(config_.keep_best));
  for (size_t i = 0; i < best_count; ++i) keep.push_back(-by_loss[i].second);
  for (const int64_t step : *steps) {
    if (std::find(keep.begin(), keep.end(), step) != keep.end()) continue;
    const std::string removed = JoinPath(folder_, kRemovedPrefix + StepName(step));
    Status status = RemoveTree(removed);
    if (status.ok()) status = RenamePath(PathOf(step), removed);
    if (status.ok()) status = RemoveTree(removed);
    if (!status.ok()) warn_("old checkpoint stays: " + status.ToString());
  }
  return !by_loss.empty() && by_loss.front().second == -saved;
}

Result<std::optional<TrainingState>> CheckpointStore::LoadNewest(Backend& backend,
                                                                 Parameters* parameters) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> steps, Steps());
  std::string last_error;
  for (const int64_t step : steps) {
    const std::string path = PathOf(step);
    Result<TrainingState> state = LoadOne(path, backend, parameters);
    if (state.ok()) return std::optional<TrainingState>(std::move(*state));
    if (!IsDamage(state.status())) return state.status();
    last_error = state.status().message();
    warn_("checkpoint " + path + " is skipped: " + last_error);
    const std::string aside = JoinPath(folder_, kDamagedPrefix + StepName(step));
    Status moved = RemoveTree(aside);
    if (moved.ok()) moved = RenamePath(path, aside);
    if (!moved.ok()) warn_("damaged checkpoint stays in place: " + moved.ToString());
  }
  if (!config_.resume_from.empty()) {
    const Result<std::string> path = FindCheckpoint(config_.resume_from);
    if (!path.ok()) return DataLossError("checkpoint.resumeFrom: " + path.status().message());
    Result<TrainingState> state = LoadOne(*path, backend, parameters);
    if (state.ok()) return std::optional<TrainingState>(std::move(*state));
    if (!IsDamage(state.status())) return state.status();
    last_error = state.status().message();
  }
  if (last_error.empty()) return std::optional<TrainingState>();
  return DataLossError("no intact checkpoint is left; the last one tried: " + last_error);
}

Result<std::string> FindCheckpoint(const std::string& path) {
  if (PathExists(JoinPath(path, kManifestFileName))) return path;
  for (const std::string& folder : {path, JoinPath(path, kFolderName)}) {
    const Result<std::vector<int64_t>> steps = ListSteps(folder);
    if (steps.ok() && !steps->empty()) return JoinPath(folder, StepName(steps->front()));
  }
  return NotFoundError(path + " is no checkpoint: it has no " + kManifestFileName + ", no " +
                       kStepPrefix + "NNNNNNNN and no " + kFolderName + " folder with one");
}

}  // namespace nibble
