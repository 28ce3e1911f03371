// SPDX-License-Identifier: Apache-2.0
//
// RunRecord: what one training run of a study gave, read from its journal and kept as raw JSON.
// Thread-safety: value types and free functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "worker/spec/journal.h"

namespace nibble {

// kCompleted and kDiverged are results. kNotRun: the trainer refused or failed, `message` says why;
// the run is tried again the next time. kUnfinished: stopped before its end, to be resumed.
enum class RunState { kUnfinished, kCompleted, kDiverged, kNotRun };
const char* RunStateName(RunState state);  // "unfinished", "completed", "diverged", "not_run"

struct RunRecord {
  RunState state = RunState::kUnfinished;
  std::string message;
  std::string hash;      // of the spec, see RunHash
  std::string revision;  // of the source tree that ran the last step
  Json spec;             // the run config as the trainer read it
  int64_t parameters = 0;
  int64_t steps = 0;
  int64_t tokens = 0;
  double train_seconds = 0;  // sum over the steps; validation and checkpoints apart
  double tokens_per_second = 0;
  double final_validation_loss = 0;
  std::string weights_sha256;
  std::vector<StepRecord> curve;  // one entry a step, without a gap
  std::vector<ValidationRecord> validation;
  std::vector<HealthRecord> health;
};

// Reads a journal that may tell of the same step more than once (after a kill): the later one
// stands. A torn or foreign line is skipped. Errors of ReadFile.
Result<RunRecord> ReadRunJournal(const std::string& path);

// The raw JSON; RunRecordFromJson(RunRecordToJson(r)) gives r back.
Json RunRecordToJson(const RunRecord& record);
// DATA_LOSS when a field is missing or has another type.
Result<RunRecord> RunRecordFromJson(const Json& json);

}  // namespace nibble
