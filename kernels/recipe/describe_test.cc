// SPDX-License-Identifier: Apache-2.0
//
// What people are told of a recipe.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "kernels/recipe/recipe.h"

namespace nibble {
namespace {

TEST(Recipe, DescriptionSaysWhatBecomesOfOutliers) {
  const std::pair<const char*, const char*> titles[] = {
      {"fp4_ms_paper", "outliers kept in E4M3"},
      {"fp4_fold8", "outliers kept as 8-bit codes on the same scale"},
      {"fp4_fold8_e4m3", "outliers kept as E4M3 codes on the same scale"}};
  for (const auto& [name, title] : titles) {
    const std::vector<std::string> lines = DescribeRecipe(*FindRecipe(name));
    EXPECT_TRUE(lines[0].ends_with(std::string("of the tensor, ") + title)) << lines[0];
  }
}

TEST(Recipe, DescriptionHasOneLinePerSlot) {
  const std::vector<std::string> lines = DescribeRecipe(*FindRecipe("fp4_ms_paper"));
  ASSERT_GE(lines.size(), 8u);
  EXPECT_EQ(lines[0],
            "Xf: E2M1 (4 bit), scale 6/amax per token, clamped at quantile 0.99 of the tensor, "
            "outliers kept in E4M3");
  EXPECT_EQ(lines[3], "Wd: the codes of Wf, E2M1 (4 bit)");
  const std::vector<std::string> quartet2 = DescribeRecipe(*FindRecipe("quartet2"));
  EXPECT_EQ(quartet2[3],
            "Wd: what Wf decodes to, as E2M1 (4 bit), rotated by Hadamard of 128 with fresh "
            "signs, E4M3 scale up to 256 per 16 along the contraction, corrected per 16, grid "
            "factor 0.988125, scales rounded stochastically");
}

}  // namespace
}  // namespace nibble
