// SPDX-License-Identifier: Apache-2.0
//
// The kernels for small scale groups, emulated: codes, scales, masks, counters and decoded values
// are the CPU's bits.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "kernels/backend.h"
#include "kernels/cuda/estimate_kernels.cuh"
#include "kernels/cuda/group_kernels.cuh"
#include "kernels/cuda/oscillation_kernels.cuh"
#include "kernels/formats/philox.h"
#include "tests/ops/group_quant.h"

namespace nibble::cuda {
namespace {

std::vector<float> Source(int64_t size, uint32_t stream) {
  std::vector<float> x(static_cast<size_t>(size));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = formats::RandomWord(17, 0, stream, i);
    const float uniform = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f;
    x[i] = uniform * uniform * uniform * (word % 41 == 0 ? 30.0f : 2.0f);
    if (i % 97 < 34) x[i] = 0.0f;  // whole groups of zeros
  }
  return x;
}

struct Case {
  std::string name;
  Quant quant;
  Axis contraction = Axis::kCols;
};

std::vector<Case> Cases() {
  constexpr Elem kE2M1 = Elem::kE2M1, kE4M3 = Elem::kE4M3;
  constexpr Block kRow = Block::kGroup, kSquare = Block::kTile;
  std::vector<Case> cases = {
      {"mx", GroupQuant(kE2M1, kRow, 32, ScaleRule::kE8Floor, 6)},
      {"mx_up_te8", GroupQuant(kE2M1, kRow, 32, ScaleRule::kE8Up, 6, Round::kTe8)},
      {"mxfp8", GroupQuant(kE4M3, kRow, 32, ScaleRule::kE8Up, 448)},
      {"mxfp8_sr", GroupQuant(kE4M3, kRow, 32, ScaleRule::kE8Up, 448, Round::kSr24)},
      {"e5m2", GroupQuant(Elem::kE5M2, kRow, 32, ScaleRule::kE8Up, 57344)},
      {"nv", GroupQuant(kE2M1, kRow, 16, ScaleRule::kNv, 448)},
      {"nv_sr24", GroupQuant(kE2M1, kRow, 16, ScaleRule::kNv, 448, Round::kSr24)},
      {"nv_te8", GroupQuant(kE2M1, kRow, 16, ScaleRule::kNv, 448, Round::kTe8)},
      {"nv_half_up", GroupQuant(kE2M1, kRow, 16, ScaleRule::kNv, 448, Round::kHalfUp)},
      {"nv_tile", GroupQuant(kE2M1, kSquare, 16, ScaleRule::kNv, 448)},
      {"nv_tile_sr24", GroupQuant(kE2M1, kSquare, 16, ScaleRule::kNv, 448, Round::kSr24)},
      {"nv_drawn_scales", GroupQuant(kE2M1, kRow, 16, ScaleRule::kNv, 448)},
      {"nv_simulated", GroupQuant(kE2M1, kRow, 16, ScaleRule::kNv, 448, Round::kAway)},
      {"nv_outer_128", GroupQuant(kE2M1, kRow, 16, ScaleRule::kNv, 448, Round::kSr24)},
      {"nv_4over6", GroupQuant(kE2M1, kRow, 16, ScaleRule::kNv, 256)},
      {"nv_4over6_tile", GroupQuant(kE2M1, kSquare, 16, ScaleRule::kNv, 256)},
      {"nv_4over6_mae", GroupQuant(kE2M1, kRow, 16, ScaleRule::kNv, 256, Round::kSr24)},
      {"u53", GroupQuant(kE2M1, kRow, 16, ScaleRule::kU53, 448, Round::kSr24)},
      {"quartet", GroupQuant(kE2M1, kRow, 32, ScaleRule::kQuartet, 6)},
      {"a34", GroupQuant(kE2M1, kRow, 32, ScaleRule::kA34, 6, Round::kSr24)},
      {"eden", GroupQuant(kE2M1, kRow, 16, ScaleRule::kEden, 256)},
      {"eden_simulated", GroupQuant(kE2M1, kRow, 16, ScaleRule::kEden, 255.99f, Round::kAway)},
      {"fp8_block", GroupQuant(kE4M3, kRow, 128, ScaleRule::kCurrentP2, 448)},
      {"fp8_tile", GroupQuant(kE4M3, kSquare, 128, ScaleRule::kCurrent, 448)},
      {"zhou", GroupQuant(kE2M1, kRow, 128, ScaleRule::kF32, 6)},
  };
  for (Case& test : cases) {
    Quant& quant = test.quant;
    if (test.name == "quartet") quant.mask = Mask::kBelow6;
    if (test.name == "nv_outer_128") quant.outer = Outer::k128;
    if (test.name == "nv_drawn_scales") quant.scale_round = ScaleRound::kStochastic;
    if (test.name.find("4over6") != std::string::npos) {
      quant.alternatives = {{6, 4}, ErrorMetric::kMse};
    }
    if (test.name == "nv_4over6_tile") quant.alternatives.metric = ErrorMetric::kMax;
    if (test.name == "nv_4over6_mae") quant.alternatives.metric = ErrorMetric::kMae;
    if (quant.scale == ScaleRule::kEden) {
      quant.scale_factor = 0.988125f;
      quant.correction_group = test.name == "eden" ? 16 : 128;
      quant.scale_round = ScaleRound::kStochastic;
    }
  }
  const size_t count = cases.size();
  for (size_t i = 0; i < count; ++i) {
    cases.push_back({cases[i].name + "_by_rows", cases[i].quant, Axis::kRows});
  }
  return cases;
}

// What a Quantize leaves, on the host.
struct Outcome {
  std::vector<uint8_t> codes, scale_codes, mask;
  std::vector<float> enc, group_scale, outer_scale, decoded;
  int64_t nonfinite = 0;
};

template <typename T>
void CopyFrom(std::vector<T>* to, const Buffer& buffer, int64_t count) {
  const T* first = static_cast<const T*>(buffer.data());
  to->assign(first, first + count);
}

Outcome OutcomeOf(const QuantizedTensor& q) {
  Outcome out;
  CopyFrom(&out.codes, q.codes, q.rows * q.code_row_bytes());
  CopyFrom(&out.enc, q.enc, q.scale_count());
  if (q.has_group_scale) {
    CopyFrom(&out.scale_codes, q.scale_codes, q.scale_count());
    CopyFrom(&out.group_scale, q.group_scale, q.scale_count());
    CopyFrom(&out.outer_scale, q.outer_scale, q.outer_count());
  }
  if (q.has_mask) CopyFrom(&out.mask, q.mask, q.rows * q.cols);
  out.nonfinite = q.nonfinite_amax;
  return out;
}

// The kernels in the order of CudaBackend::QuantizeGroups; `shape` says how the result lies.
Outcome Emulated(const Quant& quant, const QuantizeContext& context, const std::vector<float>& x,
                 const QuantizedTensor& shape, FiberOrder order) {
  Outcome out;
  GroupTask t{};
  t.rule = GroupRuleOf(quant);
  t.layout = GroupLayoutOf(shape);
  t.elem = quant.elem;
  t.round = quant.round;
  t.round_source = context.round_source;
  t.below6 = quant.mask == Mask::kBelow6;
  t.alternatives[0] = quant.alternatives.maxima[0];
  t.alternatives[1] = quant.alternatives.maxima[1];
  t.metric = quant.alternatives.metric;
  t.random = {context.seed, context.step, context.stream};
  t.groups = shape.scale_count();
  t.together = quant.correction_group / quant.group;
  // One way round, the elements as an earlier kernel has left them.
  std::vector<uint16_t> bf16;
  for (const float value : x) bf16.push_back(formats::ToBf16(value));
  t.bf16 = bf16.data();
  const bool rounded = context.round_source && order == FiberOrder::kBackwards;
  t.x = rounded ? nullptr : x.data();
  t.outer_divisor = HasScaleCodes(quant.scale) ? OuterScaleOf(t.rule, 1.0f).divisor : 1.0f;
  EXPECT_EQ(t.outer_divisor, shape.outer_divisor);
  t.code_row_bytes = shape.code_row_bytes();
  const auto groups = static_cast<size_t>(t.groups);
  const auto outers = static_cast<size_t>(shape.outer_count());
  std::vector<uint32_t> amax(groups, 0), outer_amax(outers, 0);
  std::vector<double> statistics(groups), sums(2 * groups);
  uint32_t largest = 0;
  int32_t nonfinite = 0;
  out.enc.resize(groups);
  t.statistics = statistics.data();
  t.amax = amax.data();
  t.outer_amax = HasOuterScale(quant.scale) ? outer_amax.data() : nullptr;
  t.enc = out.enc.data();
  if (shape.has_group_scale) {
    out.group_scale.resize(groups);
    out.scale_codes.resize(groups);
    out.outer_scale.resize(outers);
    t.group_scale = out.group_scale.data();
    t.scale_codes = out.scale_codes.data();
    t.outer_scale = out.outer_scale.data();
  }
  t.nonfinite = &nonfinite;
  t.largest = &largest;
  out.codes.resize(static_cast<size_t>(shape.rows * shape.code_row_bytes()));
  out.decoded.resize(x.size());
  if (shape.has_mask) out.mask.resize(x.size());
  t.codes = out.codes.data();
  t.mask = out.mask.data();
  const bool eden = quant.scale == ScaleRule::kEden;
  t.sums = eden ? sums.data() : nullptr;
  t.decoded = eden ? nullptr : out.decoded.data();
  const auto launch = [&](EmulatedDim grid, void (*kernel)(GroupTask)) {
    Emulator::Get().Launch(grid, kThreads, 0, order, [&] { kernel(t); });
  };
  const EmulatedDim cells =
      t.layout.turned
          ? EmulatedDim{static_cast<unsigned>((t.layout.lines + kThreads - 1) / kThreads), 2}
          : EmulatedDim{3};
  launch(cells, GroupMeasureKernel);
  launch({2}, GroupScalesKernel);
  launch(cells, GroupEncodeKernel);
  if (eden) {
    launch({2}, EdenCorrectKernel);
    launch({2}, EdenFinishKernel);
    StoredGroups stored = StoredGroupsOf(shape);
    stored.codes = out.codes.data();
    stored.enc = out.enc.data();
    stored.group_scale = out.group_scale.data();
    stored.outer_scale = out.outer_scale.data();
    const DecodeGroupsOp decode{stored, out.decoded.data()};
    for (int64_t i = 0; i < shape.rows * shape.cols; ++i) decode(i);
  }
  out.nonfinite = nonfinite;
  return out;
}

void ExpectSameFloats(const std::vector<float>& a, const std::vector<float>& b, const char* what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i) {
    // Which NaN it is differs between instruction sets.
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    ASSERT_EQ(formats::FloatBits(a[i]), formats::FloatBits(b[i])) << what << ' ' << i;
  }
}

class EmulatedGroups : public testing::TestWithParam<Case> {};

TEST_P(EmulatedGroups, QuantizeToTheBitsOfTheCpu) {
  const Case& c = GetParam();
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
        const Outcome got = Emulated(c.quant, context, x, q, order);
        EXPECT_EQ(got.codes, expected.codes);
        EXPECT_EQ(got.scale_codes, expected.scale_codes);
        EXPECT_EQ(got.mask, expected.mask);
        EXPECT_EQ(got.nonfinite, expected.nonfinite);
        ExpectSameFloats(got.enc, expected.enc, "enc");
        ExpectSameFloats(got.group_scale, expected.group_scale, "group scale");
        ExpectSameFloats(got.outer_scale, expected.outer_scale, "outer scale");
        ExpectSameFloats(got.decoded, decoded, "decoded");
      }
      // Dequantize of the CPU's tensor.
      std::vector<float> again(x.size());
      const DecodeGroupsOp decode{StoredGroupsOf(q), again.data()};
      for (int64_t i = 0; i < rows * cols; ++i) decode(i);
      ExpectSameFloats(again, decoded, "dequantized");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Quantize, EmulatedGroups, testing::ValuesIn(Cases()),
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
      HealthKernel(x.data(), decoded.data(), kRows, kCols, static_cast<const float*>(q.enc.data()),
                   ScalePlaceOf(q), 6.0f, partials.data());
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
