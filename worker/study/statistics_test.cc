// SPDX-License-Identifier: Apache-2.0
#include "worker/study/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

// Published two-sided 95 % quantiles of Student's t.
TEST(StudentT95, EqualsPublishedQuantiles) {
  const std::pair<int, double> rows[] = {{1, 12.7062}, {2, 4.3027}, {3, 3.1824},  {4, 2.7764},
                                         {5, 2.5706},  {9, 2.2622}, {10, 2.2281}, {30, 2.0423}};
  for (const auto& [degrees, quantile] : rows) {
    EXPECT_NEAR(StudentT95(degrees), quantile, 5e-5) << degrees;
  }
}

TEST(MeanInterval, OfThreeValuesIsTTimesTheStandardError) {
  const Interval interval = MeanInterval({1.0, 2.0, 3.0});
  EXPECT_EQ(interval.count, 3);
  EXPECT_DOUBLE_EQ(interval.mean, 2.0);
  EXPECT_NEAR(interval.half_width, 4.302653 / std::sqrt(3.0), 1e-5);
}

TEST(MeanInterval, OfOneValueIsUnbounded) {
  const Interval interval = MeanInterval({5.0});
  EXPECT_DOUBLE_EQ(interval.mean, 5.0);
  EXPECT_FALSE(interval.bounded());
  EXPECT_TRUE(std::isinf(interval.half_width));
}

TEST(PairedDifference, DropsWhatThePairsShare) {
  // Seeds differ by whole units, the arms by about 0.1: only the latter stays.
  const Interval paired = PairedDifference({1.1, 2.1, 3.13}, {1.0, 2.0, 3.0});
  EXPECT_NEAR(paired.mean, 0.11, 1e-12);
  EXPECT_LT(paired.half_width, 0.05);
  EXPECT_GT(MeanInterval({1.1, 2.1, 3.13}).half_width, 2.0);
}

}  // namespace
}  // namespace nibble
