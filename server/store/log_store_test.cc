// SPDX-License-Identifier: Apache-2.0
#include "server/store/log_store.h"

#include <gtest/gtest.h>

namespace nibble::store {
namespace {

class LogStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = MakeTempDirectory("logs").value();
    Reopen();
  }
  void TearDown() override { EXPECT_EQ(RemoveTree(directory_), OkStatus()); }
  void Reopen() { store_ = LogStore::Open(directory_).value(); }
  static std::vector<LogLine> Lines(int64_t first, int64_t last) {
    std::vector<LogLine> lines;
    for (int64_t i = first; i <= last; ++i) {
      lines.push_back({i, 1'000 + i, "info", "line " + std::to_string(i)});
    }
    return lines;
  }
  std::string directory_;
  std::unique_ptr<LogStore> store_;
  const StreamKey key_{"j-1", 1, 0};
};

TEST_F(LogStoreTest, AppendedThenReadFromAnyOffsetAndFollowed) {
  EXPECT_EQ(store_->Append(key_, Lines(1, 3)).value(), 3);
  const LogPage page = store_->Read(key_, 0).value();
  ASSERT_EQ(page.lines.size(), 3u);
  EXPECT_EQ(page.lines[2].text, "line 3");
  EXPECT_EQ(page.lines[2].time_ms, 1'003);
  EXPECT_EQ(store_->Read(key_, page.next_offset)->next_offset, page.next_offset);
  EXPECT_EQ(store_->Append(key_, Lines(4, 4)).value(), 1);
  const LogPage more = store_->Read(key_, page.next_offset).value();
  ASSERT_EQ(more.lines.size(), 1u);
  EXPECT_EQ(more.lines[0].text, "line 4");
}

TEST_F(LogStoreTest, ResentAlsoAfterAReopenThenKeptOnce) {
  ASSERT_TRUE(store_->Append(key_, Lines(1, 5)).ok());
  EXPECT_EQ(store_->Append(key_, Lines(1, 5)).value(), 0);
  Reopen();
  EXPECT_EQ(store_->Append(key_, Lines(3, 7)).value(), 2);
  EXPECT_EQ(store_->Read(key_, 0)->lines.size(), 7u);
}

TEST_F(LogStoreTest, TornLastLineThenCutOffAndWrittenAgain) {
  ASSERT_TRUE(store_->Append(key_, Lines(1, 5)).ok());
  const std::string path = directory_ + "/j-1/a1-r0.log";
  const std::string bytes = ReadFile(path).value();
  store_.reset();
  ASSERT_EQ(AtomicWriteFile(path, std::string_view(bytes).substr(0, bytes.size() - 4)), OkStatus());
  Reopen();
  EXPECT_EQ(store_->Append(key_, Lines(1, 5)).value(), 1);
  EXPECT_EQ(ReadFile(path).value(), bytes);
}

TEST_F(LogStoreTest, TailThenTheLastLines) {
  ASSERT_TRUE(store_->Append(key_, Lines(1, 20'000)).ok());
  for (const int count : {1, 10, 5'000}) {
    const LogPage page = store_->Read(key_, store_->TailOffset(key_, count).value()).value();
    ASSERT_EQ(page.lines.size(), static_cast<size_t>(count));
    EXPECT_EQ(page.lines.back().text, "line 20000");
  }
  EXPECT_EQ(store_->TailOffset(key_, 50'000).value(), 0);
  const int64_t end = store_->TailOffset(key_, 0).value();
  EXPECT_TRUE(store_->Read(key_, end)->lines.empty());
}

TEST_F(LogStoreTest, LineBreaksTabsAndLongTextThenOneLineEach) {
  std::vector<LogLine> lines = {{1, 5, "error", "a\tb\nc\\d\r"},
                                {2, 5, "info", std::string(kMaxLogLineBytes + 100, 'x')}};
  ASSERT_TRUE(store_->Append(key_, lines).ok());
  const LogPage page = store_->Read(key_, 0).value();
  ASSERT_EQ(page.lines.size(), 2u);
  EXPECT_EQ(page.lines[0].text, "a\tb\nc\\d\r");
  EXPECT_TRUE(page.lines[1].text.ends_with("[cut]"));
}

TEST_F(LogStoreTest, UnknownStreamOffsetOrKeyThenEmptyOrRefused) {
  EXPECT_TRUE(store_->Read(key_, 0)->lines.empty());
  EXPECT_EQ(store_->Read(key_, 5).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(store_->Append({"..", 1, 0}, Lines(1, 1)).status().code(),
            StatusCode::kInvalidArgument);
  ASSERT_TRUE(store_->Append({"j-1", 2, 3}, Lines(1, 1)).ok());
  const auto streams = store_->Streams("j-1").value();
  ASSERT_EQ(streams.size(), 1u);
  EXPECT_EQ(streams[0], (StreamKey{"j-1", 2, 3}));
}

}  // namespace
}  // namespace nibble::store
