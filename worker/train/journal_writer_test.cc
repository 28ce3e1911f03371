// SPDX-License-Identifier: Apache-2.0
#include "worker/train/journal_writer.h"

#include <sys/resource.h>

#include <csignal>

#include "worker/train/test_support.h"

namespace nibble {
namespace {

class JournalWriterTest : public RunTest {
 protected:
  void SetUp() override { folder_ = MakeTempDirectory("nibble-journal").value(); }
  std::string File() const { return JoinPath(folder_, kJournalFileName); }
  std::vector<JournalRecord> Records() const { return Journal("."); }
  FakeClock clock_;
};

TEST_F(JournalWriterTest, SeqContinuesAfterARestartAndTheTornTailIsCut) {
  {
    auto writer = JournalWriter::Open(folder_, &clock_);
    ASSERT_TRUE(writer.ok());
    writer->Write(ValidationRecord{1, 2.0});
    writer->Write(ValidationRecord{2, 1.5});
    EXPECT_EQ(writer->last_seq(), 2);
  }
  ASSERT_TRUE(AppendFile::Open(File())->Append("{\"seq\":3,\"t\":1,\"ty").ok());
  auto writer = JournalWriter::Open(folder_, &clock_);
  ASSERT_TRUE(writer.ok()) << writer.status().ToString();
  EXPECT_EQ(writer->last_seq(), 2);
  writer->Write(LogRecord{"info", "again"});
  EXPECT_TRUE(writer->Flush().ok());
  const auto records = Records();
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(std::get<LogRecord>(records[2].event).text, "again");
  EXPECT_EQ(records[2].time_ms, clock_.WallMillis());
}

TEST_F(JournalWriterTest, OnlyATornLineStartsAtOne) {
  ASSERT_TRUE(AtomicWriteFile(File(), "{\"seq\":1").ok());
  auto writer = JournalWriter::Open(folder_, &clock_);
  ASSERT_TRUE(writer.ok());
  writer->Write(LogRecord{"info", "first"});
  EXPECT_EQ(Records().size(), 1u);
}

TEST_F(JournalWriterTest, ForeignFileIsRefused) {
  ASSERT_TRUE(AtomicWriteFile(File(), "hello\n").ok());
  EXPECT_EQ(JournalWriter::Open(folder_, &clock_).status().code(), StatusCode::kDataLoss);
  ASSERT_TRUE(AtomicWriteFile(File(), std::string(300'000, 'x')).ok());
  EXPECT_EQ(JournalWriter::Open(folder_, &clock_).status().code(), StatusCode::kDataLoss);
}

TEST_F(JournalWriterTest, FullDiskKeepsRecordsUntilThereIsRoomAndCountsWhatIsDropped) {
  auto writer = JournalWriter::Open(folder_, &clock_);
  ASSERT_TRUE(writer.ok());
  writer->Write(ValidationRecord{0, 1.0});
  // A file size limit makes write(2) fail the way a full disk does.
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit small = {static_cast<rlim_t>(*FileSizeBytes(File())) + 10, old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const auto count = static_cast<int64_t>(JournalWriter::kMaxBacklog) + 25;
  for (int64_t i = 1; i <= count; ++i) writer->Write(ValidationRecord{i, 1.0});
  EXPECT_EQ(writer->backlog(), JournalWriter::kMaxBacklog);
  EXPECT_EQ(writer->dropped(), 25);
  EXPECT_FALSE(writer->Flush().ok());
  setrlimit(RLIMIT_FSIZE, &old_limit);

  ASSERT_TRUE(writer->Flush().ok());
  EXPECT_EQ(writer->backlog(), 0u);
  const auto records = Records();  // checks that seq has no gap
  ASSERT_EQ(records.size(), 1 + JournalWriter::kMaxBacklog + 1);
  EXPECT_EQ(std::get<ValidationRecord>(records[1].event).step, 26);
  EXPECT_NE(std::get<LogRecord>(records.back().event).text.find("25 journal records"),
            std::string::npos);
}

TEST_F(JournalWriterTest, AWriterWithoutAFileWritesNothing) {
  JournalWriter writer;
  writer.Write(LogRecord{"info", "lost"});
  EXPECT_TRUE(writer.Flush().ok());
  EXPECT_EQ(writer.backlog(), 0u);
}

}  // namespace
}  // namespace nibble
