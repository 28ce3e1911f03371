// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/recipe_fit.h"

#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

ModelConfig Small() {
  ModelConfig model;
  model.hidden_size = 64;
  model.layers = 3;
  model.heads = 4;
  model.kv_heads = 2;
  model.intermediate_size = 96;
  return model;
}

std::string Misfit(const char* recipe, const ModelConfig& model, int64_t tokens) {
  return CheckRecipeFits(model, FindRecipe(recipe).value(), tokens).message();
}

TEST(RecipeFit, NamesTheFirstLayerThatDoesNotDivide) {
  EXPECT_TRUE(CheckRecipeFits(Small(), FindRecipe("nvfp4_te").value(), 32).ok());
  EXPECT_TRUE(CheckRecipeFits(Small(), FindRecipe("fp4_ms_paper").value(), 7).ok());
  const std::string tokens = Misfit("nvfp4_te", Small(), 40);
  EXPECT_NE(tokens.find("tokens (T) = 40"), std::string::npos) << tokens;
  ModelConfig narrow = Small();
  narrow.intermediate_size = 72;
  const std::string width = Misfit("nvfp4_te", narrow, 32);
  EXPECT_NE(width.find("block 0, layer gate (in 64, out 72)"), std::string::npos) << width;
  const std::string group = Misfit("quartet2", Small(), 128);
  EXPECT_NE(group.find("out (N) = 64 is not a multiple of 128"), std::string::npos) << group;
}

TEST(RecipeFit, LooksAtOverridesStagesAndExcludedBlocks) {
  Recipe recipe = FindRecipe("fp4_direct").value();
  const LinearRecipe wide = FindRecipe("quartet2").value().linear;
  recipe.overrides.push_back({1u << static_cast<int>(LinearKind::kDown), 2, 2, wide});
  const std::string message = CheckRecipeFits(Small(), recipe, 128).message();
  EXPECT_NE(message.find("block 2, layer down"), std::string::npos) << message;
  recipe.bf16_blocks_last = 1;
  EXPECT_TRUE(CheckRecipeFits(Small(), recipe, 128).ok()) << "the block is BF16";
  recipe.stages.push_back({0.5, 0, wide});
  EXPECT_FALSE(CheckRecipeFits(Small(), recipe, 128).ok());
}

}  // namespace
}  // namespace nibble
