// SPDX-License-Identifier: Apache-2.0
#include "worker/train/divergence.h"

#include <cmath>

namespace nibble {
namespace {

// The parameter's tensor of kind "weight" or "gradient" as people read it.
std::string Describe(const char* kind, const ParameterInfo& info, int64_t layers) {
  return std::string(kind) + "_" + PlaceOf(info, layers) + ": " + info.name;
}

}  // namespace

Result<bool> AllFinite(Backend& backend, ConstTensorView x) {
  ASSIGN_OR_RETURN(const double sum, backend.SumOfSquares(x));
  return std::isfinite(sum);
}

Result<std::string> FindNonFinite(Backend& backend, const Model& model,
                                  const Parameters& parameters, bool loss_is_finite) {
  const int64_t layers = model.options().model.layers;
  const std::vector<ParameterInfo>& list = parameters.list();
  for (size_t t = 0; t < list.size(); ++t) {
    ASSIGN_OR_RETURN(const bool finite, AllFinite(backend, parameters.weight(t)));
    if (!finite) return Describe("weight", list[t], layers);
  }
  if (!loss_is_finite) {
    for (int64_t layer = 0; layer < layers; ++layer) {
      const TensorView output = layer + 1 < layers
                                    ? model.blocks()[static_cast<size_t>(layer) + 1].views().input
                                    : model.output();
      ASSIGN_OR_RETURN(const bool finite, AllFinite(backend, output));
      if (!finite) {
        return std::string("activation_") + PlaceOfLayer(layer, layers) +
               ": output of model.layers." + std::to_string(layer);
      }
    }
    return std::string("loss");
  }
  for (size_t t = list.size(); t-- > 0;) {
    ASSIGN_OR_RETURN(const bool finite, AllFinite(backend, parameters.gradient(t)));
    if (!finite) return Describe("gradient", list[t], layers);
  }
  return std::string("gradient norm");
}

}  // namespace nibble
