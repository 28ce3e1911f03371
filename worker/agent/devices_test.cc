// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/devices.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "worker/agent/agent_test_support.h"
#include "worker/spec/feature_text.h"

namespace nibble::agent {
namespace {

TEST(Devices, CpuIsDividedIntoSlots) {
  StateDir dir;
  const auto devices = ProveDevices(FakeTrainer(), 2, dir.path());
  ASSERT_TRUE(devices.ok()) << devices.status().ToString();
  ASSERT_EQ(devices->devices.size(), 2u);
  const DeviceInfo& second = devices->devices[1];
  EXPECT_EQ(second.index, 1);
  EXPECT_EQ(second.threads, 4);
  EXPECT_EQ(second.memory_bytes, int64_t{1} << 32);
  EXPECT_EQ(second.gflops, 20.0);
  EXPECT_EQ(second.features, (std::vector<std::string>{"e2m1", "int8"}));
  EXPECT_EQ(devices->notes, (std::vector<std::string>{"no GPU slots: none here"}));
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

// Why features are missing is told once for all devices of a kind, after what is not there at all.
TEST(Devices, RefusedFeaturesBecomeNotes) {
  const std::string gpu = R"({"kind":"cuda","name":"NVIDIA X","features":["e2m1"],"refused":{
      "linear.fp4":"needs sm_100","dge":"needs sm_100","occ":"no path"}})";
  const auto devices =
      ParseDevices(R"({"devices":[{"kind":"cpu","threads":4,"refused":{}},)" + gpu + "," + gpu +
                       R"(],"notes":["GPU 2 is not offered:\nwrong product"]})",
                   2);
  ASSERT_TRUE(devices.ok()) << devices.status().ToString();
  EXPECT_EQ(devices->notes,
            (std::vector<std::string>{"GPU 2 is not offered: wrong product",
                                      "cuda 2, 3 (NVIDIA X) has no linear.fp4, dge: needs sm_100",
                                      "cuda 2, 3 (NVIDIA X) has no occ: no path"}));
}

TEST(Devices, NotesAreBoundedInNumberAndLength) {
  std::string notes;
  for (size_t i = 0; i < kMaxNotes + 5; ++i) {
    notes += (i == 0 ? "\"" : ",\"") + std::string(2 * kMaxNoteBytes, 'x') + "\"";
  }
  const auto devices =
      ParseDevices(R"({"devices":[{"kind":"cpu","threads":4}],"notes":[)" + notes + "]}", 1);
  ASSERT_TRUE(devices.ok()) << devices.status().ToString();
  ASSERT_EQ(devices->notes.size(), kMaxNotes);
  EXPECT_EQ(devices->notes.front().size(), kMaxNoteBytes);
  EXPECT_TRUE(devices->notes.back().starts_with("6 more: ")) << devices->notes.back();
}

TEST(Devices, OtherKindsAreNotDivided) {
  const auto devices = ParseDevices(
      R"({"devices":[{"kind":"cpu","threads":4},{"kind":"cuda","memory_bytes":8,
          "visible":"GPU-7","features":["e2m1","recipe:bf16","recipe:fp32"]}]})",
      4);
  ASSERT_TRUE(devices.ok());
  ASSERT_EQ(devices->devices.size(), 5u);
  const DeviceInfo& gpu = devices->devices[4];
  EXPECT_EQ(gpu.kind, "cuda");
  EXPECT_EQ(gpu.index, 4);
  EXPECT_EQ(gpu.memory_bytes, 8);
  EXPECT_EQ(gpu.visible, "GPU-7");
  EXPECT_TRUE(devices->devices[0].visible.empty());
  EXPECT_EQ(FeatureText(gpu.features), "e2m1,2 recipes");
}

}  // namespace
}  // namespace nibble::agent
