// SPDX-License-Identifier: Apache-2.0
//
// Run folders: where attempts live on disk, and what a trainer is given.
//
//   <state dir>/runs/<job>/checkpoints/           shared by all attempts of the job
//   <state dir>/runs/<job>/attempt-<n>/           one attempt:
//     attempt.json     this worker's record of it (below)
//     run.json         the trainer's configuration
//     checkpoints      link to ../checkpoints, so an attempt resumes from the job's newest one
//     journal.jsonl    what the trainer tells (docs/reference/journal.md)
//     trainer.log      what it and its libraries print
//     supervisor.json, exit.json   see supervise.h
// Folders are kept after the end: checkpoints and journals belong to the user.
// Thread-safety: free functions, one thread per attempt.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "worker/agent/messages.h"
#include "worker/agent/trainer_process.h"

namespace nibble::agent {

// The worker's own record of an attempt, in attempt.json; written before the trainer starts.
struct AttemptRecord {
  AttemptKey key;
  std::vector<int> devices;
  bool done = false;     // ended, and the controller knows
  bool running = false;  // the trainer has told of its first step
  int64_t step = 0;
  int64_t acked_seq = 0;     // journal cursor the controller acknowledged ...
  int64_t acked_offset = 0;  // ... and where it ends in the file
};

Status SaveAttemptRecord(const std::string& run_dir, const AttemptRecord& record);
// NOT_FOUND; DATA_LOSS when it cannot be read.
Result<AttemptRecord> LoadAttemptRecord(const std::string& run_dir);

std::string RunDir(const std::string& state_dir, const AttemptKey& key);
// Every attempt folder below `state_dir` that holds an attempt.json.
std::vector<std::string> ListRunDirs(const std::string& state_dir);

struct RunSettings {
  std::string state_dir;   // absolute
  std::string trainer;     // absolute path of nibble-trainer
  std::string supervisor;  // program that knows "supervise"; normally this one
  std::vector<DeviceInfo> devices;
};

// Creates the run folder with run.json and the link to the checkpoints, and says how to start the
// trainer. INVALID_ARGUMENT for a run_json that is not a JSON object.
Result<TrainerProcess::Launch> PrepareRun(const RunSettings& settings, const StartRequest& request);

}  // namespace nibble::agent
