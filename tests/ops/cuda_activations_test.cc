// SPDX-License-Identifier: Apache-2.0
//
// Activations that rest as BF16, emulated: kernels that read them give what they give for the FP32
// numbers these stand for, kernels that write them leave what they would write as FP32, rounded.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cuda/carry_kernels.cuh"
#include "kernels/cuda/elementwise_ops.cuh"
#include "kernels/cuda/estimate_kernels.cuh"
#include "kernels/cuda/occ_kernels.cuh"
#include "kernels/cuda/quantize_both_kernels.cuh"
#include "kernels/cuda/quantize_kernels.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/cuda/rounded_adamw_kernels.cuh"
#include "kernels/formats/philox.h"
#include "tests/ops/cuda_elements.h"

namespace nibble::cuda {
namespace {

// A range of sizes, zeros, an infinity and a NaN.
std::vector<float> Source(int64_t size, uint32_t stream) {
  std::vector<float> x(static_cast<size_t>(size));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = formats::RandomWord(31, 0, stream, i);
    const float uniform = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f;
    x[i] = word % 31 == 3 ? 0.0f : uniform * (word % 23 == 0 ? 40.0f : 2.0f);
  }
  if (x.size() > 70) x[60] = std::numeric_limits<float>::infinity();
  if (x.size() > 70) x[70] = std::nanf("");
  return x;
}
std::vector<uint16_t> Narrow(const std::vector<float>& x) {
  std::vector<uint16_t> bits;
  for (const float value : x) bits.push_back(formats::ToBf16(value));
  return bits;
}
std::vector<float> Wide(const std::vector<uint16_t>& bits) {
  std::vector<float> x;
  for (const uint16_t b : bits) x.push_back(formats::FromBf16(b));
  return x;
}
// Any NaN is as good as another.
void ExpectSameBits(const std::vector<float>& got, const std::vector<float>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) && std::isnan(expected[i])) continue;
    ASSERT_EQ(formats::FloatBits(got[i]), formats::FloatBits(expected[i])) << i;
  }
}
// Gate and up at rest, and as FP32.
struct Gates {
  explicit Gates(int64_t size)
      : gate(Narrow(Source(size, 1))),
        up(Narrow(Source(size, 2))),
        wide_gate(Wide(gate)),
        wide_up(Wide(up)),
        dout(Source(size, 3)) {}
  std::vector<uint16_t> gate, up;
  std::vector<float> wide_gate, wide_up, dout;
};

TEST(EmulatedActivations, ConversionsAreExactOrRoundOnce) {
  constexpr int64_t kSize = 333;
  const std::vector<float> x = Source(kSize, 4);
  std::vector<uint16_t> narrow(kSize), again(kSize);
  std::vector<float> wide(kSize);
  ForEachPacked(kSize, RoundOp{x.data(), narrow.data()});
  EXPECT_EQ(narrow, Narrow(x));
  ForEachPacked(kSize, RoundOp{narrow.data(), wide.data()});
  ExpectSameBits(wide, Wide(narrow));
  ForEachPacked(kSize, RoundOp{narrow.data(), again.data()});
  EXPECT_EQ(again, narrow);
}

TEST(EmulatedActivations, RotatedPositionsRoundOnce) {
  constexpr int64_t kTokens = 14, kHeads = 3, kHeadDim = 8, kSize = kTokens * kHeads * kHeadDim;
  const std::vector<float> x = Source(kSize, 5), table = Source(20 * kHeadDim, 6);
  std::vector<float> wide(kSize);
  std::vector<uint16_t> narrow(kSize);
  const auto turn = [&](auto* out) {
    const RopeTask<std::remove_pointer_t<decltype(out)>> task{
        x.data(), out, table.data(), kTokens, kTokens / 2, 5, kHeads, kHeadDim, 1.0f};
    Emulator::Get().Launch({2}, kThreads, 0, FiberOrder::kForwards, [&] { RopeKernel<4>(task); });
  };
  turn(wide.data());
  turn(narrow.data());
  EXPECT_EQ(narrow, Narrow(wide));
}

TEST(EmulatedActivations, SwiGluReadsThemBothWays) {
  constexpr int64_t kSize = 501;
  const Gates g(kSize);
  std::vector<float> out(kSize), expected(kSize), dgate = g.dout, dup(kSize);
  std::vector<float> expected_dgate(kSize), expected_dup(kSize);
  std::vector<uint16_t> narrow(kSize);
  ForEachPacked(kSize, SwiGluOp{g.wide_gate.data(), g.wide_up.data(), expected.data()});
  ForEachPacked(kSize, SwiGluOp{g.gate.data(), g.up.data(), out.data()});
  ForEachPacked(kSize, SwiGluOp{g.gate.data(), g.up.data(), narrow.data()});
  ExpectSameBits(out, expected);
  ExpectSameBits(Wide(narrow), Wide(Narrow(expected)));
  ForEachPacked(kSize, SwiGluBackwardOp{g.dout.data(), g.wide_gate.data(), g.wide_up.data(),
                                        expected_dgate.data(), expected_dup.data()});
  // dgate takes the place of dout.
  ForEachPacked(
      kSize, SwiGluBackwardOp{dgate.data(), g.gate.data(), g.up.data(), dgate.data(), dup.data()});
  ExpectSameBits(dgate, expected_dgate);
  ExpectSameBits(dup, expected_dup);
}

TEST(EmulatedActivations, SwiGluIsCountedWhileItIsFormed) {
  for (const int64_t size : {1, 778, static_cast<int>(kHistogramChunk) + 1026}) {
    const Gates g(size);
    const auto count = [&](auto values) {
      std::vector<unsigned> counts(kKeys, 0);
      Emulator::Get().Launch({2}, kHistogramThreads, kHistogramBytes, FiberOrder::kBackwards,
                             [&] { CountKeysKernel(values, size, counts.data()); });
      return counts;
    };
    std::vector<uint16_t> formed(g.gate.size()), expected(g.gate.size());
    const auto expected_counts =
        count(SwiGluValues{g.wide_gate.data(), g.wide_up.data(), expected.data()});
    EXPECT_EQ(count(SwiGluValues{g.gate.data(), g.up.data(), formed.data()}), expected_counts);
    EXPECT_EQ(formed, expected);
  }
}

// Maxima and codes of dgate and dup, by row and by column, without folds.
struct Quantized {
  static constexpr int64_t kRows = 37, kCols = 300;
  static constexpr ScaleAxis kAxes[] = {ScaleAxis::kRow, ScaleAxis::kColumn};
  std::vector<RowStats> stats[2][2];
  std::vector<uint32_t> columns[2][2];
  std::vector<float> enc[2][2];
  std::vector<uint8_t> codes[2][2];

  template <typename Formed, typename Found>
  void Run(const Formed& formed, const Found& found, FiberOrder order) {
    MeasureSides<Formed> measure;
    EncodeSides<Found> encode;
    for (int tensor = 0; tensor < 2; ++tensor) {
      for (int side = 0; side < 2; ++side) {
        stats[tensor][side].assign(kRows, RowStats{});
        columns[tensor][side].assign(kCols, 0);
        enc[tensor][side].assign(kCols, 0);
        codes[tensor][side].assign(kRows * kCols, 0xEE);
        measure.of[tensor][side] = {Fold{}, kAxes[side], stats[tensor][side].data(),
                                    columns[tensor][side].data()};
        encode.of[tensor][side] = {Elem::kE4M3,
                                   Round::kEven,
                                   {1, 2, 3},
                                   side == 1,
                                   kAxes[side],
                                   Fold{},
                                   enc[tensor][side].data(),
                                   codes[tensor][side].data(),
                                   kCols};
      }
    }
    Emulator::Get().Launch({2, 2}, kThreads, 0, order,
                           [&] { MeasureBothKernel(formed, kRows, kCols, measure); });
    QuantizeCounters counters{};
    for (int tensor = 0; tensor < 2; ++tensor) {
      for (int side = 0; side < 2; ++side) {
        const VectorScalesOp scales{ScaleRule::kF32,
                                    448,
                                    stats[tensor][side].data(),
                                    side == 1 ? columns[tensor][side].data() : nullptr,
                                    enc[tensor][side].data(),
                                    &counters};
        ForEachElement(side == 0 ? kRows : kCols, scales);
      }
    }
    Emulator::Get().Launch({3}, kThreads, 0, order,
                           [&] { EncodeBothKernel(found, kRows, kCols, encode); });
  }
};

TEST(EmulatedActivations, GradientsOfASwiGluReplaceThem) {
  constexpr int64_t kSize = Quantized::kRows * Quantized::kCols;
  Gates g(kSize);
  std::vector<float> pairs = g.wide_gate;
  Quantized wide, narrow;
  wide.Run(SwiGluGradients<float>{g.dout.data(), pairs.data(), g.wide_up.data()},
           GradientPairs{pairs.data()}, FiberOrder::kForwards);
  narrow.Run(SwiGluGradients<uint16_t>{g.dout.data(), g.gate.data(), g.up.data()},
             TwoTensors{g.gate.data(), g.up.data()}, FiberOrder::kBackwards);
  for (int tensor = 0; tensor < 2; ++tensor) {
    for (int side = 0; side < 2; ++side) {
      ExpectSameBits(narrow.enc[tensor][side], wide.enc[tensor][side]);
      EXPECT_EQ(narrow.codes[tensor][side], wide.codes[tensor][side]) << tensor << side;
    }
  }
  EXPECT_NE(narrow.codes[0][0], narrow.codes[1][0]);
  std::vector<float> dgate(kSize), dup(kSize);
  const Gates before(kSize);
  ForEachPacked(kSize, SwiGluBackwardOp{g.dout.data(), before.gate.data(), before.up.data(),
                                        dgate.data(), dup.data()});
  EXPECT_EQ(g.gate, Narrow(dgate));
  EXPECT_EQ(g.up, Narrow(dup));
}

// One neighbour and four at a time; sums gathered onto what is there in FP32.
TEST(EmulatedActivations, ProductsOnCodesRoundOnceAfterBothScales) {
  constexpr int64_t kRows = 5, kCols = 1040;
  const std::vector<float> sums = Source(kRows * kCols, 6), a = Source(kRows, 7);
  const std::vector<float> b = Source(kCols, 8);
  std::vector<float> wide(kRows * kCols), gathered = Source(kRows * kCols, 9), expected = gathered;
  std::vector<uint16_t> narrow(kRows * kCols);
  const auto scale = [&](auto pack, bool accumulate, auto* out) {
    const OuterProduct<std::remove_pointer_t<decltype(out)>> task{
        sums.data(), kRows, kCols, a.data(), b.data(), accumulate, out};
    Emulator::Get().Launch({2}, kThreads, 0, FiberOrder::kForwards,
                           [&] { OuterProductKernel<decltype(pack)::value>(task); });
  };
  scale(std::integral_constant<int, 1>(), false, wide.data());
  scale(std::integral_constant<int, 4>(), false, narrow.data());
  scale(std::integral_constant<int, 4>(), true, gathered.data());
  EXPECT_EQ(narrow, Narrow(wide));
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = expected[i] + wide[i];
  ExpectSameBits(gathered, expected);
}

TEST(EmulatedActivations, MaximaAndHealthAreThoseOfTheirNumbers) {
  constexpr int64_t kRows = 4, kCols = 65;
  std::vector<float> x = Source(kRows * kCols, 9);
  x[60] = x[70] = 1.5f;
  const std::vector<uint16_t> narrow = Narrow(x);
  const std::vector<float> wide = Wide(narrow), decoded = Source(60, 10);
  std::vector<float> meant(x.size());
  for (size_t i = 0; i < meant.size(); ++i) meant[i] = wide[i] + decoded[i % 60] * 0.01f;
  const std::vector<float> enc(kRows, 3.0f);
  ScalePlace place{};
  uint32_t bits[2] = {0, 0};
  std::vector<HealthSums> sums[2] = {std::vector<HealthSums>(2), std::vector<HealthSums>(2)};
  const auto run = [&](const auto* from, auto values, int i) {
    Emulator::Get().Launch({2}, kThreads, 0, FiberOrder::kForwards,
                           [&] { AbsMaxKernel(from, kRows * kCols, &bits[i]); });
    Emulator::Get().Launch({2}, kThreads, 0, FiberOrder::kBackwards, [&] {
      HealthKernel(values, meant.data(), kRows, kCols, enc.data(), place, 6.0f, sums[i].data());
    });
  };
  run(wide.data(), F32Values{wide.data()}, 0);
  run(narrow.data(), Bf16Values{narrow.data()}, 1);
  EXPECT_EQ(bits[1], bits[0]);
  EXPECT_GT(bits[0], 0u);
  EXPECT_EQ(std::memcmp(sums[0].data(), sums[1].data(), 2 * sizeof(HealthSums)), 0);
  EXPECT_GT(sums[0][0].xx, 0);
}

}  // namespace
}  // namespace nibble::cuda
