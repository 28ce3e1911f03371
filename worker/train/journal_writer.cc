// SPDX-License-Identifier: Apache-2.0
#include "worker/train/journal_writer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"

namespace nibble {
namespace {

// Cuts a torn last line off and returns the number of the last whole one; 0 for an empty journal.
Result<int64_t> RecoverLastSeq(const std::string& path) {
  if (!PathExists(path)) return int64_t{0};
  ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(path));
  // Two lines of the largest size always hold one whole line and its predecessor's end.
  const int64_t tail_bytes = std::min(size, 2 * kMaxJournalLineBytes);
  ASSIGN_OR_RETURN(const std::string tail, ReadFileRange(path, size - tail_bytes, tail_bytes));
  const size_t last_newline = tail.rfind('\n');
  const size_t whole = last_newline == std::string::npos ? 0 : last_newline + 1;
  if (whole == 0 && size > kMaxJournalLineBytes) {
    return DataLossError(path + " is not a journal: no line end in its last " +
                         std::to_string(tail_bytes) + " bytes");
  }
  const int64_t torn = tail_bytes - static_cast<int64_t>(whole);
  if (torn > 0 && ::truncate(path.c_str(), static_cast<off_t>(size - torn)) != 0) {
    return ErrnoError(errno, "cannot cut the torn last line of " + path);
  }
  if (whole == 0) return int64_t{0};
  const size_t previous =
      last_newline == 0 ? std::string::npos : tail.rfind('\n', last_newline - 1);
  const size_t begin = previous == std::string::npos ? 0 : previous + 1;
  const Result<JournalRecord> record =
      DecodeJournalLine(std::string_view(tail).substr(begin, last_newline - begin));
  if (!record.ok()) return record.status().WithContext(path);
  return record->seq;
}

}  // namespace

Result<JournalWriter> JournalWriter::Open(const std::string& folder, const Clock* clock) {
  const std::string path = JoinPath(folder, kJournalFileName);
  JournalWriter writer;
  writer.clock_ = clock;
  ASSIGN_OR_RETURN(writer.last_seq_, RecoverLastSeq(path));
  ASSIGN_OR_RETURN(writer.file_, AppendFile::Open(path));
  return writer;
}

void JournalWriter::Write(decltype(JournalRecord::event) event) {
  if (!file_.is_open()) return;
  backlog_.push_back({0, clock_->WallMillis(), std::move(event)});
  const bool waited = backlog_.size() > 1;
  const Status status = DrainBacklog();
  if (status.ok()) return;
  if (!waited)
    LogWarning("journal cannot be written; records wait", {{"error", status.ToString()}});
  while (backlog_.size() > kMaxBacklog) {
    backlog_.pop_front();
    ++dropped_;
  }
}

Status JournalWriter::DrainBacklog() {
  while (!backlog_.empty()) {
    JournalRecord& record = backlog_.front();
    record.seq = last_seq_ + 1;
    RETURN_IF_ERROR(file_.Append(EncodeJournalLine(record)));
    ++last_seq_;
    backlog_.pop_front();
  }
  if (dropped_ == 0) return OkStatus();
  JournalRecord note{last_seq_ + 1, clock_->WallMillis(),
                     LogRecord{"warning", std::to_string(dropped_) +
                                              " journal records were dropped while the journal "
                                              "could not be written"}};
  RETURN_IF_ERROR(file_.Append(EncodeJournalLine(note)));
  ++last_seq_;
  dropped_ = 0;
  return OkStatus();
}

Status JournalWriter::Flush() {
  if (!file_.is_open()) return OkStatus();
  RETURN_IF_ERROR(DrainBacklog());
  return file_.Sync();
}

}  // namespace nibble
