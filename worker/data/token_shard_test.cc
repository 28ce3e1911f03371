// SPDX-License-Identifier: Apache-2.0
#include "worker/data/token_shard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <numeric>

#include "base/files.h"

namespace nibble {
namespace {

class TokenShardTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = MakeTempDirectory("nibble-shard").value(); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  Result<std::vector<ShardFile>> Write(const std::vector<int32_t>& tokens, TokenWidth width,
                                       int64_t vocab_size, int64_t shard_tokens) {
    ASSIGN_OR_RETURN(TokenShardWriter writer,
                     TokenShardWriter::Create({folder_, "train", width, vocab_size, shard_tokens}));
    RETURN_IF_ERROR(writer.Append(tokens));
    return writer.Finish();
  }

  // Writes raw bytes and returns the status of opening them.
  Status OpenBytes(std::string_view bytes) {
    const std::string path = JoinPath(folder_, "raw.bin");
    EXPECT_TRUE(AtomicWriteFile(path, bytes).ok());
    return TokenShard::Open(path).status();
  }

  std::string folder_;
};

bool Mentions(const Status& status, std::string_view text) {
  return status.message().find(text) != std::string::npos;
}

TEST_F(TokenShardTest, WrittenTokensReadBackInBothWidthsAndOddShardSizes) {
  std::vector<int32_t> tokens(61);
  std::iota(tokens.begin(), tokens.end(), 0);
  for (const TokenWidth width : {TokenWidth::k16, TokenWidth::k32}) {
    for (const int64_t shard_tokens : {1, 7, 30, 61, 5000}) {
      const auto files = Write(tokens, width, 61, shard_tokens);
      ASSERT_TRUE(files.ok()) << files.status().ToString();
      std::vector<int32_t> back;
      for (const ShardFile& file : *files) {
        const auto shard = TokenShard::Open(JoinPath(folder_, file.name));
        ASSERT_TRUE(shard.ok()) << shard.status().ToString();
        EXPECT_EQ(shard->width(), width);
        EXPECT_EQ(shard->token_count(), file.tokens);
        std::vector<int32_t> part(static_cast<size_t>(file.tokens));
        ASSERT_TRUE(shard->Read(0, 61, part).ok());
        back.insert(back.end(), part.begin(), part.end());
        EXPECT_EQ(*FileSha256(JoinPath(folder_, file.name)), file.sha256);
      }
      EXPECT_EQ(back, tokens);
      EXPECT_EQ(files->size(), static_cast<size_t>((61 + shard_tokens - 1) / shard_tokens));
    }
  }
}

TEST_F(TokenShardTest, SixteenBitFileHasTheBytesLlmCWrites) {
  ASSERT_TRUE(Write({1, 65535}, TokenWidth::k16, 65536, 10).ok());
  const std::string bytes = ReadFile(JoinPath(folder_, "train-000000.bin")).value();
  ASSERT_EQ(bytes.size(), 1024u + 4u);
  EXPECT_EQ(bytes.substr(0, 12), std::string("\x88\xd8\x34\x01\x01\0\0\0\x02\0\0\0", 12));
  EXPECT_EQ(bytes.substr(12, 1012), std::string(1012, '\0'));
  EXPECT_EQ(bytes.substr(1024), std::string("\x01\0\xff\xff", 4));
}

TEST_F(TokenShardTest, ReadOfAnyRangeGivesThatRange) {
  std::vector<int32_t> tokens(100);
  std::iota(tokens.begin(), tokens.end(), 1000);
  ASSERT_TRUE(Write(tokens, TokenWidth::k16, 2000, 100).ok());
  const auto shard = TokenShard::Open(JoinPath(folder_, "train-000000.bin"));
  ASSERT_TRUE(shard.ok());
  std::vector<int32_t> part(3);
  ASSERT_TRUE(shard->Read(97, 2000, part).ok());
  EXPECT_EQ(part, (std::vector<int32_t>{1097, 1098, 1099}));
  EXPECT_EQ(shard->Read(98, 2000, part).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(shard->Read(-1, 2000, part).code(), StatusCode::kOutOfRange);
  EXPECT_TRUE(shard->Read(100, 2000, {}).ok());
  const auto range = shard->Scan();
  ASSERT_TRUE(range.ok());
  EXPECT_EQ(range->min, 1000);
  EXPECT_EQ(range->max, 1099);
}

TEST_F(TokenShardTest, IdBeyondTheVocabularyIsNamedWithItsPlace) {
  ASSERT_TRUE(Write({5, 700, 6}, TokenWidth::k16, 1000, 10).ok());
  const auto shard = TokenShard::Open(JoinPath(folder_, "train-000000.bin"));
  ASSERT_TRUE(shard.ok());
  std::vector<int32_t> part(3);
  const Status status = shard->Read(0, 512, part);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(Mentions(status, "train-000000.bin: token id 700 at position 1")) << status.message();
  EXPECT_TRUE(Mentions(status, "512"));
}

TEST_F(TokenShardTest, HugeThirtyTwoBitIdIsRefusedNotNegative) {
  std::string bytes = ShardHeaderBytes(TokenWidth::k32, 1).value();
  bytes += "\xff\xff\xff\xff";
  ASSERT_TRUE(OpenBytes(bytes).ok());
  const auto shard = TokenShard::Open(JoinPath(folder_, "raw.bin"));
  std::vector<int32_t> part(1);
  EXPECT_TRUE(Mentions(shard->Read(0, 100, part), "4294967295"));
  EXPECT_EQ(shard->Scan().status().code(), StatusCode::kInvalidArgument);
}

TEST_F(TokenShardTest, DamagedFilesAreNamed) {
  const std::string good = ShardHeaderBytes(TokenWidth::k16, 2).value() + "abcd";
  ASSERT_TRUE(OpenBytes(good).ok());
  EXPECT_EQ(OpenBytes("").code(), StatusCode::kDataLoss);
  EXPECT_EQ(OpenBytes(good.substr(0, 1023)).code(), StatusCode::kDataLoss);
  const Status cut = OpenBytes(good.substr(0, 1027));
  EXPECT_EQ(cut.code(), StatusCode::kDataLoss);
  EXPECT_TRUE(Mentions(cut, "1027 bytes")) << cut.message();
  EXPECT_TRUE(Mentions(cut, "promises 2 tokens = 1028 bytes; it is truncated")) << cut.message();
  EXPECT_EQ(OpenBytes(good + "x").code(), StatusCode::kDataLoss);

  std::string magic = good;
  magic[0] = 'x';
  EXPECT_EQ(OpenBytes(magic).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(Mentions(OpenBytes(magic), "magic number"));
  std::string version = good;
  version[4] = 9;
  EXPECT_TRUE(Mentions(OpenBytes(version), "version 9"));
  std::string empty = good.substr(0, 1024);
  empty[8] = 0;
  EXPECT_TRUE(Mentions(OpenBytes(empty), "promises 0 tokens"));
  std::string negative = good;
  negative[11] = static_cast<char>(0x80);
  EXPECT_EQ(OpenBytes(negative).code(), StatusCode::kInvalidArgument);
}

TEST_F(TokenShardTest, MissingFileOrFolderIsNamed) {
  const Status status = TokenShard::Open(JoinPath(folder_, "none.bin")).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_TRUE(Mentions(status, "none.bin"));
  EXPECT_EQ(TokenShard::Open(folder_).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(TokenShardTest, FileCutWhileOpenGivesDataLossNotACrash) {
  ASSERT_TRUE(Write(std::vector<int32_t>(50000, 3), TokenWidth::k16, 10, 50000).ok());
  const std::string path = JoinPath(folder_, "train-000000.bin");
  const auto shard = TokenShard::Open(path);
  ASSERT_TRUE(shard.ok());
  ASSERT_EQ(::truncate(path.c_str(), 2000), 0);
  std::vector<int32_t> part(10);
  EXPECT_EQ(shard->Read(40000, 10, part).code(), StatusCode::kDataLoss);
}

TEST_F(TokenShardTest, WriterRefusesBadOptionsAndIdsAndLeavesNoPartialFile) {
  EXPECT_FALSE(TokenShardWriter::Create({folder_, "t", TokenWidth::k16, 65537, 5}).ok());
  EXPECT_FALSE(TokenShardWriter::Create({folder_, "t", TokenWidth::k16, 10, 0}).ok());
  EXPECT_FALSE(
      TokenShardWriter::Create({folder_, "t", TokenWidth::k16, 10, int64_t{1} << 31}).ok());
  EXPECT_FALSE(Write({1, 2, 10}, TokenWidth::k16, 10, 100).ok());
  EXPECT_FALSE(Write({-1}, TokenWidth::k32, 10, 100).ok());
  EXPECT_TRUE(ListDirectory(folder_)->empty());
}

TEST_F(TokenShardTest, NoTokensGiveNoFile) {
  const auto files = Write({}, TokenWidth::k16, 10, 100);
  ASSERT_TRUE(files.ok());
  EXPECT_TRUE(files->empty());
  EXPECT_TRUE(ListDirectory(folder_)->empty());
}

}  // namespace
}  // namespace nibble
