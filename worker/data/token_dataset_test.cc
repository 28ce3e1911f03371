// SPDX-License-Identifier: Apache-2.0
#include "worker/data/token_dataset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "base/files.h"
#include "worker/data/window_order.h"

namespace nibble {
namespace {

TEST(PermuteIndex, IsABijectionForManyCountsAndKeys) {
  for (uint64_t count = 1; count <= 300; ++count) {
    for (const uint64_t key : {0u, 1u, 77u}) {
      std::vector<bool> hit(count);
      for (uint64_t i = 0; i < count; ++i) {
        const uint64_t image = PermuteIndex(key, count, i);
        ASSERT_LT(image, count);
        ASSERT_FALSE(hit[image]) << "count " << count << " key " << key << " index " << i;
        hit[image] = true;
      }
    }
  }
  for (const uint64_t count : {4095u, 4096u, 4097u, 65537u, 100003u}) {
    std::vector<bool> hit(count);
    for (uint64_t i = 0; i < count; ++i) hit[PermuteIndex(5, count, i)] = true;
    EXPECT_EQ(std::count(hit.begin(), hit.end(), true), static_cast<int64_t>(count));
  }
}

TEST(PermuteIndex, WorksAtTheLargestCounts) {
  const uint64_t count = (uint64_t{1} << 62) - 3;
  std::set<uint64_t> images;
  for (uint64_t i = 0; i < 1000; ++i) images.insert(PermuteIndex(9, count, count - 1 - i));
  EXPECT_EQ(images.size(), 1000u);
  EXPECT_LT(*images.rbegin(), count);
}

TEST(PermuteIndex, LooksShuffled) {
  // Of 10,000 neighbours about half should ascend, and about one index should stay in place.
  const uint64_t count = 10000;
  int ascents = 0;
  int fixed = 0;
  for (uint64_t i = 0; i + 1 < count; ++i) {
    ascents += PermuteIndex(3, count, i) < PermuteIndex(3, count, i + 1);
    fixed += PermuteIndex(3, count, i) == i;
  }
  EXPECT_NEAR(ascents, 5000, 250);
  EXPECT_LE(fixed, 8);
}

class TokenDatasetTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = MakeTempDirectory("nibble-dataset").value(); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  // Tokens 0, 1, 2, ... in shards of `shard_tokens`.
  void WriteCounting(int64_t tokens, int64_t shard_tokens, const std::string& prefix = "train") {
    auto writer = TokenShardWriter::Create(
        {folder_, prefix, TokenWidth::k32, int64_t{1} << 20, shard_tokens});
    std::vector<int32_t> all(static_cast<size_t>(tokens));
    std::iota(all.begin(), all.end(), 0);
    ASSERT_TRUE(writer->Append(all).ok());
    ASSERT_TRUE(writer->Finish().ok());
  }

  TokenDataset::Options OptionsFor(int64_t seq_len, DataOrder order = DataOrder::kShuffled,
                                   int rank = 0, int world_size = 1) {
    TokenDataset::Options options;
    options.shards = ResolveShards({folder_}, "train").value();
    options.seq_len = seq_len;
    options.vocab_size = int64_t{1} << 20;
    options.seed = 1234;
    options.order = order;
    options.rank = rank;
    options.world_size = world_size;
    return options;
  }

  // The inputs of the next `steps` batches, checking that targets are shifted by one.
  static std::vector<int32_t> Draw(TokenDataset& dataset, int64_t batch, int steps) {
    const auto size = static_cast<size_t>(batch * dataset.options().seq_len);
    std::vector<int32_t> inputs(size);
    std::vector<int32_t> targets(size);
    std::vector<int32_t> all;
    for (int step = 0; step < steps; ++step) {
      const Status status = dataset.NextBatch(batch, inputs, targets);
      EXPECT_TRUE(status.ok()) << status.ToString();
      for (size_t i = 0; i < size; ++i) EXPECT_EQ(targets[i], inputs[i] + 1);
      all.insert(all.end(), inputs.begin(), inputs.end());
    }
    return all;
  }

  std::string folder_;
};

TEST_F(TokenDatasetTest, WindowsStayInsideTheirShard) {
  WriteCounting(25, 10);  // shards of 10, 10 and 5 tokens
  const auto dataset = TokenDataset::Open(OptionsFor(4, DataOrder::kSequential));
  ASSERT_TRUE(dataset.ok()) << dataset.status().ToString();
  EXPECT_EQ(dataset->window_count(), 2 + 2 + 1);
  EXPECT_EQ(dataset->token_count(), 25);
  std::vector<int32_t> inputs(4);
  std::vector<int32_t> targets(4);
  const std::vector<int32_t> starts = {0, 4, 10, 14, 20};
  for (size_t w = 0; w < starts.size(); ++w) {
    ASSERT_TRUE(dataset->ReadWindow(static_cast<int64_t>(w), inputs, targets).ok());
    EXPECT_EQ(inputs.front(), starts[w]);
    EXPECT_EQ(targets.back(), starts[w] + 4);
  }
  EXPECT_EQ(dataset->ReadWindow(5, inputs, targets).code(), StatusCode::kOutOfRange);
}

TEST_F(TokenDatasetTest, SequentialOrderRunsThroughAllWindows) {
  WriteCounting(41, 100);
  auto dataset = TokenDataset::Open(OptionsFor(8, DataOrder::kSequential));
  std::vector<int32_t> expected(40);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(Draw(*dataset, 1, 5), expected);
  EXPECT_EQ(dataset->cursor(), (DataCursor{1, 0}));
}

TEST_F(TokenDatasetTest, EveryEpochVisitsEachWindowOnceInItsOwnOrder) {
  WriteCounting(1001, 300);
  auto dataset = TokenDataset::Open(OptionsFor(7));
  const auto windows = static_cast<int>(dataset->window_count());
  std::vector<std::vector<int32_t>> epochs;
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::vector<int32_t> drawn = Draw(*dataset, 1, windows);
    std::set<int32_t> starts;
    for (size_t i = 0; i < drawn.size(); i += 7) starts.insert(drawn[i]);
    EXPECT_EQ(static_cast<int>(starts.size()), windows);
    epochs.push_back(std::move(drawn));
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
}

TEST_F(TokenDatasetTest, SeedDecidesTheOrder) {
  WriteCounting(1001, 1001);
  auto options = OptionsFor(7);
  auto a = TokenDataset::Open(options);
  auto same = TokenDataset::Open(options);
  options.seed = 1235;
  auto other = TokenDataset::Open(options);
  const std::vector<int32_t> drawn = Draw(*a, 4, 10);
  EXPECT_EQ(drawn, Draw(*same, 4, 10));
  EXPECT_NE(drawn, Draw(*other, 4, 10));
  EXPECT_EQ(a->Fingerprint(), same->Fingerprint());
  EXPECT_NE(a->Fingerprint(), other->Fingerprint());
}

TEST_F(TokenDatasetTest, RestoredCursorContinuesExactly) {
  WriteCounting(500, 130);
  for (const int cut : {0, 1, 13, 40}) {
    auto whole = TokenDataset::Open(OptionsFor(6));
    auto first = TokenDataset::Open(OptionsFor(6));
    const std::vector<int32_t> expected = Draw(*whole, 3, 60);
    std::vector<int32_t> drawn = Draw(*first, 3, cut);
    const auto json = Json::Parse(first->cursor().ToJson().Dump());
    const auto cursor = DataCursor::FromJson(*json);
    ASSERT_TRUE(cursor.ok());
    auto second = TokenDataset::Open(OptionsFor(6));
    ASSERT_TRUE(second->SetCursor(*cursor).ok());
    const std::vector<int32_t> rest = Draw(*second, 3, 60 - cut);
    drawn.insert(drawn.end(), rest.begin(), rest.end());
    EXPECT_EQ(drawn, expected);
    EXPECT_EQ(second->cursor(), whole->cursor());
  }
}

TEST_F(TokenDatasetTest, RanksTogetherGetWhatOneRankWouldGet) {
  WriteCounting(997, 250);
  for (const int world : {1, 2, 3, 5}) {
    auto single = TokenDataset::Open(OptionsFor(5));
    std::vector<TokenDataset> ranks;
    for (int r = 0; r < world; ++r) {
      ranks.push_back(*TokenDataset::Open(OptionsFor(5, DataOrder::kShuffled, r, world)));
    }
    for (int step = 0; step < 70; ++step) {  // passes the end of an epoch
      std::vector<int32_t> joined;
      for (TokenDataset& rank : ranks) {
        const std::vector<int32_t> part = Draw(rank, 2, 1);
        joined.insert(joined.end(), part.begin(), part.end());
        EXPECT_EQ(rank.cursor(), ranks.front().cursor());
      }
      ASSERT_EQ(joined, Draw(*single, 2 * world, 1)) << "world " << world << " step " << step;
    }
    EXPECT_EQ(ranks.back().cursor(), single->cursor());
    EXPECT_EQ(ranks.back().Fingerprint(), single->Fingerprint());
  }
}

TEST_F(TokenDatasetTest, BatchLargerThanAnEpochWraps) {
  WriteCounting(9, 9);  // two windows of 4
  auto dataset = TokenDataset::Open(OptionsFor(4));
  EXPECT_EQ(Draw(*dataset, 7, 1).size(), 28u);
  EXPECT_EQ(dataset->cursor(), (DataCursor{3, 1}));
}

TEST_F(TokenDatasetTest, TooShortShardsAreRefusedWithTheNumbers) {
  WriteCounting(5, 1);  // five shards of one token
  const Status status = TokenDataset::Open(OptionsFor(4)).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("needs seq_len + 1 = 5 tokens"), std::string::npos)
      << status.message();
  EXPECT_NE(status.message().find("has 1;"), std::string::npos) << status.message();
}

TEST_F(TokenDatasetTest, BadOptionsBuffersAndCursorsAreRefused) {
  WriteCounting(100, 100);
  EXPECT_FALSE(TokenDataset::Open(OptionsFor(0)).ok());
  EXPECT_FALSE(TokenDataset::Open(OptionsFor(4, DataOrder::kShuffled, 2, 2)).ok());
  EXPECT_FALSE(TokenDataset::Open(OptionsFor(4, DataOrder::kShuffled, 0, 0)).ok());
  auto none = OptionsFor(4);
  none.shards.clear();
  EXPECT_FALSE(TokenDataset::Open(none).ok());
  auto dataset = TokenDataset::Open(OptionsFor(4));
  std::vector<int32_t> small(4);
  std::vector<int32_t> large(8);
  EXPECT_FALSE(dataset->NextBatch(2, large, small).ok());
  EXPECT_FALSE(dataset->NextBatch(0, {}, {}).ok());
  EXPECT_FALSE(dataset->NextBatch(INT64_MAX, large, large).ok());
  EXPECT_EQ(dataset->SetCursor({0, dataset->window_count()}).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(dataset->SetCursor({-1, 0}).code(), StatusCode::kOutOfRange);
  EXPECT_FALSE(DataCursor::FromJson(*Json::Parse("{\"epoch\": 1}")).ok());
  EXPECT_EQ(dataset->cursor(), DataCursor{});
}

TEST_F(TokenDatasetTest, BadIdLeavesTheCursorAndScanFindsItEarly) {
  WriteCounting(100, 100);
  auto options = OptionsFor(4, DataOrder::kSequential);
  options.vocab_size = 10;
  auto dataset = TokenDataset::Open(options);
  ASSERT_TRUE(dataset.ok());
  Draw(*dataset, 1, 2);
  std::vector<int32_t> inputs(4);
  std::vector<int32_t> targets(4);
  EXPECT_EQ(dataset->NextBatch(1, inputs, targets).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(dataset->cursor(), (DataCursor{0, 2}));
  options.scan_all_tokens = true;
  const Status status = TokenDataset::Open(options).status();
  EXPECT_NE(status.message().find("token id 99"), std::string::npos) << status.message();
}

TEST_F(TokenDatasetTest, ResolveShardsTakesFilesFoldersPatternsAndUris) {
  WriteCounting(30, 10);
  WriteCounting(10, 10, "val");
  EXPECT_EQ(ResolveShards({folder_})->size(), 4u);
  EXPECT_EQ(ResolveShards({folder_}, "train")->size(), 3u);
  EXPECT_EQ(ResolveShards({"file://" + folder_}, "val")->size(), 1u);
  EXPECT_EQ(*ResolveShards({JoinPath(folder_, "train-00000[12].bin")}),
            (std::vector<std::string>{JoinPath(folder_, "train-000001.bin"),
                                      JoinPath(folder_, "train-000002.bin")}));
  const std::string one = JoinPath(folder_, "val-000000.bin");
  EXPECT_EQ(*ResolveShards({one}), std::vector<std::string>{one});
  EXPECT_EQ(ResolveShards({one, folder_}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ResolveShards({}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ResolveShards({folder_}, "test").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ResolveShards({JoinPath(folder_, "x*.bin")}).status().code(), StatusCode::kNotFound);
  const Status missing = ResolveShards({JoinPath(folder_, "gone.bin")}).status();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_NE(missing.message().find("gone.bin"), std::string::npos);
}

}  // namespace
}  // namespace nibble
