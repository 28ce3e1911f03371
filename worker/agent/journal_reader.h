// SPDX-License-Identifier: Apache-2.0
//
// JournalReader: reads a journal that a trainer is still writing, a bounded piece at a time.
// JournalSender: the part of it the controller has not acknowledged, in resendable batches.
//
// Invariants: only whole lines are consumed; a torn last line waits for its end. Records come in
// rising seq, each once; a line that cannot be read is counted, and where it left a gap in the
// sequence a warning record takes its place. The journal file is the spool: memory holds at most
// one piece of kReadBytes, and the positions of kMaxBatchesInFlight batches.
// Thread-safety: one thread.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "worker/spec/journal.h"

namespace nibble::agent {

inline constexpr int64_t kReadBytes = 256 * 1024;  // > kMaxJournalLineBytes
inline constexpr size_t kMaxBatchRecords = 500;
inline constexpr size_t kMaxBatchesInFlight = 8;
inline constexpr int64_t kTelemetryAckTimeoutMs = 10'000;

class JournalReader {
 public:
  explicit JournalReader(std::string path, int64_t offset = 0, int64_t last_seq = 0)
      : path_(std::move(path)), offset_(offset), last_seq_(last_seq) {}

  // The next records, at most `limit`; empty at the end of what is whole, or without a file.
  std::vector<JournalRecord> Read(size_t limit = kMaxBatchRecords);

  int64_t offset() const { return offset_; }  // bytes consumed
  int64_t last_seq() const { return last_seq_; }
  int64_t malformed_lines() const { return malformed_lines_; }
  const std::string& path() const { return path_; }

 private:
  void TakeLine(std::string_view line, std::vector<JournalRecord>& records);

  std::string path_;
  int64_t offset_ = 0;
  int64_t last_seq_ = 0;
  int64_t malformed_lines_ = 0;
  int64_t malformed_since_record_ = 0;
  bool in_oversized_line_ = false;
};

// The last end record of a journal, looked for in its last kReadBytes. NOT_FOUND when none is.
Result<EndRecord> ReadEndRecord(const std::string& path);

class JournalSender {
 public:
  // Everything up to `acked_seq`, which ends at byte `acked_offset`, was acknowledged before.
  JournalSender(const std::string& path, int64_t acked_seq, int64_t acked_offset);

  // The next batch to send; empty when there is none or kMaxBatchesInFlight are not acknowledged.
  // A batch unacknowledged for kTelemetryAckTimeoutMs makes it start again from there.
  std::vector<JournalRecord> NextBatch(int64_t now_ms);
  // `cursor`: the highest seq the controller stores. One below what it acknowledged before (it
  // lost records) makes the sender go back, at most once per kTelemetryAckTimeoutMs.
  void Acknowledge(int64_t cursor, int64_t now_ms);
  // Sends again whatever is not acknowledged: for a new session.
  void Rewind();

  // True when every whole line of the file is acknowledged.
  bool Drained() const;
  int64_t lag_bytes() const;  // written and not acknowledged
  int64_t records_in_flight() const;
  int64_t acked_seq() const { return acked_seq_; }
  int64_t acked_offset() const { return acked_offset_; }
  int64_t malformed_lines() const { return reader_.malformed_lines(); }

 private:
  struct Batch {
    int64_t last_seq = 0;
    int64_t end_offset = 0;
    int64_t records = 0;
  };

  JournalReader reader_;
  std::deque<Batch> in_flight_;
  int64_t acked_seq_ = 0;
  int64_t acked_offset_ = 0;
  int64_t progress_ms_ = 0;  // last time a batch was acknowledged or the first one was sent
  int64_t went_back_ms_ = 0;
};

}  // namespace nibble::agent
