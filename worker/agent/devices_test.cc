// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/devices.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "worker/agent/agent_test_support.h"

namespace nibble::agent {
namespace {

TEST(Devices, CpuIsDividedIntoSlots) {
  StateDir dir;
  const auto devices = ProveDevices(FakeTrainer(), 2, dir.path());
  ASSERT_TRUE(devices.ok()) << devices.status().ToString();
  ASSERT_EQ(devices->size(), 2u);
  EXPECT_EQ((*devices)[1].index, 1);
  EXPECT_EQ((*devices)[1].threads, 4);
  EXPECT_EQ((*devices)[1].memory_bytes, int64_t{1} << 32);
  EXPECT_EQ((*devices)[1].gflops, 20.0);
  EXPECT_EQ((*devices)[1].features, (std::vector<std::string>{"e2m1", "int8"}));
}

TEST(Devices, FailedProofSaysWhichCheck) {
  StateDir dir;
  ::setenv("FAKE_SELF_TEST", "fail", 1);
  const auto devices = ProveDevices(FakeTrainer(), 1, dir.path());
  ::unsetenv("FAKE_SELF_TEST");
  EXPECT_EQ(devices.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(devices.status().message().find("canary e2m1_gemm"), std::string::npos);
}

TEST(Devices, MissingTrainerAndBadOutputAreErrors) {
  StateDir dir;
  EXPECT_EQ(ProveDevices("/does/not/exist", 1, dir.path()).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ProveDevices("/bin/echo", 1, dir.path()).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(ParseDevices(R"({"devices":[]})", 1).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(ParseDevices(R"({"devices":[{"index":0}]})", 1).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(ParseDevices(R"({"devices":[{"kind":"cpu","threads":2}]})", 3).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(Devices, OtherKindsAreNotDivided) {
  const auto devices = ParseDevices(
      R"({"devices":[{"kind":"cpu","threads":4},{"kind":"cuda","memory_bytes":8}]})", 4);
  ASSERT_TRUE(devices.ok());
  ASSERT_EQ(devices->size(), 5u);
  EXPECT_EQ((*devices)[4].kind, "cuda");
  EXPECT_EQ((*devices)[4].index, 4);
  EXPECT_EQ((*devices)[4].memory_bytes, 8);
}

}  // namespace
}  // namespace nibble::agent
