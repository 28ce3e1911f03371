// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/recipe_fit.h"

#include <string>

#include "base/strings.h"

namespace nibble {

std::array<LinearShape, kLinearKinds> BlockLinears(const ModelConfig& model) {
  const int64_t d = model.hidden_size, f = model.intermediate_size, kv = model.kv_size();
  return {{{d, d}, {d, kv}, {d, kv}, {d, d}, {d, f}, {d, f}, {f, d}}};
}

Status CheckRecipeFits(const ModelConfig& model, const Recipe& recipe, int64_t tokens) {
  const std::array<LinearShape, kLinearKinds> shapes = BlockLinears(model);
  const int layers = static_cast<int>(model.layers);
  const int stages = static_cast<int>(recipe.stages.size());
  for (int stage = -1; stage < stages; ++stage) {
    for (int layer = 0; layer < layers; ++layer) {
      for (int i = 0; i < kLinearKinds; ++i) {
        const LinearKind kind = static_cast<LinearKind>(i);
        const LinearShape& shape = shapes[static_cast<size_t>(i)];
        const Status status = CheckRecipeShape(recipe.LinearFor(kind, layer, layers, stage), tokens,
                                               shape.in, shape.out);
        if (status.ok()) continue;
        return InvalidArgumentError(
            StrFormat("block %d, layer %s (in %lld, out %lld): %s", layer, LinearKindName(kind),
                      static_cast<long long>(shape.in), static_cast<long long>(shape.out),
                      status.message().c_str()));
      }
    }
  }
  return OkStatus();
}

}  // namespace nibble
