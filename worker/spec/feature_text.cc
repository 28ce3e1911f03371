// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/feature_text.h"

#include "base/strings.h"
#include "kernels/recipe/proofs.h"

namespace nibble {

std::string FeatureText(const std::vector<std::string>& features) {
  std::vector<std::string> words;
  size_t recipes = 0;
  for (const std::string& feature : features) {
    if (feature.starts_with(kRecipeProof)) {
      ++recipes;
    } else {
      words.push_back(feature);
    }
  }
  if (recipes > 0) words.push_back(StrFormat("%zu recipe%s", recipes, recipes == 1 ? "" : "s"));
  return StrJoin(words, ",");
}

}  // namespace nibble
