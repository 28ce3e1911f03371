// SPDX-License-Identifier: Apache-2.0
#include "kernels/recipe/built_in.h"

#include <string>

#include "base/strings.h"
#include "kernels/recipe/recipe.h"

namespace nibble {
namespace {

const std::vector<recipe_rows::Row>& Rows() {
  static const std::vector<recipe_rows::Row> rows = [] {
    std::vector<recipe_rows::Row> all;
    for (const auto family : {recipe_rows::Baselines(), recipe_rows::VectorScaled(),
                              recipe_rows::Microscaled(), recipe_rows::NvScaled()}) {
      all.insert(all.end(), family.begin(), family.end());
    }
    return all;
  }();
  return rows;
}

}  // namespace

std::vector<std::string> BuiltInRecipeNames() {
  std::vector<std::string> names;
  for (const recipe_rows::Row& row : Rows()) names.emplace_back(row.name);
  return names;
}

Result<Recipe> FindRecipe(std::string_view name) {
  for (const recipe_rows::Row& row : Rows()) {
    if (row.name == name) return ParseRecipeText(row.json);
  }
  return NotFoundError(UnknownNameMessage("recipe", name, BuiltInRecipeNames()));
}

}  // namespace nibble
