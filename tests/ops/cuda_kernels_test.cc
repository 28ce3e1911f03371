// SPDX-License-Identifier: Apache-2.0
//
// The quantization kernels of the CUDA backend, emulated: the bits of the CPU backend.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "kernels/backend.h"
#include "kernels/cuda/occ_kernels.cuh"
#include "kernels/cuda/quantize_both_kernels.cuh"
#include "kernels/cuda/quantize_kernels.cuh"
#include "kernels/cuda/rounded_adamw_kernels.cuh"
#include "kernels/cuda/row_kernels.cuh"
#include "kernels/formats/philox.h"

namespace nibble::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> Source(int64_t rows, int64_t cols, uint32_t stream) {
  std::vector<float> x(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = formats::RandomWord(11, 0, stream, i);
    const float uniform = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f;
    // Heavy tails, so that clamping finds outliers; every 61st row of elements is zero.
    x[i] = uniform * uniform * uniform * (word % 37 == 0 ? 40.0f : 3.0f);
    if (static_cast<int64_t>(i) / cols % 61 == 5) x[i] = 0.0f;
  }
  return x;
}

// What a Quantize leaves, on the host.
struct Result {
  std::vector<uint8_t> codes, values;
  std::vector<float> enc, decoded, fold;
  std::vector<int32_t> offsets, columns;
  int64_t nonfinite = 0;
  float residual_enc = 1;
};

Result CpuResult(Backend& backend, const Quant& quant, const QuantizeContext& context,
                 std::vector<float> x, int64_t rows, int64_t cols, QuantizedTensor* q) {
  Result result;
  result.decoded.resize(x.size());
  EXPECT_TRUE(
      backend
          .Quantize(quant, context, {x.data(), rows, cols}, q, {result.decoded.data(), rows, cols})
          .ok());
  const auto copy = [](auto& to, const void* from, int64_t count) {
    using T = typename std::remove_reference_t<decltype(to)>::value_type;
    const T* first = static_cast<const T*>(from);
    if (count > 0) to.assign(first, first + count);
  };
  copy(result.codes, q->codes.data(), rows * q->code_row_bytes());
  copy(result.enc, q->enc.data(), q->scale_count());
  if (q->folded)
    copy(result.fold, q->fold.data(), context.contraction == Axis::kRows ? rows : cols);
  if (q->comp != OccComp::kNone) {
    copy(result.offsets, q->residual_offsets.data(), rows + 1);
    copy(result.columns, q->residual_columns.data(), q->residual_count);
    copy(result.values, q->residual_values.data(),
         q->residual_count * (q->comp == OccComp::kBf16 ? 4 : 1));
  }
  result.nonfinite = q->nonfinite_amax;
  result.residual_enc = q->residual_enc;
  return result;
}

// The kernels in the order of CudaBackend::Quantize, with the bounds the CPU's quantiles gave.
class EmulatedQuantize {
 public:
  EmulatedQuantize(const Quant& quant, const QuantizeContext& context, const std::vector<float>& x,
                   int64_t rows, int64_t cols, const QuantizedTensor& shape, float low, float high,
                   FiberOrder order)
      : order_(order), rows_(rows), cols_(cols) {
    Measure(quant, context, x, shape, low, high);
    EncodeTask task{};
    task.elem = quant.elem;
    task.round = quant.round;
    task.scale = quant.scale;
    task.comp = shape.comp;
    task.random = {context.seed, context.step, context.stream};
    task.axis = axis_;
    task.turned = context.contraction == Axis::kRows;
    task.counters = &counters_;
    task.rows = rows;
    task.cols = cols;
    task.code_row_bytes = shape.code_row_bytes();
    task.fold = fold_;
    task.stats = stats_.data();
    task.enc = result.enc.data();
    result.codes.resize(static_cast<size_t>(rows * shape.code_row_bytes()));
    task.codes = result.codes.data();
    result.decoded.resize(x.size());
    task.decoded = result.decoded.data();
    if (shape.comp != OccComp::kNone) {
      result.columns.resize(static_cast<size_t>(counters_.residual_count));
      result.values.resize(result.columns.size() * (shape.comp == OccComp::kBf16 ? 4 : 1));
      task.offsets = result.offsets.data();
      task.columns = result.columns.data();
      task.values = result.values.data();
    }
    const F32Values values{x.data()};
    Launch({7}, [=] { EncodeRowsKernel(task, values); });
    result.nonfinite = counters_.nonfinite_amax;
    result.residual_enc = counters_.residual_enc;
  }
  Result result;

 private:
  void Launch(EmulatedDim grid, const std::function<void()>& kernel) {
    Emulator::Get().Launch(grid, kThreads, 0, order_, kernel);
  }
  void Measure(const Quant& quant, const QuantizeContext& context, const std::vector<float>& x,
               const QuantizedTensor& shape, float low, float high) {
    const bool turned = context.contraction == Axis::kRows;
    if (const QuantizedTensor* other = context.fold; other != nullptr) {
      const int64_t depth = turned ? rows_ : cols_;
      result.fold.resize(static_cast<size_t>(depth));
      float* fold = result.fold.data();
      Launch({5}, [=] {
        FoldKernel(static_cast<const float*>(other->enc.data()), other->per_row(),
                   static_cast<const uint8_t*>(other->codes.data()),
                   other->comp == OccComp::kNone
                       ? nullptr
                       : static_cast<const int32_t*>(other->residual_offsets.data()),
                   depth, other->code_row_bytes(), 0x77, fold);
      });
      (turned ? fold_.by_row : fold_.by_column) = fold;
    }
    stats_.assign(static_cast<size_t>(rows_), RowStats{low, high, 0, 0, 0});
    axis_ = shape.per_column() ? ScaleAxis::kColumn
                               : (shape.per_row() ? ScaleAxis::kRow : ScaleAxis::kTensor);
    const Fold fold = fold_;
    const int64_t rows = rows_, cols = cols_;
    RowStats* stats = stats_.data();
    const F32Values source{x.data()};
    Launch({3}, [=] { MeasureRowsKernel(source, fold, rows, cols, stats); });
    std::vector<uint32_t> columns(static_cast<size_t>(cols), 0);
    const unsigned strips = static_cast<unsigned>((cols + kStripColumns - 1) / kStripColumns);
    uint32_t* amax = columns.data();
    Launch({strips, 3}, [=] { MeasureColumnsKernel(source, fold, stats, rows, cols, amax); });
    result.enc.resize(static_cast<size_t>(shape.scale_count()));
    if (shape.comp != OccComp::kNone) result.offsets.resize(static_cast<size_t>(rows + 1));
    const ScaleTask task{
        quant.scale, quant.scale_max,
        axis_,       rows,
        cols,        stats,
        amax,        result.enc.data(),
        shape.comp,  shape.comp != OccComp::kNone ? result.offsets.data() : nullptr,
        &counters_};
    Launch({1}, [=] { ScalesKernel(task); });
  }

  FiberOrder order_;
  int64_t rows_, cols_;
  ScaleAxis axis_ = ScaleAxis::kTensor;
  Fold fold_;
  std::vector<RowStats> stats_;
  QuantizeCounters counters_;
};

struct Case {
  const char* name;
  Elem elem;
  Block block;
  ScaleRule scale;
  float max;
  Round round;
  Axis contraction = Axis::kCols;
  OccComp comp = OccComp::kNone;
  bool clamp = false;
  bool fold = false;
};

const Case kCases[] = {
    {"rows", Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6, Round::kEven},
    {"sr24", Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6, Round::kSr24},
    {"sr24 down the columns", Elem::kE2M1, Block::kOutputChannel, ScaleRule::kF32, 6, Round::kSr24,
     Axis::kRows},
    {"int8", Elem::kInt8, Block::kToken, ScaleRule::kF32, 127, Round::kSr24},
    {"int8 folded columns", Elem::kInt8, Block::kOutputChannel, ScaleRule::kF32, 127, Round::kSr24,
     Axis::kRows, OccComp::kNone, false, true},
    {"tensor", Elem::kE5M2, Block::kTensor, ScaleRule::kP2, 57344, Round::kEven},
    {"current", Elem::kE4M3, Block::kTensor, ScaleRule::kCurrent, 448, Round::kEven},
    {"columns", Elem::kE4M3, Block::kInputChannel, ScaleRule::kF32, 448, Round::kEven},
    {"clamped", Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6, Round::kEven, Axis::kCols,
     OccComp::kNone, true},
    {"e4m3 residual", Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6, Round::kEven, Axis::kCols,
     OccComp::kE4M3, true},
    {"bf16 residual", Elem::kE2M1, Block::kTensor, ScaleRule::kF32, 6, Round::kEven, Axis::kCols,
     OccComp::kBf16, true},
    {"wide", Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6, Round::kEven, Axis::kCols,
     OccComp::kWide, true},
    {"wide e4m3", Elem::kE2M1, Block::kToken, ScaleRule::kF32, 6, Round::kEven, Axis::kCols,
     OccComp::kWideE4M3, true},
    {"folded rows", Elem::kE4M3, Block::kToken, ScaleRule::kF32, 448, Round::kEven, Axis::kCols,
     OccComp::kNone, false, true},
    {"folded columns", Elem::kE4M3, Block::kOutputChannel, ScaleRule::kF32, 448, Round::kEven,
     Axis::kRows, OccComp::kNone, false, true},
};

// The clamping bounds of the whole tensor, by sorting.
void Bounds(const std::vector<float>& x, double alpha, float* low, float* high) {
  std::vector<uint16_t> sorted;  // keys: NaN comes last
  for (const float value : x) sorted.push_back(formats::Bf16OrderKey(formats::ToBf16(value)));
  std::sort(sorted.begin(), sorted.end());
  const formats::QuantileIndices index =
      formats::OccIndices(alpha, static_cast<int64_t>(sorted.size()));
  const auto value = [&](int64_t rank) {
    return formats::FromBf16(formats::Bf16FromOrderKey(sorted[static_cast<size_t>(rank)]));
  };
  *low = value(index.low);
  *high = value(index.high);
}

class EmulatedKernels : public testing::TestWithParam<Case> {};

TEST_P(EmulatedKernels, QuantizeToTheBitsOfTheCpu) {
  const Case& c = GetParam();
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {67, 301}, {31, 64}}) {
    SCOPED_TRACE(testing::Message() << c.name << ' ' << rows << 'x' << cols);
    const std::vector<float> x = Source(rows, cols, 1);
    Quant quant;
    quant.elem = c.elem;
    quant.block = c.block;
    quant.scale = c.scale;
    quant.scale_max = c.max;
    quant.round = c.round;
    if (c.clamp) quant.pre = {true, 0.97, OccScope::kTensor, c.comp};
    QuantizeContext context;
    context.seed = 3;
    context.step = 4;
    context.stream = 5;
    context.contraction = c.contraction;
    // The operand whose scales are folded: E2M1 by row, as many rows as the sum has terms.
    const int64_t depth = c.contraction == Axis::kRows ? rows : cols;
    QuantizedTensor other;
    if (c.fold) {
      Quant rows_of_e2m1;
      rows_of_e2m1.elem = Elem::kE2M1;
      rows_of_e2m1.block = Block::kToken;
      rows_of_e2m1.scale = ScaleRule::kF32;
      rows_of_e2m1.scale_max = 6;
      CpuResult(*cpu, rows_of_e2m1, {}, Source(depth, 40, 2), depth, 40, &other);
      quant.fold = true;
      context.fold = &other;
    }
    QuantizedTensor q;
    const Result expected = CpuResult(*cpu, quant, context, x, rows, cols, &q);
    float low = -kInfinity, high = kInfinity;
    if (c.clamp) Bounds(x, quant.pre.alpha, &low, &high);
    for (const FiberOrder order : {FiberOrder::kForwards, FiberOrder::kBackwards}) {
      const Result got =
          EmulatedQuantize(quant, context, x, rows, cols, q, low, high, order).result;
      EXPECT_EQ(got.codes, expected.codes);
      EXPECT_EQ(got.enc, expected.enc);
      EXPECT_EQ(got.fold, expected.fold);
      EXPECT_EQ(got.offsets, expected.offsets);
      EXPECT_EQ(got.columns, expected.columns);
      EXPECT_EQ(got.values, expected.values);
      EXPECT_EQ(got.nonfinite, expected.nonfinite);
      EXPECT_EQ(got.residual_enc, expected.residual_enc);
      EXPECT_EQ(std::memcmp(got.decoded.data(), expected.decoded.data(), x.size() * 4), 0);
    }
  }
}

// Rows with a scale of their own, in one pass: within and beyond shared memory, with outliers, from
// FP32 and from BF16.
class EmulatedRows : public testing::TestWithParam<Case> {
 protected:
  template <typename Values>
  Result Emulated(const Quant& quant, const QuantizeContext& context, const QuantizedTensor& q,
                  const Values& values, bool in_fours, float* decoded, FiberOrder order) {
    Result got;
    got.enc.resize(static_cast<size_t>(q.rows));
    got.codes.assign(static_cast<size_t>(q.rows * q.code_row_bytes()), 0xEE);
    std::vector<RowStats> stats(static_cast<size_t>(q.rows), RowStats{low_, high_, 0, 0, 0});
    std::vector<uint32_t> scan(static_cast<size_t>(q.rows + 2), 0);
    QuantizeCounters counters{};
    RowTask task{};
    EncodeTask& t = task.encode;
    t.elem = quant.elem;
    t.round = quant.round;
    t.scale = quant.scale;
    t.comp = q.comp;
    t.random = {context.seed, context.step, context.stream};
    t.axis = ScaleAxis::kRow;
    t.turned = context.contraction == Axis::kRows;
    t.fold = FoldOf(q);
    t.rows = q.rows;
    t.cols = q.cols;
    t.code_row_bytes = q.code_row_bytes();
    t.enc = got.enc.data();
    t.codes = got.codes.data();
    t.decoded = decoded;
    t.stats = quant.pre.enabled ? stats.data() : nullptr;
    if (q.comp != OccComp::kNone) {
      got.offsets.resize(static_cast<size_t>(q.rows + 1));
      got.columns.resize(static_cast<size_t>(q.residual_count));
      got.values.resize(got.columns.size() * (q.comp == OccComp::kBf16 ? 4 : 1));
      t.offsets = task.offsets = got.offsets.data();
      t.columns = got.columns.data();
      t.values = got.values.data();
      task.scan = {scan.data(), scan.data() + 1, scan.data() + 2};
    }
    task.max = quant.scale_max;
    task.in_fours = in_fours;
    task.counters = &counters;
    Emulator::Get().Launch({2}, kThreads, static_cast<size_t>(HeldBytes(q.cols)), order,
                           [&] { QuantizeRowsKernel(task, values); });
    EXPECT_EQ(counters.residual_count, q.comp == OccComp::kNone ? 0 : q.residual_count);
    got.nonfinite = counters.nonfinite_amax;
    return got;
  }
  static void ExpectEqual(const Result& got, const Result& expected,
                          const std::vector<float>& decoded) {
    EXPECT_EQ(got.codes, expected.codes);
    EXPECT_EQ(got.enc, expected.enc);
    EXPECT_EQ(got.offsets, expected.offsets);
    EXPECT_EQ(got.columns, expected.columns);
    EXPECT_EQ(got.values, expected.values);
    EXPECT_EQ(got.nonfinite, expected.nonfinite);
    for (size_t i = 0; i < decoded.size(); ++i) {
      if (std::isnan(decoded[i]) && std::isnan(expected.decoded[i])) continue;
      ASSERT_EQ(formats::FloatBits(decoded[i]), formats::FloatBits(expected.decoded[i])) << i;
    }
  }
  float low_ = -kInfinity, high_ = kInfinity;
};

TEST_P(EmulatedRows, InOnePassAreTheBitsOfTheCpu) {
  const Case& c = GetParam();
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 1}, {37, 301}, {9, 2052}, {2, kRowHeld + 333}}) {
    SCOPED_TRACE(testing::Message() << c.name << ' ' << rows << 'x' << cols);
    std::vector<float> x = Source(rows, cols, 1);
    if (rows > 1) x[static_cast<size_t>(cols) + 1] = -kInfinity;
    if (rows > 2) x[static_cast<size_t>(2 * cols) + 7] = std::nanf("");
    Quant quant;
    quant.elem = c.elem;
    quant.block = c.block;
    quant.scale = c.scale;
    quant.scale_max = c.max;
    quant.round = c.round;
    if (c.clamp) quant.pre = {true, 0.97, OccScope::kTensor, c.comp};
    QuantizeContext context;
    context.stream = 5;
    QuantizedTensor other, q;
    if (c.fold) {
      Quant by_row = quant;
      by_row.elem = Elem::kE2M1;
      by_row.scale_max = 6;
      by_row.round = Round::kEven;
      CpuResult(*cpu, by_row, {}, Source(cols, 8, 2), cols, 8, &other);
      quant.fold = true;
      context.fold = &other;
    }
    const Result expected = CpuResult(*cpu, quant, context, x, rows, cols, &q);
    if (c.clamp) Bounds(x, quant.pre.alpha, &low_, &high_);
    std::vector<float> decoded = x;  // in place
    ExpectEqual(Emulated(quant, context, q, F32Values{decoded.data()}, cols % 4 == 0,
                         decoded.data(), FiberOrder::kForwards),
                expected, decoded);
    std::vector<uint16_t> bf16;
    for (const float value : x) bf16.push_back(formats::ToBf16(value));
    ExpectEqual(Emulated(quant, context, q, Bf16Values{bf16.data()}, cols % 4 == 0, nullptr,
                         FiberOrder::kBackwards),
                expected, {});
  }
}

std::vector<Case> ScaledByRow() {
  std::vector<Case> rows;
  for (const Case& c : kCases) {
    if (c.block == Block::kToken && c.contraction == Axis::kCols && c.comp != OccComp::kE4M3) {
      rows.push_back(c);
    }
  }
  return rows;
}
INSTANTIATE_TEST_SUITE_P(Quantize, EmulatedRows, testing::ValuesIn(ScaledByRow()));

// Rows before, some of which have told their own number only.
TEST(EmulatedScan, AddsUpTheRowsBefore) {
  constexpr int64_t kRows = 90;
  for (const int64_t ended : {-1, 0, 40, 88}) {
    std::vector<uint32_t> words(kRows, 0);
    int32_t expected = 0;
    for (int64_t row = 0; row + 1 < kRows; ++row) {
      const auto count = static_cast<uint32_t>(3 * row % 7);
      expected += static_cast<int32_t>(count);
      words[static_cast<size_t>(row)] =
          row <= ended ? static_cast<uint32_t>(expected) << 2 | 2 : count << 2 | 1;
    }
    const RowScan scan{nullptr, nullptr, words.data()};
    std::vector<int32_t> got(32);
    Emulator::Get().Launch({1}, 32, 0, FiberOrder::kForwards,
                           [&] { got[threadIdx.x] = OutliersBefore(scan, kRows - 1, 5); });
    EXPECT_EQ(got, std::vector<int32_t>(32, expected)) << ended;
    EXPECT_EQ(words.back(), static_cast<uint32_t>(expected + 5) << 2 | 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Quantize, EmulatedKernels, testing::ValuesIn(kCases));

// The scales the CPU gives an operand are those of the maxima measured together.
class EmulatedBoth : public testing::TestWithParam<Elem> {};

TEST_P(EmulatedBoth, QuantizeTwiceToTheBitsOfTheCpu) {
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
  constexpr int64_t kRows = 37, kCols = 300;
  std::vector<float> x = Source(kRows, kCols, 1);
  Quant quants[2];
  QuantizeContext contexts[2];
  QuantizedTensor others[2], expected[2];
  for (int i = 0; i < 2; ++i) {
    quants[i].elem = GetParam();
    quants[i].block = i == 0 ? Block::kToken : Block::kOutputChannel;
    quants[i].scale = ScaleRule::kF32;
    quants[i].scale_max = GetParam() == Elem::kE2M1 ? 6 : 448;
    quants[i].round = GetParam() == Elem::kE2M1 ? Round::kSr24 : Round::kEven;
    quants[i].fold = true;
    contexts[i].contraction = i == 0 ? Axis::kCols : Axis::kRows;
    contexts[i].stream = static_cast<uint32_t>(i);
    const int64_t depth = i == 0 ? kCols : kRows;
    Quant by_row = quants[0];
    by_row.elem = Elem::kE2M1;
    by_row.scale_max = 6;
    by_row.fold = false;
    CpuResult(*cpu, by_row, {}, Source(depth, 24, 2), depth, 24, &others[i]);
    contexts[i].fold = &others[i];
  }
  ASSERT_TRUE(cpu->QuantizeBoth(quants[0], contexts[0], quants[1], contexts[1],
                                {x.data(), kRows, kCols}, &expected[0], &expected[1])
                  .ok());
  std::vector<RowStats> stats(2 * kRows, RowStats{});
  std::vector<uint32_t> columns(2 * kCols, 0);
  std::vector<uint8_t> codes[2];
  EncodeSide encode[2];
  MeasureSide measure[2];
  for (int i = 0; i < 2; ++i) {
    const QuantizedTensor& q = expected[i];
    measure[i] = {FoldOf(q), AxisOf(q), stats.data() + i * kRows, columns.data() + i * kCols};
    codes[i].assign(static_cast<size_t>(kRows * q.code_row_bytes()), 0);
    encode[i] = {q.elem,
                 quants[i].round,
                 {contexts[i].seed, contexts[i].step, contexts[i].stream},
                 i == 1,
                 AxisOf(q),
                 FoldOf(q),
                 static_cast<const float*>(q.enc.data()),
                 codes[i].data(),
                 q.code_row_bytes()};
  }
  using Source = OneTensor<F32Values>;
  const Source source{{x.data()}};
  const MeasureSides<Source> measured{{{measure[0], measure[1]}}};
  const EncodeSides<Source> encoded{{{encode[0], encode[1]}}};
  Emulator::Get().Launch({2, 2}, kThreads, 0, FiberOrder::kBackwards,
                         [&] { MeasureBothKernel(source, kRows, kCols, measured); });
  Emulator::Get().Launch({3}, kThreads, 0, FiberOrder::kForwards,
                         [&] { EncodeBothKernel(source, kRows, kCols, encoded); });
  for (int i = 0; i < 2; ++i) {
    const QuantizedTensor& q = expected[i];
    for (int64_t g = 0; g < q.scale_count(); ++g) {
      const uint32_t bits = i == 0 ? stats[static_cast<size_t>(g)].amax_bits
                                   : columns[static_cast<size_t>(kCols + g)];
      EXPECT_EQ(EncOf(quants[i].scale, quants[i].scale_max, bits),
                static_cast<const float*>(q.enc.data())[g])
          << i << ' ' << g;
    }
    EXPECT_EQ(std::memcmp(codes[i].data(), q.codes.data(), codes[i].size()), 0) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Quantize, EmulatedBoth, testing::Values(Elem::kE4M3, Elem::kE2M1));

TEST(EmulatedHistogram, CountsEveryKey) {
  const std::vector<float> x = Source(300, 211, 3);  // more than one chunk
  std::vector<unsigned> counts(kKeys, 0), expected(kKeys, 0);
  for (const float value : x) ++expected[formats::Bf16OrderKey(formats::ToBf16(value))];
  Emulator::Get().Launch({2}, kHistogramThreads, kHistogramBytes, FiberOrder::kBackwards, [&] {
    CountKeysKernel(F32Values{x.data()}, static_cast<int64_t>(x.size()), counts.data());
  });
  EXPECT_EQ(counts, expected);
  for (const double alpha : {0.99, 0.7}) {
    const auto index = formats::OccIndices(alpha, static_cast<int64_t>(x.size()));
    float low = 0, high = 0;
    Bounds(x, alpha, &low, &high);
    std::vector<RowStats> stats(300, RowStats{});
    Emulator::Get().Launch({1}, kThreads, 0, FiberOrder::kForwards, [&] {
      TensorBoundsKernel(counts.data(), index.low, index.high, 300, stats.data());
    });
    for (const RowStats& row : stats) {
      ASSERT_EQ(row.low, low) << alpha;
      ASSERT_EQ(row.high, high) << alpha;
    }
  }
}

float ScaleOf(StateElem elem, uint32_t bits, float previous) {
  const float amax = formats::BitsFloat(bits);
  if (elem == StateElem::kE4M3) return formats::ScaleP2(amax, formats::kE4M3Max, previous);
  return elem == StateElem::kF16 ? formats::ScaleP2(amax, formats::kF16Max, previous) : 1.0f;
}

// The state after two updates on each side. M: what holds the codes of the first moment.
template <typename M>
void ExpectTheCpusState(const StatePrecision& precision, DType m_type, DType v_type) {
  constexpr int64_t kSize = 1000;
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
  std::vector<float> gradient = Source(1, kSize, 6), p = Source(1, kSize, 7), other_p = p;
  std::vector<M> m(kSize, 0), other_m = m;
  std::vector<uint16_t> v(kSize, 0), other_v = v;
  StateScales scales, other;
  for (int64_t step = 1; step <= 2; ++step) {
    AdamWParams params;
    params.step = step;
    params.seed = 77;
    params.stream = 12;
    ASSERT_TRUE(cpu->RoundedAdamW(params, precision, {gradient.data(), 1, kSize},
                                  {m.data(), 1, kSize, m_type}, {v.data(), 1, kSize, v_type},
                                  {p.data(), 1, kSize}, &scales)
                    .ok());
    uint32_t maxima[3] = {};
    const double b1 = static_cast<double>(params.beta1), b2 = static_cast<double>(params.beta2);
    const double s = static_cast<double>(step);
    const RoundedAdamWTask task{
        1.0f,
        params.beta1,
        static_cast<float>(1.0 - b1),
        params.beta2,
        static_cast<float>(1.0 - b2),
        static_cast<float>(static_cast<double>(params.learning_rate) / (1.0 - std::pow(b1, s))),
        static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(b2, s))),
        params.epsilon,
        1.0f - params.learning_rate * params.weight_decay,
        kSize,
        gradient.data(),
        {precision.m, other.m, other_m.data()},
        {precision.v, other.v, other_v.data()},
        other_p.data(),
        maxima,
        params.seed,
        static_cast<uint32_t>(step),
        params.stream};
    Emulator::Get().Launch({2}, kThreads, 0, FiberOrder::kForwards,
                           [&] { RoundedAdamWUpdateKernel(task); });
    other.m = ScaleOf(precision.m, maxima[0], other.m);
    other.v = ScaleOf(precision.v, maxima[1], other.v);
    other.master = ScaleOf(precision.master, maxima[2], other.master);
    Emulator::Get().Launch({3}, kThreads, 0, FiberOrder::kBackwards,
                           [&] { RoundedAdamWStoreKernel(task, other, precision.master, true); });
    EXPECT_EQ(other.m, scales.m);
    EXPECT_EQ(other.v, scales.v);
    EXPECT_EQ(other.master, scales.master);
    EXPECT_EQ(other_m, m);
    EXPECT_EQ(other_v, v);
    EXPECT_EQ(other_p, p);
  }
}

// That of fp8_lm, and one rounded stochastically.
TEST(EmulatedRoundedAdamW, EqualsTheCpuBitForBit) {
  ExpectTheCpusState<uint8_t>({StateElem::kE4M3, StateElem::kF16, StateElem::kF16}, DType::kU8,
                              DType::kF16);
  ExpectTheCpusState<uint16_t>({StateElem::kBf16Sr, StateElem::kBf16Sr, StateElem::kBf16Sr},
                               DType::kBF16, DType::kBF16);
}

}  // namespace
}  // namespace nibble::cuda
