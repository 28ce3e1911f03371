// SPDX-License-Identifier: Apache-2.0
//
// Operands formed only to be quantized, emulated: what the fused kernels leave is what the
// operation and the quantizer leave one after the other.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cuda/elementwise_ops.cuh"
#include "kernels/cuda/norm_kernels.cuh"
#include "kernels/cuda/occ_kernels.cuh"
#include "kernels/cuda/quantize_both_kernels.cuh"
#include "kernels/cuda/quantize_kernels.cuh"
#include "kernels/formats/philox.h"

namespace nibble::cuda {
namespace {

// Heavy tails, some zeros, an infinity and a NaN.
std::vector<float> Source(int64_t size, uint32_t stream) {
  std::vector<float> x(static_cast<size_t>(size));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = formats::RandomWord(29, 0, stream, i);
    const float uniform = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f;
    x[i] = word % 31 == 3 ? 0.0f : uniform * (word % 23 == 0 ? 60.0f : 2.0f);
  }
  if (x.size() > 70) x[60] = std::numeric_limits<float>::infinity();
  if (x.size() > 70) x[70] = std::nanf("");
  return x;
}

std::vector<uint16_t> Bf16Of(const std::vector<float>& x) {
  std::vector<uint16_t> bits;
  for (const float value : x) bits.push_back(formats::ToBf16(value));
  return bits;
}

// The same for every NaN, whose sign is nobody's.
std::vector<uint16_t> KeysOf(const std::vector<uint16_t>& bits) {
  std::vector<uint16_t> keys;
  for (const uint16_t value : bits) keys.push_back(formats::Bf16OrderKey(value));
  return keys;
}

TEST(EmulatedOperand, NormsLeaveTheBf16OfTheirFp32) {
  constexpr int64_t kRows = 5;
  constexpr int kFours = 2;
  const auto check = [&](int64_t width, bool residual, auto whole) {
    SCOPED_TRACE(width);
    const int64_t size = kRows * width;
    const std::vector<float> a = Source(size, 1), b = Source(size, 2), weight = Source(width, 3);
    std::vector<float> sum(a.size()), out(a.size()), rstd(kRows), same_sum = sum, same_rstd = rstd;
    std::vector<uint16_t> bits(a.size());
    const auto run = [&](FiberOrder order, auto* to, std::vector<float>& sums,
                         std::vector<float>& inverse) {
      using Out = std::remove_pointer_t<decltype(to)>;
      const NormTask<Out> task{a.data(),      residual ? b.data() : nullptr,
                               weight.data(), 1e-5f,
                               kRows,         width,
                               sums.data(),   to,
                               inverse.data()};
      Emulator::Get().Launch({2}, kThreads, 0, order,
                             [&] { RmsNormKernel<kFours, decltype(whole)::value>(task); });
    };
    run(FiberOrder::kForwards, out.data(), sum, rstd);
    run(FiberOrder::kBackwards, bits.data(), same_sum, same_rstd);
    EXPECT_EQ(bits, Bf16Of(out));
    EXPECT_EQ(std::memcmp(sum.data(), same_sum.data(), sum.size() * 4), 0);
    EXPECT_EQ(std::memcmp(rstd.data(), same_rstd.data(), rstd.size() * 4), 0);
  };
  for (const bool residual : {false, true}) {
    check(1, residual, std::false_type());
    check(300, residual, std::true_type());
    check(kNormHeld<kFours> + 70, residual, std::false_type());
  }
}

// Counted while it is formed, in one read of gate and up.
TEST(EmulatedOperand, SwiGluIsCountedAsItsFp32IsAndLeftAsBf16) {
  for (const int64_t size : {1, 777, static_cast<int>(kHistogramChunk) + 1026}) {
    const std::vector<float> gate = Source(size, 4), up = Source(size, 5);
    std::vector<float> out(gate.size());
    const SwiGluOp op{gate.data(), up.data(), out.data()};
    for (int64_t i = 0; i < size; ++i) op.At<1>(i);
    std::vector<unsigned> expected(kKeys, 0);
    for (const float value : out) ++expected[formats::Bf16OrderKey(formats::ToBf16(value))];
    const auto count = [&](auto values, FiberOrder order) {
      std::vector<unsigned> counts(kKeys, 0);
      Emulator::Get().Launch({2}, kHistogramThreads, kHistogramBytes, order,
                             [&] { CountKeysKernel(values, size, counts.data()); });
      return counts;
    };
    std::vector<uint16_t> bits(gate.size());
    const SwiGluValues formed{gate.data(), up.data(), bits.data()};
    EXPECT_EQ(count(formed, FiberOrder::kForwards), expected);
    EXPECT_EQ(KeysOf(bits), KeysOf(Bf16Of(out)));
    EXPECT_EQ(count(Bf16Values{bits.data()}, FiberOrder::kBackwards), expected);
  }
}

constexpr int64_t kRows = 37, kCols = 300;

// Both quantizations of one tensor: dgrad by row, wgrad by column, folded; and what they leave.
struct Gradient {
  std::vector<float> row_fold, column_fold, enc[2];
  std::vector<RowStats> stats;
  std::vector<uint32_t> columns;
  std::vector<uint8_t> codes[2];

  explicit Gradient(uint32_t stream)
      : row_fold(Source(kRows, stream)),
        column_fold(Source(kCols, stream + 1)),
        stats(kRows, RowStats{}),
        columns(kCols, 0) {
    for (float& fold : row_fold) fold = std::fabs(fold) + 0.5f;
    for (float& fold : column_fold) fold = std::fabs(fold) + 0.5f;
    row_fold[9] = std::numeric_limits<float>::infinity();  // a group of zero codes
    for (auto& side : codes) side.assign(kRows * kCols, 0xEE);
  }
  Fold FoldOfSide(int side) const {
    Fold fold;
    if (side == 0) fold.by_column = column_fold.data();
    if (side == 1) fold.by_row = row_fold.data();
    return fold;
  }
  MeasureSide Measure(int side) {
    return {FoldOfSide(side), side == 0 ? ScaleAxis::kRow : ScaleAxis::kColumn, stats.data(),
            columns.data()};
  }
  void SetScales(float max) {
    QuantizeCounters counters{};
    enc[0].resize(kRows);
    enc[1].resize(kCols);
    const VectorScalesOp rows{ScaleRule::kF32, max,           stats.data(),
                              nullptr,         enc[0].data(), &counters};
    const VectorScalesOp cols{ScaleRule::kF32, max,           stats.data(),
                              columns.data(),  enc[1].data(), &counters};
    for (int64_t i = 0; i < kRows; ++i) rows(i);
    for (int64_t i = 0; i < kCols; ++i) cols(i);
    EXPECT_GT(counters.nonfinite_amax, 0);  // of the NaN
  }
  EncodeSide Encode(int side, Elem elem, Round round) {
    return {elem,
            round,
            {1, 2, static_cast<uint32_t>(side)},
            side == 1,
            side == 0 ? ScaleAxis::kRow : ScaleAxis::kColumn,
            FoldOfSide(side),
            enc[side].data(),
            codes[side].data(),
            elem == Elem::kE2M1 ? kCols / 2 : kCols};
  }
};

struct GradientCase {
  Elem elem;
  float max;
  Round round;
};
class EmulatedGradients : public testing::TestWithParam<GradientCase> {};

TEST_P(EmulatedGradients, OfASwiGluTogetherAreThoseOneAfterTheOther) {
  const GradientCase& c = GetParam();
  const std::vector<float> dout = Source(kRows * kCols, 10), gate = Source(kRows * kCols, 11);
  std::vector<float> up = Source(kRows * kCols, 12);
  std::vector<float> dgate = gate, dup = up, pairs = gate;
  const SwiGluBackwardOp op{dout.data(), gate.data(), up.data(), dgate.data(), dup.data()};
  for (int64_t i = 0; i < kRows * kCols; ++i) op.At<1>(i);
  Gradient alone[2] = {Gradient(20), Gradient(22)}, together[2] = {Gradient(20), Gradient(22)};
  const auto launch = [](EmulatedDim grid, FiberOrder order, auto kernel) {
    Emulator::Get().Launch(grid, kThreads, 0, order, kernel);
  };
  using One = OneTensor<F32Values>;
  for (int i = 0; i < 2; ++i) {
    const One x{{i == 0 ? dgate.data() : dup.data()}};
    Gradient& g = alone[i];
    const MeasureSides<One> measure{{{g.Measure(0), g.Measure(1)}}};
    launch({2, 2}, FiberOrder::kForwards, [&] { MeasureBothKernel(x, kRows, kCols, measure); });
    g.SetScales(c.max);
    const EncodeSides<One> encode{{{g.Encode(0, c.elem, c.round), g.Encode(1, c.elem, c.round)}}};
    launch({3}, FiberOrder::kForwards, [&] { EncodeBothKernel(x, kRows, kCols, encode); });
  }
  const SwiGluGradients form{dout.data(), pairs.data(), up.data()};
  const GradientPairs formed{pairs.data()};
  MeasureSides<SwiGluGradients<float>> measure;
  for (int i = 0; i < 4; ++i) measure.of[i / 2][i % 2] = together[i / 2].Measure(i % 2);
  launch({2, 1}, FiberOrder::kBackwards, [&] { MeasureBothKernel(form, kRows, kCols, measure); });
  EncodeSides<GradientPairs> encode;
  for (int i = 0; i < 4; ++i) {
    if (i % 2 == 0) together[i / 2].SetScales(c.max);
    encode.of[i / 2][i % 2] = together[i / 2].Encode(i % 2, c.elem, c.round);
  }
  launch({2}, FiberOrder::kBackwards, [&] { EncodeBothKernel(formed, kRows, kCols, encode); });
  for (int i = 0; i < 2; ++i) {
    for (int side = 0; side < 2; ++side) {
      EXPECT_EQ(together[i].enc[side], alone[i].enc[side]) << i << side;
      EXPECT_EQ(together[i].codes[side], alone[i].codes[side]) << i << side;
    }
  }
  EXPECT_NE(alone[0].codes[0], alone[1].codes[0]);
}

INSTANTIATE_TEST_SUITE_P(Formats, EmulatedGradients,
                         testing::Values(GradientCase{Elem::kE4M3, 448, Round::kEven},
                                         GradientCase{Elem::kInt8, 127, Round::kSr24},
                                         GradientCase{Elem::kE2M1, 6, Round::kSr24},
                                         GradientCase{Elem::kE5M2, 57344, Round::kEven}));

}  // namespace
}  // namespace nibble::cuda
