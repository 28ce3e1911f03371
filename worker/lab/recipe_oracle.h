// SPDX-License-Identifier: Apache-2.0
//
// RecipeOracle: a second formulation of every quantizer, for tests.
//
// Purpose: plain loops over one matrix, written from the published formulas, without the kernels'
// formats, scales or layouts; only the counter-based generator is shared. A matrix is turned so
// that the contraction runs along its rows ("lines"); block axes are then names of lines or
// positions.
// Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/recipe/recipe.h"
#include "worker/lab/tensor_file.h"

namespace nibble::oracle {

struct Draw {
  uint64_t seed = 0;
  uint32_t step = 0;
};

// What a slot makes of its source.
struct Result {
  Matrix decoded;            // as the source is stored
  std::vector<bool> mask;    // as stored; empty without one
  std::vector<double> enc;   // multiplier of each stored element before rounding (plain rules)
  std::vector<bool> unsure;  // as stored: the value lies on a rounding threshold within FP32 error
};

// `source`: X, W or dY as stored; for a requantized slot what the forward codes decode to.
// `fold`: the multiplier that the slot divides by, one per element of the contraction; empty
// without folding.
Result Quantize(const LinearRecipe& recipe, Slot slot, const Draw& draw, const Matrix& source,
                const std::vector<double>& fold = {});

// The slot's rotation of each group along the contraction, or its inverse, in double.
std::vector<double> Rotate(const LinearRecipe& recipe, Slot slot, const Draw& draw, bool inverse,
                           const std::vector<double>& stored, int64_t rows, int64_t cols);

// D(x) of the estimator without its maximum's part.
double Derivative(const WeightEstimator& estimator, double x);

}  // namespace nibble::oracle
