// SPDX-License-Identifier: Apache-2.0
//
// RunStore: the runs of all studies below one folder, each under the hash of its spec.
//
//   runs/HASH/run.json       what the trainer was given
//   runs/HASH/journal.jsonl  and checkpoints/, trainer.log: the trainer's own
//   runs/HASH/result.json    the RunRecord, written when the run has ended
//
// Thread-safety: one thread. Ownership: owns the records it hands out; they live as long as it.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "base/status.h"
#include "worker/study/run_record.h"

namespace nibble {

class RunStore {
 public:
  // `retry_refused`: stored records of runs that could not be run count as absent, so that a new
  // release or a freed disk gets another try.
  RunStore(std::string folder, bool retry_refused)
      : folder_(std::move(folder)), retry_refused_(retry_refused) {}

  std::string RunFolder(const std::string& hash) const;
  // nullptr when the run has no readable result.
  const RunRecord* Find(const std::string& hash);
  // Keeps the record under record.hash, in memory and on disk.
  Status Save(RunRecord record);

 private:
  std::string folder_;
  bool retry_refused_;
  std::map<std::string, std::unique_ptr<RunRecord>> records_;
};

}  // namespace nibble
