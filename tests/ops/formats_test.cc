// SPDX-License-Identifier: Apache-2.0
//
// Element formats and scale rules: exhaustive over BF16, against slow definitions and, where the
// CUDA toolkit's headers are installed, against its host conversions; and their properties.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/format_reference.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/dge.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/e8m0.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/philox.h"
#include "kernels/formats/scale_layout.h"
#include "kernels/formats/scales.h"

#if defined(NIBBLE_CUDA_HEADERS)
#include <cuda_fp4.h>
#include <cuda_fp8.h>
#endif

namespace nibble::formats {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> AllBf16() {
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    values.push_back(FromBf16(static_cast<uint16_t>(bits)));
  }
  return values;
}

// BF16 values lie far apart near some midpoints: their float neighbours test the ties from both
// sides.
std::vector<float> AllBf16AndNeighbours() {
  std::vector<float> values;
  for (const float x : AllBf16()) {
    values.push_back(x);
    if (!std::isfinite(x)) continue;
    values.push_back(std::nextafter(x, kInf));
    values.push_back(std::nextafter(x, -kInf));
  }
  return values;
}

void CheckExhaustively(Elem elem, uint8_t (*encode)(float), float (*decode)(uint8_t), int sign_bit,
                       int nan_code) {
  const std::vector<double> magnitudes = FormatMagnitudes(elem);
  for (const float x : AllBf16AndNeighbours()) {
    const int code = encode(x);
    if (std::isnan(x)) {
      EXPECT_EQ(code & ((1 << sign_bit) - 1), nan_code);
      continue;
    }
    const double finite =
        std::isinf(x) ? std::copysign(1e300, static_cast<double>(x)) : static_cast<double>(x);
    const int expected = NearestCode(magnitudes, finite) | (std::signbit(x) ? 1 << sign_bit : 0);
    ASSERT_EQ(code, expected) << x;
    ASSERT_EQ(static_cast<double>(std::fabs(decode(static_cast<uint8_t>(code)))),
              magnitudes[static_cast<size_t>(code & ((1 << sign_bit) - 1))]);
  }
}

TEST(Formats, E2M1IsTheNearestValueForAllInputs) {
  CheckExhaustively(
      Elem::kE2M1, [](float x) { return EncodeE2M1(x); }, DecodeE2M1, 3, 7);
}
TEST(Formats, E4M3IsTheNearestValueForAllInputs) {
  CheckExhaustively(Elem::kE4M3, EncodeE4M3, DecodeE4M3, 7, 0x7F);
}
TEST(Formats, E5M2IsTheNearestValueForAllInputs) {
  CheckExhaustively(Elem::kE5M2, EncodeE5M2, DecodeE5M2, 7, 0x7F);
}

TEST(Formats, CodesDecodeAndEncodeBack) {
  for (int code = 0; code < 16; ++code) {
    EXPECT_EQ(EncodeE2M1(DecodeE2M1(static_cast<uint8_t>(code))), code);
  }
  for (int code = 0; code < 256; ++code) {
    const uint8_t byte = static_cast<uint8_t>(code);
    const float e4m3 = DecodeE4M3(byte);
    const float e5m2 = DecodeE5M2(byte);
    if (!std::isnan(e4m3)) {
      EXPECT_EQ(EncodeE4M3(e4m3), code);
    }
    if (std::isfinite(e5m2)) {
      EXPECT_EQ(EncodeE5M2(e5m2), code);
    }
    if (code <= 247) {
      EXPECT_EQ(EncodeUE5M3(DecodeUE5M3(byte)), code);
    }
  }
  EXPECT_TRUE(std::isnan(DecodeE4M3(0x7F)) && std::isnan(DecodeE4M3(0xFF)));
  EXPECT_EQ(DecodeE5M2(0x7C), kInf);
  EXPECT_EQ(DecodeE5M2(0xFC), -kInf);
  EXPECT_TRUE(std::isnan(DecodeE5M2(0x7D)) && std::isnan(DecodeE5M2(0xFF)));
  EXPECT_EQ(RoundUE5M3(1e9f, 114688.0f), 114688.0f);
  EXPECT_EQ(EncodeUE5M3(1e9f, 114688.0f), 0xFE);
}

#if defined(NIBBLE_CUDA_HEADERS)
TEST(Formats, EqualsTheCudaHostConversions) {
  for (const float x : AllBf16AndNeighbours()) {
    ASSERT_EQ(EncodeE2M1(x), __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest) & 0xF) << x;
    if (std::isnan(x)) continue;
    ASSERT_EQ(EncodeE4M3(x), __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)) << x;
    ASSERT_EQ(EncodeE5M2(x), __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2)) << x;
  }
}
#endif

TEST(Formats, Bf16RoundsToNearestEven) {
  for (const float x : AllBf16()) {
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(RoundBf16(x)));
      continue;
    }
    EXPECT_EQ(FloatBits(RoundBf16(x)), FloatBits(x));
    EXPECT_EQ(Bf16FromOrderKey(Bf16OrderKey(ToBf16(x))), ToBf16(x));
  }
  EXPECT_EQ(RoundBf16(1.00390625f), 1.0f);       // tie to even
  EXPECT_EQ(RoundBf16(1.01171875f), 1.015625f);  // tie to even, upwards
  EXPECT_EQ(RoundBf16(3.4e38f), kInf);
  EXPECT_EQ(FloatBits(RoundBf16(-1e-45f)), kSignBit);
  EXPECT_TRUE(std::isnan(RoundBf16(BitsFloat(0x7F800001u))));
  EXPECT_EQ(RoundBf16(-3.0f), FromBf16(ToBf16(-3.0f)));
}

TEST(Formats, OrderKeysSortLikeTheValues) {
  const std::vector<float> ascending = {-kInf, -3e38f, -1.0f, -1e-40f, -0.0f,
                                        0.0f,  1e-40f, 1.0f,  3e38f,   kInf};
  for (size_t i = 1; i < ascending.size(); ++i) {
    EXPECT_LT(Bf16OrderKey(ToBf16(ascending[i - 1])), Bf16OrderKey(ToBf16(ascending[i])));
  }
  EXPECT_EQ(Bf16OrderKey(ToBf16(kNan)), 0xFFFF);
  EXPECT_EQ(Bf16OrderKey(ToBf16(-kNan)), 0xFFFF);
}

TEST(Formats, RoundingIsIdempotentMonotoneAndOdd) {
  for (const TieRule rule : {TieRule::kEven, TieRule::kHalfUp, TieRule::kAway, TieRule::kZero}) {
    float previous = -6.0f;
    for (int i = -7 * 512; i <= 7 * 512; ++i) {
      const float x = static_cast<float>(i) / 512.0f;
      const float y = RoundE2M1(x, rule);
      EXPECT_EQ(RoundE2M1(y, rule), y);
      EXPECT_GE(y, previous) << x;
      previous = y;
      if (rule != TieRule::kHalfUp) {
        EXPECT_EQ(RoundE2M1(-x, rule), -y);
      }
    }
  }
}

TEST(Formats, StochasticRoundingIsUnbiasedAndKeepsGridValues) {
  constexpr int kDraws = 1 << 18;
  for (const float x : {0.05f, 0.3f, -0.9f, 1.26f, 2.7f, -3.1f, 4.1f, 5.5f}) {
    double sum = 0, squares = 0;
    for (int i = 0; i < kDraws; ++i) {
      const double y =
          static_cast<double>(RoundE2M1Sr24(x, RandomWord(5, 1, 2, static_cast<uint64_t>(i))));
      sum += y;
      squares += y * y;
    }
    const double mean = sum / kDraws;
    const double sigma = std::sqrt((squares / kDraws - mean * mean) / kDraws);
    EXPECT_NEAR(mean, static_cast<double>(x), 4 * sigma) << x;
  }
  for (int code = 0; code < 16; ++code) {
    const float grid = DecodeE2M1(static_cast<uint8_t>(code));
    for (const uint32_t word : {0u, 0x80000000u, 0xFFFFFFFFu}) {
      EXPECT_EQ(FloatBits(RoundE2M1Sr24(grid, word)), FloatBits(grid));
      EXPECT_EQ(FloatBits(RoundE2M1Te8(grid, word)), FloatBits(grid));
    }
  }
  EXPECT_EQ(RoundE2M1Sr24(kInf, 0), 6.0f);
  EXPECT_EQ(RoundE2M1Sr24(kNan, 0), 6.0f);
  EXPECT_EQ(RoundE2M1Te8(-kInf, 255), -6.0f);
}

TEST(Scales, PowerOfTwoIsTheLargestThatFits) {
  for (const float x : AllBf16()) {
    if (!(x > 0) || std::isinf(x)) continue;
    for (const float max : {6.0f, 448.0f, 57344.0f}) {
      const double enc = static_cast<double>(ScaleP2(x, max));
      EXPECT_LE(static_cast<double>(x) * enc, static_cast<double>(max)) << x;
      if (enc < 0x1p127) {
        EXPECT_GT(static_cast<double>(x) * enc * 2, static_cast<double>(max)) << x;
      }
      EXPECT_EQ(std::frexp(enc, std::vector<int>(1).data()), 0.5);
    }
  }
}

TEST(Scales, OddAmaxValuesFollowThePoisonRule) {
  for (const float odd : {0.0f, kInf, kNan}) {
    EXPECT_EQ(ScaleF32(odd, 6.0f), 1.0f);
    EXPECT_EQ(ScaleP2(odd, 6.0f), 1.0f);
    EXPECT_EQ(ScaleP2(odd, 6.0f, 0.25f), 0.25f);
    EXPECT_EQ(ScaleCurrent(odd, 448.0f, false), 1.0f);
  }
  EXPECT_EQ(ScaleF32(1e-45f, 6.0f), kLargestFloat);
  EXPECT_EQ(ScaleCurrent(1e-45f, 448.0f, false), kBf16Max);
  EXPECT_EQ(ScaleCurrent(1e-45f, 448.0f, true), 0x1p127f);
  EXPECT_EQ(ScaleP2(1e-45f, 6.0f), 0x1p127f);
  EXPECT_EQ(E8M0FloorScale(kNan, 2), kE8M0Nan);
  EXPECT_EQ(E8M0RoundUp(kNan), kE8M0Nan);
  EXPECT_EQ(E8M0RoundUp(kInf), 254);
  EXPECT_TRUE(std::isnan(DecodeE8M0(255)));
  EXPECT_EQ(DecodeE8M0(0), 0x1p-127f);
  EXPECT_EQ(DecodeE8M0(254), 0x1p127f);
  const float zeros[] = {0.0f, 0.0f};
  EXPECT_EQ(ScaleDelayed(zeros, 2, 448.0f, HistoryRule::kMax, 0, 3.0f), 3.0f);
  const float poisoned[] = {1.0f, kNan};
  EXPECT_EQ(ScaleDelayed(poisoned, 2, 448.0f, HistoryRule::kMax, 0, 3.0f), 3.0f);
}

TEST(Dge, EqualsTheClosedFormAndIsEven) {
  static constexpr double kGrid[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
  for (const double k : {1.0, 3.0, 5.0, 10.0}) {
    for (int i = 0; i <= 6 * 4096; ++i) {
      const double x = static_cast<double>(i) / 4096;
      int cell = 0;
      while (cell < 6 && x >= kGrid[cell + 1]) ++cell;
      const double u = 2 * (x - kGrid[cell]) / (kGrid[cell + 1] - kGrid[cell]) - 1;
      const double expected = std::min(3.0, std::pow(std::fabs(u), 1 / k - 1) / k);
      const float got = DgeDerivative(static_cast<float>(x), 1 / k, 3.0);
      ASSERT_NEAR(got, expected, 5e-7 * expected) << x << " k " << k;
      ASSERT_EQ(DgeDerivative(static_cast<float>(-x), 1 / k, 3.0), got);
    }
  }
  EXPECT_EQ(DgeDerivative(6.0f, 0.2, 3.0), 0.2f);
  EXPECT_EQ(DgeDerivative(std::nextafter(6.0f, 7.0f), 0.2, 3.0), 0.0f);
  EXPECT_EQ(DgeDerivative(kInf, 0.2, 3.0), 0.0f);
  EXPECT_TRUE(std::isnan(DgeDerivative(kNan, 0.2, 3.0)));
}

// Every BF16 value, which is what a weight is before its scale, and every float near a midpoint.
TEST(Dge, FollowsTheDoubleFormulaForEveryBf16Value) {
  static constexpr double kGrid[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
  const auto check = [](float x, double k, double clip) {
    const double a = std::fabs(static_cast<double>(x));
    const float got = DgeDerivative(x, 1 / k, clip);
    if (std::isnan(x)) return std::isnan(got);
    if (a > 6) return got == 0.0f;
    int cell = 0;
    while (cell < 6 && a >= kGrid[cell + 1]) ++cell;
    const double u = std::fabs(2 * (a - kGrid[cell]) / (kGrid[cell + 1] - kGrid[cell]) - 1);
    if (u == 1) return got == static_cast<float>(1 / k);
    const double power = std::pow(u, 1 / k - 1) / k;
    if (power > clip * (1 + 5e-7)) return got == static_cast<float>(clip);
    return std::fabs(static_cast<double>(got) - power) <= 5e-7 * power;
  };
  for (const double k : {3.0, 5.0, 10.0}) {
    for (const double clip : {1.5, 3.0, 1e9}) {
      for (uint32_t bits = 0; bits <= 0xFFFFu; ++bits) {
        const float x = FromBf16(static_cast<uint16_t>(bits));
        ASSERT_TRUE(check(x, k, clip)) << x << " k " << k << " clip " << clip;
      }
      for (uint32_t bits = FloatBits(2.49f); bits <= FloatBits(2.51f); ++bits) {
        ASSERT_TRUE(check(BitsFloat(bits), k, clip)) << BitsFloat(bits) << " k " << k;
      }
    }
  }
}

TEST(Occ, IndicesStayInsideAndClampKeepsNan) {
  EXPECT_EQ(OccIndices(1.0, 10).high, 9);
  EXPECT_EQ(OccIndices(1.0, 10).low, 0);
  EXPECT_EQ(OccIndices(0.5, 1).high, 0);
  EXPECT_EQ(OccClamp(5.0f, -1.0f, 2.0f), 2.0f);
  EXPECT_EQ(OccClamp(-5.0f, -1.0f, 2.0f), -1.0f);
  EXPECT_TRUE(std::isnan(OccClamp(kNan, -1.0f, 2.0f)));
}

TEST(ScaleLayout, GivesEveryScaleAPlaceOfItsOwn) {
  for (const auto& [rows, blocks] : {std::pair<int64_t, int64_t>{1, 1}, {128, 4}, {200, 9}}) {
    std::vector<int> seen(static_cast<size_t>(formats::BlockScaleBytes(rows, blocks)));
    EXPECT_EQ(seen.size() % 512, 0u);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t at = formats::BlockScaleOffset(row, block, blocks);
        ASSERT_GE(at, 0);
        ASSERT_LT(at, static_cast<int64_t>(seen.size()));
        EXPECT_EQ(seen[static_cast<size_t>(at)]++, 0) << row << ' ' << block;
      }
    }
  }
  // Rows 32 apart are neighbours, then the next row, then the next tile along the sum.
  EXPECT_EQ(formats::BlockScaleOffset(0, 3, 8), 3);
  EXPECT_EQ(formats::BlockScaleOffset(32, 0, 8), 4);
  EXPECT_EQ(formats::BlockScaleOffset(96, 1, 8), 13);
  EXPECT_EQ(formats::BlockScaleOffset(1, 0, 8), 16);
  EXPECT_EQ(formats::BlockScaleOffset(0, 4, 8), 512);
  EXPECT_EQ(formats::BlockScaleOffset(128, 0, 8), 1024);
}

}  // namespace
}  // namespace nibble::formats
