// SPDX-License-Identifier: Apache-2.0
//
// Element formats, random numbers and scale rules against golden values.
#include <cmath>
#include <limits>
#include <map>

#include "base/strings.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/e8m0.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/philox.h"
#include "kernels/formats/scales.h"
#include "tests/golden/golden.h"

namespace nibble::formats {
namespace {

using golden::Case;
using golden::Doubles;
using golden::Floats;

// Same value and same sign of zero.
void ExpectSame(float got, float expected, const std::string& what) {
  EXPECT_EQ(got, expected) << what;
  EXPECT_EQ(std::signbit(got), std::signbit(expected)) << what;
}

TEST(GoldenFormats, F01DecodesAllE2M1Codes) {
  const std::vector<float> values = Floats(Case("formats", "F01")["expect"]["values"]);
  ASSERT_EQ(values.size(), 16u);
  for (size_t code = 0; code < 16; ++code) {
    ExpectSame(DecodeE2M1(static_cast<uint8_t>(code)), values[code], StrFormat("code %zu", code));
  }
}

TEST(GoldenFormats, F02RoundsMidpointsUnderFourTieRules) {
  const Json golden = Case("formats", "F02");
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  const std::map<std::string, TieRule> rules = {{"even", TieRule::kEven},
                                                {"half_up", TieRule::kHalfUp},
                                                {"away", TieRule::kAway},
                                                {"zero", TieRule::kZero}};
  for (const auto& [name, rule] : rules) {
    const std::vector<float> expected = Floats(golden["expect"][name]);
    ASSERT_EQ(expected.size(), x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      ExpectSame(RoundE2M1(x[i], rule), expected[i],
                 name + StrFormat(" of %g", static_cast<double>(x[i])));
    }
  }
}

TEST(GoldenFormats, F03SaturatesAndKeepsTheSignOfZero) {
  const Json golden = Case("formats", "F03");
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  const std::vector<double> codes = Doubles(golden["expect"]["codes_even"]);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(EncodeE2M1(x[i]), codes[i]) << x[i];
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(EncodeE2M1(nan), golden["expect"]["nan_code"].AsInt());
  EXPECT_EQ(EncodeE2M1(-nan), golden["expect"]["nan_code"].AsInt());
  EXPECT_EQ(EncodeE2M1(inf), golden["expect"]["pos_inf_code"].AsInt());
  EXPECT_EQ(EncodeE2M1(-inf), golden["expect"]["neg_inf_code"].AsInt());
}

void CheckRounding(const std::string& id, float (*round)(float)) {
  const Json golden = Case("formats", id);
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  const std::vector<float> y = Floats(golden["expect"]["y"]);
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    ExpectSame(round(x[i]), y[i], id + StrFormat(" of %g", static_cast<double>(x[i])));
    ExpectSame(round(-x[i]), id == "F06" ? 0.0f : -y[i], id + " negative");
  }
}

TEST(GoldenFormats, F04RoundsE4M3) { CheckRounding("F04", RoundE4M3); }
TEST(GoldenFormats, F05RoundsE5M2) { CheckRounding("F05", RoundE5M2); }
TEST(GoldenFormats, F06RoundsUE5M3) {
  CheckRounding("F06", [](float x) { return RoundUE5M3(x); });
}

TEST(GoldenFormats, F07RoundsE8M0Up) {
  const Json golden = Case("formats", "F07");
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  const std::vector<double> code = Doubles(golden["expect"]["code"]);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(E8M0RoundUp(x[i]), code[i]) << x[i];
}

TEST(GoldenFormats, F08ScalesMxBlocksBothWays) {
  const Json golden = Case("formats", "F08");
  const std::vector<float> amax = Floats(golden["inputs"]["amax"]);
  const std::vector<double> down = Doubles(golden["expect"]["ocp_floor"]);
  const std::vector<double> up = Doubles(golden["expect"]["round_up"]);
  for (size_t i = 0; i < amax.size(); ++i) {
    EXPECT_EQ(E8M0FloorScale(amax[i], 2), down[i]) << amax[i];
    EXPECT_EQ(E8M0UpScale(amax[i], 6.0f), up[i]) << amax[i];
  }
}

TEST(GoldenFormats, F09CountsAllBytesOfTe8) {
  const Json golden = Case("formats", "F09");
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  for (size_t i = 0; i < x.size(); ++i) {
    std::map<double, int64_t> counts;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      ++counts[static_cast<double>(RoundE2M1Te8(x[i], byte))];
    }
    std::map<double, int64_t> expected;
    for (const Json::Member& member : golden["expect"]["counts"].At(i).members()) {
      expected[*ParseDouble(member.first)] = member.second.AsInt();
    }
    EXPECT_EQ(counts, expected) << x[i];
  }
}

TEST(GoldenFormats, F10PhiloxKnownAnswers) {
  const Json golden = Case("formats", "F10");
  for (size_t i = 0; i < golden["expect"]["out_hex"].size(); ++i) {
    const Json& pair = golden["inputs"]["ctr_key"].At(i);
    PhiloxWords counter;
    for (size_t j = 0; j < 4; ++j) {
      counter.word[j] = static_cast<uint32_t>(pair.At(0).At(j).AsInt());
    }
    const PhiloxWords out = Philox4x32(counter, static_cast<uint32_t>(pair.At(1).At(0).AsInt()),
                                       static_cast<uint32_t>(pair.At(1).At(1).AsInt()));
    EXPECT_EQ(StrFormat("%08x %08x %08x %08x", out.word[0], out.word[1], out.word[2], out.word[3]),
              golden["expect"]["out_hex"].At(i).AsString());
  }
}

TEST(GoldenFormats, F11Sr24EndToEnd) {
  const Json golden = Case("formats", "F11");
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  const std::vector<float> y = Floats(golden["expect"]["y"]);
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = RandomWord(1234, 0, 7, i);
    EXPECT_EQ(static_cast<int64_t>(word), golden["inputs"]["u32"].At(i).AsInt());
    ExpectSame(RoundE2M1Sr24(x[i], word), y[i], StrFormat("%g", static_cast<double>(x[i])));
  }
}

TEST(GoldenScales, S01PowerOfTwoForE2M1) {
  const Json golden = Case("scales", "S01");
  const std::vector<float> amax = Floats(golden["inputs"]["amax"]);
  const std::vector<float> enc = Floats(golden["expect"]["sf"]);
  for (size_t i = 0; i < amax.size(); ++i) EXPECT_EQ(ScaleP2(amax[i], 6.0f), enc[i]) << amax[i];
  const float expected = static_cast<float>(golden["expect"]["sf_inf_or_nan"].AsDouble());
  EXPECT_EQ(ScaleP2(std::numeric_limits<float>::infinity(), 6.0f), expected);
  EXPECT_EQ(ScaleP2(std::numeric_limits<float>::quiet_NaN(), 6.0f), expected);
}

TEST(GoldenScales, S02PowerOfTwoForE4M3) {
  const Json golden = Case("scales", "S02");
  const std::vector<float> amax = Floats(golden["inputs"]["amax"]);
  const std::vector<float> enc = Floats(golden["expect"]["sf"]);
  for (size_t i = 0; i < amax.size(); ++i) EXPECT_EQ(ScaleP2(amax[i], 448.0f), enc[i]) << amax[i];
}

TEST(GoldenScales, S03AbsmaxForE2M1) {
  const Json golden = Case("scales", "S03");
  const std::vector<float> amax = Floats(golden["inputs"]["amax"]);
  const std::vector<float> enc = Floats(golden["expect"]["gamma"]);
  for (size_t i = 0; i < amax.size(); ++i) EXPECT_EQ(ScaleF32(amax[i], 6.0f), enc[i]) << amax[i];
}

TEST(GoldenScales, S04CurrentScaling) {
  const Json golden = Case("scales", "S04");
  const std::vector<float> amax = Floats(golden["inputs"]["amax"]);
  const std::vector<float> enc = Floats(golden["expect"]["scale"]);
  const std::vector<float> pow2 = Floats(golden["expect"]["scale_pow2"]);
  for (size_t i = 0; i < amax.size(); ++i) {
    EXPECT_EQ(ScaleCurrent(amax[i], 448.0f, false), enc[i]) << amax[i];
    EXPECT_EQ(ScaleCurrent(amax[i], 448.0f, true), pow2[i]) << amax[i];
  }
  const float one = static_cast<float>(golden["expect"]["zero_inf_nan_scale"].AsDouble());
  for (const float odd :
       {0.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_EQ(ScaleCurrent(odd, 448.0f, false), one) << odd;
  }
}

TEST(GoldenScales, S05DelayedScalingAndItsHistory) {
  const Json golden = Case("scales", "S05");
  std::vector<float> history = Floats(golden["inputs"]["history"]);
  const int length = static_cast<int>(history.size());
  const float max = static_cast<float>(golden["inputs"]["fp8_max"].AsDouble());
  EXPECT_EQ(ScaleDelayed(history.data(), length, max, HistoryRule::kMax, 0, 1.0f),
            static_cast<float>(golden["expect"]["scale_max"].AsDouble()));
  EXPECT_EQ(ScaleDelayed(history.data(), length, max, HistoryRule::kMostRecent, 0, 1.0f),
            static_cast<float>(golden["expect"]["scale_most_recent"].AsDouble()));
  RotateHistory(history.data(), length);
  EXPECT_EQ(history, Floats(golden["expect"]["history_after"]));
}

TEST(GoldenScales, S06MxFp8BlockCodes) {
  const Json golden = Case("scales", "S06");
  const std::vector<float> amax = Floats(golden["inputs"]["amax"]);
  const std::vector<double> code = Doubles(golden["expect"]["code"]);
  for (size_t i = 0; i < amax.size(); ++i) EXPECT_EQ(E8M0UpScale(amax[i], 448.0f), code[i]);
}

}  // namespace
}  // namespace nibble::formats
