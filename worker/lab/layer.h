// SPDX-License-Identifier: Apache-2.0
//
// Layer: one linear layer run forward and backward on given tensors.
// Thread-safety: one thread, the backend's caller. Ownership: owns its matrices.
#pragma once

#include <string>

#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/linear.h"
#include "kernels/recipe/recipe.h"
#include "worker/lab/tensor_file.h"

namespace nibble {

struct LayerData {
  Matrix x, w, dy;   // (T, K), (N, K), (T, N)
  Matrix y, dx, dw;  // (T, N), (T, K), (N, K)
};

// INVALID_ARGUMENT names the three shapes when they do not fit; the outputs are sized.
Result<LayerData> MakeLayer(Matrix x, Matrix w, Matrix dy);

// Y = X W^T, dX = dY W, dW = dY^T X as layer 0 of a model would. `path` as LinearWorkspace. Errors
// as PathsOf: UNIMPLEMENTED for what this build does not execute, INVALID_ARGUMENT for sizes.
Status RunLayer(Backend* backend, const LinearRecipe& recipe, const LinearStep& step, Support path,
                LayerData* data);

}  // namespace nibble
