// SPDX-License-Identifier: Apache-2.0
//
// The paths of products as people are told them against the layers' choice.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/linear_product.h"
#include "kernels/recipe/recipe.h"

namespace nibble {
namespace {

// What `nibble recipes show` says of the CPU is what the layers do there.
TEST(ProductPath, ThePathsThatPeopleAreToldAreThoseTaken) {
  const std::unique_ptr<Backend> backend = MakeBackend("cpu", {1, 0}).value();
  for (const std::string& name : BuiltInRecipeNames()) {
    const Recipe recipe = *FindRecipe(name);
    const std::vector<std::string> lines = DescribeRecipe(recipe);
    const auto told = std::find_if(lines.begin(), lines.end(), [](const std::string& line) {
      return line.find("paths on cpu: ") != std::string::npos;
    });
    ASSERT_NE(told, lines.end()) << name;
    for (const LinearProduct& product : {kFprop, kDgrad, kWgrad}) {
      const ProductForm form = FormOf(*backend, recipe.linear, product, 0, 0, 0);
      const std::string path = std::string(product.name) + " " + SupportName(form.support);
      EXPECT_NE(told->find(path), std::string::npos) << name << ": " << path << " in " << *told;
      EXPECT_EQ(told->find(std::string(product.name) + " fast (on codes)") != std::string::npos,
                form.on_codes)
          << name;
    }
  }
}

}  // namespace
}  // namespace nibble
