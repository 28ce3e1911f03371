// SPDX-License-Identifier: Apache-2.0
//
// Gradient estimator, outlier clamping and whole linear layers against golden values.
#include <cmath>
#include <memory>
#include <numeric>

#include "kernels/backend.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/dge.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/fp16.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/occ.h"
#include "kernels/formats/surrogates.h"
#include "kernels/linear.h"
#include "tests/golden/golden_backend.h"

namespace nibble {
namespace {

using golden::Case;
using golden::Doubles;
using golden::Floats;

float D(float x, double k) { return formats::DgeDerivative(x, 1.0 / k, 3.0); }

TEST(GoldenDge, D01DerivativeForThreePowers) {
  const Json golden = Case("dge", "D01");
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  for (const auto& [name, k] :
       {std::pair("k5", 5.0), std::pair("k3", 3.0), std::pair("k10", 10.0)}) {
    const std::vector<double> expected = Doubles(golden["expect"][name]);
    for (size_t i = 0; i < x.size(); ++i) {
      // The inputs round to float32: where D is steep that alone moves it by more than the format.
      const double slope = expected[i] < 3.0 ? 40.0 * 0x1p-24 * std::fabs(x[i]) / 0.02 : 0.0;
      EXPECT_NEAR(D(x[i], k), expected[i], golden["tol"].AsDouble() + slope) << name << " " << x[i];
    }
  }
}

TEST(GoldenDge, D02RoundedToBf16) {
  const Json golden = Case("dge", "D02");
  const std::vector<float> x = Floats(golden["inputs"]["x_bf16"]);
  const std::vector<double> expected = Doubles(golden["expect"]["k5"]);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(formats::RoundBf16(D(x[i], 5)), expected[i], golden["tol"].AsDouble()) << x[i];
  }
}

TEST(GoldenDge, D03ZeroOutsideTheRange) {
  const Json golden = Case("dge", "D03");
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  const std::vector<double> expected = Doubles(golden["expect"]["recommended"]);
  const std::vector<double> extrapolated = Doubles(golden["expect"]["msamp"]);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(D(x[i], 5), expected[i]) << x[i];
    EXPECT_NEAR(formats::DgeExtrapolated(x[i], 0.2, 3.0), extrapolated[i], 1e-6) << x[i];
  }
}

TEST(GoldenDge, D04SurrogateAndItsDerivative) {
  const Json golden = Case("dge", "D04");
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  const std::vector<double> f = Doubles(golden["expect"]["f"]);
  const std::vector<double> df = Doubles(golden["expect"]["df"]);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(formats::DgeSurrogate(x[i], 0.2), f[i], golden["tol"].AsDouble()) << x[i];
    EXPECT_NEAR(formats::DgeDerivative(x[i], 0.2, 1e9), df[i], 2e-6) << x[i];
  }
}

TEST(GoldenDge, D05MeanOverAnInterval) {
  const Json golden = Case("dge", "D05");
  constexpr int kPoints = 1 << 16;
  for (size_t i = 0; i < 3; ++i) {
    const double k = golden["inputs"]["k"].At(i).AsDouble();
    double sum = 0;
    int clipped = 0;
    for (int point = 0; point < kPoints; ++point) {
      const float d = D(4.0f + 2.0f * (static_cast<float>(point) + 0.5f) / kPoints, k);
      sum += static_cast<double>(d);
      clipped += d == 3.0f ? 1 : 0;
    }
    EXPECT_NEAR(sum / kPoints, golden["expect"]["mean"].At(i).AsDouble(), 2e-5);
    EXPECT_NEAR(static_cast<double>(clipped) / kPoints,
                golden["expect"]["clipped_fraction"].At(i).AsDouble(), 1e-4);
  }
}

TEST(GoldenDge, D06IsTheNormalisedForm) {
  const Json golden = Case("dge", "D06");
  const std::vector<float> x = Floats(golden["inputs"]["x"]);
  const std::vector<double> expected = Doubles(golden["expect"]["correct"]);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(formats::DgeDerivative(x[i], 0.2, 1e9), expected[i], 1e-6) << x[i];
  }
}

TEST(GoldenOcc, O02QuantileIndices) {
  const Json golden = Case("occ", "O02");
  for (size_t i = 0; i < golden["inputs"]["alpha_n"].size(); ++i) {
    const Json& pair = golden["inputs"]["alpha_n"].At(i);
    const formats::QuantileIndices index =
        formats::OccIndices(pair.At(0).AsDouble(), pair.At(1).AsInt());
    EXPECT_EQ(index.low, golden["expect"]["lo_hi"].At(i).At(0).AsInt()) << pair.Dump();
    EXPECT_EQ(index.high, golden["expect"]["lo_hi"].At(i).At(1).AsInt()) << pair.Dump();
  }
}

using golden::GoldenBackend;
using golden::Inp;
using golden::ListedSource;

Quant Clamped(double alpha, OccScope scope, OccComp comp) {
  Quant quant;
  quant.elem = Elem::kE2M1;
  quant.scale = ScaleRule::kF32;
  quant.scale_max = 6;
  quant.pre = {alpha > 0, alpha > 0 ? alpha : 0.99, scope, comp};
  return quant;
}

std::vector<float> Bf16(std::vector<float> x) {
  for (float& value : x) value = formats::RoundBf16(value);
  return x;
}

// O01 and O03 list values that are no BF16 numbers; our operands are BF16, so the expectations are
// met on the rounded values, within their rounding.
TEST_F(GoldenBackend, O01ClampsBothTailsOfTheTensor) {
  const Json golden = Case("occ", "O01");
  const std::vector<float> x = Floats(golden["inputs"]["y"]);
  const std::vector<float> clamped = Bf16(Floats(golden["expect"]["clamped"]));
  QuantizedTensor q;
  const std::vector<float> with = Decode(Clamped(0.9, OccScope::kTensor, OccComp::kBf16), x, 1, &q);
  EXPECT_EQ(q.residual_count, golden["expect"]["nnz"].AsInt());
  const std::vector<float> rounded = Bf16(x);
  const float* values = static_cast<const float*>(q.residual_values.data());
  const int32_t* columns = static_cast<const int32_t*>(q.residual_columns.data());
  for (int64_t i = 0; i < q.residual_count; ++i) {
    const size_t at = static_cast<size_t>(columns[i]);
    EXPECT_NE(golden["expect"]["residual"].At(at).AsDouble(), 0.0);
    EXPECT_EQ(values[i], formats::RoundBf16(rounded[at] - clamped[at]));
  }
  const float* enc = static_cast<const float*>(q.enc.data());
  EXPECT_EQ(enc[0], 6.0f / formats::RoundBf16(1.9f));
}

TEST_F(GoldenBackend, O03SquaredErrorOfThreePolicies) {
  const Json golden = Case("occ", "O03");
  const std::vector<float> x = Floats(golden["inputs"]["y"]);
  const auto mse = [&](double alpha, OccComp comp) {
    QuantizedTensor q;
    const std::vector<float> decoded = Decode(Clamped(alpha, OccScope::kTensor, comp), x, 1, &q);
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      sum += std::pow(static_cast<double>(decoded[i]) - static_cast<double>(x[i]), 2);
    }
    return sum / static_cast<double>(x.size());
  };
  EXPECT_NEAR(mse(0, OccComp::kNone), golden["expect"]["mse_no_clamp"].AsDouble(), 2e-3);
  EXPECT_NEAR(mse(0.9, OccComp::kNone), golden["expect"]["mse_clamp_only"].AsDouble(), 2e-2);
  EXPECT_NEAR(mse(0.9, OccComp::kBf16), golden["expect"]["mse_clamp_comp"].AsDouble(), 1e-3);
}

TEST_F(GoldenBackend, O04O05ClampEachToken) {
  for (const char* id : {"O04", "O05"}) {
    const Json golden = Case("occ", id);
    std::vector<float> x, residual;
    for (size_t row = 0; row < 2; ++row) {
      for (const float v : Floats(golden["inputs"]["y"].At(row))) x.push_back(v);
      for (const float v : Floats(golden["expect"]["residual"].At(row))) residual.push_back(v);
    }
    QuantizedTensor q;
    Decode(Clamped(golden["inputs"]["alpha"].AsDouble(), OccScope::kToken, OccComp::kBf16), x, 2,
           &q);
    std::vector<float> got(x.size(), 0.0f);
    const int32_t* offsets = static_cast<const int32_t*>(q.residual_offsets.data());
    for (int64_t row = 0; row < 2; ++row) {
      for (int32_t i = offsets[row]; i < offsets[row + 1]; ++i) {
        const int32_t col = static_cast<const int32_t*>(q.residual_columns.data())[i];
        got[static_cast<size_t>(row * 10 + col)] =
            static_cast<const float*>(q.residual_values.data())[i];
      }
    }
    EXPECT_EQ(got, residual) << id;
  }
}

TEST_F(GoldenBackend, B11TokenWiseAbsmaxScalesAndCodes) {
  const Json golden = Case("blocks", "B11");
  std::vector<float> x;
  for (const Json& row : golden["inputs"]["x"].items()) {
    for (const float v : Floats(row)) x.push_back(v);
  }
  Quant quant = Clamped(0, OccScope::kTensor, OccComp::kNone);
  quant.block = Block::kToken;
  QuantizedTensor q;
  Decode(quant, x, 4, &q);
  const std::vector<float> gamma = Floats(golden["expect"]["gamma"]);
  const uint8_t* bytes = static_cast<const uint8_t*>(q.codes.data());
  for (size_t row = 0; row < 4; ++row) {
    EXPECT_EQ(static_cast<const float*>(q.enc.data())[row], gamma[row]);
    for (size_t col = 0; col < 3; ++col) {
      const uint8_t byte = bytes[row * 2 + col / 2];
      EXPECT_EQ(col % 2 == 0 ? byte & 15 : byte >> 4,
                golden["expect"]["codes"].At(row).At(col).AsInt());
    }
  }
}

struct LayerResult {
  std::vector<float> y, dx, dw;
};

class GoldenLinear : public GoldenBackend {
 protected:
  // A layer of n x n x n on the goldens' inputs.
  LayerResult RunLayer(const LinearRecipe& recipe, int n = 32,
                       const RandomReplay* replay = nullptr) {
    const std::vector<float> x = Inp(n * n, 37, 11, 101, 50, 16, 17, 53);
    const std::vector<float> w = Inp(n * n, 29, 5, 89, 44, 256, 0, 0);
    const std::vector<float> dy = Inp(n * n, 41, 3, 97, 48, 1024, 5, 61);
    LayerResult out{std::vector<float>(x.size()), std::vector<float>(x.size()),
                    std::vector<float>(x.size())};
    LinearStep step;
    step.replay = replay;
    LinearWorkspace workspace(backend_.get());
    LinearInput input(&workspace, recipe, 0);
    QuantizedLinear linear(&workspace, recipe, 0);
    EXPECT_TRUE(input.Set(step, {x.data(), n, n}).ok());
    Status status = linear.Forward(step, input, {w.data(), n, n}, 1, {out.y.data(), n, n});
    EXPECT_TRUE(status.ok()) << status.ToString();
    status = linear.Backward(step, {dy.data(), n, n}, input, {w.data(), n, n}, 1,
                             {out.dx.data(), n, n}, false, {out.dw.data(), n, n});
    EXPECT_TRUE(status.ok()) << status.ToString();
    return out;
  }

  struct Expected {
    std::vector<double> row0;
    double sum, absolute, relative;
  };

  static void Check(const Expected& expected, const char* name, const std::vector<float>& got,
                    const std::vector<float>& exact) {
    double sum = 0, absolute = 0, difference = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double value = static_cast<double>(got[i]);
      sum += value;
      absolute += std::fabs(value);
      difference += std::pow(value - static_cast<double>(exact[i]), 2);
      norm += std::pow(static_cast<double>(exact[i]), 2);
    }
    // FP32 accumulation against the float64 reference; the terms of one output are a few times its
    // typical size.
    const double typical = absolute / static_cast<double>(got.size());
    const double bound = 4.0 * std::sqrt(static_cast<double>(got.size())) * 0x1p-24 * 8 * typical;
    for (size_t i = 0; i < expected.row0.size(); ++i) {
      EXPECT_NEAR(got[i], expected.row0[i], bound) << name << i;
    }
    EXPECT_NEAR(sum, expected.sum, 2e-6 * expected.absolute) << name;
    EXPECT_NEAR(absolute, expected.absolute, 2e-6 * expected.absolute) << name;
    EXPECT_NEAR(std::sqrt(difference / norm), expected.relative, 2e-6) << name;
  }

  void CheckAll(const std::string& id, const LinearRecipe& recipe,
                const RandomReplay* replay = nullptr) {
    const Json expect = Case("linear", id)["expect"];
    const LayerResult exact = RunLayer(FindRecipe("fp32")->linear);
    const LayerResult got = RunLayer(recipe, 32, replay);
    const auto expected = [&](const char* name, size_t index) {
      return Expected{Doubles(expect[std::string(name) + "_row0"]),
                      expect["sums"].At(index).AsDouble(), expect["abs_sums"].At(index).AsDouble(),
                      expect["rel_err"][name].AsDouble()};
    };
    Check(expected("Y", 0), "Y", got.y, exact.y);
    Check(expected("dX", 1), "dX", got.dx, exact.dx);
    Check(expected("dW", 2), "dW", got.dw, exact.dw);
  }

  // The listed numbers of L08 and L09: r_i = (73 i + 41) mod 256, no sign changed.
  static ListedSource Listed(bool as_fraction) {
    ListedSource source;
    source.signs = {1};
    source.word = [as_fraction](uint32_t, uint64_t i) {
      const uint32_t byte = static_cast<uint32_t>((73 * i + 41) % 256);
      return as_fraction ? byte << 24 : byte;
    };
    return source;
  }
};

TEST_F(GoldenLinear, L00WithoutQuantization) {
  CheckAll("L00", FindRecipe("fp32")->linear);
  CheckAll("L00", FindRecipe("bf16")->linear);  // the inputs are BF16 values
}

TEST_F(GoldenLinear, L01Fp8CurrentScaling) {
  CheckAll("L01", FindRecipe("te_fp8_current")->linear);
}
TEST_F(GoldenLinear, L02Fp8PowersOfTwo) { CheckAll("L02", FindRecipe("fp8_lm")->linear); }
TEST_F(GoldenLinear, L03Mxfp8) { CheckAll("L03", FindRecipe("te_mxfp8")->linear); }
TEST_F(GoldenLinear, L04Mxfp4) { CheckAll("L04", FindRecipe("mxfp4_plain")->linear); }

TEST_F(GoldenLinear, L05Fp4AsPublished) {
  LinearRecipe recipe = FindRecipe("fp4_ms_paper")->linear;
  recipe.slots[0].pre.alpha = 0.97;
  CheckAll("L05", recipe);
}

TEST_F(GoldenLinear, L06Fp4AsCoded) {
  LinearRecipe recipe = FindRecipe("fp4_ms_code")->linear;
  recipe.slots[0].pre.alpha = 0.9;
  CheckAll("L06", recipe);
}

// The listed signs are all positive: the goldens rotate without changing any.
TEST_F(GoldenLinear, L07QuartetToNearest) {
  const ListedSource source = Listed(true);
  CheckAll("L07", FindRecipe("quartet")->linear, &source);
}
TEST_F(GoldenLinear, L08QuartetStochastic) {
  const ListedSource source = Listed(true);
  CheckAll("L08", FindRecipe("quartet_v1")->linear, &source);
}

TEST_F(GoldenLinear, L09Nvfp4Stochastic) {
  const ListedSource source = Listed(false);
  CheckAll("L09", FindRecipe("nvfp4_te")->linear, &source);
}
TEST_F(GoldenLinear, L10Nvfp4ToNearest) {
  LinearRecipe recipe = FindRecipe("nvfp4_te")->linear;
  for (Quant& quant : recipe.slots) quant.round = Round::kEven;
  CheckAll("L10", recipe);
}

TEST_F(GoldenLinear, Q03QuartetTwoSimulation) {
  const Json golden = Case("quartet2", "Q03");
  LinearRecipe recipe = FindRecipe("quartet2_sim")->linear;
  for (const size_t forward : {0u, 1u}) {
    recipe.slots[forward].scale_max = 256;
    recipe.slots[forward].alternatives = {{6, 4}, ErrorMetric::kMse};
  }
  ListedSource source;
  source.signs = Doubles(golden["inputs"]["signs"]);
  source.word = [](uint32_t slot, uint64_t block) {
    const uint64_t salt = slot + 9;
    const uint64_t u = (block * 40503 + salt * 9973 + 12345) % 65536;
    return static_cast<uint32_t>(u << 16 | 0x8000u);
  };
  const LayerResult exact = RunLayer(FindRecipe("fp32")->linear, 128);
  const LayerResult got = RunLayer(recipe, 128, &source);
  const Json expect = golden["expect"];
  const auto expected = [&](const char* name) {
    return Expected{Doubles(expect["row0"][name]), expect["sum"][name].AsDouble(),
                    expect["abs_sum"][name].AsDouble(),
                    expect["rel_err_vs_exact"][name].AsDouble()};
  };
  Check(expected("Y"), "Y", got.y, exact.y);
  Check(expected("dX"), "dX", got.dx, exact.dx);
  Check(expected("dW"), "dW", got.dw, exact.dw);
}

TEST(GoldenOptimizer, A01RoundedMomentsOverTwoSteps) {
  const Json golden = Case("optim", "A01");
  const Json& in = golden["inputs"];
  BackendOptions options;
  options.threads = 2;
  const auto backend = MakeBackend("cpu", options).value();
  std::vector<float> p = Floats(in["param"]), g = Floats(in["grad"]);
  const auto n = static_cast<int64_t>(p.size());
  std::vector<uint8_t> m(p.size());
  std::vector<uint16_t> v(p.size());
  AdamWParams params;
  params.learning_rate = static_cast<float>(in["lr"].AsDouble());
  params.weight_decay = static_cast<float>(in["wd"].AsDouble());
  const StatePrecision precision{StateElem::kE4M3, StateElem::kF16, StateElem::kF32};
  StateScales scales;
  for (const Json& step : golden["expect"]["steps"].items()) {
    params.step = step["t"].AsInt();
    ASSERT_TRUE(backend
                    ->RoundedAdamW(params, precision, {g.data(), 1, n},
                                   {m.data(), 1, n, DType::kU8}, {v.data(), 1, n, DType::kF16},
                                   {p.data(), 1, n}, &scales)
                    .ok());
    EXPECT_EQ(scales.m, step["m_scale"].AsDouble());
    EXPECT_EQ(scales.v, step["v_scale"].AsDouble());
    const std::vector<float> want_p = Floats(step["param"]), want_m = Floats(step["m_fp8_scaled"]),
                             want_v = Floats(step["v_fp16_scaled"]);
    for (size_t i = 0; i < p.size(); ++i) {
      EXPECT_NEAR(p[i], want_p[i], 1e-6) << i;
      EXPECT_EQ(formats::DecodeE4M3(m[i]), want_m[i]) << i;
      EXPECT_EQ(formats::DecodeF16(v[i]), want_v[i]) << i;
    }
  }
}

TEST(GoldenOptimizer, A02MasterWeightsInScaledF16) {
  const Json golden = Case("optim", "A02");
  const auto backend = MakeBackend("cpu", {}).value();
  std::vector<float> w = Floats(golden["inputs"]["w"]);
  const auto n = static_cast<int64_t>(w.size());
  std::vector<float> zero(w.size()), m(w.size()), v(w.size());
  AdamWParams params;
  params.weight_decay = 0;
  StateScales scales;
  ASSERT_TRUE(backend
                  ->RoundedAdamW(params, {StateElem::kF32, StateElem::kF32, StateElem::kF16},
                                 {zero.data(), 1, n}, {m.data(), 1, n}, {v.data(), 1, n},
                                 {w.data(), 1, n}, &scales)
                  .ok());
  EXPECT_EQ(scales.master, golden["expect"]["sf"].AsDouble());
  const std::vector<double> value = Doubles(golden["expect"]["value"]);
  const std::vector<float> stored = Floats(golden["expect"]["stored"]);
  for (size_t i = 0; i < w.size(); ++i) {
    EXPECT_EQ(w[i], value[i]) << i;
    EXPECT_EQ(formats::DecodeF16(formats::EncodeF16(w[i] * scales.master)), stored[i]) << i;
  }
}

}  // namespace
}  // namespace nibble
