// SPDX-License-Identifier: Apache-2.0
#include "kernels/self_test.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/recipe/proofs.h"

namespace nibble {
namespace {

TEST(SelfTest, ProvesTheCpuBackend) {
  const Result<SelfTestReport> report = RunSelfTest("cpu", {});
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_EQ(report->backend, "cpu");
  for (const char* feature : {"e2m1", "e4m3", "e5m2", "sr24", "occ", "dge", "gemm.fp32",
                              "state.rounded", "comm.e4m3", "weight_rule"}) {
    EXPECT_EQ(std::count(report->features.begin(), report->features.end(), feature), 1) << feature;
  }
  for (const std::string& name : BuiltInRecipeNames()) {
    const std::string proof = kRecipeProof + name;
    EXPECT_EQ(std::count(report->features.begin(), report->features.end(), proof), 1) << proof;
    for (const std::string& needed : RequiredProofs(*FindRecipe(name))) {
      EXPECT_EQ(std::count(report->features.begin(), report->features.end(), needed), 1) << needed;
    }
  }
  EXPECT_TRUE(report->refused.empty());
  EXPECT_GT(report->gemm_gflops, 0.1);
  EXPECT_GT(report->seconds, 0);
}

TEST(SelfTest, RefusesAbsentBackends) {
  if (const Status cuda = RunSelfTest("cuda", {}).status(); !cuda.ok()) {
    EXPECT_TRUE(cuda.code() == StatusCode::kNotFound || cuda.code() == StatusCode::kUnavailable)
        << cuda.ToString();
  }
  const Status unknown = RunSelfTest("gpu", {}).status();
  EXPECT_EQ(unknown.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(unknown.message().find("cpu"), std::string::npos) << unknown.message();
  BackendOptions options;
  options.threads = -1;
  EXPECT_EQ(RunSelfTest("cpu", options).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
