// SPDX-License-Identifier: Apache-2.0
#include "server/store/metric_store.h"

#include <gtest/gtest.h>

#include <cmath>

#include "server/store/points_codec.h"

namespace nibble::store {
namespace {

class MetricStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = MakeTempDirectory("metrics").value();
    Reopen();
  }
  void TearDown() override { EXPECT_EQ(RemoveTree(directory_), OkStatus()); }
  void Reopen() { store_ = MetricStore::Open(directory_).value(); }

  static PointBatch Steps(int64_t first, int64_t last, double loss = 1) {
    PointBatch batch;
    for (int64_t step = first; step <= last; ++step) {
      StepPoint point;
      point.step = step;
      point.loss = loss;
      point.tokens = step * 100;
      batch.steps.push_back(point);
    }
    return batch;
  }
  AppendResult Append(const StreamKey& key, const PointBatch& batch, int64_t cursor) {
    auto result = store_->Append(key, batch, cursor);
    EXPECT_TRUE(result.ok()) << result.status().ToString();
    return result.ok() ? *result : AppendResult();
  }
  std::string SegmentPath(int attempt = 1) const {
    return directory_ + "/j-1/a" + std::to_string(attempt) + "-r0.points";
  }
  std::string directory_;
  std::unique_ptr<MetricStore> store_;
  const StreamKey key_{"j-1", 1, 0};
};

TEST_F(MetricStoreTest, AppendedThenReadBackAlsoAfterReopening) {
  PointBatch batch = Steps(1, 3, 2.5);
  ValidationPoint validation;
  validation.step = 2;
  validation.loss = 3.5;
  batch.validations = {validation};
  HealthPoint health;
  health.step = 2;
  health.tensor_class = "weight_mlp_first";
  health.snr_db = 18.5;
  batch.healths = {health};
  CheckpointPoint checkpoint;
  checkpoint.step = 3;
  checkpoint.path = "c/3";
  batch.checkpoints = {checkpoint};
  batch.notes = {{5, "start", "{}"}, {6, "start", "{\"n\":1}"}};
  EXPECT_EQ(Append(key_, batch, 77).cursor, 77);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(store_->Cursor(key_).value(), 77);
    const auto steps = store_->Steps("j-1", {}).value();
    ASSERT_EQ(steps.size(), 3u);
    EXPECT_EQ(steps[2].point.tokens, 300);
    EXPECT_EQ(steps[2].point.loss, 2.5);
    EXPECT_EQ(store_->Validations("j-1", {}).value().at(0).point.loss, 3.5);
    EXPECT_EQ(store_->Healths("j-1", {}).value().at(0).point.tensor_class, "weight_mlp_first");
    EXPECT_EQ(store_->Checkpoints("j-1", {}).value().at(0).point.path, "c/3");
    const auto notes = store_->Notes("j-1", 0).value();
    ASSERT_EQ(notes.size(), 1u);
    EXPECT_EQ(notes[0].point.json, "{\"n\":1}");
    EXPECT_EQ(store_->LastStep("j-1").value()->point.step, 3);
    Reopen();
  }
}

TEST_F(MetricStoreTest, ResentThenDroppedAndAcknowledgedAgain) {
  Append(key_, Steps(1, 5), 50);
  AppendResult again = Append(key_, Steps(1, 5), 50);
  EXPECT_EQ(again.cursor, 50);
  EXPECT_EQ(again.dropped_repeats, 5);
  Reopen();
  again = Append(key_, Steps(3, 8), 80);  // overlaps: only 6..8 are new
  EXPECT_EQ(again.fresh.steps.size(), 3u);
  EXPECT_EQ(again.dropped_repeats, 3);
  EXPECT_EQ(store_->Steps("j-1", {}).value().size(), 8u);
}

TEST_F(MetricStoreTest, HealthOfSeveralClassesAtOneStepThenAllKept) {
  PointBatch batch;
  for (const char* name : {"weight", "gradient", "weight"}) {
    HealthPoint point;
    point.step = 4;
    point.tensor_class = name;
    batch.healths.push_back(point);
  }
  EXPECT_EQ(Append(key_, batch, 1).fresh.healths.size(), 2u);
  EXPECT_EQ(store_->Healths("j-1", {}).value().size(), 2u);
}

TEST_F(MetricStoreTest, TornTailThenCutBackAndTheCursorWithIt) {
  Append(key_, Steps(1, 5), 50);
  const int64_t whole = FileSizeBytes(SegmentPath()).value();
  Append(key_, Steps(6, 9), 90);
  const std::string bytes = ReadFile(SegmentPath()).value();
  for (const size_t cut : {bytes.size() - 1, bytes.size() - 30, static_cast<size_t>(whole) + 3}) {
    store_.reset();
    ASSERT_EQ(AtomicWriteFile(SegmentPath(), std::string_view(bytes).substr(0, cut)), OkStatus());
    Reopen();
    EXPECT_EQ(store_->Cursor(key_).value(), 50) << cut;
    EXPECT_EQ(FileSizeBytes(SegmentPath()).value(), whole);
    EXPECT_EQ(store_->Steps("j-1", {}).value().size(), 5u);
  }
  EXPECT_EQ(Append(key_, Steps(6, 9), 90).fresh.steps.size(), 4u);
}

TEST_F(MetricStoreTest, FlippedBitInTheTailThenThatFrameIsCut) {
  Append(key_, Steps(1, 5), 50);
  Append(key_, Steps(6, 9), 90);
  std::string bytes = ReadFile(SegmentPath()).value();
  bytes[bytes.size() - 20] ^= 1;
  store_.reset();
  ASSERT_EQ(AtomicWriteFile(SegmentPath(), bytes), OkStatus());
  Reopen();
  EXPECT_EQ(store_->Cursor(key_).value(), 50);
}

TEST_F(MetricStoreTest, OtherFileInItsPlaceThenDataLoss) {
  ASSERT_EQ(MakeDirectories(directory_ + "/j-1"), OkStatus());
  ASSERT_EQ(AtomicWriteFile(SegmentPath(), "this is not a segment at all"), OkStatus());
  EXPECT_EQ(store_->Append(key_, Steps(1, 1), 1).status().code(), StatusCode::kDataLoss);
}

TEST_F(MetricStoreTest, RolledBackThenTheCanonicalCurveShowsTheNewestAttempt) {
  Append({"j-1", 1, 0}, Steps(1, 100, 1.0), 1);
  Append({"j-1", 2, 0}, Steps(51, 60, 2.0), 1);  // resumed from the checkpoint at 50
  Append({"j-1", 3, 0}, PointBatch(), 1);        // has not made a step yet
  const auto curve = store_->Steps("j-1", {}).value();
  ASSERT_EQ(curve.size(), 60u);
  for (const auto& item : curve) {
    EXPECT_EQ(item.attempt, item.point.step <= 50 ? 1 : 2) << item.point.step;
  }
  EXPECT_EQ(store_->LastStep("j-1").value()->point.step, 60);
  EXPECT_EQ(store_->Steps("j-1", {.attempt = 1}).value().size(), 100u);  // the raw view
}

TEST_F(MetricStoreTest, ValidationAtTheResumeStepByTwoAttemptsThenTheNewestCounts) {
  PointBatch batch = Steps(1, 50);
  ValidationPoint point;
  point.step = 50;
  batch.validations = {point};
  Append({"j-1", 1, 0}, batch, 1);
  batch = Steps(51, 52);
  batch.validations = {point};
  Append({"j-1", 2, 0}, batch, 1);
  const auto validations = store_->Validations("j-1", {}).value();
  ASSERT_EQ(validations.size(), 1u);
  EXPECT_EQ(validations[0].attempt, 2);
}

TEST_F(MetricStoreTest, RangeThenOnlyItsSteps) {
  for (int i = 0; i < 300; ++i) Append(key_, Steps(i * 100 + 1, i * 100 + 100), i + 1);
  for (const int64_t from : {1, 150, 15'000, 29'990}) {
    const auto curve = store_->Steps("j-1", {.from_step = from, .to_step = from + 9}).value();
    ASSERT_EQ(curve.size(), 10u) << from;
    EXPECT_EQ(curve[0].point.step, from);
  }
  EXPECT_TRUE(store_->Steps("j-1", {.from_step = 30'001}).value().empty());
}

TEST_F(MetricStoreTest, DownsampledThenFewPointsThatKeepTheSpikes) {
  PointBatch batch = Steps(1, 20'000);
  batch.steps[7'000].loss = 50;
  batch.steps[13'000].loss = std::nan("");
  batch.steps[15'000].loss = -1;
  Append(key_, batch, 1);
  for (const int max_points : {4, 10, 101, 1'000}) {
    const auto curve = store_->Steps("j-1", {.max_points = max_points}).value();
    EXPECT_LE(static_cast<int>(curve.size()), max_points);
    EXPECT_EQ(curve.front().point.step, 1);
    EXPECT_EQ(curve.back().point.step, 20'000);
    const auto has = [&](int64_t step) {
      return std::any_of(curve.begin(), curve.end(),
                         [&](const auto& item) { return item.point.step == step; });
    };
    EXPECT_TRUE(has(13'001)) << max_points;
    EXPECT_TRUE(has(15'001)) << max_points;
    if (max_points > 10) {
      EXPECT_TRUE(has(7'001)) << max_points;
    }
  }
  EXPECT_EQ(store_->Steps("j-1", {.max_points = 3}).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(MetricStoreTest, BadKeysBatchesAndTextsThenRefusedOrDropped) {
  EXPECT_EQ(store_->Append({"../etc", 1, 0}, Steps(1, 1), 1).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->Append({"j-1", 0, 0}, Steps(1, 1), 1).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->Steps("..", {}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->Append(key_, Steps(1, kMaxBatchPoints + 1), 1).status().code(),
            StatusCode::kInvalidArgument);
  PointBatch batch;
  batch.notes = {{1, "start", std::string(kMaxNoteBytes + 1, 'x')}};
  EXPECT_EQ(Append(key_, batch, 9).dropped_over_limit, 1);
  EXPECT_EQ(store_->Cursor(key_).value(), 9);
  EXPECT_TRUE(store_->Steps("j-2", {}).value().empty());
}

TEST_F(MetricStoreTest, MoreSegmentsThanMayBeOpenThenAllKeepTheirPoints) {
  const int jobs = static_cast<int>(kMaxOpenSegments) + 20;
  for (int i = 0; i < jobs; ++i) Append({"j-" + std::to_string(i), 1, 0}, Steps(1, 2), 1);
  EXPECT_EQ(store_->Sync(), OkStatus());
  for (int i = 0; i < jobs; ++i) {
    EXPECT_EQ(store_->Steps("j-" + std::to_string(i), {}).value().size(), 2u);
  }
}

TEST(PointsCodec, Crc32ThenTheKnownCheckValue) { EXPECT_EQ(Crc32("123456789"), 0xcbf43926u); }

TEST(PointsCodec, UnknownKindOrShortPayloadThenRefused) {
  EXPECT_EQ(DecodePayload(std::string("\0\0\0\0\0\0\0\0\x63", 9)).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(DecodePayload(std::string("\0\0\0\0\0\0\0\0\x01zz", 11)).status().code(),
            StatusCode::kDataLoss);
}

}  // namespace
}  // namespace nibble::store
