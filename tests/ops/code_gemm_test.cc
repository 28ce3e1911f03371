// SPDX-License-Identifier: Apache-2.0
//
// GEMMs on integer codes against a plain 64-bit loop, bit for bit: formats, transposes, scales,
// folding, groups, outliers, accumulation, sizes and threads.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/philox.h"

namespace nibble {
namespace {

enum class Pattern { kRandom, kLargest, kAlternating };
enum class Outliers { kNone, kWide, kE4M3, kBf16 };

struct Spec {
  Elem elem = Elem::kE2M1;
  Block block = Block::kOutputChannel;
  ScaleRule scale = ScaleRule::kF32;
  int group = 0;
  Pattern pattern = Pattern::kRandom;
  Outliers outliers = Outliers::kNone;
  Outer outer = Outer::kTensor;
  int wide_max = QuantizedTensor::kWideLimit;  // of wide codes, as the tensor tells
  bool all_wide = false;                       // every code is one, as large as that
  uint32_t rarity = 17;                        // two of so many codes are outliers
};

// A quantized operand made by hand, and what it means.
struct Operand {
  QuantizedTensor tensor;
  std::vector<int> codes;       // stored order, wide residual included
  std::vector<float> residual;  // FP32 residual in stored order, 0 where there is none
  std::vector<char> has_residual;
  float unit = 1;
};

uint32_t Draw(uint32_t stream, int64_t i) {
  return formats::RandomWord(77, 1, stream, static_cast<uint64_t>(i));
}

template <typename T>
T* Grow(Backend& backend, Buffer& buffer, int64_t count) {
  EXPECT_TRUE(buffer.Reserve(backend, count * static_cast<int64_t>(sizeof(T))).ok());
  return static_cast<T*>(buffer.data());
}

constexpr int kE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void FillCodes(Backend& backend, const Spec& spec, uint32_t stream, Operand* out) {
  QuantizedTensor& x = out->tensor;
  const int64_t row_bytes = x.code_row_bytes();
  uint8_t* bytes = Grow<uint8_t>(backend, x.codes, x.rows * row_bytes);
  std::memset(bytes, 0, static_cast<size_t>(x.rows * row_bytes));
  out->unit = spec.elem == Elem::kE2M1 ? 0.5f : 1.0f;
  for (int64_t i = 0; i < x.rows * x.cols; ++i) {
    const bool negative = spec.pattern == Pattern::kAlternating && (i % x.cols + i / x.cols) % 2;
    const uint32_t word = Draw(stream, i);
    uint8_t* byte = bytes + i / x.cols * row_bytes;
    if (spec.elem == Elem::kE2M1) {
      const uint32_t code = spec.pattern == Pattern::kRandom ? word & 15u : (negative ? 15u : 7u);
      byte[i % x.cols / 2] |= static_cast<uint8_t>(code << (i % x.cols % 2 * 4));
      out->codes.push_back(kE2M1[code]);
    } else {
      int code = spec.pattern == Pattern::kRandom ? static_cast<int>(word % 255u) - 127
                                                  : (negative ? -127 : 127);
      byte[i % x.cols] = static_cast<uint8_t>(static_cast<int8_t>(code));
      out->codes.push_back(code);
    }
  }
  x.has_codes = true;
}

void FillOutliers(Backend& backend, const Spec& spec, uint32_t stream, Operand* out) {
  QuantizedTensor& x = out->tensor;
  out->residual.assign(out->codes.size(), 0.0f);
  out->has_residual.assign(out->codes.size(), 0);
  if (spec.outliers == Outliers::kNone) return;
  x.comp = spec.outliers == Outliers::kWide
               ? OccComp::kWide
               : (spec.outliers == Outliers::kE4M3 ? OccComp::kE4M3 : OccComp::kBf16);
  x.residual_enc = 4.0f;
  int32_t* offsets = Grow<int32_t>(backend, x.residual_offsets, x.rows + 1);
  int32_t* columns = Grow<int32_t>(backend, x.residual_columns, x.rows * x.cols);
  uint8_t* values = Grow<uint8_t>(backend, x.residual_values, x.rows * x.cols * 4);
  x.residual_count = 0;
  x.wide_max = spec.wide_max;
  for (int64_t i = 0; i < x.rows * x.cols; ++i) {
    if (i % x.cols == 0) offsets[i / x.cols] = static_cast<int32_t>(x.residual_count);
    const uint32_t word = Draw(stream + 100, i);
    if (word % spec.rarity > 1 && !spec.all_wide) continue;
    const size_t at = static_cast<size_t>(i);
    columns[x.residual_count] = static_cast<int32_t>(i % x.cols);
    if (spec.outliers == Outliers::kWide) {
      // The full code ends on the largest, either sign, or something random between.
      const int most = spec.wide_max;
      int full = word % 3 == 0 ? most : (word % 3 == 1 ? -most : int(word >> 8) % most);
      if (spec.all_wide) full = out->codes[at] < 0 ? -most : most;
      int residual = full - out->codes[at];
      if (residual < -127 || residual > 127) residual = 0;
      reinterpret_cast<int8_t*>(values)[x.residual_count] = static_cast<int8_t>(residual);
      out->codes[at] += residual;
    } else if (spec.outliers == Outliers::kE4M3) {
      const uint8_t code = static_cast<uint8_t>((word >> 9) % 0x7F);
      values[x.residual_count] = code;
      out->residual[at] = formats::DecodeE4M3(code) / x.residual_enc;
    } else {
      out->residual[at] = static_cast<float>(static_cast<int>(word >> 20) - 2048) * 0.37f;
      reinterpret_cast<float*>(values)[x.residual_count] = out->residual[at];
    }
    out->has_residual[at] = 1;
    ++x.residual_count;
  }
  offsets[x.rows] = static_cast<int32_t>(x.residual_count);
}

bool GroupScaled(ScaleRule rule) { return rule != ScaleRule::kF32 && rule != ScaleRule::kNone; }

// Scales: any positive numbers do; those of NV groups are E4M3 values.
void FillScales(Backend& backend, const Spec& spec, uint32_t stream, Operand* out) {
  QuantizedTensor& x = out->tensor;
  const int64_t count = x.rows * x.cols + x.rows + x.cols;
  float* enc = Grow<float>(backend, x.enc, count);
  float* group = Grow<float>(backend, x.group_scale, count);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t word = Draw(stream + 200, i);
    enc[i] = 0.01f + static_cast<float>(word >> 8) * 0x1p-22f;
    group[i] = formats::DecodeE4M3(static_cast<uint8_t>(1 + word % 0x7D));
    if (spec.scale == ScaleRule::kE8Up) {
      group[i] = formats::BitsFloat((117u + word % 20) << 23);
    }
  }
  x.has_group_scale = GroupScaled(spec.scale);
  x.outer = spec.outer;
  float* outer = Grow<float>(backend, x.outer_scale, count);
  for (int64_t i = 0; i < count; ++i) outer[i] = 0.0123f * static_cast<float>(1 + i % 5);
  x.outer_divisor = spec.scale == ScaleRule::kNv ? 3.0f : 1.0f;
}

// `contraction_along_cols`: the axis this GEMM will sum over; the quantizer's axis is the same
// unless `other_axis`.
Operand MakeOperand(Backend& backend, const Spec& spec, int64_t extent, int64_t depth,
                    bool contraction_along_cols, uint32_t stream, bool other_axis = false) {
  Operand out;
  QuantizedTensor& x = out.tensor;
  x.rows = contraction_along_cols ? extent : depth;
  x.cols = contraction_along_cols ? depth : extent;
  x.elem = spec.elem;
  x.block = spec.block;
  x.scale = spec.scale;
  x.group = spec.group;
  x.contraction = contraction_along_cols != other_axis ? Axis::kCols : Axis::kRows;
  FillCodes(backend, spec, stream, &out);
  FillOutliers(backend, spec, stream, &out);
  FillScales(backend, spec, stream, &out);
  return out;
}

// How one side enters the oracle.
struct Side {
  const Operand& operand;
  bool along_cols;  // contraction along stored rows
  bool fold;

  size_t At(int64_t i, int64_t k) const {
    return static_cast<size_t>(along_cols ? i * operand.tensor.cols + k
                                          : k * operand.tensor.cols + i);
  }
  bool grouped() const {
    const Block block = operand.tensor.block;
    return !fold && (block == Block::kGroup || block == Block::kTile);
  }
  float Outer(int64_t i) const {
    const QuantizedTensor& x = operand.tensor;
    if (fold || x.scale == ScaleRule::kNone) return operand.unit;
    const float* enc = static_cast<const float*>(x.enc.data());
    const float* outer = static_cast<const float*>(x.outer_scale.data());
    const float first = x.outer == Outer::kTensor ? outer[0] : 1.0f;
    if (x.has_group_scale) {
      const float factor = operand.unit * (first / x.outer_divisor);
      if (grouped()) return factor;
      return factor * static_cast<const float*>(x.group_scale.data())[i];
    }
    if (grouped()) return operand.unit;
    return operand.unit / enc[x.block == Block::kTensor ? 0 : i];
  }
  float Group(int64_t i, int64_t g, int64_t depth) const {
    if (!grouped()) return 1.0f;
    const QuantizedTensor& x = operand.tensor;
    const int64_t size = x.group;
    int64_t index = i * ((depth + size - 1) / size) + g;
    if (x.block == Block::kTile) {
      const int64_t across = (x.cols + size - 1) / size;
      index = along_cols ? i / size * across + g : g * across + i / size;
    }
    if (x.has_group_scale) {
      const float scale = static_cast<const float*>(x.group_scale.data())[index];
      if (x.outer == Outer::kTensor) return scale;
      return scale * static_cast<const float*>(
                         x.outer_scale.data())[i * ((depth + 127) / 128) + g * size / 128];
    }
    return 1.0f / static_cast<const float*>(x.enc.data())[index];
  }
};

float Expected(const Side& a, const Side& b, int64_t i, int64_t j, int64_t depth) {
  const int64_t group = a.grouped()   ? a.operand.tensor.group
                        : b.grouped() ? b.operand.tensor.group
                                      : 0;
  const int64_t span = group > 0 ? group : depth;
  float y = 0;
  for (int64_t g = 0; g * span < depth; ++g) {
    int64_t sum = 0;
    for (int64_t k = g * span; k < std::min(depth, (g + 1) * span); ++k) {
      sum += int64_t{a.operand.codes[a.At(i, k)]} * b.operand.codes[b.At(j, k)];
    }
    if (group == 0) {
      y = static_cast<float>(sum);
    } else {
      const float factor = a.Group(i, g, depth) * b.Group(j, g, depth);
      const float term = static_cast<float>(sum) * factor;
      y += term;
    }
  }
  y *= a.Outer(i);
  const OccComp comp = a.operand.tensor.comp;
  if (comp == OccComp::kE4M3 || comp == OccComp::kBf16) {
    float correction = 0;
    for (int64_t k = 0; k < depth; ++k) {
      if (!a.operand.has_residual[a.At(i, k)]) continue;
      float w = static_cast<float>(b.operand.codes[b.At(j, k)]);
      if (group > 0) w *= b.Group(j, k / group, depth);
      const float term = a.operand.residual[a.At(i, k)] * w;
      correction += term;
    }
    y += correction;
  }
  return y * b.Outer(j);
}

struct Case {
  Spec left, right;
  bool transpose_a = false;
  bool transpose_b = true;
  bool fold_a = false;
  bool fold_b = false;
  bool accumulate = false;
};

// "reference", or the instruction set of the fast path.
struct Runner {
  explicit Runner(const std::string& isa, int threads = 2)
      : path(isa == "reference" ? Support::kReference : Support::kFast) {
    if (path == Support::kFast) setenv("NIBBLE_CPU_ISA", isa.c_str(), 1);
    BackendOptions options;
    options.threads = threads;
    backend = std::move(*MakeBackend("cpu", options));
    unsetenv("NIBBLE_CPU_ISA");
  }

  void Check(const Case& c, int64_t m, int64_t n, int64_t k) {
    SCOPED_TRACE(StrFormat("m %lld n %lld k %lld", static_cast<long long>(m),
                           static_cast<long long>(n), static_cast<long long>(k)));
    const Operand a = MakeOperand(*backend, c.left, m, k, !c.transpose_a, 1, c.fold_a);
    const Operand b = MakeOperand(*backend, c.right, n, k, c.transpose_b, 2, c.fold_b);
    QuantizedGemmParams params;
    params.transpose_a = c.transpose_a ? Transpose::kYes : Transpose::kNo;
    params.transpose_b = c.transpose_b ? Transpose::kYes : Transpose::kNo;
    params.fold_a = c.fold_a;
    params.fold_b = c.fold_b;
    params.accumulate = c.accumulate;
    params.path = path;
    std::vector<float> out(static_cast<size_t>(m * n), 0.75f);
    const Status status = backend->QuantizedGemm(params, a.tensor, b.tensor, {out.data(), m, n});
    ASSERT_TRUE(status.ok()) << status.ToString();
    const Side left{a, !c.transpose_a, c.fold_a};
    const Side right{b, c.transpose_b, c.fold_b};
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        float want = Expected(left, right, i, j, k);
        if (c.accumulate) want = 0.75f + want;
        const float got = out[static_cast<size_t>(i * n + j)];
        ASSERT_EQ(formats::FloatBits(got), formats::FloatBits(want))
            << "(" << i << ", " << j << "): " << got << " instead of " << want;
      }
    }
  }

  Support path;
  std::unique_ptr<Backend> backend;
};

constexpr int64_t kSizes[][3] = {{1, 1, 1},     {1, 17, 3},   {7, 1, 31},    {2, 2, 2},
                                 {5, 13, 8},    {16, 16, 16}, {33, 49, 127}, {8, 48, 64},
                                 {23, 97, 449}, {65, 31, 961}};

// The three products of a linear layer.
std::vector<Case> Products(const Spec& left, const Spec& right) {
  std::vector<Case> cases(3, {left, right});
  cases[1].transpose_b = false;
  cases[2].transpose_a = true;
  cases[2].transpose_b = false;
  return cases;
}

// The reference path and every instruction set this CPU runs.
std::vector<std::string> PathsHere() {
  std::vector<std::string> paths = {"reference"};
  const Result<std::vector<cpu::CpuCapability>> all = cpu::CpuCapabilities();
  for (const cpu::CpuCapability::Option& option : all->front().considered) {
    if (option.usable) paths.push_back(option.name);
  }
  return paths;
}

class CodeGemm : public testing::TestWithParam<std::string> {
 protected:
  void CheckAll(const Case& c) {
    for (const auto& size : kSizes) runner_->Check(c, size[0], size[1], size[2]);
  }
  std::unique_ptr<Runner> runner_ = std::make_unique<Runner>(GetParam());
};

TEST_P(CodeGemm, EveryPairOfFormatsAndPatternEqualsTheIntegerLoop) {
  for (const Elem left : {Elem::kE2M1, Elem::kInt8}) {
    for (const Elem right : {Elem::kE2M1, Elem::kInt8}) {
      for (const Pattern pattern : {Pattern::kRandom, Pattern::kLargest, Pattern::kAlternating}) {
        Spec a, b;
        a.elem = left;
        b.elem = right;
        a.pattern = pattern;
        b.pattern = pattern == Pattern::kAlternating ? Pattern::kLargest : pattern;
        for (const Case& c : Products(a, b)) CheckAll(c);
      }
    }
  }
}

TEST_P(CodeGemm, FoldedOperandsEnterWithoutTheirScales) {
  for (Case c : Products({}, {})) {
    c.fold_b = true;
    CheckAll(c);
    c.left.elem = Elem::kInt8;
    CheckAll(c);
    c.fold_a = true;
    CheckAll(c);
  }
}

TEST_P(CodeGemm, TensorScalesAndAccumulation) {
  Spec tensor;
  tensor.block = Block::kTensor;
  for (Case c : Products(tensor, {})) {
    c.accumulate = true;
    CheckAll(c);
  }
}

TEST_P(CodeGemm, WideOutliersCountWithTheirFullCode) {
  Spec wide;
  wide.outliers = Outliers::kWide;
  Spec integers;
  integers.elem = Elem::kInt8;
  for (const Case& c : Products(wide, {})) CheckAll(c);
  for (const Case& c : Products({}, wide)) CheckAll(c);
  for (const Case& c : Products(integers, wide)) CheckAll(c);
  wide.pattern = Pattern::kLargest;
  integers.pattern = Pattern::kLargest;
  for (const Case& c : Products(integers, wide)) CheckAll(c);
  for (const Case& c : Products(wide, wide)) CheckAll(c);
}

TEST_P(CodeGemm, WideCodesUpToEveryBoundOfTheKernelsStayExact) {
  for (const int most : {13, 24, 25, 40, 41, 78, 79, 126}) {
    for (const Pattern pattern : {Pattern::kRandom, Pattern::kLargest, Pattern::kAlternating}) {
      Spec wide, plain;
      wide.outliers = Outliers::kWide;
      wide.wide_max = most;
      wide.all_wide = true;
      wide.pattern = pattern;
      plain.pattern = pattern == Pattern::kAlternating ? Pattern::kLargest : pattern;
      for (const auto& [left, right] : {std::pair(wide, plain), std::pair(plain, wide)}) {
        for (const Case& c : Products(left, right)) {
          runner_->Check(c, 23, 37, 449);
          runner_->Check(c, 5, 17, 31);
        }
        runner_->Check({left, right}, 9, 33, 2801);  // several blocks of depth
      }
    }
  }
}

TEST_P(CodeGemm, RareWideOutliersCountWithTheirFullCode) {
  Spec rare, integers;
  rare.outliers = Outliers::kWide;
  integers.elem = Elem::kInt8;
  for (const Pattern pattern : {Pattern::kRandom, Pattern::kAlternating}) {
    rare.pattern = integers.pattern = pattern;
    for (const auto& [left, right] : {std::pair(rare, Spec()), std::pair(Spec(), rare),
                                      std::pair(rare, integers), std::pair(integers, rare)}) {
      for (Case c : Products(left, right)) {
        const bool bytes = left.elem == Elem::kInt8 || right.elem == Elem::kInt8;
        c.left.rarity = c.right.rarity = bytes ? 101 : 601;
        c.fold_b = pattern == Pattern::kRandom;
        CheckAll(c);
        c.accumulate = true;
        runner_->Check(c, 131, 301, 70);  // several blocks, panels beside each other and left over
        runner_->Check(c, 37, 50, 2801);  // several blocks of depth
      }
    }
  }
}

TEST_P(CodeGemm, GroupScalesAreAppliedInAscendingOrder) {
  for (const int group : {16, 32, 128}) {
    for (const ScaleRule rule : {ScaleRule::kNv, ScaleRule::kE8Up, ScaleRule::kF32}) {
      Spec spec;
      spec.block = Block::kGroup;
      spec.group = group;
      spec.scale = rule;
      Spec tiles = spec;
      tiles.block = Block::kTile;
      for (const Case& c : Products(spec, spec)) CheckAll(c);
      for (const Case& c : Products(spec, tiles)) CheckAll(c);
      // One side with groups, the other with one scale per row.
      for (const Case& c : Products({}, spec)) CheckAll(c);
    }
  }
}

TEST_P(CodeGemm, SecondLevelScalesPer128AndScaleCodesPerRow) {
  Spec spec;
  spec.block = Block::kGroup;
  spec.group = 16;
  spec.scale = ScaleRule::kNv;
  spec.outer = Outer::k128;
  for (const Case& c : Products(spec, spec)) CheckAll(c);
  Spec rows;
  rows.scale = ScaleRule::kE8Up;
  for (const Case& c : Products(rows, spec)) CheckAll(c);
}

TEST_P(CodeGemm, GroupsOfIntegersAndWideCodes) {
  Spec spec;
  spec.block = Block::kGroup;
  spec.group = 32;
  Spec integers = spec;
  integers.elem = Elem::kInt8;
  Spec wide = spec;
  wide.outliers = Outliers::kWide;
  for (Case c : Products(integers, spec)) {
    c.accumulate = true;
    CheckAll(c);
  }
  for (const Case& c : Products(wide, spec)) CheckAll(c);
  for (const Case& c : Products(integers, integers)) CheckAll(c);
}

TEST_P(CodeGemm, ResidualsOfTheLeftOperandAreAddedInColumnOrder) {
  for (const Outliers outliers : {Outliers::kE4M3, Outliers::kBf16}) {
    Case c;
    c.left.outliers = outliers;
    CheckAll(c);
    runner_->Check(c, 131, 301, 70);  // several blocks, panels beside each other and left over
    c.accumulate = true;
    c.transpose_b = false;
    CheckAll(c);
    c.left.block = c.right.block = Block::kGroup;
    c.left.group = c.right.group = 16;
    CheckAll(c);
    c.accumulate = false;
    runner_->Check(c, 131, 301, 70);
  }
}

TEST_P(CodeGemm, LongContractionsStayExact) {
  Case c;
  c.left.pattern = c.right.pattern = Pattern::kLargest;
  runner_->Check(c, 5, 17, 9001);
  c.left.elem = Elem::kInt8;
  runner_->Check(c, 5, 17, 9001);
  c.right.elem = Elem::kInt8;
  runner_->Check(c, 5, 17, 9001);
  c.right.pattern = Pattern::kRandom;
  c.transpose_b = false;
  runner_->Check(c, 3, 5, 20011);
}

TEST_P(CodeGemm, OneThreadAndThreeGiveTheSameBits) {
  Case c;
  c.left.outliers = Outliers::kWide;
  for (const int threads : {1, 3}) Runner(GetParam(), threads).Check(c, 301, 257, 200);
}

TEST_P(CodeGemm, EmptyProducts) {
  runner_->Check({}, 0, 5, 3);
  runner_->Check({}, 5, 0, 3);
  runner_->Check({}, 5, 7, 0);
}

TEST_P(CodeGemm, RefusesWhatItCannotMultiply) {
  Backend& backend = *runner_->backend;
  std::vector<float> out(64);
  QuantizedGemmParams params;
  params.transpose_b = Transpose::kYes;
  params.path = runner_->path;
  const auto run = [&](const QuantizedTensor& a, const QuantizedTensor& b) {
    return backend.QuantizedGemm(params, a, b, {out.data(), 8, 8});
  };
  Operand a = MakeOperand(backend, {}, 8, 16, true, 1);
  Operand b = MakeOperand(backend, {}, 8, 16, true, 2);
  ASSERT_TRUE(run(a.tensor, b.tensor).ok());
  b.tensor.contraction = Axis::kRows;
  Status status = run(a.tensor, b.tensor);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("lie along the contraction"), std::string::npos);
  params.fold_b = true;
  EXPECT_TRUE(run(a.tensor, b.tensor).ok());
  params.fold_b = false;
  b.tensor.elem = Elem::kE4M3;
  EXPECT_EQ(run(a.tensor, b.tensor).code(), StatusCode::kUnimplemented);
  b = MakeOperand(backend, {}, 8, 24, true, 2);
  EXPECT_EQ(run(a.tensor, b.tensor).code(), StatusCode::kInvalidArgument);
  b = MakeOperand(backend, {}, 8, 16, true, 2);
  b.tensor.has_codes = false;
  EXPECT_EQ(run(a.tensor, b.tensor).code(), StatusCode::kFailedPrecondition);
  b.tensor.has_codes = true;
  a.tensor.block = b.tensor.block = Block::kGroup;
  a.tensor.group = 16;
  b.tensor.group = 8;
  EXPECT_EQ(run(a.tensor, b.tensor).code(), StatusCode::kInvalidArgument);
  Spec residual;
  residual.outliers = Outliers::kE4M3;
  b = MakeOperand(backend, residual, 8, 16, true, 2);
  a = MakeOperand(backend, {}, 8, 16, true, 1);
  EXPECT_EQ(run(a.tensor, b.tensor).code(), StatusCode::kUnimplemented);
}

INSTANTIATE_TEST_SUITE_P(Paths, CodeGemm, testing::ValuesIn(PathsHere()),
                         [](const auto& info) { return info.param; });

TEST(CodeKernelChoice, TheCapabilityListNamesTheChosenSetAndWhy) {
  const Result<std::vector<cpu::CpuCapability>> all = cpu::CpuCapabilities();
  ASSERT_TRUE(all.ok());
  const cpu::CpuCapability& gemm = all->front();
  EXPECT_EQ(gemm.name, "code GEMM");
  EXPECT_FALSE(gemm.why.empty());
  bool found = false;
  for (const auto& option : gemm.considered) {
    EXPECT_FALSE(option.reason.empty());
    if (option.name != gemm.chosen) continue;
    found = true;
    EXPECT_TRUE(option.usable);
  }
  EXPECT_TRUE(found);
  EXPECT_EQ(gemm.considered.back().name, "baseline");
  const cpu::CpuCapability& bf16 = (*all)[1];
  EXPECT_EQ(bf16.name, "BF16 GEMM");
  EXPECT_EQ(bf16.considered.front().name, "AVX512_BF16");
  EXPECT_EQ(bf16.considered.front().usable, cpu::HostCpuFeatures().avx512_bf16);
  EXPECT_EQ(bf16.chosen == "AVX512_BF16",
            gemm.chosen == "avx512vnni" && cpu::HostCpuFeatures().avx512_bf16);
}

TEST(CodeKernelChoice, TheEnvironmentOverridesAndAWrongNameListsWhatThisCpuRuns) {
  setenv("NIBBLE_CPU_ISA", "baseline", 1);
  Result<std::vector<cpu::CpuCapability>> all = cpu::CpuCapabilities();
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(all->front().chosen, "baseline");
  EXPECT_NE(MakeBackend("cpu", {}).value()->description().find("codes baseline"),
            std::string::npos);
  ASSERT_EQ((*all)[1].name, "BF16 GEMM");
  EXPECT_NE((*all)[1].chosen, "AVX512_BF16");
  setenv("NIBBLE_CPU_ISA", "mmx", 1);
  const Status status = MakeBackend("cpu", {}).status();
  unsetenv("NIBBLE_CPU_ISA");
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("NIBBLE_CPU_ISA=mmx"), std::string::npos);
  EXPECT_NE(status.message().find("baseline"), std::string::npos);
}

}  // namespace
}  // namespace nibble
