// SPDX-License-Identifier: Apache-2.0
//
// Quantize, Dequantize, DGE, health and quantized layers on the CPU backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "base/strings.h"
#include "kernels/format_reference.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/dge.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/philox.h"
#include "kernels/formats/scales.h"
#include "kernels/linear.h"

namespace nibble {
namespace {

using Values = std::vector<float>;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Values Random(uint32_t stream, int64_t size, float scale = 1.0f) {
  Values x(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t word = formats::RandomWord(9, 0, stream, static_cast<uint64_t>(i));
    const float uniform = static_cast<float>(word >> 8) * 0x1p-23f - 1.0f;
    x[static_cast<size_t>(i)] = uniform * scale * (i % 41 == 3 ? 9.0f : 1.0f);
  }
  return x;
}

std::unique_ptr<Backend> MakeCpu(int threads = 2) {
  BackendOptions options;
  options.threads = threads;
  Result<std::unique_ptr<Backend>> made = MakeBackend("cpu", options);
  EXPECT_TRUE(made.ok()) << made.status().ToString();
  return std::move(*made);
}

bool SameBits(const Values& a, const Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A quantizer and how its name reads in a test.
struct Case {
  std::string name;
  Quant quant;
  Axis contraction = Axis::kCols;
};

Quant Make(Elem elem, Block block, ScaleRule scale, float max, Round round = Round::kEven) {
  Quant quant;
  quant.elem = elem;
  quant.block = block;
  quant.scale = scale;
  quant.scale_max = max;
  quant.round = round;
  return quant;
}

Quant WithOcc(Quant quant, double alpha, OccScope scope, OccComp comp) {
  quant.pre = {true, alpha, scope, comp};
  return quant;
}

std::vector<Case> AllCases() {
  const Quant row = Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6);
  return {
      {"e2m1_tensor_f32", Make(Elem::kE2M1, Block::kTensor, ScaleRule::kF32, 6)},
      {"e2m1_tok_f32", row},
      {"e2m1_och_p2", Make(Elem::kE2M1, Block::kOutputChannel, ScaleRule::kP2, 6)},
      {"e2m1_tok_cur", Make(Elem::kE2M1, Block::kToken, ScaleRule::kCurrent, 6)},
      {"e2m1_half_up", Make(Elem::kE2M1, Block::kToken, ScaleRule::kP2, 6, Round::kHalfUp)},
      {"e2m1_away", Make(Elem::kE2M1, Block::kToken, ScaleRule::kP2, 6, Round::kAway)},
      {"e2m1_zero", Make(Elem::kE2M1, Block::kToken, ScaleRule::kP2, 6, Round::kZero)},
      {"e2m1_sr24", Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6, Round::kSr24)},
      {"e2m1_te8", Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6, Round::kTe8)},
      {"e4m3_tensor_cur", Make(Elem::kE4M3, Block::kTensor, ScaleRule::kCurrent, 448)},
      {"e4m3_tensor_curp2", Make(Elem::kE4M3, Block::kTensor, ScaleRule::kCurrentP2, 448)},
      {"e5m2_tensor_p2", Make(Elem::kE5M2, Block::kTensor, ScaleRule::kP2, 57344)},
      {"bf16", Quant{}},
      {"occ_tensor_e4m3", WithOcc(row, 0.97, OccScope::kTensor, OccComp::kE4M3)},
      {"occ_tensor_bf16", WithOcc(row, 0.99, OccScope::kTensor, OccComp::kBf16)},
      {"occ_tensor_none", WithOcc(row, 0.9, OccScope::kTensor, OccComp::kNone)},
      {"occ_token_e4m3", WithOcc(row, 0.9, OccScope::kToken, OccComp::kE4M3)},
      {"occ_tensor_wide", WithOcc(row, 0.97, OccScope::kTensor, OccComp::kWide)},
      {"occ_token_wide", WithOcc(row, 0.8, OccScope::kToken, OccComp::kWide)},
      {"occ_ich_wide", WithOcc(Make(Elem::kE2M1, Block::kInputChannel, ScaleRule::kF32, 6), 0.9,
                               OccScope::kTensor, OccComp::kWide)},
      {"int8_tok_even", Make(Elem::kInt8, Block::kToken, ScaleRule::kF32, 127)},
      {"int8_tok_sr24", Make(Elem::kInt8, Block::kToken, ScaleRule::kF32, 127, Round::kSr24)},
      {"int8_och_rows_sr24",
       Make(Elem::kInt8, Block::kOutputChannel, ScaleRule::kF32, 127, Round::kSr24), Axis::kRows},
      {"e2m1_och_rows", Make(Elem::kE2M1, Block::kOutputChannel, ScaleRule::kF32, 6), Axis::kRows},
      {"e2m1_och_rows_sr24",
       Make(Elem::kE2M1, Block::kOutputChannel, ScaleRule::kF32, 6, Round::kSr24), Axis::kRows},
      {"e2m1_tok_rows_te8", Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6, Round::kTe8),
       Axis::kRows},
      {"e2m1_ich_p2", Make(Elem::kE2M1, Block::kInputChannel, ScaleRule::kP2, 6)},
      {"e4m3_och_rows_cur", Make(Elem::kE4M3, Block::kOutputChannel, ScaleRule::kCurrent, 448),
       Axis::kRows},
  };
}

float RoundOne(const Quant& quant, float y, const QuantizeContext& c, uint64_t element) {
  if (quant.elem == Elem::kBf16) return y;
  if (quant.elem == Elem::kInt8) {
    const double a = std::min(127.0, std::fabs(static_cast<double>(y)));
    const double draw = formats::RandomWord(c.seed, c.step, c.stream, element) >> 8;
    const double up = draw < (a - std::floor(a)) * 0x1p24 ? 1 : 0;
    const double rounded = quant.round == Round::kSr24 ? std::floor(a) + up : std::nearbyint(a);
    return static_cast<float>(y < 0 && rounded != 0 ? -rounded : rounded);
  }
  const std::vector<double> magnitudes = FormatMagnitudes(quant.elem);
  using formats::TieRule;
  switch (quant.round) {
    case Round::kHalfUp:
      return formats::RoundE2M1(y, TieRule::kHalfUp);
    case Round::kAway:
      return formats::RoundE2M1(y, TieRule::kAway);
    case Round::kZero:
      return formats::RoundE2M1(y, TieRule::kZero);
    case Round::kSr24:
      return formats::RoundE2M1Sr24(y, formats::RandomWord(c.seed, c.step, c.stream, element));
    case Round::kTe8:
      return formats::RoundE2M1Te8(y, formats::RandomByte(c.seed, c.step, c.stream, element));
    case Round::kEven:
      break;
  }
  const int code = NearestCode(magnitudes, static_cast<double>(y));
  return std::copysign(static_cast<float>(magnitudes[static_cast<size_t>(code)]), y);
}

float EncOf(const Quant& quant, float amax) {
  switch (quant.scale) {
    case ScaleRule::kF32:
      return formats::ScaleF32(amax, quant.scale_max);
    case ScaleRule::kP2:
      return formats::ScaleP2(amax, quant.scale_max);
    case ScaleRule::kCurrent:
      return formats::ScaleCurrent(amax, quant.scale_max, false);
    case ScaleRule::kCurrentP2:
      return formats::ScaleCurrent(amax, quant.scale_max, true);
    default:
      return 1.0f;
  }
}

// Which scale group an element belongs to.
enum class Grouping { kAll, kRow, kColumn };
Grouping GroupingOf(const Quant& quant, Axis contraction) {
  if (quant.block == Block::kTensor) return Grouping::kAll;
  const bool column = quant.block == Block::kInputChannel ||
                      (quant.block == Block::kOutputChannel && contraction == Axis::kRows);
  return column ? Grouping::kColumn : Grouping::kRow;
}

// bf16(source), clamped when the quantizer says so: by sorting.
Values SlowClamp(const Quant& quant, const Values& x, int64_t rows) {
  Values clamped = x;
  const int64_t groups = quant.pre.scope == OccScope::kToken ? rows : 1;
  const int64_t length = static_cast<int64_t>(x.size()) / groups;
  for (int64_t g = 0; quant.pre.enabled && g < groups; ++g) {
    const auto begin = x.begin() + g * length;
    Values sorted(begin, begin + length);
    std::sort(sorted.begin(), sorted.end());
    const formats::QuantileIndices index = formats::OccIndices(quant.pre.alpha, length);
    for (int64_t i = 0; i < length; ++i) {
      float& value = clamped[static_cast<size_t>(g * length + i)];
      value = std::min(std::max(value, sorted[static_cast<size_t>(index.low)]),
                       sorted[static_cast<size_t>(index.high)]);
    }
  }
  return clamped;
}

// The element value with the outlier's wide code in it.
float AddWide(float value, float clamped, float enc, float grid) {
  if (value == clamped) return grid;
  const float total = std::nearbyint(std::min(127.0f, std::max(-127.0f, value * enc * 2.0f)));
  return grid + std::min(127.0f, std::max(-127.0f, total - 2 * grid)) / 2;
}

// The whole quantizer in the plainest form: one element at a time. `fold`: what elements of the
// contraction axis are divided by, empty when nothing is folded.
Values SlowDecode(const Quant& quant, const QuantizeContext& context, const Values& source,
                  int64_t rows, const Values& fold = {}) {
  const int64_t cols = static_cast<int64_t>(source.size()) / rows;
  const bool turned = context.contraction == Axis::kRows;
  Values x = source;
  for (float& v : x) v = formats::RoundBf16(v);
  Values clamped = SlowClamp(quant, x, rows);
  const auto fold_of = [&](int64_t i) {
    return fold.empty() ? 1.0f : fold[static_cast<size_t>(turned ? i / cols : i % cols)];
  };
  float residual_amax = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    residual_amax = std::max(residual_amax, std::fabs(x[i] - clamped[i]));
    clamped[i] /= fold_of(static_cast<int64_t>(i));
  }
  const float residual_enc = formats::ScaleP2(residual_amax, 448.0f);
  const Grouping grouping = GroupingOf(quant, context.contraction);
  const auto group_of = [&](int64_t i) {
    return grouping == Grouping::kAll ? 0 : (grouping == Grouping::kRow ? i / cols : i % cols);
  };
  Values amax(static_cast<size_t>(std::max(rows, cols)));
  for (size_t i = 0; i < x.size(); ++i) {
    float& largest = amax[static_cast<size_t>(group_of(static_cast<int64_t>(i)))];
    largest = std::max(largest, std::fabs(clamped[i]));
  }
  Values decoded(x.size());
  for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) {
    const size_t at = static_cast<size_t>(i);
    const float enc = EncOf(quant, amax[static_cast<size_t>(group_of(i))]);
    const int64_t element = turned ? i % cols * rows + i / cols : i;
    float grid = RoundOne(quant, clamped[at] * enc, context, static_cast<uint64_t>(element));
    if (quant.pre.comp == OccComp::kWide) grid = AddWide(x[at], clamped[at], enc, grid);
    const bool multiply =
        quant.scale == ScaleRule::kCurrent || quant.scale == ScaleRule::kCurrentP2;
    decoded[at] = multiply ? grid * (1.0f / enc) : grid / enc;
    if (!fold.empty()) decoded[at] *= std::isinf(fold_of(i)) ? 0.0f : fold_of(i);
    const float residual = x[at] - clamped[at];
    if (quant.pre.comp == OccComp::kE4M3 && residual != 0) {
      decoded[at] += formats::RoundE4M3(residual * residual_enc) / residual_enc;
    } else if (quant.pre.comp == OccComp::kBf16 && residual != 0) {
      decoded[at] += formats::RoundBf16(residual);
    }
  }
  return decoded;
}

QuantizeContext ContextOf(const Case& test) {
  QuantizeContext context{0x123456789ull, 4, 17, true};
  context.contraction = test.contraction;
  return context;
}

class Quantizer : public testing::TestWithParam<Case> {};

TEST_P(Quantizer, EqualsThePlainDefinitionBitForBit) {
  const Quant& quant = GetParam().quant;
  const QuantizeContext context = ContextOf(GetParam());
  const std::unique_ptr<Backend> backend = MakeCpu();
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {13, 31}, {8, 12}, {2, 521}, {20, 1031}}) {
    const Values x = Random(1, rows * cols, 0.37f);
    Values decoded(x.size()), again(x.size());
    QuantizedTensor codes;
    Status status = backend->Quantize(quant, context, {x.data(), rows, cols}, &codes,
                                      {decoded.data(), rows, cols});
    ASSERT_TRUE(status.ok()) << status.ToString();
    const Values expected = SlowDecode(quant, context, x, rows);
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(formats::FloatBits(decoded[i]), formats::FloatBits(expected[i]))
          << i << ": " << decoded[i] << " expected " << expected[i] << " from " << x[i];
    }
    status = backend->Dequantize(codes, {again.data(), rows, cols});
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_TRUE(SameBits(decoded, again));
    EXPECT_EQ(codes.nonfinite_amax, 0);
  }
}

TEST_P(Quantizer, GivesTheSameBitsForEveryThreadCountAndInPlace) {
  const Values x = Random(2, 37 * 301);
  Values first;
  for (const int threads : {1, 2, 3}) {
    const std::unique_ptr<Backend> backend = MakeCpu(threads);
    Values decoded = x;
    QuantizedTensor codes;
    const TensorView view{decoded.data(), 37, 301};
    const QuantizeContext context = ContextOf(GetParam());
    ASSERT_TRUE(backend->Quantize(GetParam().quant, context, view, &codes, view).ok());
    if (threads == 1) first = decoded;
    EXPECT_TRUE(SameBits(decoded, first)) << threads;
  }
}

TEST_P(Quantizer, SurvivesOddInputs) {
  const Quant& quant = GetParam().quant;
  const std::unique_ptr<Backend> backend = MakeCpu();
  for (const float odd : {kNan, kInf, -kInf, 0.0f, 1e-45f, 3.4e38f}) {
    Values x(3 * 20, odd == 0.0f || odd == 1e-45f ? odd : 1.0f);
    x[5] = odd;
    Values decoded(x.size());
    QuantizedTensor codes;
    const Status status = backend->Quantize(quant, ContextOf(GetParam()), {x.data(), 3, 20}, &codes,
                                            {decoded.data(), 3, 20});
    ASSERT_TRUE(status.ok()) << status.ToString();
    const bool poison = !std::isfinite(formats::RoundBf16(odd));
    const bool clamped_away = quant.pre.enabled && quant.pre.comp == OccComp::kNone;
    if (quant.has_scale() && poison && !(clamped_away && !std::isnan(odd))) {
      EXPECT_GE(codes.nonfinite_amax, 1) << odd;
      const float enc = static_cast<const float*>(codes.enc.data())[codes.per_column() ? 5 : 0];
      EXPECT_TRUE(quant.pre.enabled ? std::isfinite(enc) : enc == 1.0f) << enc;
    }
    for (const float value : decoded) {
      if (!poison) {
        EXPECT_TRUE(std::isfinite(value)) << odd;
      }
    }
    if (odd == 0.0f) {
      for (const float value : decoded) EXPECT_EQ(value, 0.0f);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, Quantizer, testing::ValuesIn(AllCases()),
                         [](const testing::TestParamInfo<Case>& info) { return info.param.name; });

// Folding: the scales of codes of another operand go into this one first.
class Folding : public testing::TestWithParam<Case> {};

TEST_P(Folding, DividesByTheOtherOperandsScales) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 1}, {7, 3}, {8, 12}, {31, 13}, {12, 1031}}) {
    const int64_t depth = GetParam().contraction == Axis::kRows ? rows : cols;
    Values other = Random(7, depth * 5, 0.2f);
    if (depth > 2) std::fill_n(other.begin() + 10, 5, 0.0f);  // a row of zeros has no scale
    QuantizedTensor other_codes;
    const Quant other_quant = WithOcc(Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6), 0.9,
                                      OccScope::kTensor, OccComp::kWide);
    ASSERT_TRUE(
        backend->Quantize(other_quant, {}, {other.data(), depth, 5}, &other_codes, {}).ok());
    const float* enc = static_cast<const float*>(other_codes.enc.data());
    Values fold(enc, enc + depth);
    if (depth > 2) fold[2] = kInf;
    QuantizeContext context = ContextOf(GetParam());
    context.fold = &other_codes;
    const Values x = Random(1, rows * cols, 0.37f);
    Values decoded(x.size()), again(x.size());
    QuantizedTensor codes;
    Status status = backend->Quantize(GetParam().quant, context, {x.data(), rows, cols}, &codes,
                                      {decoded.data(), rows, cols});
    ASSERT_TRUE(status.ok()) << status.ToString();
    const Values expected = SlowDecode(GetParam().quant, context, x, rows, fold);
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(formats::FloatBits(decoded[i]), formats::FloatBits(expected[i])) << i;
    }
    ASSERT_TRUE(backend->Dequantize(codes, {again.data(), rows, cols}).ok());
    EXPECT_TRUE(SameBits(decoded, again));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cpu, Folding,
    testing::Values(
        Case{"e2m1_rows",
             Make(Elem::kE2M1, Block::kOutputChannel, ScaleRule::kF32, 6, Round::kSr24),
             Axis::kRows},
        Case{"e2m1_cols", Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6, Round::kSr24)},
        Case{"int8_rows",
             Make(Elem::kInt8, Block::kOutputChannel, ScaleRule::kF32, 127, Round::kSr24),
             Axis::kRows},
        Case{"int8_cols", Make(Elem::kInt8, Block::kToken, ScaleRule::kF32, 127, Round::kSr24)},
        Case{"e4m3_rows", Make(Elem::kE4M3, Block::kOutputChannel, ScaleRule::kF32, 448),
             Axis::kRows},
        Case{"e4m3_cols", Make(Elem::kE4M3, Block::kToken, ScaleRule::kF32, 448)},
        Case{"e2m1_tensor_rows", Make(Elem::kE2M1, Block::kTensor, ScaleRule::kF32, 6),
             Axis::kRows}),
    [](const testing::TestParamInfo<Case>& info) { return info.param.name; });

bool SameContent(const QuantizedTensor& a, const QuantizedTensor& b) {
  return a.size_bytes() == b.size_bytes() && a.nonfinite_amax == b.nonfinite_amax &&
         std::memcmp(a.codes.data(), b.codes.data(),
                     static_cast<size_t>(a.rows * a.code_row_bytes())) == 0 &&
         std::memcmp(a.enc.data(), b.enc.data(), static_cast<size_t>(a.scale_count() * 4)) == 0;
}

TEST(Quantize, BothCopiesOfTheGradientEqualTwoCalls) {
  const int64_t rows = 20, cols = 1031;
  const Values x = Random(1, rows * cols, 1e-4f), w = Random(2, cols * 8), a = Random(3, rows * 8);
  for (const auto& [elem, max] :
       {std::pair<Elem, float>{Elem::kE2M1, 6.0f}, {Elem::kInt8, 127.0f}}) {
    for (const int threads : {1, 3}) {
      const std::unique_ptr<Backend> backend = MakeCpu(threads);
      const Quant plain = Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6);
      QuantizedTensor weight, input, gd, gw, gd_alone, gw_alone;
      ASSERT_TRUE(backend->Quantize(plain, {}, {w.data(), cols, 8}, &weight, {}).ok());
      ASSERT_TRUE(backend->Quantize(plain, {}, {a.data(), rows, 8}, &input, {}).ok());
      const Quant dgrad = Make(elem, Block::kToken, ScaleRule::kF32, max, Round::kSr24);
      const Quant wgrad = Make(elem, Block::kOutputChannel, ScaleRule::kF32, max, Round::kSr24);
      QuantizeContext first{11, 2, 5, true}, second{11, 2, 6, true};
      first.fold = &weight;
      second.fold = &input;
      second.contraction = Axis::kRows;
      const ConstTensorView dy(x.data(), rows, cols);
      ASSERT_TRUE(backend->QuantizeBoth(dgrad, first, wgrad, second, dy, &gd, &gw).ok());
      ASSERT_TRUE(backend->Quantize(dgrad, first, dy, &gd_alone, {}).ok());
      ASSERT_TRUE(backend->Quantize(wgrad, second, dy, &gw_alone, {}).ok());
      EXPECT_TRUE(SameContent(gd, gd_alone));
      EXPECT_TRUE(SameContent(gw, gw_alone));
    }
  }
}

TEST(Quantize, FoldingRefusesScalesThatDoNotFit) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const Values x = Random(1, 12), w = Random(2, 6);
  const Quant quant = Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6);
  QuantizedTensor weight, codes;
  ASSERT_TRUE(backend->Quantize(quant, {}, {w.data(), 3, 2}, &weight, {}).ok());
  QuantizeContext context;
  context.fold = &weight;
  const Status status = backend->Quantize(quant, context, {x.data(), 3, 4}, &codes, {});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("(3, 2) codes cannot be folded into 4"), std::string::npos)
      << status.message();
}

TEST(Quantize, ScalesByPowersOfTwoAreEquivariant) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const Quant quant = Make(Elem::kE2M1, Block::kToken, ScaleRule::kP2, 6);
  Values x = Random(3, 5 * 64), y = x;
  for (float& v : y) v *= 0x1p-20f;
  Values dx(x.size()), dy(x.size());
  QuantizedTensor codes;
  ASSERT_TRUE(backend->Quantize(quant, {}, {x.data(), 5, 64}, &codes, {dx.data(), 5, 64}).ok());
  ASSERT_TRUE(backend->Quantize(quant, {}, {y.data(), 5, 64}, &codes, {dy.data(), 5, 64}).ok());
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(dx[i] * 0x1p-20f, dy[i]);
}

TEST(Quantize, RefusesWhatHasNoCodesAndWrongShapes) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  Values x(12), out(12);
  QuantizedTensor codes;
  Quant quant;
  quant.elem = Elem::kF32;
  EXPECT_EQ(backend->Quantize(quant, {}, {x.data(), 3, 4}, &codes, {out.data(), 3, 4}).code(),
            StatusCode::kInvalidArgument);
  quant = Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6);
  EXPECT_EQ(backend->Quantize(quant, {}, {x.data(), 3, 4}, &codes, {out.data(), 4, 3}).code(),
            StatusCode::kInvalidArgument);
  QuantizeContext scales_only;
  scales_only.keep_codes = false;
  ASSERT_TRUE(backend->Quantize(quant, scales_only, {x.data(), 3, 4}, &codes, {}).ok());
  EXPECT_EQ(backend->Dequantize(codes, {out.data(), 3, 4}).code(), StatusCode::kFailedPrecondition);
}

TEST(Quantize, HoldsTheBytesItReports) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const Values x = Random(4, 64 * 101);
  QuantizedTensor codes;
  const Quant quant = WithOcc(Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6), 0.99,
                              OccScope::kTensor, OccComp::kE4M3);
  ASSERT_TRUE(backend->Quantize(quant, {}, {x.data(), 64, 101}, &codes, {}).ok());
  EXPECT_GT(codes.residual_count, 0);
  EXPECT_EQ(codes.size_bytes(), 64 * 51 + 64 * 4 + 65 * 4 + codes.residual_count * 5);
}

// Kernels for narrower codes rely on it.
TEST(Quantize, TellsTheLargestCodeWithWideOutliers) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const Quant quant = WithOcc(Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6), 0.99,
                              OccScope::kTensor, OccComp::kWide);
  for (const float outlier : {1.0f, 8.0f, -1e6f}) {
    Values x = Random(5, 64 * 101);
    x[777] *= outlier;
    QuantizedTensor codes;
    Values decoded(x.size());
    ASSERT_TRUE(
        backend->Quantize(quant, {}, {x.data(), 64, 101}, &codes, {decoded.data(), 64, 101}).ok());
    const float* enc = static_cast<const float*>(codes.enc.data());
    float largest = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      largest = std::max(largest, std::fabs(decoded[i]) * enc[i / 101] * 2.0f);
    }
    EXPECT_GT(codes.wide_max, 12);
    EXPECT_EQ(codes.wide_max, static_cast<int>(std::lround(largest)));
  }
}

TEST(Health, CountsUnderflowSaturationAndError) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  // One row, scale 1: .1 underflows, the rest is exact but 3.5, which becomes 4.
  const Values x = {6.0f, 0.1f, 0.0f, -2.0f, 3.5f, 1.0f};
  Values decoded(x.size());
  QuantizedTensor codes;
  Quant quant = Make(Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6);
  ASSERT_TRUE(backend->Quantize(quant, {}, {x.data(), 1, 6}, &codes, {decoded.data(), 1, 6}).ok());
  Result<QuantizationHealth> health =
      backend->MeasureHealth({x.data(), 1, 6}, codes, {decoded.data(), 1, 6});
  ASSERT_TRUE(health.ok()) << health.status().ToString();
  const double tiny = static_cast<double>(formats::RoundBf16(0.1f));
  EXPECT_EQ(health->elements, 6);
  EXPECT_DOUBLE_EQ(health->underflow_share, 1.0 / 6);
  EXPECT_EQ(health->saturation_share, 0);
  EXPECT_NEAR(health->mse, (0.25 + tiny * tiny) / 6, 1e-12);
  const double power = 36 + tiny * tiny + 4 + 12.25 + 1;
  EXPECT_NEAR(health->snr_db, 10 * std::log10(power / (0.25 + tiny * tiny)), 1e-9);
  EXPECT_GT(health->cosine, 0.99);
  EXPECT_EQ(health->scale_min, 1);
  EXPECT_EQ(health->scale_max, 1);
  EXPECT_EQ(health->size_bytes, 3 + 4);

  quant = WithOcc(quant, 0.8, OccScope::kTensor, OccComp::kNone);
  ASSERT_TRUE(backend->Quantize(quant, {}, {x.data(), 1, 6}, &codes, {decoded.data(), 1, 6}).ok());
  health = backend->MeasureHealth({x.data(), 1, 6}, codes, {decoded.data(), 1, 6});
  ASSERT_TRUE(health.ok());
  EXPECT_DOUBLE_EQ(health->saturation_share, 1.0 / 6);  // 6 lies beyond 3.5, the largest code
}

// Bounds of outliers are exact whether the guess from a sample was good or not.
TEST(Quantize, ClampingBoundsOfLargeTensorsAreThoseOfSorting) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const int64_t rows = 256, cols = 300;
  const auto zeros_but = [&](int64_t every) {
    Values x(static_cast<size_t>(rows * cols));
    for (size_t i = 0; i < x.size(); i += static_cast<size_t>(every)) {
      x[i] = static_cast<float>(i % 17) - 8.0f;
    }
    return x;
  };
  Values poisoned = Random(5, rows * cols);
  for (size_t i = 0; i < poisoned.size(); i += 50) poisoned[i] = kNan;
  Values ramp(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < ramp.size(); ++i) ramp[i] = static_cast<float>(i);
  for (const Values& x : {Random(4, rows * cols), zeros_but(3), zeros_but(97), poisoned, ramp}) {
    for (const double alpha : {0.999, 0.99, 0.97, 0.9}) {
      const Quant quant = WithOcc(Make(Elem::kE2M1, Block::kTensor, ScaleRule::kF32, 6), alpha,
                                  OccScope::kTensor, OccComp::kBf16);
      QuantizedTensor codes;
      ASSERT_TRUE(backend->Quantize(quant, {}, {x.data(), rows, cols}, &codes, {}).ok());
      std::vector<uint16_t> keys;
      for (const float v : x) keys.push_back(formats::Bf16OrderKey(formats::ToBf16(v)));
      std::sort(keys.begin(), keys.end());
      const auto index = formats::OccIndices(alpha, rows * cols);
      const auto value = [&](int64_t i) {
        return formats::FromBf16(formats::Bf16FromOrderKey(keys[static_cast<size_t>(i)]));
      };
      int64_t outside = 0;
      for (const float v : x) {
        const float rounded = formats::RoundBf16(v);
        outside += rounded < value(index.low) || rounded > value(index.high) ? 1 : 0;
      }
      EXPECT_EQ(codes.residual_count, outside) << alpha;
      const float amax = std::max(std::fabs(value(index.low)), std::fabs(value(index.high)));
      const float enc = static_cast<const float*>(codes.enc.data())[0];
      EXPECT_EQ(enc, std::any_of(x.begin(), x.end(), [](float v) { return std::isnan(v); })
                         ? 1.0f
                         : formats::ScaleF32(amax, 6.0f))
          << alpha;
    }
  }
}

TEST(DgeAccumulate, MultipliesTheFinishedGradient) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  Values w = Random(5, 3 * 600, 0.02f);
  const Values g = Random(6, 3 * 600);
  // A row without a scale (enc 1): NaN stays NaN, what lies beyond the grid has no gradient.
  w[1200] = -kNan;
  w[1201] = -7.0f;
  w[1202] = kInf;
  w[1203] = -2.25f;
  Values gradient(w.size(), 0.5f);
  QuantizedTensor codes;
  const Quant quant = Make(Elem::kE2M1, Block::kOutputChannel, ScaleRule::kF32, 6);
  ASSERT_TRUE(backend->Quantize(quant, {}, {w.data(), 3, 600}, &codes, {}).ok());
  WeightEstimator estimator;
  estimator.kind = Estimator::kDge;
  ASSERT_TRUE(backend
                  ->DgeAccumulate(estimator, {g.data(), 3, 600}, {w.data(), 3, 600}, codes,
                                  {gradient.data(), 3, 600})
                  .ok());
  for (size_t i = 0; i < w.size(); ++i) {
    const float enc = static_cast<const float*>(codes.enc.data())[i / 600];
    if (i == 1200) {
      EXPECT_TRUE(std::isnan(gradient[i]));
      continue;
    }
    // The largest weight of a row lies on 6, whatever the roundings of its scale.
    const float a = std::fabs(formats::RoundBf16(w[i]) * enc);
    const float scaled = a < 6.00001f ? std::min(a, 6.0f) : a;
    EXPECT_EQ(gradient[i], 0.5f + g[i] * formats::DgeDerivative(scaled, 0.2, 3.0)) << w[i];
  }
}

}  // namespace
}  // namespace nibble
