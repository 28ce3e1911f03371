// SPDX-License-Identifier: Apache-2.0
//
// Group quantizers and rotations on the CPU backend: properties that hold for every rule.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/group_loops.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"
#include "tests/ops/group_quant.h"

namespace nibble {
namespace {

using Values = std::vector<float>;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Values Random(uint32_t stream, int64_t size) {
  Values x(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t word = formats::RandomWord(9, 0, stream, static_cast<uint64_t>(i));
    const float uniform = static_cast<float>(word >> 8) * 0x1p-23f - 1.0f;
    x[static_cast<size_t>(i)] = formats::RoundBf16(uniform * (i % 41 == 3 ? 9.0f : 1.0f));
  }
  return x;
}

std::unique_ptr<Backend> MakeCpu(int threads) {
  BackendOptions options;
  options.threads = threads;
  Result<std::unique_ptr<Backend>> made = MakeBackend("cpu", options);
  EXPECT_TRUE(made.ok()) << made.status().ToString();
  return std::move(*made);
}

struct Case {
  std::string name;
  Quant quant;
};

// One row of the published recipes each, and every axis at least once.
std::vector<Case> Cases() {
  const Elem e2m1 = Elem::kE2M1;
  const Block row = Block::kGroup;
  std::vector<Case> cases = {
      {"mx", GroupQuant(e2m1, row, 32, ScaleRule::kE8Floor, 6)},
      {"mx_up_te8", GroupQuant(e2m1, row, 32, ScaleRule::kE8Up, 6, Round::kTe8)},
      {"mxfp8", GroupQuant(Elem::kE4M3, row, 32, ScaleRule::kE8Up, 448)},
      {"mx_e3m0", GroupQuant(Elem::kE3M0, row, 32, ScaleRule::kE8Floor, 16)},
      {"nv", GroupQuant(e2m1, row, 16, ScaleRule::kNv, 448)},
      {"nv_sr", GroupQuant(e2m1, row, 16, ScaleRule::kNv, 448, Round::kSr24)},
      {"nv_tile", GroupQuant(e2m1, Block::kTile, 16, ScaleRule::kNv, 448)},
      {"nv_tile_sr", GroupQuant(e2m1, Block::kTile, 16, ScaleRule::kNv, 448, Round::kSr24)},
      {"nv_simulated", GroupQuant(e2m1, row, 16, ScaleRule::kNv, 448, Round::kAway)},
      {"u53", GroupQuant(e2m1, row, 16, ScaleRule::kU53, 448)},
      {"a34", GroupQuant(e2m1, row, 32, ScaleRule::kA34, 6, Round::kSr24)},
      {"quartet", GroupQuant(e2m1, row, 32, ScaleRule::kQuartet, 6)},
      {"quest", GroupQuant(Elem::kInt4C, Block::kToken, 0, ScaleRule::kQuest, 0)},
      {"fp8_block", GroupQuant(Elem::kE4M3, row, 128, ScaleRule::kCurrentP2, 448)},
      {"fp8_tile", GroupQuant(Elem::kE4M3, Block::kTile, 128, ScaleRule::kCurrentP2, 448)},
      {"zhou", GroupQuant(e2m1, row, 128, ScaleRule::kF32, 6)},
      {"e1m2_token", GroupQuant(Elem::kE1M2, Block::kToken, 0, ScaleRule::kF32, 3.5f)},
      {"int4_channel", GroupQuant(Elem::kInt4, Block::kInputChannel, 0, ScaleRule::kP2, 7)},
      {"int8_groups", GroupQuant(Elem::kInt8, row, 64, ScaleRule::kF32, 127, Round::kSr24)},
      {"e5m2_sr", GroupQuant(Elem::kE5M2, Block::kTensor, 0, ScaleRule::kP2, 57344, Round::kSr24)},
      {"recast", GroupQuant(e2m1, Block::kInputChannel, 0, ScaleRule::kP2, 6, Round::kHalfUp)},
      {"outer128", GroupQuant(e2m1, row, 16, ScaleRule::kNv, 448)},
      {"four_six_mse", GroupQuant(e2m1, row, 16, ScaleRule::kNv, 256)},
      {"four_six_max_tile", GroupQuant(e2m1, Block::kTile, 16, ScaleRule::kNv, 256)},
      {"eden", GroupQuant(e2m1, row, 16, ScaleRule::kEden, 256)},
      {"eden_simulated", GroupQuant(e2m1, row, 16, ScaleRule::kEden, 255.99f, Round::kAway)},
  };
  for (Case& test : cases) {
    Quant& quant = test.quant;
    if (test.name == "quartet") quant.mask = Mask::kBelow6;
    if (test.name == "quest") {
      quant.mask = Mask::kTrust;
      quant.scale_factor = 2.5139306f;
    }
    if (test.name == "recast") quant.recast_e4m3 = true;
    if (test.name == "outer128") quant.outer = Outer::k128;
    if (test.name == "four_six_mse") quant.alternatives = {{6, 4}, ErrorMetric::kMse};
    if (test.name == "four_six_max_tile") quant.alternatives = {{6, 4}, ErrorMetric::kMax};
    if (quant.scale == ScaleRule::kEden) {
      quant.scale_factor = 0.988125f;
      quant.correction_group = test.name == "eden" ? 16 : 128;
      quant.scale_round = ScaleRound::kStochastic;
    }
  }
  return cases;
}

struct Outcome {
  Values decoded;
  std::vector<uint8_t> codes, mask;
  int64_t nonfinite = 0;
};

std::vector<uint8_t> Bytes(const Buffer& buffer, int64_t n) {
  const uint8_t* data = static_cast<const uint8_t*>(buffer.data());
  return {data, data + n};
}

Outcome Quantized(Backend& backend, const Quant& quant, Axis contraction, const Values& x,
                  int64_t rows) {
  const int64_t cols = static_cast<int64_t>(x.size()) / rows;
  QuantizeContext context;
  context.seed = 5;
  context.stream = 3;
  context.contraction = contraction;
  QuantizedTensor q;
  Outcome out;
  out.decoded.resize(x.size());
  Status status = backend.Quantize(quant, context, {x.data(), rows, cols}, &q,
                                   {out.decoded.data(), rows, cols});
  EXPECT_TRUE(status.ok()) << status.ToString();
  Values again(x.size());
  status = backend.Dequantize(q, {again.data(), rows, cols});
  EXPECT_TRUE(status.ok()) << status.ToString();
  for (size_t i = 0; i < again.size(); ++i) {
    const bool both_nan = std::isnan(again[i]) && std::isnan(out.decoded[i]);
    EXPECT_TRUE(both_nan || std::memcmp(&again[i], &out.decoded[i], sizeof(float)) == 0)
        << i << " " << again[i] << " " << out.decoded[i];
  }
  out.codes = Bytes(q.codes, rows * q.code_row_bytes());
  if (q.has_mask) out.mask = Bytes(q.mask, rows * cols);
  out.nonfinite = q.nonfinite_amax;
  // In place gives the same.
  Values in_place = x;
  status = backend.Quantize(quant, context, {in_place.data(), rows, cols}, &q,
                            {in_place.data(), rows, cols});
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(std::memcmp(in_place.data(), out.decoded.data(), x.size() * sizeof(float)), 0);
  return out;
}

Values Turned(const Values& x, int64_t rows) {
  const size_t r = static_cast<size_t>(rows), c = x.size() / r;
  Values out(x.size());
  for (size_t i = 0; i < r; ++i) {
    for (size_t j = 0; j < c; ++j) out[j * r + i] = x[i * c + j];
  }
  return out;
}

class Groups : public testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<Backend> backend_ = MakeCpu(2);
};

TEST_P(Groups, DoNotDependOnTheNumberOfThreads) {
  const Values x = Random(1, 96 * 272);
  const std::unique_ptr<Backend> one = MakeCpu(1);
  const Outcome a = Quantized(*backend_, GetParam().quant, Axis::kCols, x, 96);
  const Outcome b = Quantized(*one, GetParam().quant, Axis::kCols, x, 96);
  EXPECT_EQ(a.decoded, b.decoded);
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.mask, b.mask);
}

// Contraction over rows means: as if x were transposed. A token and an input channel are a row and
// a column either way, so there the transposed operand has the other block.
TEST_P(Groups, ContractionOverRowsIsTheTransposedTensor) {
  const Values x = Random(2, 80 * 144);
  Quant turned_quant = GetParam().quant;
  if (turned_quant.block == Block::kToken) {
    turned_quant.block = Block::kInputChannel;
  } else if (turned_quant.block == Block::kInputChannel) {
    turned_quant.block = Block::kToken;
  }
  const Outcome natural = Quantized(*backend_, GetParam().quant, Axis::kCols, x, 80);
  const Outcome turned = Quantized(*backend_, turned_quant, Axis::kRows, Turned(x, 80), 144);
  EXPECT_EQ(Turned(natural.decoded, 80), turned.decoded);
}

TEST_P(Groups, SizesThatNoBlockDivides) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>(1, 1), {3, 5}, {17, 19}, {33, 131}}) {
    const Values x = Random(4, rows * cols);
    // One value has no deviation to scale by.
    if (rows * cols == 1 && GetParam().quant.scale == ScaleRule::kQuartet) continue;
    for (const Axis axis : {Axis::kCols, Axis::kRows}) {
      const Outcome out = Quantized(*backend_, GetParam().quant, axis, x, rows);
      double error = 0, norm = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        error += std::pow(static_cast<double>(out.decoded[i] - x[i]), 2);
        norm += std::pow(static_cast<double>(x[i]), 2);
      }
      EXPECT_LT(error, 0.35 * norm) << rows << "x" << cols;
    }
  }
}

// Zeros stay zero (the centred integers have none), subnormals and huge values stay finite, and a
// NaN or Inf is counted and spoils no group but its own, a tensor-wide scale apart.
TEST_P(Groups, OddValues) {
  const Quant& quant = GetParam().quant;
  const int64_t rows = 32, cols = 256;
  const Outcome zeros = Quantized(*backend_, quant, Axis::kCols, Values(8192, 0.0f), rows);
  EXPECT_EQ(zeros.nonfinite, 0);
  for (const float value : zeros.decoded) ASSERT_LE(std::fabs(value), 1e-9f);
  for (const float scale : {1e-39f, 1e-30f, 1e37f}) {
    Values x = Random(5, rows * cols);
    for (float& value : x) value = formats::RoundBf16(value * scale);
    const Outcome out = Quantized(*backend_, quant, Axis::kCols, x, rows);
    EXPECT_EQ(out.nonfinite, 0);
    for (const float value : out.decoded) ASSERT_TRUE(std::isfinite(value)) << scale;
  }
  for (const float bad : {kNan, kInf, -kInf}) {
    Values x = Random(6, rows * cols);
    x[300] = bad;
    EXPECT_GE(Quantized(*backend_, quant, Axis::kCols, x, rows).nonfinite, 1) << bad;
  }
}

std::string NameOf(const testing::TestParamInfo<Case>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Rules, Groups, testing::ValuesIn(Cases()), NameOf);

class GroupRules : public testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = MakeCpu(2);
};

TEST_F(GroupRules, PowersOfTwoPassThrough) {
  const Values x = Random(7, 64 * 128);
  for (const Case& test : Cases()) {
    const ScaleRule rule = test.quant.scale;
    if (rule != ScaleRule::kP2 && rule != ScaleRule::kE8Floor && rule != ScaleRule::kE8Up &&
        rule != ScaleRule::kA34 && rule != ScaleRule::kNv) {
      continue;
    }
    const Outcome base = Quantized(*backend_, test.quant, Axis::kCols, x, 64);
    for (const float factor : {0x1p-20f, 0x1p15f}) {
      Values scaled = x;
      for (float& value : scaled) value *= factor;
      Outcome out = Quantized(*backend_, test.quant, Axis::kCols, scaled, 64);
      EXPECT_EQ(out.codes, base.codes) << test.name;
      for (float& value : out.decoded) value /= factor;
      EXPECT_EQ(out.decoded, base.decoded) << test.name;
    }
  }
}

// Element i draws word i, or byte i, of its stream, wherever a run of them starts.
TEST(RandomWords, AreThoseOfTheirElements) {
  QuantizeContext context;
  context.seed = 3;
  context.step = 4;
  context.stream = 5;
  for (const int64_t first : {0, 1, 6, 511, 4097}) {
    for (const int64_t stride : {1, 7}) {
      for (const int64_t n : {1, 5, 16, 512}) {
        std::vector<uint32_t> words(static_cast<size_t>(n)), bytes(words);
        cpu::RandomWords(context, Round::kSr24, first, stride, words.data(), n);
        cpu::RandomWords(context, Round::kTe8, first, stride, bytes.data(), n);
        for (int64_t i = 0; i < n; ++i) {
          const uint64_t element = static_cast<uint64_t>(first + i * stride);
          ASSERT_EQ(words[static_cast<size_t>(i)], formats::RandomWord(3, 4, 5, element));
          ASSERT_EQ(bytes[static_cast<size_t>(i)], formats::RandomByte(3, 4, 5, element));
        }
      }
    }
  }
}

// Tokens are independent in fprop: their order permutes the codes of Xf. In wgrad they share
// groups, so the order changes what X decodes to.
TEST_F(GroupRules, PermutingTokensPermutesXfButChangesXw) {
  constexpr int64_t kTokens = 64, kWidth = 48;
  const Values x = Random(23, kTokens * kWidth);
  for (const char* name : {"mxfp4_plain", "nvfp4_te", "te_mxfp8", "ue5m3", "te_fp8_block"}) {
    const LinearRecipe recipe = FindRecipe(name)->linear;
    // Row t of the permuted tensor is row 37 t + 5 of x.
    const auto permuted = [&](const Values& values) {
      Values out;
      for (int64_t t = 0; t < kTokens; ++t) {
        const int64_t from = (37 * t + 5) % kTokens;
        out.insert(out.end(), values.begin() + from * kWidth, values.begin() + (from + 1) * kWidth);
      }
      return out;
    };
    Quant xf = recipe.slot(Slot::kXf), xw = recipe.slot(Slot::kXw);
    xf.hold = xw.hold = 1;
    xw.rotation = {};
    const Outcome plain = Quantized(*backend_, xf, Axis::kCols, x, kTokens);
    const Outcome moved = Quantized(*backend_, xf, Axis::kCols, permuted(x), kTokens);
    EXPECT_EQ(moved.decoded, permuted(plain.decoded)) << name;
    if (xw.elem != Elem::kE2M1) continue;  // powers of two leave FP8 values where they are
    const Outcome plain_w = Quantized(*backend_, xw, Axis::kRows, x, kTokens);
    const Outcome moved_w = Quantized(*backend_, xw, Axis::kRows, permuted(x), kTokens);
    EXPECT_NE(moved_w.decoded, permuted(plain_w.decoded)) << name;
  }
}

TEST_F(GroupRules, NvScaleCodesSurviveRepeatedQuantization) {
  const Values x = Random(8, 32 * 64);
  const Quant quant = GroupQuant(Elem::kE2M1, Block::kGroup, 16, ScaleRule::kNv, 448);
  const Outcome once = Quantized(*backend_, quant, Axis::kCols, x, 32);
  const Outcome twice = Quantized(*backend_, quant, Axis::kCols, once.decoded, 32);
  EXPECT_EQ(once.codes, twice.codes);
}

// Scales drawn after an EDEN correction keep the product with the source unbiased (arXiv
// 2601.22813): over many draws the mean of <x, q> comes closer to <x, x> than nearest scales do.
TEST_F(GroupRules, EdenIsNearlyUnbiased) {
  Values x = Random(10, 64 * 128);
  const int64_t n = 128;
  Status status =
      backend_->Rotate({128, Signs::kFresh}, {}, false, {x.data(), 64, n}, {x.data(), 64, n});
  ASSERT_TRUE(status.ok());
  double norm = 0;
  for (const float value : x) norm += static_cast<double>(value) * static_cast<double>(value);
  Quant quant = Cases()[24].quant;
  ASSERT_EQ(quant.correction_group, 16);
  double product = 0;
  constexpr int kDraws = 64;
  for (int draw = 0; draw < kDraws; ++draw) {
    QuantizeContext context;
    context.step = static_cast<uint32_t>(draw);
    context.round_source = false;
    QuantizedTensor q;
    Values decoded(x.size());
    status = backend_->Quantize(quant, context, {x.data(), 64, n}, &q, {decoded.data(), 64, n});
    ASSERT_TRUE(status.ok()) << status.ToString();
    for (size_t i = 0; i < x.size(); ++i) {
      product += static_cast<double>(x[i]) * static_cast<double>(decoded[i]);
    }
  }
  EXPECT_NEAR(product / kDraws / norm, 1.0, 1e-3);
}

TEST_F(GroupRules, WindowsScaleInTimeFirstAndThenFromThePast) {
  Quant quant = GroupQuant(Elem::kE4M3, Block::kTensor, 0, ScaleRule::kP2, 448);
  quant.window = 2;
  AmaxHistory history;
  QuantizeContext context;
  context.history = &history;
  const auto enc_of = [&](float amax) {
    const Values x = {amax, 0.5f};
    QuantizedTensor q;
    EXPECT_TRUE(backend_->Quantize(quant, context, {x.data(), 1, 2}, &q, {}).ok());
    return static_cast<const float*>(q.enc.data())[0];
  };
  EXPECT_EQ(enc_of(448), 1);
  EXPECT_EQ(enc_of(3.5f), 128);
  EXPECT_EQ(enc_of(1), 1);       // the past two: 448, 3.5
  EXPECT_EQ(enc_of(1), 128);     // 3.5, 1
  EXPECT_EQ(enc_of(kInf), 256);  // 1, 1
  EXPECT_EQ(enc_of(1), 256);     // an infinite amax keeps the scale

  quant.scale = ScaleRule::kDelayed;
  quant.window = 4;
  history = AmaxHistory();
  EXPECT_EQ(enc_of(7), 1);   // nothing known yet
  EXPECT_EQ(enc_of(2), 64);  // 448 / 7
  EXPECT_EQ(enc_of(2), 64);
  EXPECT_EQ(enc_of(2), 64);
  EXPECT_EQ(enc_of(2), 64);
  EXPECT_EQ(enc_of(2), 224);  // 7 has left the history of four
}

TEST_F(GroupRules, FallsBackToBf16AboveTheError) {
  const Values x = Random(11, 16 * 64);
  Quant quant = GroupQuant(Elem::kE2M1, Block::kGroup, 32, ScaleRule::kE8Up, 6);
  QuantizedTensor q;
  Values decoded(x.size());
  for (const double limit : {0.5, 1e-3}) {
    quant.fallback_error = limit;
    ASSERT_TRUE(
        backend_->Quantize(quant, {}, {x.data(), 16, 64}, &q, {decoded.data(), 16, 64}).ok());
    EXPECT_EQ(q.elem, limit == 0.5 ? Elem::kE2M1 : Elem::kBf16);
    EXPECT_EQ(decoded == x, limit != 0.5);
  }
}

TEST_F(GroupRules, RefusesCombinationsWithoutMeaning) {
  const Values x = Random(12, 64);
  const auto refused = [&](Quant quant, const char* reason) {
    QuantizedTensor q;
    const Status status = backend_->Quantize(quant, {}, {x.data(), 4, 16}, &q, {});
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(reason), std::string::npos) << status.ToString();
  };
  Quant quant = GroupQuant(Elem::kE4M3, Block::kGroup, 32, ScaleRule::kA34, 6);
  refused(quant, "E2M1");
  quant = GroupQuant(Elem::kE2M1, Block::kGroup, 0, ScaleRule::kNv, 448);
  refused(quant, "group size");
  quant = GroupQuant(Elem::kE2M1, Block::kTile, 32, ScaleRule::kQuartet, 6);
  refused(quant, "one row or column");
  quant = GroupQuant(Elem::kE2M1, Block::kGroup, 32, ScaleRule::kE8Up, 6);
  quant.alternatives = {{6, 4}, ErrorMetric::kMse};
  refused(quant, "alternatives");
  quant = GroupQuant(Elem::kE2M1, Block::kGroup, 48, ScaleRule::kNv, 448);
  quant.outer = Outer::k128;
  refused(quant, "128");
  quant = GroupQuant(Elem::kInt4C, Block::kToken, 0, ScaleRule::kQuest, 0, Round::kAway);
  refused(quant, "sr24");
}

class Rotations : public GroupRules {
 protected:
  Values Rotate(const Rotation& rotation, Axis axis, bool inverse, const Values& x, int64_t rows) {
    QuantizeContext context;
    context.seed = 21;
    context.rotation_stream = 6;
    context.contraction = axis;
    const int64_t cols = static_cast<int64_t>(x.size()) / rows;
    Values out(x.size());
    const Status status = backend_->Rotate(rotation, context, inverse, {x.data(), rows, cols},
                                           {out.data(), rows, cols});
    EXPECT_TRUE(status.ok()) << status.ToString();
    return out;
  }
};

TEST_F(Rotations, TheInverseBringsTheSourceBack) {
  for (const int size : {2, 4, 16, 32, 64, 128, 256}) {
    for (const Signs signs : {Signs::kNone, Signs::kFixed, Signs::kFresh}) {
      const Values x = Random(13, 3 * 512);
      const Values y = Rotate({size, signs}, Axis::kCols, false, x, 3);
      EXPECT_NE(x, y);
      const Values back = Rotate({size, signs}, Axis::kCols, true, y, 3);
      for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(back[i], x[i], 1e-5) << size;
      if (signs == Signs::kNone) {
        const Values twice = Rotate({size, signs}, Axis::kCols, false, y, 3);
        for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(twice[i], x[i], 1e-5) << size;
      }
      EXPECT_EQ(Turned(y, 3), Rotate({size, signs}, Axis::kRows, false, Turned(x, 3), 512));
    }
  }
}

// (x D H)(y D H)^T = x y^T.
TEST_F(Rotations, ProductsOfRotatedOperandsStay) {
  const Values x = Random(14, 256), y = Random(15, 256);
  const Values xr = Rotate({128, Signs::kFresh}, Axis::kCols, false, x, 1);
  const Values yr = Rotate({128, Signs::kFresh}, Axis::kCols, false, y, 1);
  double plain = 0, rotated = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    plain += static_cast<double>(x[i]) * static_cast<double>(y[i]);
    rotated += static_cast<double>(xr[i]) * static_cast<double>(yr[i]);
  }
  EXPECT_NEAR(rotated, plain, 1e-4);
}

TEST_F(Rotations, RefusesSizesThatDoNotFit) {
  Values x = Random(16, 48);
  for (const int size : {3, 512, 1, 32}) {
    const Status status =
        backend_->Rotate({size, Signs::kNone}, {}, false, {x.data(), 1, 48}, {x.data(), 1, 48});
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << size;
  }
}

}  // namespace
}  // namespace nibble
