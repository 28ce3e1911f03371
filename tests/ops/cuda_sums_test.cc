// SPDX-License-Identifier: Apache-2.0
//
// Sums, maxima, quantiles of rows and decoding on the device, emulated: the bits of the CPU
// backend.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "kernels/backend.h"
#include "kernels/cuda/occ_kernels.cuh"
#include "kernels/cuda/quantize_kernels.cuh"
#include "kernels/cuda/reduce_kernels.cuh"
#include "kernels/cuda/rotate_kernels.cuh"
#include "kernels/cuda/rounded_adamw_kernels.cuh"
#include "kernels/formats/philox.h"

namespace nibble::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> Source(int64_t size, uint32_t stream) {
  std::vector<float> x(static_cast<size_t>(size));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = formats::RandomWord(31, 0, stream, i);
    const float uniform = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f;
    x[i] = word % 29 == 3 ? 0.0f : uniform * (word % 41 == 0 ? 50.0f : 2.0f);
  }
  return x;
}

void Launch(FiberOrder order, unsigned blocks, const std::function<void()>& kernel) {
  Emulator::Get().Launch({blocks}, kThreads, 0, order, kernel);
}

// The value of a rank among n, every NaN last.
float ValueOfRank(const float* x, int64_t n, int64_t rank) {
  std::vector<uint16_t> keys;
  for (int64_t i = 0; i < n; ++i) keys.push_back(formats::Bf16OrderKey(formats::ToBf16(x[i])));
  std::sort(keys.begin(), keys.end());
  return formats::FromBf16(formats::Bf16FromOrderKey(keys[static_cast<size_t>(rank)]));
}

TEST(EmulatedSums, BoundsOfARowAreItsOrderStatistics) {
  constexpr int64_t kRows = 5;
  for (const int64_t cols : {1, 7, 300, 1031}) {
    std::vector<float> x = Source(kRows * cols, 1);
    for (int64_t i = cols; i < 2 * cols; ++i) x[static_cast<size_t>(i)] = 1.5f;  // all the same
    x[static_cast<size_t>(2 * cols)] = std::nanf("");
    x[static_cast<size_t>(3 * cols)] = -kInfinity;
    std::vector<uint16_t> narrow;
    for (const float value : x) narrow.push_back(formats::ToBf16(value));
    const auto index = formats::OccIndices(0.97, cols);
    const auto check = [&](auto values, FiberOrder order) {
      std::vector<RowStats> stats(kRows, RowStats{});
      Launch(order, 2,
             [&] { TokenBoundsKernel(values, kRows, cols, index.low, index.high, stats.data()); });
      for (int64_t row = 0; row < kRows; ++row) {
        const float* const first = x.data() + row * cols;
        const RowStats& got = stats[static_cast<size_t>(row)];
        EXPECT_EQ(formats::FloatBits(got.low),
                  formats::FloatBits(ValueOfRank(first, cols, index.low)));
        EXPECT_EQ(formats::FloatBits(got.high),
                  formats::FloatBits(ValueOfRank(first, cols, index.high)));
      }
    };
    check(F32Values{x.data()}, FiberOrder::kForwards);
    check(Bf16Values{narrow.data()}, FiberOrder::kBackwards);
  }
}

TEST(EmulatedSums, KeysAreCountedWithoutTheHistogramInSharedMemory) {
  const std::vector<float> x = Source(5000, 2);
  std::vector<unsigned> counts(kKeys, 0), expected(kKeys, 0);
  const CountKeysOp<F32Values> op{{x.data()}, counts.data()};
  for (size_t i = 0; i < x.size(); ++i) {
    ++expected[formats::Bf16OrderKey(formats::ToBf16(x[i]))];
    op(static_cast<int64_t>(i));
  }
  EXPECT_EQ(counts, expected);
}

TEST(EmulatedSums, SumsAreThoseOfTheirChunks) {
  for (const int64_t size : {int64_t{1}, int64_t{255}, 2 * kSumChunk, 2 * kSumChunk + 77}) {
    const std::vector<float> x = Source(size, 3);
    const int64_t chunks = (size + kSumChunk - 1) / kSumChunk;
    for (const bool squared : {false, true}) {
      std::vector<double> partials[2];
      for (auto& sums : partials) {
        sums.assign(static_cast<size_t>(chunks), -1.0);
        const FiberOrder order = &sums == partials ? FiberOrder::kForwards : FiberOrder::kBackwards;
        Launch(order, static_cast<unsigned>(chunks),
               [&] { SumKernel(x.data(), size, squared, sums.data()); });
      }
      EXPECT_EQ(partials[0], partials[1]);
      double expected = 0, magnitude = 0, sum = 0;
      for (const float value : x) {
        const auto term = squared ? static_cast<double>(value) * static_cast<double>(value)
                                  : static_cast<double>(value);
        expected += term;
        magnitude += std::fabs(term);
      }
      for (const double partial : partials[0]) sum += partial;
      EXPECT_NEAR(sum, expected, 1e-12 * magnitude);
    }
  }
}

TEST(EmulatedSums, TheLargestMagnitudeIsTheCpus) {
  const auto cpu = *MakeBackend("cpu", {1, 0});
  for (const float special : {0.0f, -kInfinity, std::nanf("")}) {
    std::vector<float> x = Source(3000, 4);
    x[1234] = special;
    uint32_t* const bits = new uint32_t(0);
    Launch(FiberOrder::kBackwards, 3, [&] { AbsMaxKernel(x.data(), 3000, bits); });
    const float expected = cpu->AbsMax({x.data(), 1, 3000}).value();
    const float got = formats::BitsFloat(*bits);
    EXPECT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected))) << special;
    delete bits;
  }
}

TEST(EmulatedSums, OnTheWireAndUnderAMaskAsOnTheCpu) {
  const auto cpu = *MakeBackend("cpu", {1, 0});
  std::vector<float> x = Source(1000, 5), expected = x;
  ASSERT_TRUE(cpu->RoundToE4M3(0.3f, {expected.data(), 1, 1000}).ok());
  for (int64_t i = 0; i < 1000; ++i) RoundToE4M3Op{0.3f, x.data()}(i);
  EXPECT_EQ(x, expected);
  std::vector<uint8_t> mask(1000);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = i % 3 == 0 ? 1 : 0;
  for (int64_t i = 0; i < 1000; ++i) ApplyMaskOp{mask.data(), x.data()}(i);
  for (size_t i = 0; i < mask.size(); ++i) EXPECT_EQ(x[i], mask[i] != 0 ? expected[i] : 0.0f);
}

struct DecodeCase {
  Elem elem;
  Block block;
  float max;
  OccComp comp;
};
class EmulatedDecode : public testing::TestWithParam<DecodeCase> {};

TEST_P(EmulatedDecode, GivesTheBitsOfTheCpu) {
  constexpr int64_t kRows = 23, kCols = 77;
  const DecodeCase& c = GetParam();
  const auto cpu = *MakeBackend("cpu", {1, 0});
  const std::vector<float> x = Source(kRows * kCols, 6);
  Quant quant;
  quant.elem = c.elem;
  quant.block = c.block;
  quant.scale = ScaleRule::kF32;
  quant.scale_max = c.max;
  if (c.comp != OccComp::kNone) quant.pre = {true, 0.9, OccScope::kTensor, c.comp};
  QuantizedTensor q;
  ASSERT_TRUE(cpu->Quantize(quant, {}, {x.data(), kRows, kCols}, &q, {}).ok());
  std::vector<float> expected(x.size()), got(x.size());
  ASSERT_TRUE(cpu->Dequantize(q, {expected.data(), kRows, kCols}).ok());
  const StoredCodes codes{q.elem,
                          q.scale,
                          AxisOf(q),
                          kRows,
                          kCols,
                          q.code_row_bytes(),
                          static_cast<const uint8_t*>(q.codes.data()),
                          static_cast<const float*>(q.enc.data())};
  for (int64_t i = 0; i < kRows * kCols; ++i) DecodeOp{codes, FoldOf(q), got.data()}(i);
  if (c.comp != OccComp::kNone) {
    EXPECT_GT(q.residual_count, 0);
    const QuantizeCounters counters{static_cast<int32_t>(q.residual_count), 0, q.residual_enc};
    const AddResidualOp add{codes,
                            q.comp,
                            &counters,
                            static_cast<const int32_t*>(q.residual_offsets.data()),
                            static_cast<const int32_t*>(q.residual_columns.data()),
                            q.residual_values.data(),
                            got.data()};
    for (int64_t row = 0; row < kRows; ++row) add(row);
  }
  EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.size() * 4), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Formats, EmulatedDecode,
    testing::Values(DecodeCase{Elem::kE2M1, Block::kToken, 6, OccComp::kNone},
                    DecodeCase{Elem::kE2M1, Block::kTensor, 6, OccComp::kBf16},
                    DecodeCase{Elem::kE2M1, Block::kToken, 6, OccComp::kE4M3},
                    DecodeCase{Elem::kE2M1, Block::kToken, 6, OccComp::kWide},
                    DecodeCase{Elem::kE2M1, Block::kToken, 6, OccComp::kWideE4M3},
                    DecodeCase{Elem::kE4M3, Block::kInputChannel, 448, OccComp::kNone},
                    DecodeCase{Elem::kE5M2, Block::kTensor, 57344, OccComp::kNone},
                    DecodeCase{Elem::kInt8, Block::kToken, 127, OccComp::kNone}));

}  // namespace
}  // namespace nibble::cuda
