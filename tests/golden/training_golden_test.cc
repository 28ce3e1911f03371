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
#include "kernels/formats/occ.h"
#include "kernels/linear.h"
#include "tests/golden/golden.h"

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
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(D(x[i], 5), expected[i]) << x[i];
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

class GoldenBackend : public testing::Test {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Backend>> made = MakeBackend("cpu", {});
    ASSERT_TRUE(made.ok()) << made.status().ToString();
    backend_ = std::move(*made);
  }

  // Quantizes and returns the decoded values.
  std::vector<float> Decode(const Quant& quant, const std::vector<float>& x, int64_t rows,
                            QuantizedTensor* out) {
    const int64_t cols = static_cast<int64_t>(x.size()) / rows;
    std::vector<float> decoded(x.size());
    const Status status =
        backend_->Quantize(quant, {}, {x.data(), rows, cols}, out, {decoded.data(), rows, cols});
    EXPECT_TRUE(status.ok()) << status.ToString();
    return decoded;
  }

  std::unique_ptr<Backend> backend_;
};

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

// bf16((((i*a+b) mod m)-h)/div, times 8 where om > 0 and i mod om = oa).
std::vector<float> Inp(int a, int b, int m, int h, float div, int oa, int om) {
  std::vector<float> x(32 * 32);
  for (int i = 0; i < 32 * 32; ++i) {
    float value = static_cast<float>((i * a + b) % m - h) / div;
    if (om > 0 && i % om == oa) value *= 8;
    x[static_cast<size_t>(i)] = formats::RoundBf16(value);
  }
  return x;
}

struct LayerResult {
  std::vector<float> y, dx, dw;
};

class GoldenLinear : public GoldenBackend {
 protected:
  LayerResult RunLayer(const LinearRecipe& recipe) {
    const std::vector<float> x = Inp(37, 11, 101, 50, 16, 17, 53);
    const std::vector<float> w = Inp(29, 5, 89, 44, 256, 0, 0);
    const std::vector<float> dy = Inp(41, 3, 97, 48, 1024, 5, 61);
    LayerResult out{std::vector<float>(1024), std::vector<float>(1024), std::vector<float>(1024)};
    LinearWorkspace workspace(backend_.get());
    LinearInput input(&workspace, recipe, 0);
    QuantizedLinear linear(&workspace, recipe, 0);
    EXPECT_TRUE(input.Set({}, {x.data(), 32, 32}).ok());
    Status status = linear.Forward({}, input, {w.data(), 32, 32}, 1, {out.y.data(), 32, 32});
    EXPECT_TRUE(status.ok()) << status.ToString();
    status = linear.Backward({}, {dy.data(), 32, 32}, input, {w.data(), 32, 32}, 1,
                             {out.dx.data(), 32, 32}, false, {out.dw.data(), 32, 32});
    EXPECT_TRUE(status.ok()) << status.ToString();
    return out;
  }

  static void Check(const Json& golden, size_t index, const char* name,
                    const std::vector<float>& got, const std::vector<float>& exact) {
    const std::vector<double> row = Doubles(golden["expect"][std::string(name) + "_row0"]);
    double sum = 0, absolute = 0, difference = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double value = static_cast<double>(got[i]);
      sum += value;
      absolute += std::fabs(value);
      difference += std::pow(value - static_cast<double>(exact[i]), 2);
      norm += std::pow(static_cast<double>(exact[i]), 2);
    }
    // FP32 accumulation of 32 terms against the float64 reference; the terms of one output are a
    // few times its typical size.
    const double typical = absolute / static_cast<double>(got.size());
    const double bound = 4.0 * 32 * 0x1p-24 * 8 * typical;
    for (size_t i = 0; i < row.size(); ++i) EXPECT_NEAR(got[i], row[i], bound) << name << i;
    const double total = golden["expect"]["abs_sums"].At(index).AsDouble();
    EXPECT_NEAR(sum, golden["expect"]["sums"].At(index).AsDouble(), 2e-6 * total) << name;
    EXPECT_NEAR(absolute, total, 2e-6 * total) << name;
    EXPECT_NEAR(std::sqrt(difference / norm), golden["expect"]["rel_err"][name].AsDouble(), 2e-6)
        << name;
  }

  void CheckAll(const std::string& id, const LinearRecipe& recipe) {
    const Json golden = Case("linear", id);
    const LayerResult exact = RunLayer(FindRecipe("fp32")->linear);
    const LayerResult got = RunLayer(recipe);
    Check(golden, 0, "Y", got.y, exact.y);
    Check(golden, 1, "dX", got.dx, exact.dx);
    Check(golden, 2, "dW", got.dw, exact.dw);
  }
};

TEST_F(GoldenLinear, L00WithoutQuantization) {
  CheckAll("L00", FindRecipe("fp32")->linear);
  CheckAll("L00", FindRecipe("bf16")->linear);  // the inputs are BF16 values
}

TEST_F(GoldenLinear, L01Fp8CurrentScaling) {
  CheckAll("L01", FindRecipe("te_fp8_current")->linear);
}

TEST_F(GoldenLinear, L05Fp4AsPublished) {
  LinearRecipe recipe = FindRecipe("fp4_ms_paper")->linear;
  recipe.slots[0].pre.alpha = 0.97;
  CheckAll("L05", recipe);
}

}  // namespace
}  // namespace nibble
