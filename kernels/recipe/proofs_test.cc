// SPDX-License-Identifier: Apache-2.0
#include "kernels/recipe/proofs.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Proofs, ABuiltInRecipeNeedsItsOwnAndItsState) {
  EXPECT_EQ(RequiredProofs(*FindRecipe("fp4_foldi8")),
            (std::vector<std::string>{"recipe:fp4_foldi8"}));
  EXPECT_EQ(RequiredProofs(*FindRecipe("fp8_lm")),
            (std::vector<std::string>{"recipe:fp8_lm", "state.rounded", "comm.e4m3"}));
  EXPECT_EQ(RequiredProofs(*FindRecipe("oscireset")).back(), "weight_rule");
}

TEST(Proofs, ARecipeWrittenOutNeedsThoseOfItsLayers) {
  const auto proofs = [](const char* text) { return RequiredProofs(*ParseRecipeText(text)); };
  EXPECT_EQ(proofs(R"j({"name":"mine","linear":"nvfp4_te"})j"),
            (std::vector<std::string>{"recipe:nvfp4_te"}));
  // A name taken from a built-in proves nothing.
  EXPECT_EQ(proofs(R"j({"name":"bf16","linear":"nvfp4_te"})j"),
            (std::vector<std::string>{"recipe:nvfp4_te"}));
  EXPECT_EQ(proofs(R"j({"name":"mine","linear":"bf16","state":{"m":"bf16_sr"}})j"),
            (std::vector<std::string>{"recipe:bf16", "state.rounded"}));
  const std::vector<std::string> parts = proofs(
      R"j({"name":"new","linear":{"Xf":{"elem":"e4m3","block":"tensor","scale":"p2(240)"},
          "Gd":{"elem":"e5m2","block":"tensor","scale":"p2(57344)","round":"even"},
          "Wf":{"elem":"e4m3","block":"tensor","scale":"f32(448)"},
          "Wd":{"source":"reuse"},"Gw":{"source":"reuse"},"Xw":{"source":"reuse"}}})j");
  EXPECT_EQ(parts, (std::vector<std::string>{"e4m3", "e5m2", "gemm.fp32"}));
}

}  // namespace
}  // namespace nibble
