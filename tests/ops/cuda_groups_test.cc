// SPDX-License-Identifier: Apache-2.0
//
// The kernels for small scale groups, emulated: codes, scales, masks, counters and decoded values
// are the CPU's bits.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/backend.h"
#include "kernels/cuda/estimate_kernels.cuh"
#include "kernels/cuda/oscillation_kernels.cuh"
#include "tests/ops/cuda_groups.h"

namespace nibble::cuda {
namespace {

// The kernels in the order of CudaBackend::QuantizeInCells; `shape` says how the result lies.
Outcome Emulated(const Quant& quant, const QuantizeContext& context, const std::vector<float>& x,
                 const QuantizedTensor& shape, FiberOrder order) {
  // One way round, the elements as an earlier kernel has left them.
  const bool as_bf16 = context.round_source && order == FiberOrder::kBackwards;
  EmulatedGroupTask task(quant, context, x, shape, as_bf16);
  const GroupLayout& layout = task.t.layout;
  const EmulatedDim cells =
      layout.turned
          ? EmulatedDim{static_cast<unsigned>((layout.lines + kThreads - 1) / kThreads), 2}
          : EmulatedDim{3};
  task.Launch(cells, order, GroupMeasureKernel);
  task.Launch({2}, order, GroupScalesKernel);
  task.Launch(cells, order, GroupEncodeKernel);
  return task.Finish(order);
}

class EmulatedGroups : public testing::TestWithParam<GroupCase> {};

TEST_P(EmulatedGroups, QuantizeToTheBitsOfTheCpu) {
  const GroupCase& c = GetParam();
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 1}, {37, 300}, {64, 256}, {257, 33}}) {
    for (const bool odd : {false, true}) {
      SCOPED_TRACE(testing::Message() << rows << 'x' << cols << " non-finite " << odd);
      std::vector<float> x = Source(rows * cols, 1);
      if (odd) {
        x[x.size() / 2] = INFINITY;
        x[x.size() / 3] = NAN;
      }
      QuantizeContext context;
      context.seed = 3;
      context.step = 4;
      context.stream = 5;
      context.contraction = c.contraction;
      QuantizedTensor q;
      std::vector<float> decoded(x.size());
      const Status status =
          cpu->Quantize(c.quant, context, {x.data(), rows, cols}, &q, {decoded.data(), rows, cols});
      ASSERT_TRUE(status.ok()) << status.ToString();
      const Outcome expected = OutcomeOf(q);
      for (const FiberOrder order : {FiberOrder::kForwards, FiberOrder::kBackwards}) {
        ExpectSame(Emulated(c.quant, context, x, q, order), expected, decoded);
      }
      // Dequantize of the CPU's tensor.
      std::vector<float> again(x.size());
      const DecodeGroupsOp decode{StoredGroupsOf(q), again.data()};
      for (int64_t i = 0; i < rows * cols; ++i) decode(i);
      ExpectSameFloats(again, decoded, "dequantized");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Quantize, EmulatedGroups, testing::ValuesIn(GroupCases()),
                         [](const auto& info) { return info.param.name; });

// Every kind of estimator on scales by group, column and tile.
TEST(EmulatedEstimator, EqualsTheCpuBitForBit) {
  constexpr int64_t kRows = 33, kCols = 64;
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
  const std::vector<float> weight = Source(kRows * kCols, 2), wgrad = Source(kRows * kCols, 3);
  for (const Block block : {Block::kGroup, Block::kTile, Block::kInputChannel}) {
    const Quant quant =
        GroupQuant(Elem::kE2M1, block, 16, IsGrouped(block) ? ScaleRule::kNv : ScaleRule::kF32,
                   IsGrouped(block) ? 448.0f : 6.0f);
    QuantizedTensor q;
    ASSERT_TRUE(cpu->Quantize(quant, {}, {weight.data(), kRows, kCols}, &q, {}).ok());
    for (const Estimator kind : {Estimator::kSte, Estimator::kDge, Estimator::kPower,
                                 Estimator::kSpline, Estimator::kSigmoid}) {
      WeightEstimator estimator;
      estimator.kind = kind;
      std::vector<float> expected(weight.size(), 0.5f), got = expected;
      ASSERT_TRUE(cpu->DgeAccumulate(estimator, {wgrad.data(), kRows, kCols},
                                     {weight.data(), kRows, kCols}, q,
                                     {expected.data(), kRows, kCols})
                      .ok());
      EstimateOp op{estimator,
                    ScalePlaceOf(q),
                    true,
                    kCols,
                    wgrad.data(),
                    weight.data(),
                    static_cast<const float*>(q.enc.data()),
                    got.data()};
      for (int64_t i = 0; i < kRows * kCols; ++i) op(i);
      ExpectSameFloats(got, expected, "gradient");
      // In place.
      expected = got = wgrad;
      ASSERT_TRUE(
          cpu->DgeScale(
                 {estimator, {weight.data(), kRows, kCols}, &q, {expected.data(), kRows, kCols}})
              .ok());
      op.accumulate = false;
      op.product = got.data();
      for (int64_t i = 0; i < kRows * kCols; ++i) op(i);
      ExpectSameFloats(got, expected, "scaled gradient");
    }
  }
}

// Odd sizes, a scale per row and per tensor, weights and gradients that are not finite.
TEST(EmulatedEstimator, CompletesGradientsToTheCpusBitsAndSumsTheirSquares) {
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
  constexpr int64_t kRows = 37;
  for (const int64_t cols : {int64_t{1}, int64_t{30}, int64_t{4 * kThreads + 12}}) {
    for (const bool bad : {false, true}) {
      std::vector<float> weight = Source(kRows * cols, 2), gradient = Source(kRows * cols, 3);
      if (bad) {
        weight[5] = NAN;
        gradient[7] = -INFINITY;
      }
      for (const Block block : {Block::kToken, Block::kTensor}) {
        QuantizedTensor q;
        ASSERT_TRUE(cpu->Quantize(GroupQuant(Elem::kE2M1, block, 0, ScaleRule::kF32, 6), {},
                                  {weight.data(), kRows, cols}, &q, {})
                        .ok());
        WeightEstimator estimator;
        estimator.kind = Estimator::kDge;
        std::vector<float> expected = gradient, got = gradient, each = gradient;
        ASSERT_TRUE(
            cpu->DgeScale(
                   {estimator, {weight.data(), kRows, cols}, &q, {expected.data(), kRows, cols}})
                .ok());
        std::vector<double> partials(9, 0.25);
        const auto* enc = static_cast<const float*>(q.enc.data());
        DgeSquaresTask task{1.0 / estimator.k, estimator.clip, kRows, cols,
                            q.per_row(),       weight.data(),  enc,   got.data(),
                            partials.data()};
        const bool four = cols % 4 == 0;
        Emulator::Get().Launch({9}, kThreads, 0, FiberOrder::kBackwards, [&] {
          four ? DgeSquaresKernel<true>(task) : DgeSquaresKernel<false>(task);
        });
        ExpectSameFloats(got, expected, "completed gradient");
        const DgeOp op{1.0 / estimator.k, estimator.clip, cols, q.per_row(), false,
                       each.data(),       weight.data(),  enc,  each.data()};
        for (int64_t i = 0; i < kRows * cols; ++i) op(i);
        ExpectSameFloats(each, expected, "completed by element");
        double sum = 0;
        for (const double partial : partials) sum += partial - 0.25;
        const double norm = *cpu->SumOfSquares({expected.data(), kRows, cols});
        if (bad) {
          EXPECT_FALSE(std::isfinite(sum));
          continue;
        }
        EXPECT_NEAR(sum, norm, 1e-12 * (1 + norm));
        Emulator::Get().Launch({9}, kThreads, 0, FiberOrder::kForwards,
                               [&] { SquaresKernel(got.data(), kRows * cols, partials.data()); });
        double both = 0;
        for (const double partial : partials) both += partial - 0.25;
        EXPECT_NEAR(both, 2 * norm, 1e-12 * (1 + norm));
      }
    }
  }
}

// Shares and sums of health, whose order of summation differs from the CPU's.
TEST(EmulatedHealth, IsTheCpus) {
  constexpr int64_t kRows = 40, kCols = 272;
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
  const std::vector<float> x = Source(kRows * kCols, 4);
  for (const Axis contraction : {Axis::kCols, Axis::kRows}) {
    QuantizeContext context;
    context.contraction = contraction;
    QuantizedTensor q;
    std::vector<float> decoded(x.size());
    ASSERT_TRUE(cpu->Quantize(GroupQuant(Elem::kE2M1, Block::kGroup, 32, ScaleRule::kE8Floor, 6),
                              context, {x.data(), kRows, kCols}, &q, {decoded.data(), kRows, kCols})
                    .ok());
    const QuantizationHealth expected =
        *cpu->MeasureHealth({x.data(), kRows, kCols}, q, {decoded.data(), kRows, kCols});
    std::vector<HealthSums> partials(3);
    Emulator::Get().Launch({3}, kThreads, 0, FiberOrder::kBackwards, [&] {
      HealthKernel(F32Values{x.data()}, decoded.data(), kRows, kCols,
                   static_cast<const float*>(q.enc.data()), ScalePlaceOf(q), 6.0f, partials.data());
    });
    const HealthSums sum = partials[0] + partials[1] + partials[2];
    constexpr double kCount = kRows * kCols;
    EXPECT_EQ(static_cast<double>(sum.underflow) / kCount, expected.underflow_share);
    EXPECT_EQ(static_cast<double>(sum.saturated) / kCount, expected.saturation_share);
    EXPECT_GT(expected.saturation_share, 0);
    EXPECT_NEAR(sum.error / kCount, expected.mse, 1e-12 * expected.mse);
    EXPECT_NEAR(std::sqrt(sum.xx), expected.source_norm, 1e-12 * expected.source_norm);
  }
}

TEST(EmulatedOscillation, PathsAndResetsAreTheCpus) {
  constexpr int64_t kSize = 1500;
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
  const std::vector<float> x = Source(kSize, 5), quantized = Source(kSize, 6);
  std::vector<float> previous[2], path[2], moved[2], weight[2];
  for (int i = 0; i < 2; ++i) {
    previous[i] = Source(kSize, 7);
    path[i] = Source(kSize, 8);
    moved[i].assign(kSize, 0.0f);
    weight[i] = x;
  }
  const auto view = [](std::vector<float>& v) { return TensorView(v.data(), 1, kSize); };
  const ConstTensorView now(x.data(), 1, kSize), grid(quantized.data(), 1, kSize);
  ASSERT_TRUE(cpu->AddPath(now, view(previous[0]), view(path[0])).ok());
  const AddPathOp add{x.data(), previous[1].data(), path[1].data()};
  for (int64_t i = 0; i < kSize; ++i) add(i);
  EXPECT_EQ(path[0], path[1]);
  EXPECT_EQ(previous[0], previous[1]);
  for (int64_t i = 0; i < kSize; ++i) {
    for (auto& m : moved) m[static_cast<size_t>(i)] = static_cast<float>(i % 5) * 0.4f;
  }
  const Result<int64_t> expected =
      cpu->ResetOscillating(8.0f, view(path[0]), view(moved[0]), grid, view(weight[0]));
  ASSERT_TRUE(expected.ok());
  unsigned long long count = 0;
  Emulator::Get().Launch({2}, kThreads, 0, FiberOrder::kForwards, [&] {
    ResetOscillatingKernel(8.0f, kSize, path[1].data(), moved[1].data(), quantized.data(),
                           weight[1].data(), &count);
  });
  EXPECT_GT(*expected, 0);
  EXPECT_LT(*expected, kSize);
  EXPECT_EQ(static_cast<int64_t>(count), *expected);
  EXPECT_EQ(weight[0], weight[1]);
}

}  // namespace
}  // namespace nibble::cuda
