// SPDX-License-Identifier: Apache-2.0
#include "worker/train/gradient_exchange.h"

#include <cmath>

#include "kernels/formats/fp8.h"
#include "kernels/formats/scales.h"

namespace nibble {

float WireScale(float amax, int ranks) {
  return formats::ScaleP2(amax, formats::kE4M3Max) / std::sqrt(static_cast<float>(ranks));
}

Status ExchangeE4M3(Backend& backend, Communicator& communicator, TensorView gradient) {
  ASSIGN_OR_RETURN(const float own, backend.AbsMax(gradient));
  ASSIGN_OR_RETURN(const float amax, communicator.AllReduceMax(own));
  if (!std::isfinite(amax)) return communicator.AllReduceSum(gradient);
  const float scale = WireScale(amax, communicator.world_size());
  RETURN_IF_ERROR(backend.RoundToE4M3(scale, gradient));
  RETURN_IF_ERROR(communicator.AllReduceSum(gradient));
  return backend.Scale(1.0f / scale, gradient);
}

Status ExchangeGradients(Backend& backend, Communicator& communicator, Communication communication,
                         Parameters* parameters) {
  const TensorView all = parameters->all_gradients();
  if (communication == Communication::kE4M3) {
    for (size_t t = 0; t < parameters->list().size(); ++t) {
      RETURN_IF_ERROR(ExchangeE4M3(backend, communicator, parameters->gradient(t)));
    }
    return OkStatus();
  }
  if (communication == Communication::kBf16) RETURN_IF_ERROR(backend.RoundToBf16(all, all));
  return communicator.AllReduceSum(all);
}

}  // namespace nibble
