// SPDX-License-Identifier: Apache-2.0
//
// Every element format under every rounding, over all 65,536 BF16 inputs, against a slow oracle in
// double built from the list of magnitudes.
#include "kernels/formats/grids.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu/group_loops.h"
#include "kernels/format_reference.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/block_scales.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/philox.h"

#if defined(NIBBLE_CUDA_HEADERS)
#include <cuda_fp4.h>
#include <cuda_fp8.h>
#endif

namespace nibble {
namespace {

constexpr Elem kElems[] = {Elem::kE2M1, Elem::kE1M2, Elem::kE3M0, Elem::kE4M3,
                           Elem::kE5M2, Elem::kInt4, Elem::kInt8};
constexpr Round kRounds[] = {Round::kEven, Round::kHalfUp, Round::kAway,
                             Round::kZero, Round::kSr24,   Round::kTe8};

std::vector<float> AllBf16() {
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    values.push_back(formats::FromBf16(static_cast<uint16_t>(bits)));
  }
  return values;
}

bool IsInteger(Elem elem) { return elem == Elem::kInt4 || elem == Elem::kInt8; }
bool IsFp8(Elem elem) { return elem == Elem::kE4M3 || elem == Elem::kE5M2; }

// Index of the largest magnitude <= a.
size_t Below(const std::vector<double>& magnitudes, double a) {
  size_t index = 0;
  while (index + 1 < magnitudes.size() && magnitudes[index + 1] <= a) ++index;
  return index;
}

// What rounding x gives, by definition; `word` as RoundRun takes it.
double Oracle(const std::vector<double>& magnitudes, Round round, float x, uint32_t word) {
  const double max = magnitudes.back();
  const double a = std::isnan(x) ? max : std::fmin(std::fabs(static_cast<double>(x)), max);
  const size_t below = Below(magnitudes, a);
  if (below + 1 == magnitudes.size()) return max;
  const double low = magnitudes[below], high = magnitudes[below + 1];
  const double fraction = (a - low) / (high - low);
  bool up = fraction > 0.5;
  const bool tie = fraction == 0.5;
  switch (round) {
    case Round::kEven:
      up = up || (tie && below % 2 == 1);
      break;
    case Round::kHalfUp:
      up = up || (tie && x > 0);
      break;
    case Round::kAway:
      up = up || tie;
      break;
    case Round::kZero:
      break;
    case Round::kSr24:
      up = static_cast<double>(word >> 8) < fraction * 0x1p24;
      break;
    case Round::kTe8: {
      const double dither = static_cast<double>(word & 255u) / 256.0 * (high - low);
      const double t = static_cast<double>(static_cast<float>(a + dither));
      return magnitudes[Below(magnitudes, t)];
    }
  }
  return up ? high : low;
}

TEST(Grids, EveryRoundingOfEveryFormatMatchesTheOracle) {
  const std::vector<float> x = AllBf16();
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<uint32_t> words(x.size());
  for (size_t i = 0; i < words.size(); ++i) words[i] = formats::RandomWord(9, 8, 7, i);
  for (const Elem elem : kElems) {
    const std::vector<double> magnitudes = FormatMagnitudes(elem);
    for (const Round round : kRounds) {
      std::vector<float> grid(x.size()), back(x.size());
      std::vector<uint8_t> codes(x.size());
      cpu::RoundRun(elem, round, x.data(), words.data(), grid.data(), n);
      cpu::CodesOfRun(elem, grid.data(), codes.data(), n);
      cpu::GridOfRun(elem, codes.data(), back.data(), n);
      for (size_t i = 0; i < x.size(); ++i) {
        const std::string what = ElemName(elem) + " " + RoundName(round) + " of " +
                                 std::to_string(static_cast<double>(x[i]));
        if (std::isnan(x[i]) && IsFp8(elem)) {
          ASSERT_TRUE(std::isnan(grid[i]) && std::isnan(back[i])) << what;
          continue;
        }
        ASSERT_EQ(std::fabs(static_cast<double>(grid[i])),
                  Oracle(magnitudes, round, x[i], words[i]))
            << what;
        const bool sign_kept = !(IsInteger(elem) || round == Round::kHalfUp) || grid[i] != 0.0f;
        ASSERT_EQ(std::signbit(grid[i]), !std::isnan(x[i]) && std::signbit(x[i]) && sign_kept)
            << what;
        ASSERT_EQ(formats::FloatBits(back[i]), formats::FloatBits(grid[i])) << what;
      }
    }
  }
}

#if defined(NIBBLE_CUDA_HEADERS)
TEST(Grids, CodesEqualTheCudaHostConversions) {
  std::vector<float> x;
  for (const float bf16 : AllBf16()) {
    for (const float value : {bf16, std::nextafterf(bf16, 1e38f), std::nextafterf(bf16, -1e38f)}) {
      if (!std::isnan(value)) x.push_back(value);
    }
  }
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<float> grid(x.size());
  std::vector<uint8_t> codes(x.size());
  for (const Elem elem : {Elem::kE2M1, Elem::kE4M3, Elem::kE5M2}) {
    cpu::RoundRun(elem, Round::kEven, x.data(), nullptr, grid.data(), n);
    cpu::CodesOfRun(elem, grid.data(), codes.data(), n);
    for (size_t i = 0; i < x.size(); ++i) {
      const int expected = elem == Elem::kE2M1
                               ? __nv_cvt_float_to_fp4(x[i], __NV_E2M1, cudaRoundNearest) & 0xF
                               : __nv_cvt_float_to_fp8(x[i], __NV_SATFINITE,
                                                       elem == Elem::kE4M3 ? __NV_E4M3 : __NV_E5M2);
      ASSERT_EQ(codes[i], expected) << ElemName(elem) << " " << x[i];
    }
  }
  for (const float value : x) {
    if (value < 0) continue;
    ASSERT_EQ(formats::E8M0RoundUp(value),
              __nv_cvt_float_to_e8m0(value, __NV_SATFINITE, cudaRoundPosInf))
        << value;
  }
}
#endif

TEST(Grids, CentredIntegersMatchTheirFormula) {
  const std::vector<float> x = AllBf16();
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<float> grid(x.size()), back(x.size()), drawn(x.size());
  std::vector<uint8_t> codes(x.size());
  std::vector<uint32_t> words(x.size());
  for (size_t i = 0; i < words.size(); ++i) words[i] = formats::RandomWord(3, 1, 4, i);
  cpu::RoundRun(Elem::kInt4C, Round::kEven, x.data(), nullptr, grid.data(), n);
  cpu::RoundRun(Elem::kInt4C, Round::kSr24, x.data(), words.data(), drawn.data(), n);
  cpu::CodesOfRun(Elem::kInt4C, grid.data(), codes.data(), n);
  cpu::GridOfRun(Elem::kInt4C, codes.data(), back.data(), n);
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_LT(codes[i], 16);
    ASSERT_EQ(back[i], grid[i]);
    if (std::isnan(x[i])) {
      ASSERT_EQ(grid[i], 7.5f);
      continue;
    }
    const float clipped = std::fmin(std::fmax(x[i], -7.5f), 7.5f);
    ASSERT_EQ(grid[i], std::nearbyint(clipped + 0.5f) - 0.5f) << x[i];
    const double shifted = static_cast<double>(clipped + 7.5f);
    const double fraction = shifted - std::floor(shifted);
    const bool up = static_cast<double>(words[i] >> 8) < fraction * 0x1p24;
    ASSERT_EQ(static_cast<double>(drawn[i]), std::floor(shifted) + (up ? 1 : 0) - 7.5) << x[i];
  }
}

TEST(Grids, FastFormsEqualTheGeneralOnes) {
  for (const float bf16 : AllBf16()) {
    if (std::isnan(bf16)) continue;
    for (const float x : {bf16, std::nextafterf(bf16, 1e38f), std::nextafterf(bf16, -1e38f)}) {
      using formats::TieRule;
      ASSERT_EQ(formats::RoundE2M1Even(x),
                formats::RoundNearest<formats::E2M1Grid>(x, TieRule::kEven));
      ASSERT_EQ(formats::RoundE4M3(x), formats::RoundNearest<formats::E4M3Grid>(x, TieRule::kEven));
      ASSERT_EQ(formats::RoundE5M2(x), formats::RoundNearest<formats::E5M2Grid>(x, TieRule::kEven));
      if (x < 0) continue;
      ASSERT_EQ(formats::RoundUE5M3(x),
                formats::RoundNearest<formats::UE5M3Grid>(x, TieRule::kEven));
    }
  }
}

TEST(Grids, RoundingIsIdempotentMonotoneAndOdd) {
  for (const Elem elem : kElems) {
    for (const Round round : {Round::kEven, Round::kHalfUp, Round::kAway, Round::kZero}) {
      const float max = ElemMax(elem);
      std::vector<float> x, minus;
      for (int i = -4400; i <= 4400; ++i) {
        x.push_back(static_cast<float>(i) / 4096.0f * max);
        minus.push_back(-x.back());
      }
      const int64_t n = static_cast<int64_t>(x.size());
      std::vector<float> y(x.size()), again(x.size()), opposite(x.size());
      cpu::RoundRun(elem, round, x.data(), nullptr, y.data(), n);
      cpu::RoundRun(elem, round, y.data(), nullptr, again.data(), n);
      cpu::RoundRun(elem, round, minus.data(), nullptr, opposite.data(), n);
      ASSERT_EQ(again, y);
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_GE(y[i], y[i == 0 ? 0 : i - 1]);
        if (round == Round::kHalfUp) continue;
        ASSERT_EQ(opposite[i], -y[i]);
      }
    }
  }
}

// Mean of 2^20 draws within four standard errors of x; the byte rule is up to a step / 256 low.
TEST(Grids, StochasticRoundingIsUnbiased) {
  constexpr size_t kDraws = 1 << 20;
  std::vector<float> x(kDraws), y(kDraws);
  std::vector<uint32_t> words(kDraws);
  for (size_t i = 0; i < kDraws; ++i) words[i] = formats::RandomWord(11, 0, 5, i);
  for (const Elem elem : kElems) {
    for (const float share : {0.03f, -0.31f, 0.77f, 0.97f}) {
      const float value = share * ElemMax(elem);
      std::fill(x.begin(), x.end(), value);
      cpu::RoundRun(elem, Round::kSr24, x.data(), words.data(), y.data(), kDraws);
      double sum = 0, squares = 0;
      for (const float draw : y) {
        sum += static_cast<double>(draw);
        squares += static_cast<double>(draw) * static_cast<double>(draw);
      }
      const double mean = sum / kDraws;
      const double sigma = std::sqrt(std::fmax(0.0, squares / kDraws - mean * mean) / kDraws);
      EXPECT_NEAR(mean, static_cast<double>(value), 4 * sigma + 1e-6 * std::fabs(mean))
          << ElemName(elem);
    }
  }
}

TEST(Grids, ScalesRoundUpAndStochastically) {
  using formats::E4M3Grid;
  for (int code = 0; code < 126; ++code) {
    const float low = formats::DecodeE4M3(static_cast<uint8_t>(code));
    const float high = formats::DecodeE4M3(static_cast<uint8_t>(code + 1));
    const float middle = low + (high - low) * 0.25f;
    const auto round = [&](float value, formats::ScaleRounding rounding, uint32_t word) {
      return formats::internal::RoundScale<E4M3Grid>(value, rounding, word);
    };
    EXPECT_EQ(round(low, formats::ScaleRounding::kUp, 0), low);
    EXPECT_EQ(round(middle, formats::ScaleRounding::kUp, 0), high);
    EXPECT_EQ(round(middle, formats::ScaleRounding::kEven, 0), low);
    EXPECT_EQ(round(middle, formats::ScaleRounding::kStochastic, 0x3FFFFF00u), high);
    EXPECT_EQ(round(middle, formats::ScaleRounding::kStochastic, 0x40000000u), low);
  }
}

}  // namespace
}  // namespace nibble
