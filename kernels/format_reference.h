// SPDX-License-Identifier: Apache-2.0
//
// Slow, independent definitions of the element formats, to prove the fast ones.
//
// Purpose: a format is its list of magnitudes built from exponent and mantissa widths in double;
// rounding is a search for the nearest. Shares no code with kernels/formats. Used by the worker's
// self-test and by tests. Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/recipe/recipe.h"

namespace nibble {

// Magnitudes in code order, 0 first. Precondition: a format with sign and magnitude, or an integer.
std::vector<double> FormatMagnitudes(Elem elem);

// Code of |x| rounded to the nearest magnitude, ties to the even code, saturating; x is finite.
// The sign is the caller's.
int NearestCode(const std::vector<double>& magnitudes, double x);

}  // namespace nibble
