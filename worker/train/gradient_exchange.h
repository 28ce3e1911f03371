// SPDX-License-Identifier: Apache-2.0
//
// Gradient exchange: the sum of the ranks' gradients, in the format they travel in.
// Thread-safety: free functions; one thread, the backend's caller.
#pragma once

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/recipe/recipe.h"
#include "worker/train/communicator.h"
#include "worker/train/parameters.h"

namespace nibble {

// What a gradient tensor is multiplied by before E4M3, after FP8-LM (arXiv 2310.18313): the largest
// power of two that keeps amax, the maximum over all ranks, within 448, over sqrt(ranks).
float WireScale(float amax, int ranks);

// Gradients become their sum over ranks. kBf16 and kE4M3 round each rank's part first, kE4M3 under
// one scale per tensor; sums are FP32. A world of one rank rounds as the wire would. Tensors with a
// NaN or infinity travel unrounded, so that the step sees it.
Status ExchangeGradients(Backend& backend, Communicator& communicator, Communication communication,
                         Parameters* parameters);

// One tensor of kE4M3.
Status ExchangeE4M3(Backend& backend, Communicator& communicator, TensorView gradient);

}  // namespace nibble
