// SPDX-License-Identifier: Apache-2.0
//
// Quantization health against counts and sums made one element at a time, for every way in which
// elements share a scale; thread counts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"

namespace nibble {
namespace {

using Values = std::vector<float>;
constexpr int64_t kRows = 64, kCols = 320;

// Sizes that differ by orders of magnitude from row to row and column to column.
Values Source() {
  Values x(static_cast<size_t>(kRows * kCols));
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    const uint32_t word = formats::RandomWord(4, 0, 1, static_cast<uint64_t>(i));
    const float uniform = static_cast<float>(word >> 8) * 0x1p-23f - 1.0f;
    const int exponent = static_cast<int>(i / kCols % 7 + i % kCols % 5) - 6;
    x[static_cast<size_t>(i)] = formats::RoundBf16(std::ldexp(uniform, exponent));
  }
  return x;
}

struct Case {
  const char* name;
  Block block;
  ScaleRule scale;
  Axis contraction;
};

// Scale group of an element, as kernels/quantized_tensor.h numbers them.
int64_t GroupOf(const QuantizedTensor& q, int64_t row, int64_t col) {
  switch (q.block) {
    case Block::kTensor:
      return 0;
    case Block::kToken:
      return row;
    case Block::kInputChannel:
    case Block::kOutputChannel:
      return col;
    case Block::kGroup:
      return q.contraction == Axis::kCols ? row * (kCols / q.group) + col / q.group
                                          : col * (kRows / q.group) + row / q.group;
    case Block::kTile:
      return row / q.group * (kCols / q.group) + col / q.group;
  }
  return 0;
}

void Check(const Case& c) {
  SCOPED_TRACE(c.name);
  const Values x = Source();
  Values decoded(x.size());
  const ConstTensorView source{x.data(), kRows, kCols};
  const TensorView target{decoded.data(), kRows, kCols, DType::kF32};
  Quant quant;
  quant.elem = Elem::kE2M1;
  quant.block = c.block;
  quant.group = c.block == Block::kGroup || c.block == Block::kTile ? 32 : 0;
  quant.scale = c.scale;
  quant.scale_max = 6;
  QuantizeContext context;
  context.contraction = c.contraction;
  for (const int threads : {1, 3}) {
    const auto backend = MakeBackend("cpu", {threads, 0}).value();
    QuantizedTensor q;
    const Status made = backend->Quantize(quant, context, source, &q, target);
    ASSERT_TRUE(made.ok()) << made.ToString();
    const auto health = backend->MeasureHealth(source, q, target);
    ASSERT_TRUE(health.ok()) << health.status().ToString();
    const float* enc = static_cast<const float*>(q.enc.data());
    int64_t saturated = 0, underflow = 0;
    double error = 0;
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      const float value = x[static_cast<size_t>(i)], got = decoded[static_cast<size_t>(i)];
      const float scaled = std::fabs(value) * enc[GroupOf(q, i / kCols, i % kCols)];
      saturated += scaled > 6.0f * (1.0f + 0x1p-18f) ? 1 : 0;
      underflow += value != 0 && got == 0 ? 1 : 0;
      const double difference = static_cast<double>(value) - static_cast<double>(got);
      error += difference * difference;
    }
    const double count = static_cast<double>(kRows * kCols);
    EXPECT_EQ(std::lround(health->saturation_share * count), saturated);
    EXPECT_EQ(saturated > 0, c.scale == ScaleRule::kE8Floor) << saturated;
    EXPECT_EQ(std::lround(health->underflow_share * count), underflow);
    EXPECT_NEAR(health->mse, error / count, 1e-12 * error);
    const auto [low, high] = std::minmax_element(enc, enc + q.scale_count());
    EXPECT_EQ(health->scale_min, static_cast<double>(*low));
    EXPECT_EQ(health->scale_max, static_cast<double>(*high));
  }
}

TEST(Health, SaturationIsCountedAgainstTheScaleOfEachElement) {
  const Case cases[] = {
      {"tensor", Block::kTensor, ScaleRule::kF32, Axis::kCols},
      {"token", Block::kToken, ScaleRule::kF32, Axis::kCols},
      {"column", Block::kInputChannel, ScaleRule::kF32, Axis::kCols},
      {"groups along columns", Block::kGroup, ScaleRule::kE8Floor, Axis::kCols},
      {"groups along rows", Block::kGroup, ScaleRule::kE8Floor, Axis::kRows},
      {"tiles", Block::kTile, ScaleRule::kE8Floor, Axis::kCols},
      {"groups, rounded up", Block::kGroup, ScaleRule::kE8Up, Axis::kCols},
  };
  for (const Case& c : cases) Check(c);
}

}  // namespace
}  // namespace nibble
