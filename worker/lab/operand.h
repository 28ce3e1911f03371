// SPDX-License-Identifier: Apache-2.0
//
// Operand: one tensor taken through one slot of a recipe, with what came out of it.
//
// Purpose: what `nibble-lab quantize` shows and the tests of bad input check.
// Thread-safety: one thread, the backend's caller. Ownership: an operand owns host copies; nothing
// of the backend's memory stays in it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/linear.h"
#include "kernels/recipe/recipe.h"
#include "worker/lab/tensor_file.h"

namespace nibble {

struct Operand {
  Slot holder;  // the slot whose quantizer made the codes: another one for `reuse`
  Quant quant;  // of the holder
  std::vector<OutputTensor> tensors;            // codes, scales, decoded, and what the format adds
  std::map<std::string, std::string> metadata;  // how to read the codes
  std::vector<float> scales;                    // by scale group; metadata says which way they go
  QuantizationHealth health;
};

// x (rows, cols) through `slot` of `recipe`: X (T, K) for Xf and Xw, W (N, K) for Wf and Wd,
// dY (T, N) for Gd and Gw. `other`: the tensor whose scales a folding slot divides by (W for Gd, X
// for Gw), else nullptr; INVALID_ARGUMENT when such a slot gets none. Errors are the backend's:
// UNIMPLEMENTED for an axis that it lacks.
Result<Operand> QuantizeOperand(Backend* backend, const LinearRecipe& recipe, Slot slot,
                                const LinearStep& step, const Matrix& x,
                                const Matrix* other = nullptr);

// Counts of floor(log2(scale)), ascending; zero, infinite and NaN scales apart at the end.
Json ScaleHistogram(const std::vector<float>& scales);

}  // namespace nibble
