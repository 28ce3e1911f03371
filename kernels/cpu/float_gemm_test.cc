// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/float_gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/bf16_kernel.h"
#include "kernels/formats/bf16.h"

namespace nibble::cpu {
namespace {

struct Aligned {
  explicit Aligned(int64_t floats)
      : data(static_cast<float*>(
            std::aligned_alloc(64, static_cast<size_t>((floats * 4 + 63) / 64 * 64)))) {}
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  float* data;
};

std::vector<float> Numbers(int64_t count, uint32_t seed) {
  std::vector<float> x(static_cast<size_t>(count));
  uint32_t state = seed;
  for (float& value : x) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int32_t>(state >> 8) - (1 << 23)) / 4.0e6f;
  }
  return x;
}

struct Shape {
  int64_t rows, cols, depth;
};

// left is (rows, depth) or, turned, (depth, rows); right (cols, depth) or (depth, cols).
struct Case {
  Shape shape;
  bool left_turned, right_turned, bf16, accumulate;
};

FloatProduct ProductOf(const Case& c, const std::vector<float>& left,
                       const std::vector<float>& right, float* out) {
  const Shape& s = c.shape;
  return {s.rows,
          s.cols,
          s.depth,
          {left.data(), c.left_turned ? 1 : s.depth, c.left_turned ? s.rows : 1, c.bf16},
          {right.data(), c.right_turned ? 1 : s.depth, c.right_turned ? s.cols : 1, c.bf16},
          c.accumulate,
          out,
          s.cols};
}

float At(const PanelSource& s, int64_t lane, int64_t k) {
  const float x = s.x[lane * s.lane_stride + k * s.depth_stride];
  return s.bf16 ? formats::RoundBf16(x) : x;
}

// The definition: chains of multiply-adds over blocks of depths.
float Expected(const FloatProduct& p, bool fused, float before, int64_t i, int64_t j) {
  float value = before;
  for (int64_t block = 0; block < p.depth; block += kDepthBlock) {
    float sum = 0;
    for (int64_t k = block; k < std::min(p.depth, block + kDepthBlock); ++k) {
      const float a = At(p.left, i, k), b = At(p.right, j, k);
      sum = fused ? std::fma(a, b, sum) : sum + a * b;
    }
    value = block == 0 && !p.accumulate ? sum : value + sum;
  }
  return value;
}

void CheckCase(const Case& c) {
  SCOPED_TRACE(std::to_string(c.shape.rows) + " x " + std::to_string(c.shape.cols) + " x " +
               std::to_string(c.shape.depth) + (c.left_turned ? " T" : " N") +
               (c.right_turned ? "N" : "T") + (c.bf16 ? " bf16" : "") +
               (c.accumulate ? " accumulate" : ""));
  const std::vector<float> left = Numbers(c.shape.rows * c.shape.depth, 1);
  const std::vector<float> right = Numbers(c.shape.cols * c.shape.depth, 2);
  const std::vector<float> before = Numbers(c.shape.rows * c.shape.cols, 3);
  const Aligned left_panels(3 * kLeftFloats), right_panels(kRightFloats);
  for (const FloatKernel* const* kernel = FloatKernels(); *kernel != nullptr; ++kernel) {
    SCOPED_TRACE((*kernel)->name);
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      std::vector<float> out = before;
      const FloatProduct product = ProductOf(c, left, right, out.data());
      FloatGemm(**kernel, pool, product, left_panels.data, right_panels.data);
      for (int64_t i = 0; i < c.shape.rows; ++i) {
        for (int64_t j = 0; j < c.shape.cols; ++j) {
          const auto at = static_cast<size_t>(i * c.shape.cols + j);
          ASSERT_EQ(out[at], Expected(product, (*kernel)->fused, before[at], i, j))
              << "row " << i << " column " << j;
        }
      }
    }
  }
}

TEST(FloatGemm, EveryKernelAndOrientationGivesTheDefinedBits) {
  const Shape shapes[] = {{1, 1, 1},    {1, 37, 5},    {13, 7, 3},    {97, 101, 103},
                          {12, 32, 64}, {65, 200, 17}, {24, 48, 1031}};
  for (const Shape& shape : shapes) {
    for (int bits = 0; bits < 16; ++bits) {
      CheckCase({shape, (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0});
    }
  }
}

// Operands of BF16 pairs: `count` integers below 16 in size, whose sums FP32 holds exactly.
std::vector<float> Integers(int64_t count, uint32_t seed) {
  std::vector<float> x = Numbers(count, seed);
  for (float& value : x) value = std::floor(value * 7.0f);
  return x;
}

void RunPairs(const FloatProduct& product, int threads) {
  const Aligned left_panels(threads * kLeftFloats), right_panels(kRightFloats);
  ThreadPool pool(threads);
  FloatGemm(*Bf16PairKernel(), pool, product, left_panels.data, right_panels.data);
}

// Whatever the instruction's order and rounding: integers give exact sums, other numbers the bound
// of the header, and threads change no bit.
void CheckPairs(const Case& c) {
  SCOPED_TRACE(std::to_string(c.shape.rows) + " x " + std::to_string(c.shape.cols) + " x " +
               std::to_string(c.shape.depth) + (c.left_turned ? " T" : " N") +
               (c.right_turned ? "N" : "T") + (c.accumulate ? " accumulate" : ""));
  for (const auto& make : {Integers, Numbers}) {
    const bool exact = make == Integers;
    const std::vector<float> left = make(c.shape.rows * c.shape.depth, 1);
    const std::vector<float> right = make(c.shape.cols * c.shape.depth, 2);
    const std::vector<float> before = make(c.shape.rows * c.shape.cols, 3);
    std::vector<float> out = before, again = before;
    const FloatProduct product = ProductOf(c, left, right, out.data());
    RunPairs(product, 1);
    RunPairs(ProductOf(c, left, right, again.data()), 3);
    ASSERT_EQ(out, again);
    for (int64_t i = 0; i < c.shape.rows; ++i) {
      for (int64_t j = 0; j < c.shape.cols; ++j) {
        const auto at = static_cast<size_t>(i * c.shape.cols + j);
        double sum = c.accumulate ? static_cast<double>(before[at]) : 0.0;
        double absolute = std::fabs(sum);
        for (int64_t k = 0; k < c.shape.depth; ++k) {
          const double ab = static_cast<double>(At(product.left, i, k)) *
                            static_cast<double>(At(product.right, j, k));
          sum += ab;
          absolute += std::fabs(ab);
        }
        const double bound = 4.0 * static_cast<double>(c.shape.depth + 1) * 0x1p-24 * absolute;
        ASSERT_NEAR(out[at], sum, exact ? 0.0 : bound) << "row " << i << " column " << j;
      }
    }
  }
}

TEST(Bf16Pairs, EveryOrientationIsExactOnIntegersAndWithinTheBound) {
  if (Bf16PairKernel() == nullptr) GTEST_SKIP() << "this CPU lacks AVX512_BF16";
  const Shape shapes[] = {{1, 1, 1},    {1, 37, 5},    {13, 7, 3},     {97, 101, 103},
                          {12, 32, 64}, {65, 200, 17}, {24, 48, 1031}, {5, 3, 2049}};
  for (const Shape& shape : shapes) {
    for (int bits = 0; bits < 8; ++bits) {
      CheckPairs({shape, (bits & 1) != 0, (bits & 2) != 0, true, (bits & 4) != 0});
    }
  }
  CheckPairs({{1, 5000, 1401}, false, true, true, true});
  CheckPairs({{5000, 2, 1400}, true, false, true, false});
  CheckPairs({{3, 5, 40001}, false, false, true, false});
}

TEST(Bf16Pairs, NotANumberAndInfinityArrive) {
  if (Bf16PairKernel() == nullptr) GTEST_SKIP() << "this CPU lacks AVX512_BF16";
  for (const bool turned : {false, true}) {
    const Case c{{36, 64, 48}, turned, turned, true, false};
    std::vector<float> left(36 * 48, 1.0f), out(36 * 64);
    const std::vector<float> right(64 * 48, 1.0f);
    left[static_cast<size_t>(turned ? 7 * 36 + 5 : 5 * 48 + 7)] = std::nanf("");
    left[static_cast<size_t>(turned ? 8 * 36 + 6 : 6 * 48 + 8)] = HUGE_VALF;
    RunPairs(ProductOf(c, left, right, out.data()), 1);
    EXPECT_TRUE(std::isnan(out[5 * 64 + 63]));
    EXPECT_EQ(out[6 * 64], HUGE_VALF);
    EXPECT_EQ(out[7 * 64], 48.0f);
  }
}

// Sizes that need several blocks of panels in each direction.
TEST(FloatGemm, BlocksOfPanelsJoinWithoutATrace) {
  CheckCase({{1, 5000, 700}, false, true, false, true});
  CheckCase({{5000, 2, 700}, true, false, false, false});
  CheckCase({{3, 5, 40000}, false, false, true, false});
}

TEST(PanelPacking, NotANumberSurvivesRoundingToBf16) {
  std::vector<float> x(16 * 16, 1.0f);
  x[5] = std::nanf("");
  const Aligned panel(16 * 16);
  for (const bool turned : {false, true}) {
    PackPanels({x.data(), turned ? 1 : 16, turned ? 16 : 1, true}, 16, 16, 16, 256, panel.data);
    EXPECT_TRUE(std::isnan(panel.data[turned ? 5 : 5 * 16]));
    EXPECT_EQ(panel.data[0], 1.0f);
  }
}

}  // namespace
}  // namespace nibble::cpu
