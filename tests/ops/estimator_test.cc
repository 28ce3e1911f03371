// SPDX-License-Identifier: Apache-2.0
//
// Gradients through the weight quantizer: surrogate derivatives and the scale's maximum.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/philox.h"
#include "kernels/formats/surrogates.h"

namespace nibble {
namespace {

using Values = std::vector<float>;

Values Random(uint32_t stream, size_t size) {
  Values x(size);
  for (size_t i = 0; i < size; ++i) {
    x[i] = formats::RoundBf16(
        static_cast<float>(formats::RandomWord(9, 0, stream, i) >> 8) * 0x1p-23f - 1.0f);
  }
  return x;
}

class Estimators : public testing::Test {
 protected:
  static constexpr int64_t kRows = 5, kCols = 40;

  void SetUp() override {
    Result<std::unique_ptr<Backend>> made = MakeBackend("cpu", {});
    ASSERT_TRUE(made.ok());
    backend_ = std::move(*made);
  }

  // The gradient of `weight_` under the estimator; quantized_ and decoded_ as a side effect.
  Values Gradient(const WeightEstimator& estimator, const Quant& quant) {
    decoded_.resize(weight_.size());
    Values gradient(weight_.size(), 0.0f);
    Status status = backend_->Quantize(quant, {}, {weight_.data(), kRows, kCols}, &quantized_,
                                       {decoded_.data(), kRows, kCols});
    EXPECT_TRUE(status.ok()) << status.ToString();
    status = backend_->DgeAccumulate(estimator, {wgrad_.data(), kRows, kCols},
                                     {weight_.data(), kRows, kCols}, quantized_,
                                     {gradient.data(), kRows, kCols});
    EXPECT_TRUE(status.ok()) << status.ToString();
    return gradient;
  }

  static Quant Absmax(Block block, int group) {
    Quant quant;
    quant.elem = Elem::kE2M1;
    quant.block = block;
    quant.group = group;
    quant.scale = ScaleRule::kF32;
    quant.scale_max = 6;
    return quant;
  }

  std::unique_ptr<Backend> backend_;
  Values weight_ = Random(1, kRows*kCols), wgrad_ = Random(2, kRows*kCols);
  QuantizedTensor quantized_;
  Values decoded_;
};

TEST_F(Estimators, EverySurrogateForEveryLayoutOfScales) {
  for (const Estimator kind :
       {Estimator::kDge, Estimator::kPower, Estimator::kSpline, Estimator::kSigmoid}) {
    WeightEstimator estimator;
    estimator.kind = kind;
    for (const Quant& quant :
         {Absmax(Block::kTensor, 0), Absmax(Block::kOutputChannel, 0),
          Absmax(Block::kInputChannel, 0), Absmax(Block::kGroup, 16), Absmax(Block::kTile, 16)}) {
      const Values gradient = Gradient(estimator, quant);
      for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t col = 0; col < kCols; ++col) {
          // The scale of this element from its group's amax, found the slow way.
          float amax = 0;
          for (int64_t r = 0; r < kRows; ++r) {
            for (int64_t c = 0; c < kCols; ++c) {
              const bool together =
                  quant.block == Block::kTensor ||
                  (quant.block == Block::kOutputChannel && r == row) ||
                  (quant.block == Block::kInputChannel && c == col) ||
                  (quant.block == Block::kGroup && r == row && c / 16 == col / 16) ||
                  (quant.block == Block::kTile && c / 16 == col / 16);
              if (together)
                amax = std::fmax(amax, std::fabs(weight_[static_cast<size_t>(r * kCols + c)]));
            }
          }
          const size_t i = static_cast<size_t>(row * kCols + col);
          const float y = std::fmax(-6.0f, std::fmin(6.0f, weight_[i] * (6.0f / amax)));
          float slope = 0;
          if (kind == Estimator::kDge) slope = formats::DgeDerivative(y, 0.2, 3);
          if (kind == Estimator::kPower) slope = formats::PowerDerivative(y, 0.2);
          if (kind == Estimator::kSpline) slope = formats::SplineDerivative(y);
          if (kind == Estimator::kSigmoid) slope = formats::SigmoidDerivative(y, 0.5);
          ASSERT_NEAR(gradient[i], wgrad_[i] * slope, 1e-5 * std::fabs(slope) + 1e-7);
        }
      }
    }
  }
}

// Products gathered in a gradient that began at 0, and their factor in place: the bits of the
// products one by one, signs of zeros included.
TEST_F(Estimators, AFactorThatComesLateGivesTheSameBits) {
  wgrad_[3] = -0.0f;
  wgrad_[4] = 0.0f;
  wgrad_[5] = -1e-45f;  // the product rounds to -0
  wgrad_[6] = INFINITY;
  weight_[7] = 0.0f;
  for (const bool bad : {false, true}) {
    if (bad) weight_[50] = NAN;
    for (const Estimator kind : {Estimator::kSte, Estimator::kDge, Estimator::kPower,
                                 Estimator::kSpline, Estimator::kSigmoid}) {
      for (const bool extrapolate : {false, true}) {
        WeightEstimator estimator;
        estimator.kind = kind;
        estimator.extrapolate = extrapolate;
        for (const Quant& quant : {Absmax(Block::kTensor, 0), Absmax(Block::kOutputChannel, 0),
                                   Absmax(Block::kInputChannel, 0), Absmax(Block::kGroup, 16),
                                   Absmax(Block::kTile, 16)}) {
          const Values expected = Gradient(estimator, quant);
          Values got(wgrad_.size(), 0.0f);
          for (size_t i = 0; i < got.size(); ++i) got[i] += wgrad_[i];
          const PendingFactor pending{
              estimator, {weight_.data(), kRows, kCols}, &quantized_, {got.data(), kRows, kCols}};
          ASSERT_TRUE(backend_->DgeScale(pending).ok());
          for (size_t i = 0; i < got.size(); ++i) {
            if (std::isnan(expected[i]) && std::isnan(got[i])) continue;
            ASSERT_EQ(formats::FloatBits(got[i]), formats::FloatBits(expected[i])) << i;
          }
        }
      }
    }
  }
  WeightEstimator estimator;
  estimator.kind = Estimator::kDge;
  estimator.max_gradient = MaxGradient::kAbsmax;
  EXPECT_EQ(backend_
                ->DgeScale({estimator,
                            {weight_.data(), kRows, kCols},
                            &quantized_,
                            {wgrad_.data(), kRows, kCols}})
                .code(),
            StatusCode::kInvalidArgument);
}

TEST_F(Estimators, TheSumOfSquaresIsOfCompletedGradients) {
  WeightEstimator estimator;
  estimator.kind = Estimator::kDge;
  const Quant quant = Absmax(Block::kOutputChannel, 0);
  const Values factored = Gradient(estimator, quant);
  // Two tensors with a factor between and beside values without.
  constexpr size_t kGap = 7;
  Values all(3 * kGap + 2 * factored.size(), 0.5f), expected = all;
  std::vector<PendingFactor> pending;
  for (size_t i = 0; i < 2; ++i) {
    const size_t at = kGap + i * (factored.size() + kGap);
    std::copy(wgrad_.begin(), wgrad_.end(), all.begin() + static_cast<std::ptrdiff_t>(at));
    std::copy(factored.begin(), factored.end(), expected.begin() + static_cast<std::ptrdiff_t>(at));
    pending.push_back(
        {estimator, {weight_.data(), kRows, kCols}, &quantized_, {all.data() + at, kRows, kCols}});
  }
  const ConstTensorView view(all.data(), 1, static_cast<int64_t>(all.size()));
  const Result<double> got = backend_->ScaledSumOfSquares(pending, view);
  ASSERT_TRUE(got.ok()) << got.status().ToString();
  EXPECT_EQ(all, expected);
  EXPECT_EQ(*got, *backend_->SumOfSquares({expected.data(), 1, view.cols}));
}

// The surrogates' definitions, written out: the study's power form, the slope of 40 points, a sum
// of logistic steps; each clipped to [0.5, 1e4].
TEST_F(Estimators, SurrogatesFollowTheirFormulas) {
  const auto clip = [](double v) { return std::fmin(std::fmax(v, 0.5), 1e4); };
  const double edges[] = {-6, -4, -3, -2, -1.5, -1, -.5, 0, .5, 1, 1.5, 2, 3, 4, 6};
  for (int i = -599; i < 600; i += 7) {
    const float x = static_cast<float>(i) / 100.0f;
    const double at = static_cast<double>(x);
    int cell = 0;
    while (cell < 13 && at >= edges[cell + 1]) ++cell;
    const double d = edges[cell + 1] - edges[cell];
    const double middle = edges[cell] + d / 2;
    const double power = d / 2 / 5 * std::pow(std::fabs(at - middle), 0.2 - 1);
    EXPECT_NEAR(formats::PowerDerivative(x, 0.2), clip(power), 1e-4 * clip(power)) << x;
    double logistic = 0;
    for (int step = 0; step < 14; ++step) {
      const double width = edges[step + 1] - edges[step];
      const double s = 1 / (1 + std::exp(-(at - (edges[step] + width / 2)) / 0.5));
      logistic += width * s * (1 - s) / 0.5;
    }
    EXPECT_NEAR(formats::SigmoidDerivative(x, 0.5), clip(logistic), 1e-6) << x;
    const int point = static_cast<int>(std::floor((at + 6) * 3.25));
    const float left = static_cast<float>(-6 + point * 12.0 / 39);
    const float right = static_cast<float>(-6 + (point + 1) * 12.0 / 39);
    const double rise = static_cast<double>(formats::RoundE2M1Even(right)) -
                        static_cast<double>(formats::RoundE2M1Even(left));
    EXPECT_NEAR(formats::SplineDerivative(x), clip(rise / (12.0 / 39)), 1e-5) << x;
  }
}

// dL/dw_j = D_j g_j - (dn/dw_j / n) sum_i g_i (D_i w_i - Q(w_i)), with D = 1.
TEST_F(Estimators, TheGradientThroughTheAbsoluteMaximum) {
  WeightEstimator estimator;
  estimator.max_gradient = MaxGradient::kAbsmax;
  const Values hard = Gradient(estimator, Absmax(Block::kOutputChannel, 0));
  estimator.max_gradient = MaxGradient::kSoftmaxBackward;
  estimator.max_temperature = 80;
  const Values sharp = Gradient(estimator, Absmax(Block::kOutputChannel, 0));
  for (int64_t row = 0; row < kRows; ++row) {
    double sum = 0;
    int64_t largest = row * kCols;
    for (int64_t i = row * kCols; i < (row + 1) * kCols; ++i) {
      const size_t at = static_cast<size_t>(i);
      sum += static_cast<double>(wgrad_[at]) *
             (static_cast<double>(weight_[at]) - static_cast<double>(decoded_[at]));
      if (std::fabs(weight_[at]) > std::fabs(weight_[static_cast<size_t>(largest)])) largest = i;
    }
    for (int64_t i = row * kCols; i < (row + 1) * kCols; ++i) {
      const size_t at = static_cast<size_t>(i);
      const double through = i == largest ? sum / static_cast<double>(weight_[at]) : 0.0;
      EXPECT_NEAR(hard[at], static_cast<double>(wgrad_[at]) - through, 1e-5);
    }
    // The softmax's share of the whole row adds up to the same, on a row with a clear maximum.
    double hard_sum = 0, sharp_sum = 0;
    for (int64_t i = row * kCols; i < (row + 1) * kCols; ++i) {
      const size_t at = static_cast<size_t>(i);
      hard_sum += static_cast<double>((hard[at] - wgrad_[at]) * weight_[at]);
      sharp_sum += static_cast<double>((sharp[at] - wgrad_[at]) * weight_[at]);
    }
    EXPECT_NEAR(sharp_sum, hard_sum, 0.05 * std::fabs(hard_sum) + 1e-4);
  }
}

// Softmax both ways: the scale divides 6 by n = sum p |w|, p = softmax(T 6 |w| / amax), and the
// gradient follows n, amax inside the softmax apart.
TEST_F(Estimators, ASmoothMaximumScalesForwardAndTakesGradients) {
  for (const double temperature : {0.25, 1.0, 8.0, 80.0}) {
    for (const auto& [block, group] : {std::pair(Block::kOutputChannel, 0),
                                       {Block::kTensor, 0},
                                       {Block::kGroup, 16},
                                       {Block::kTile, 16},
                                       {Block::kInputChannel, 0}}) {
      WeightEstimator estimator;
      estimator.max_gradient = MaxGradient::kSoftmax;
      estimator.max_temperature = temperature;
      Quant quant = Absmax(block, group);
      quant.smooth_max = temperature;
      const Values gradient = Gradient(estimator, quant);
      const auto together = [&](int64_t a, int64_t b) {
        const int64_t ra = a / kCols, ca = a % kCols, rb = b / kCols, cb = b % kCols;
        if (block == Block::kTensor) return true;
        if (block == Block::kInputChannel) return ca == cb;
        if (block == Block::kTile) return ca / 16 == cb / 16;  // fewer than 16 rows
        return ra == rb && (block != Block::kGroup || ca / 16 == cb / 16);
      };
      for (int64_t j = 0; j < kRows * kCols; j += 7) {
        std::vector<double> a;
        std::vector<size_t> at;
        double amax = 0;
        size_t self = 0;
        for (int64_t i = 0; i < kRows * kCols; ++i) {
          if (!together(i, j)) continue;
          if (i == j) self = a.size();
          at.push_back(static_cast<size_t>(i));
          a.push_back(std::fabs(static_cast<double>(weight_[at.back()])));
          amax = std::fmax(amax, a.back());
        }
        const auto smooth = [&](double shift) {
          double sum = 0, mean = 0;
          for (size_t i = 0; i < a.size(); ++i) {
            const double value = a[i] + (i == self ? shift : 0);
            const double p = std::exp(temperature * 6 * (value - amax) / amax);
            sum += p;
            mean += p * value;
          }
          return mean / sum;
        };
        const double n = smooth(0);
        const size_t element = static_cast<size_t>(j);
        // Forward: the value is the nearest of the grid, up to 6.
        const double y = std::fmin(6.0, a[self] * 6 / n);
        const double decoded = std::fabs(static_cast<double>(decoded_[element])) * 6 / n;
        const double widest = y < 2 ? 0.25 : y < 4 ? 0.5 : 1.0;
        EXPECT_LE(std::fabs(decoded - y), widest + 1e-4) << temperature;
        double sum = 0;
        for (const size_t i : at) {
          sum += static_cast<double>(wgrad_[i]) *
                 (static_cast<double>(weight_[i]) - static_cast<double>(decoded_[i]));
        }
        const double slope = (smooth(1e-5) - smooth(-1e-5)) / 2e-5;
        const double sign = std::signbit(weight_[element]) ? -1 : 1;
        const double expected = static_cast<double>(wgrad_[element]) - sign * slope / n * sum;
        EXPECT_NEAR(gradient[element], expected, 1e-4 + 2e-4 * std::fabs(expected))
            << temperature << " " << BlockName(block, group);
      }
    }
  }
}

}  // namespace
}  // namespace nibble
