// SPDX-License-Identifier: Apache-2.0
//
// JournalWriter: appends the records of worker/spec/journal.h to <run dir>/journal.jsonl.
//
// Telemetry never stops a step: when the file cannot be written, records wait in memory (at most
// kMaxBacklog, the oldest are dropped and counted) and are tried again with each new record.
// Thread-safety: one thread. Ownership: owns its file. Invariants: seq counts 1, 2, 3 ... without a
// gap in the file, across restarts too: a number is given when a record is written. A torn last
// line of an earlier process is cut off.
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "base/clock.h"
#include "base/files.h"
#include "base/status.h"
#include "worker/spec/journal.h"

namespace nibble {

class JournalWriter {
 public:
  // Records that wait while the file cannot be written: an hour at ten records a second.
  static constexpr size_t kMaxBacklog = 36'000;

  // A writer that writes nothing.
  JournalWriter() = default;
  // Opens or creates the journal in `folder`. Fails only when the folder is not usable or the file
  // holds something else than a journal (DATA_LOSS).
  static Result<JournalWriter> Open(const std::string& folder, const Clock* clock);

  // Appends, or keeps for later.
  void Write(decltype(JournalRecord::event) event);
  // Tries to write what waits; fdatasync. OK when nothing waits afterwards.
  Status Flush();

  int64_t last_seq() const { return last_seq_; }
  int64_t dropped() const { return dropped_; }
  size_t backlog() const { return backlog_.size(); }

 private:
  Status DrainBacklog();

  const Clock* clock_ = nullptr;
  AppendFile file_;
  int64_t last_seq_ = 0;
  int64_t dropped_ = 0;  // since the last record that said so
  std::deque<JournalRecord> backlog_;
};

}  // namespace nibble
