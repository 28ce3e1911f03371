// SPDX-License-Identifier: Apache-2.0
//
// Any text as a recipe: refused, or described, written and read back as the same recipe.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/recipe/recipe.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Result<Recipe> recipe = ParseRecipeText(text);
  if (!recipe.ok()) {
    NIBBLE_CHECK(!recipe.status().message().empty());
    return 0;
  }
  NIBBLE_CHECK(ValidateRecipe(*recipe).ok());
  const Result<Recipe> again = ParseRecipe(RecipeToJson(*recipe));
  NIBBLE_CHECK(again.ok() && *again == *recipe);
  (void)DescribeRecipe(*recipe);
  (void)RecipeWarnings(*recipe, 64, 48);
  (void)PrecisionOf(recipe->linear);
  (void)SavedInputBits(recipe->linear, 48);
  (void)SavedWeightBits(recipe->linear, 48);
  for (const int count : {1, 3}) {
    for (int block = 0; block < count; ++block) {
      const LinearRecipe& linear = recipe->LinearFor(LinearKind::kDown, block, count);
      (void)CheckRecipeShape(linear, 64, 48, 32);
    }
  }
  return 0;
}
