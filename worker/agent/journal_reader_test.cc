// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/journal_reader.h"

#include <gtest/gtest.h>

#include "base/files.h"
#include "base/strings.h"

namespace nibble::agent {
namespace {

class JournalFile {
 public:
  JournalFile() : folder_(MakeTempDirectory("nibble-journal").value()) {}
  ~JournalFile() { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  std::string path() const { return JoinPath(folder_, kJournalFileName); }
  void Append(const std::string& bytes) {
    auto file = AppendFile::Open(path());
    ASSERT_TRUE(file.ok() && file->Append(bytes).ok());
  }
  void Step(int64_t seq) { Append(Line(seq)); }
  static std::string Line(int64_t seq) {
    return EncodeJournalLine({seq, 1, StepRecord{seq, 1.5, 1, 1, seq, 1, 1}});
  }

 private:
  std::string folder_;
};

std::vector<int64_t> Seqs(const std::vector<JournalRecord>& records) {
  std::vector<int64_t> seqs;
  for (const JournalRecord& record : records) seqs.push_back(record.seq);
  return seqs;
}

using Expected = std::vector<int64_t>;

TEST(JournalReader, MissingFileThenRecordsAsTheyArrive) {
  JournalFile file;
  JournalReader reader(file.path());
  EXPECT_TRUE(reader.Read().empty());
  file.Step(1);
  file.Step(2);
  EXPECT_EQ(Seqs(reader.Read()), (Expected{1, 2}));
  EXPECT_TRUE(reader.Read().empty());
  file.Step(3);
  EXPECT_EQ(Seqs(reader.Read()), (Expected{3}));
}

TEST(JournalReader, TornLastLineWaitsForItsEnd) {
  JournalFile file;
  JournalReader reader(file.path());
  const std::string line = JournalFile::Line(1);
  file.Append(line.substr(0, 10));
  EXPECT_TRUE(reader.Read().empty());
  EXPECT_EQ(reader.offset(), 0);
  file.Append(line.substr(10));
  EXPECT_EQ(Seqs(reader.Read()), (Expected{1}));
  EXPECT_EQ(reader.malformed_lines(), 0);
}

TEST(JournalReader, UnreadableLineLeavesAWarningInItsPlace) {
  JournalFile file;
  JournalReader reader(file.path());
  file.Step(1);
  file.Append("not json\n");
  file.Step(3);
  const auto records = reader.Read();
  ASSERT_EQ(Seqs(records), (Expected{1, 2, 3}));
  EXPECT_EQ(std::get<LogRecord>(records[1].event).level, "warning");
  EXPECT_EQ(reader.malformed_lines(), 1);
}

TEST(JournalReader, UnreadableLineWithoutAGapHidesNoRecord) {
  JournalFile file;
  JournalReader reader(file.path());
  file.Step(1);
  file.Append("{\"seq\":2,\"t\":1,\"type\":\"unheard-of\"}\n");
  file.Step(2);
  file.Step(2);
  EXPECT_EQ(Seqs(reader.Read()), (Expected{1, 2}));
  EXPECT_EQ(reader.malformed_lines(), 1);
}

TEST(JournalReader, LineWithoutEndIsSkippedInBoundedPieces) {
  JournalFile file;
  JournalReader reader(file.path());
  file.Append(std::string(2 * kReadBytes + 77, 'x') + "\n");
  file.Step(2);
  Expected seqs;
  for (int piece = 0; piece < 4; ++piece) {
    for (const int64_t seq : Seqs(reader.Read())) seqs.push_back(seq);
  }
  EXPECT_EQ(seqs, (Expected{1, 2}));  // 1: the warning
  EXPECT_EQ(reader.malformed_lines(), 1);
}

TEST(ReadEndRecord, FindsTheEndBeforeATornTail) {
  JournalFile file;
  EXPECT_EQ(ReadEndRecord(file.path()).status().code(), StatusCode::kNotFound);
  for (int64_t seq = 1; seq <= 4000; ++seq) file.Step(seq);
  EXPECT_EQ(ReadEndRecord(file.path()).status().code(), StatusCode::kNotFound);
  EndRecord end;
  end.reason = kEndPreempted;
  file.Append(EncodeJournalLine({4001, 1, end}) + "{\"seq\":4002,");
  EXPECT_EQ(ReadEndRecord(file.path())->reason, kEndPreempted);
}

TEST(JournalSender, KeepsBatchesUntilTheyAreAcknowledged) {
  JournalFile file;
  file.Step(1);
  file.Step(2);
  JournalSender sender(file.path(), 0, 0);
  EXPECT_EQ(Seqs(sender.NextBatch(0)), (Expected{1, 2}));
  EXPECT_TRUE(sender.NextBatch(0).empty());
  EXPECT_EQ(sender.records_in_flight(), 2);
  EXPECT_FALSE(sender.Drained());
  sender.Acknowledge(2, 0);
  EXPECT_TRUE(sender.Drained());
  EXPECT_EQ(sender.lag_bytes(), 0);
  EXPECT_EQ(sender.acked_seq(), 2);
  file.Step(3);
  EXPECT_FALSE(sender.Drained());
  EXPECT_GT(sender.lag_bytes(), 0);
}

TEST(JournalSender, NewSessionSendsAgainFromTheLastAcknowledgement) {
  JournalFile file;
  for (int64_t seq = 1; seq <= 3; ++seq) file.Step(seq);
  JournalSender sender(file.path(), 0, 0);
  EXPECT_EQ(sender.NextBatch(0).size(), 3u);
  sender.Acknowledge(2, 0);  // in the middle of a batch
  sender.Rewind();
  EXPECT_EQ(Seqs(sender.NextBatch(0)), (Expected{3}));
}

TEST(JournalSender, MissingAcknowledgementSendsAgainAfterItsTime) {
  JournalFile file;
  file.Step(1);
  JournalSender sender(file.path(), 0, 0);
  EXPECT_EQ(sender.NextBatch(1000).size(), 1u);
  EXPECT_TRUE(sender.NextBatch(1000 + kTelemetryAckTimeoutMs - 1).empty());
  EXPECT_EQ(sender.NextBatch(1000 + kTelemetryAckTimeoutMs).size(), 1u);
}

TEST(JournalSender, ControllerThatLostRecordsGetsThemAgain) {
  JournalFile file;
  for (int64_t seq = 1; seq <= 5; ++seq) file.Step(seq);
  JournalSender sender(file.path(), 0, 0);
  EXPECT_EQ(sender.NextBatch(1).size(), 5u);
  sender.Acknowledge(5, 1);
  sender.Acknowledge(3, 2);
  EXPECT_EQ(Seqs(sender.NextBatch(2)), (Expected{4, 5}));
  sender.Acknowledge(1, 3);  // at most once per timeout
  EXPECT_TRUE(sender.NextBatch(3).empty());
}

TEST(JournalSender, WindowAndBatchSizeAreLimited) {
  JournalFile file;
  std::string lines;
  for (int64_t seq = 1; seq <= 6000; ++seq) lines += JournalFile::Line(seq);
  file.Append(lines);
  JournalSender sender(file.path(), 0, 0);
  for (size_t batch = 0; batch < kMaxBatchesInFlight; ++batch) {
    const size_t records = sender.NextBatch(0).size();
    EXPECT_GT(records, 0u);
    EXPECT_LE(records, kMaxBatchRecords);
  }
  EXPECT_TRUE(sender.NextBatch(0).empty());
}

TEST(JournalSender, ContinuesFromASavedPositionAndSurvivesAWrongOne) {
  JournalFile file;
  for (int64_t seq = 1; seq <= 3; ++seq) file.Step(seq);
  const auto offset = static_cast<int64_t>(JournalFile::Line(1).size());
  EXPECT_EQ(Seqs(JournalSender(file.path(), 1, offset).NextBatch(0)), (Expected{2, 3}));
  EXPECT_EQ(Seqs(JournalSender(file.path(), 1, 1 << 30).NextBatch(0)), (Expected{2, 3}));
}

TEST(JournalSender, CursorFromNowhereSkipsNothing) {
  JournalFile file;
  file.Step(1);
  JournalSender sender(file.path(), 0, 0);
  EXPECT_EQ(sender.NextBatch(0).size(), 1u);
  sender.Acknowledge(1'000'000, 0);
  file.Step(2);
  EXPECT_EQ(Seqs(sender.NextBatch(0)), (Expected{2}));
}

}  // namespace
}  // namespace nibble::agent
