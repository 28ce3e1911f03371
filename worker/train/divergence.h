// SPDX-License-Identifier: Apache-2.0
//
// Divergence: which tensor stopped being finite first. Called once, after a loss, a gradient norm
// or a weight was found to be NaN or infinite; so it may be slow.
// Thread-safety: free functions; one thread, the backend's caller.
#pragma once

#include <string>

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/train/model.h"
#include "worker/train/parameters.h"

namespace nibble {

// The first non-finite tensor in the order of computation, as "class: name": weights, then the
// residual stream block by block, then "loss", then gradients from the head down to the embedding.
// Classes are weight, activation and gradient, each with _first, _middle or _last.
Result<std::string> FindNonFinite(Backend& backend, const Model& model,
                                  const Parameters& parameters, bool loss_is_finite);

Result<bool> AllFinite(Backend& backend, ConstTensorView x);

}  // namespace nibble
