// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/journal.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

JournalRecord RoundTrip(const JournalRecord& record) {
  std::string line = EncodeJournalLine(record);
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  line.pop_back();
  const auto decoded = DecodeJournalLine(line);
  EXPECT_TRUE(decoded.ok()) << decoded.status().ToString();
  EXPECT_EQ(EncodeJournalLine(*decoded), line + "\n");
  return *decoded;
}

TEST(Journal, EveryRecordTypeSurvivesARoundTrip) {
  const decltype(JournalRecord::event) events[] = {
      StartRecord{5, 100, 12345, 2048, "fp4_ms_paper", {{"fprop", "reference"}}},
      StepRecord{7, 3.25, 0.5, 1e-3, 14336, 0.25, 8192},
      ValidationRecord{7, 3.5},
      HealthRecord{7, "weight_mlp_first", .1, .2, .3, 20, .99, .5, 2, 4, 1},
      CheckpointRecord{7, "/c", .1, 99, true},
      MemoryRecord{{{"weights", 12}}},
      LogRecord{"warning", "line\nbreak \"quoted\""},
      EndRecord{kEndCompleted, "done", 7, "abc", 3.1, 3.2}};
  int64_t seq = 0;
  for (const auto& event : events) {
    const JournalRecord record{++seq, 1000 + seq, event};
    const JournalRecord again = RoundTrip(record);
    EXPECT_EQ(again.seq, seq);
    EXPECT_EQ(again.event.index(), event.index());
  }
}

TEST(Journal, NotANumberLossSurvives) {
  const auto again = RoundTrip({1, 2, StepRecord{.step = 1, .loss = std::nan("")}});
  EXPECT_TRUE(std::isnan(std::get<StepRecord>(again.event).loss));
}

TEST(Journal, LongTextIsCutBelowTheLineLimit) {
  const auto line = EncodeJournalLine({1, 2, LogRecord{"error", std::string(1 << 20, '\x01')}});
  EXPECT_LE(static_cast<int64_t>(line.size()), kMaxJournalLineBytes);
}

TEST(Journal, DamagedLinesAreDataLoss) {
  for (const char* line : {"", "{", "{}", R"({"seq":1,"t":2})", R"({"seq":0,"t":2,"type":"log"})",
                           R"({"seq":1,"t":2,"type":"telepathy"})", "\xFF"}) {
    EXPECT_EQ(DecodeJournalLine(line).status().code(), StatusCode::kDataLoss) << line;
  }
}

TEST(Journal, ExitCodesTellTheReasonsApart) {
  EXPECT_EQ(TrainerExitCode(kEndCompleted), 0);
  EXPECT_EQ(TrainerExitCode(kEndDiverged), 10);
  EXPECT_EQ(TrainerExitCode("anything else"), 1);
}

}  // namespace
}  // namespace nibble
