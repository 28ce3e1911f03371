// SPDX-License-Identifier: Apache-2.0
//
// Element grids and roundings of RecipeOracle: lists of magnitudes, searched. Tests only.
// Thread-safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/recipe/recipe.h"

namespace nibble::oracle {

inline constexpr double kFloatMax = std::numeric_limits<float>::max();
inline constexpr double kBf16Max = 0x1.FEp127;

inline float F(double x) { return static_cast<float>(x); }
inline double D(float x) { return static_cast<double>(x); }

// Nearest BF16, ties to even.
double Bf16(double x);

// Magnitudes of a format by code; of the E4M3 or UE5M3 group scales.
const std::vector<double>& GridOf(Elem elem);
const std::vector<double>& ScaleGrid(bool e4m3);

// The neighbours of a magnitude on a grid: index below, and how far up.
struct Place {
  size_t below = 0;
  double fraction = 0;
};
Place PlaceOf(const std::vector<double>& grid, double magnitude);

double Nearest(const std::vector<double>& grid, double y, Round round = Round::kEven);
double Stochastic(const std::vector<double>& grid, double y, uint32_t word);
double Te8(double y, uint32_t byte);
// QuEST's centred grid in steps. It has no zero to round away from: up means toward +infinity.
double Centred(double y);
double CentredStochastic(double y, uint32_t word);
// Whether y sits within FP32 error of where its rounding changes.
bool OnThreshold(const std::vector<double>& grid, double y, Round round, uint32_t word);

// The largest power of two that takes amax to at most max.
double PowerOfTwo(double amax, double max);
// enc of a rule with one FP32 number per group, before anything else has been seen.
double PlainEnc(const Quant& q, double amax);

}  // namespace nibble::oracle
