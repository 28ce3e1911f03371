// SPDX-License-Identifier: Apache-2.0
#include "client/cli/job_view.h"

#include <gtest/gtest.h>

namespace nibble::cli {
namespace {

v1::WatchJobResponse Health(std::vector<v1::HealthPoint> points) {
  v1::WatchJobResponse message;
  for (v1::HealthPoint& point : points) {
    *message.add_records()->mutable_record()->mutable_health() = std::move(point);
  }
  return message;
}

v1::HealthPoint Point(const char* tensor_class, double underflow, double snr, double scale) {
  v1::HealthPoint point;
  point.set_step(50);
  point.set_tensor_class(tensor_class);
  point.set_underflow_ratio(underflow);
  point.set_snr_db(snr);
  point.set_cosine(1 - underflow);
  point.set_scale_min(scale);
  point.set_scale_max(4 * scale);
  point.set_grad_noise_ratio(snr);
  return point;
}

TEST(JobView, LiveBlockShowsTheWorstBlockOfEachClass) {
  JobView view;
  view.Apply(
      Health({Point("activation_mlp_first", .1, 20, 2), Point("activation_mlp_last", .3, 12, 8),
              Point("gradient_attention_first", .01, 7, 16)}));
  const std::vector<std::string> lines = view.WorstHealthLines();
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[1].rfind("activation_mlp ", 0), 0u) << lines[1];
  for (const char* worst : {"30.00 %", "12.0 dB", "0.7000", " 2 ", " 32"}) {
    EXPECT_NE(lines[1].find(worst), std::string::npos) << worst << " in " << lines[1];
  }
  EXPECT_NE(lines[2].find("7.00"), std::string::npos) << lines[2];
  EXPECT_EQ(lines[0].find("NOT FINITE"), std::string::npos) << lines[0];
  EXPECT_EQ(view.HealthLines().size(), 4u);
}

TEST(JobView, GroupsThatAreNotFiniteAreCounted) {
  JobView view;
  v1::HealthPoint first = Point("weight_mlp_first", .1, 20, 1);
  v1::HealthPoint last = Point("weight_mlp_last", .1, 20, 1);
  first.set_nonfinite_amax(2);
  last.set_nonfinite_amax(5);
  view.Apply(Health({first, last}));
  const std::vector<std::string> lines = view.WorstHealthLines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_NE(lines[0].find("NOT FINITE"), std::string::npos) << lines[0];
  EXPECT_TRUE(lines[1].ends_with("7")) << lines[1];
}

}  // namespace
}  // namespace nibble::cli
