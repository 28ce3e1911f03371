// SPDX-License-Identifier: Apache-2.0
//
// The vectorised loops of the quantizers, in every form this machine can run, against definitions.
#include "kernels/cpu/code_loops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/random_words.h"
#include "kernels/cpu/stochastic_encode.h"
#include "kernels/cpu/vector_scan.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/philox.h"

namespace nibble {
namespace {

using Values = std::vector<float>;

Values Random(uint32_t stream, int64_t size, float scale) {
  Values x(static_cast<size_t>(size));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = formats::RandomWord(9, 0, stream, i);
    x[i] = (static_cast<float>(word >> 8) * 0x1p-23f - 1.0f) * scale;
  }
  return x;
}

uint8_t DefinedCode(Elem elem, float y, uint32_t word) {
  if (elem == Elem::kE2M1) {
    return formats::E2M1CodeOfGridValue(formats::RoundE2M1Sr24(y, word));
  }
  const double a = std::min(127.0, std::fabs(static_cast<double>(y)));
  const double up = static_cast<double>(word >> 8) < (a - std::floor(a)) * 0x1p24 ? 1 : 0;
  const int code = static_cast<int>(std::floor(a) + up);
  return static_cast<uint8_t>(y < 0 ? -code : code);
}

TEST(RandomWords, EqualTheGeneratorForEveryStartStrideAndLength) {
  const cpu::RandomStream stream{0x123456789ABCDEFull, 7, 99};
  for (const uint64_t first : {uint64_t{0}, uint64_t{5}, uint64_t{0xFFFFFFFD}, uint64_t{1} << 40}) {
    for (const uint64_t stride : {uint64_t{1}, uint64_t{37}}) {
      for (const int64_t groups : {1, 3, 8, 17, 64, 101}) {
        std::vector<uint32_t> words(static_cast<size_t>(4 * groups));
        cpu::RandomGroups(stream, first, stride, groups, words.data());
        for (int64_t i = 0; i < 4 * groups; ++i) {
          const uint64_t element = 4 * (first + static_cast<uint64_t>(i / 4) * stride);
          ASSERT_EQ(words[static_cast<size_t>(i)],
                    formats::RandomWord(stream.seed, stream.step, stream.stream,
                                        element + static_cast<uint64_t>(i % 4)))
              << first << " " << stride << " " << groups << " " << i;
        }
      }
    }
    uint32_t run[64];
    const uint32_t* words = cpu::RandomRun(stream, first + 3, 50, run);
    for (uint64_t i = 0; i < 50; ++i) {
      ASSERT_EQ(words[i],
                formats::RandomWord(stream.seed, stream.step, stream.stream, first + 3 + i));
    }
  }
}

// Stochastic rounding without divisions: whatever it decides is what the definition gives.
TEST(StochasticEncoders, DecideAsTheDefinitionOrNotAtAll) {
  constexpr int64_t kSize = 999;
  for (const Elem elem : {Elem::kE2M1, Elem::kInt8}) {
    const float max = elem == Elem::kE2M1 ? 6.0f : 127.0f;
    for (const cpu::StochasticEncoder encode : cpu::UsableStochasticEncoders()) {
      int decided = 0;
      for (uint32_t round = 0; round < 60; ++round) {
        Values x = Random(round, kSize, 1e-3f), fold = Random(round + 100, kSize, 50.0f);
        if (round % 7 == 1) x[5] = 0.0f;
        const float enc = max / (round % 5 == 0 ? 1e-3f : 9e-6f);
        Values reciprocals(kSize);
        std::vector<uint32_t> words(kSize);
        std::vector<uint8_t> codes(kSize), expected(kSize);
        for (size_t i = 0; i < kSize; ++i) {
          fold[i] = std::fabs(fold[i]) + 1.0f;
          reciprocals[i] = 1.0f / fold[i];
          words[i] = formats::RandomWord(round, 0, 0, i);
          const float y = formats::RoundBf16(x[i]) / fold[i] * enc;
          const uint8_t code = DefinedCode(elem, y, words[i]);
          if (elem == Elem::kInt8) {
            expected[i] = code;
          } else {
            expected[i / 2] = static_cast<uint8_t>(i % 2 == 0 ? code : expected[i / 2] | code << 4);
          }
        }
        const size_t bytes = elem == Elem::kInt8 ? kSize : (kSize + 1) / 2;
        if (!encode(elem, x.data(), reciprocals.data(), enc, words.data(), codes.data(), kSize)) {
          continue;
        }
        ++decided;
        ASSERT_TRUE(std::memcmp(codes.data(), expected.data(), bytes) == 0) << round;
      }
      EXPECT_GT(decided, 20);
      const float nan[] = {std::nanf("")}, one[] = {1.0f};
      const uint32_t word[] = {0x80000000u};
      uint8_t code[1];
      EXPECT_FALSE(encode(elem, nan, one, 1.0f, word, code, 1));
    }
  }
}

// Draws at and around the threshold of every value: undecided, or right.
TEST(StochasticEncoders, LeaveCloseDrawsUndecided) {
  for (const cpu::StochasticEncoder encode : cpu::UsableStochasticEncoders()) {
    for (int at = 0; at < 600; ++at) {
      const float value = formats::RoundBf16(static_cast<float>(at) * 0.01f);
      const float fold = 3.0f, enc = 3.0f * 0.99999f;
      const float y = value / fold * enc;
      const float step = y < 2 ? 0.5f : (y < 4 ? 1.0f : 2.0f);
      const float fraction = y / step - std::floor(y / step);
      for (int off = -3; off <= 3; ++off) {
        const auto draw = static_cast<int64_t>(fraction * 0x1p24f) + off;
        const uint32_t word = static_cast<uint32_t>(draw & 0xFFFFFF) << 8;
        Values x(16, value), reciprocals(16, 1.0f / fold);
        const std::vector<uint32_t> words(16, word);
        uint8_t codes[8];
        if (!encode(Elem::kE2M1, x.data(), reciprocals.data(), enc, words.data(), codes, 16)) {
          continue;
        }
        const uint8_t code = DefinedCode(Elem::kE2M1, y, word);
        EXPECT_EQ(codes[7], code | code << 4) << value << " " << off;
      }
    }
  }
}

TEST(FoldedAmax, WithReciprocalsEqualsDivision) {
  for (const int64_t n : {1, 15, 512, 513, 3000, 40000}) {
    for (const float size : {1e-38f, 1e-3f, 1.0f}) {
      Values x = Random(1, n, size), fold = Random(2, n, 100.0f);
      Values reciprocals(fold.size());
      for (size_t i = 0; i < fold.size(); ++i) {
        fold[i] = i % 11 == 3 ? HUGE_VALF : std::fabs(fold[i]) + 0.5f;
        reciprocals[i] = 1.0f / fold[i];
      }
      EXPECT_EQ(cpu::FoldedAmaxFast(x.data(), fold.data(), reciprocals.data(), n),
                cpu::FoldedAmax(x.data(), fold.data(), n));
      x[static_cast<size_t>(n / 2)] = std::nanf("");
      EXPECT_EQ(cpu::FoldedAmaxFast(x.data(), fold.data(), reciprocals.data(), n),
                cpu::FoldedAmax(x.data(), fold.data(), n));
    }
  }
}

TEST(FoldedAmax, OfColumnsWithReciprocalsEqualsDivision) {
  constexpr int64_t kCols = 77;
  std::vector<uint32_t> fast(kCols), exact(kCols);
  for (uint32_t row = 0; row < 300; ++row) {
    Values x = Random(row, kCols, row % 3 == 0 ? 1e-39f : 1.0f);
    for (size_t i = 0; row % 3 == 0 && i < x.size(); ++i) {
      // Subnormal numbers that rounding to BF16 changes a lot.
      x[i] = formats::BitsFloat(static_cast<uint32_t>(i) * 0x1FFFu + row);
    }
    if (row == 200) x[7] = HUGE_VALF;
    if (row == 250) x[9] = std::nanf("");
    const float fold = row % 5 == 0 ? HUGE_VALF : 0.3f + static_cast<float>(row % 7);
    cpu::FoldedColumnAmaxFast(x.data(), fold, 1.0f / fold, fast.data(), kCols);
    cpu::FoldedColumnAmax(x.data(), fold, exact.data(), kCols);
    ASSERT_EQ(fast, exact) << row;
  }
}

TEST(PositionsOutside, FindsWhatLiesBeyondTheBounds) {
  for (const int64_t n : {1, 7, 16, 100, 512}) {
    Values x = Random(3, n, 1.0f);
    x[static_cast<size_t>(n / 2)] = std::nanf("");
    uint16_t positions[512 + 16];
    const int64_t count = cpu::PositionsOutside(x.data(), n, -0.5f, 0.75f, positions);
    std::vector<uint16_t> expected;
    for (size_t i = 0; i < x.size(); ++i) {
      if (!(x[i] >= -0.5f && x[i] <= 0.75f)) expected.push_back(static_cast<uint16_t>(i));
    }
    EXPECT_EQ(std::vector<uint16_t>(positions, positions + count), expected);
  }
}

}  // namespace
}  // namespace nibble
