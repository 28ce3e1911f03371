// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/journal_reader.h"

#include <algorithm>
#include <utility>

#include "base/files.h"
#include "base/log.h"

namespace nibble::agent {

std::vector<JournalRecord> JournalReader::Read(size_t limit) {
  std::vector<JournalRecord> records;
  const Result<std::string> piece = ReadFileRange(path_, offset_, kReadBytes);
  if (!piece.ok()) return records;  // no journal yet
  const std::string_view text = *piece;
  size_t begin = 0;
  while (records.size() < limit) {
    const size_t end = text.find('\n', begin);
    if (end == std::string_view::npos) break;
    if (!in_oversized_line_) TakeLine(text.substr(begin, end - begin), records);
    in_oversized_line_ = false;
    begin = end + 1;
  }
  if (begin == 0 && static_cast<int64_t>(text.size()) == kReadBytes) {
    if (!in_oversized_line_) TakeLine(text, records);  // refused and counted
    in_oversized_line_ = true;
    begin = text.size();
  }
  offset_ += static_cast<int64_t>(begin);
  return records;
}

void JournalReader::TakeLine(std::string_view line, std::vector<JournalRecord>& records) {
  Result<JournalRecord> record = DecodeJournalLine(line);
  if (!record.ok()) {
    ++malformed_lines_;
    ++malformed_since_record_;
    return;
  }
  if (record->seq <= last_seq_) return;  // had it already
  if (malformed_since_record_ > 0 && record->seq > last_seq_ + 1) {
    LogRecord warning{"warning", std::to_string(malformed_since_record_) +
                                     " journal lines before record " + std::to_string(record->seq) +
                                     " were unreadable"};
    records.push_back({last_seq_ + 1, record->time_ms, std::move(warning)});
  }
  malformed_since_record_ = 0;
  last_seq_ = record->seq;
  records.push_back(std::move(*record));
}

Result<EndRecord> ReadEndRecord(const std::string& path) {
  ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(path));
  const int64_t begin = std::max<int64_t>(0, size - kReadBytes);
  ASSIGN_OR_RETURN(const std::string text, ReadFileRange(path, begin, kReadBytes));
  size_t end = text.rfind('\n');
  while (end != std::string::npos && end > 0) {
    const size_t before = text.rfind('\n', end - 1);
    const size_t start = before == std::string::npos ? 0 : before + 1;
    const auto record = DecodeJournalLine(std::string_view(text).substr(start, end - start));
    if (record.ok() && std::holds_alternative<EndRecord>(record->event)) {
      return std::get<EndRecord>(record->event);
    }
    end = before;
  }
  return NotFoundError(path + " has no end record");
}

JournalSender::JournalSender(const std::string& path, int64_t acked_seq, int64_t acked_offset)
    : reader_(path), acked_seq_(acked_seq), acked_offset_(acked_offset) {
  // A position beyond the file is not this file's: begin again and drop what was acknowledged.
  if (acked_offset_ > FileSizeBytes(path).value_or(0)) acked_offset_ = 0;
  Rewind();
}

std::vector<JournalRecord> JournalSender::NextBatch(int64_t now_ms) {
  if (!in_flight_.empty() && now_ms - progress_ms_ >= kTelemetryAckTimeoutMs) Rewind();
  if (in_flight_.size() >= kMaxBatchesInFlight) return {};
  // One less than the limit: a warning about a gap may join the record that shows it.
  std::vector<JournalRecord> records = reader_.Read(kMaxBatchRecords - 1);
  if (records.empty()) {
    if (in_flight_.empty()) acked_offset_ = reader_.offset();  // nothing there to acknowledge
    return records;
  }
  if (in_flight_.empty()) progress_ms_ = now_ms;
  in_flight_.push_back(
      {records.back().seq, reader_.offset(), static_cast<int64_t>(records.size())});
  return records;
}

void JournalSender::Acknowledge(int64_t cursor, int64_t now_ms) {
  if (cursor < acked_seq_) {
    if (went_back_ms_ != 0 && now_ms - went_back_ms_ < kTelemetryAckTimeoutMs) return;
    went_back_ms_ = now_ms;
    LogWarning("the controller lost journal records; sending them again",
               {{"journal", reader_.path()}, {"from", std::to_string(cursor + 1)}});
    acked_seq_ = std::max<int64_t>(0, cursor);
    acked_offset_ = 0;
    return Rewind();
  }
  while (!in_flight_.empty() && in_flight_.front().last_seq <= cursor) {
    acked_offset_ = in_flight_.front().end_offset;
    in_flight_.pop_front();
    progress_ms_ = now_ms;
  }
  // Never beyond what was sent: a cursor from nowhere must not skip records.
  acked_seq_ = std::max(acked_seq_, std::min(cursor, reader_.last_seq()));
}

void JournalSender::Rewind() {
  in_flight_.clear();
  reader_ = JournalReader(reader_.path(), acked_offset_, acked_seq_);
}

bool JournalSender::Drained() const {
  if (!in_flight_.empty()) return false;
  JournalReader probe = reader_;
  while (true) {
    const int64_t before = probe.offset();
    if (!probe.Read(1).empty()) return false;
    if (probe.offset() == before) return true;
  }
}

int64_t JournalSender::lag_bytes() const {
  return std::max<int64_t>(0, FileSizeBytes(reader_.path()).value_or(0) - acked_offset_);
}

int64_t JournalSender::records_in_flight() const {
  int64_t records = 0;
  for (const Batch& batch : in_flight_) records += batch.records;
  return records;
}

}  // namespace nibble::agent
