// SPDX-License-Identifier: Apache-2.0
#include "kernels/recipe/yaml/yaml_json.h"

namespace nibble {

Result<Recipe> RecipeFromDocument(const Json& document, const std::string& name) {
  Result<Recipe> recipe =
      ParseRecipe(document["recipe"].is_object() ? document["recipe"] : document);
  if (!recipe.ok()) return recipe.status().WithContext(name);
  return recipe;
}

}  // namespace nibble
