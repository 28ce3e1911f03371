// SPDX-License-Identifier: Apache-2.0
//
// What the emulated tests of small scale groups share: quantizers, sources, the memory of a
// GroupTask, and the comparison with what the CPU leaves.
// Include after the emulator. Thread-safety: for one test at a time.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/group_kernels.cuh"
#include "kernels/formats/philox.h"
#include "tests/ops/group_quant.h"

namespace nibble::cuda {

inline std::vector<float> Source(int64_t size, uint32_t stream) {
  std::vector<float> x(static_cast<size_t>(size));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = formats::RandomWord(17, 0, stream, i);
    const float uniform = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f;
    x[i] = uniform * uniform * uniform * (word % 41 == 0 ? 30.0f : 2.0f);
    if (i % 97 < 34) x[i] = 0.0f;  // whole groups of zeros
  }
  return x;
}

struct GroupCase {
  std::string name;
  Quant quant;
  Axis contraction = Axis::kCols;
};

inline std::vector<GroupCase> GroupCases() {
  constexpr Elem kE2M1 = Elem::kE2M1, kE4M3 = Elem::kE4M3;
  constexpr Block kRow = Block::kGroup, kSquare = Block::kTile;
  std::vector<GroupCase> cases = {
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
  for (GroupCase& test : cases) {
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

inline Outcome OutcomeOf(const QuantizedTensor& q) {
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

// A GroupTask as CudaBackend::PrepareGroups makes it, on the host.
class EmulatedGroupTask {
 public:
  // `shape` says how the result lies. `as_bf16`: the elements as an earlier kernel has left them.
  EmulatedGroupTask(const Quant& quant, const QuantizeContext& context, const std::vector<float>& x,
                    const QuantizedTensor& shape, bool as_bf16)
      : shape_(shape), source_(x) {
    for (const float value : x) bf16_.push_back(formats::ToBf16(value));
    const DType type = as_bf16 ? DType::kBF16 : DType::kF32;
    const void* elements = as_bf16 ? static_cast<const void*>(bf16_.data()) : source_.data();
    t = GroupTaskOf(quant, context, ConstTensorView(elements, shape.rows, shape.cols, type), shape);
    EXPECT_EQ(t.outer_divisor,
              HasScaleCodes(quant.scale) ? OuterScaleOf(t.rule, 1.0f).divisor : 1.0f);
    const auto groups = static_cast<size_t>(t.groups);
    const auto outers = static_cast<size_t>(shape.outer_count());
    amax_.assign(groups, 0);
    outer_amax_.assign(outers, 0);
    statistics_.resize(groups);
    sums_.resize(2 * groups);
    out.enc.resize(groups);
    t.statistics = statistics_.data();
    t.amax = amax_.data();
    t.outer_amax = HasOuterScale(quant.scale) ? outer_amax_.data() : nullptr;
    t.enc = out.enc.data();
    if (shape.has_group_scale) {
      out.group_scale.resize(groups);
      out.scale_codes.resize(groups);
      out.outer_scale.resize(outers);
      t.group_scale = out.group_scale.data();
      t.scale_codes = out.scale_codes.data();
      t.outer_scale = out.outer_scale.data();
    }
    t.nonfinite = &nonfinite_;
    t.largest = &largest_;
    out.codes.resize(static_cast<size_t>(shape.rows * shape.code_row_bytes()));
    out.decoded.resize(x.size());
    if (shape.has_mask) out.mask.resize(x.size());
    t.codes = out.codes.data();
    t.mask = out.mask.data();
    t.sums = quant.scale == ScaleRule::kEden ? sums_.data() : nullptr;
    t.decoded = t.sums != nullptr ? nullptr : out.decoded.data();
  }

  void Launch(EmulatedDim grid, FiberOrder order, void (*kernel)(GroupTask)) {
    Emulator::Get().Launch(grid, kThreads, 0, order, [&] { kernel(t); });
  }
  // What follows the encoding: the corrections of MS-EDEN, and what the codes mean after them.
  const Outcome& Finish(FiberOrder order) {
    if (t.sums != nullptr) {
      Launch({2}, order, EdenCorrectKernel);
      Launch({2}, order, EdenFinishKernel);
      StoredGroups stored = StoredGroupsOf(shape_);
      stored.codes = out.codes.data();
      stored.enc = out.enc.data();
      stored.group_scale = out.group_scale.data();
      stored.outer_scale = out.outer_scale.data();
      const DecodeGroupsOp decode{stored, out.decoded.data()};
      for (int64_t i = 0; i < shape_.rows * shape_.cols; ++i) decode(i);
    }
    out.nonfinite = nonfinite_;
    return out;
  }

  GroupTask t{};
  Outcome out;

 private:
  const QuantizedTensor& shape_;
  std::vector<float> source_;
  std::vector<uint16_t> bf16_;
  std::vector<uint32_t> amax_, outer_amax_;
  std::vector<double> statistics_, sums_;
  uint32_t largest_ = 0;
  int32_t nonfinite_ = 0;
};

inline void ExpectSameFloats(const std::vector<float>& a, const std::vector<float>& b,
                             const char* what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i) {
    // Which NaN it is differs between instruction sets.
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    ASSERT_EQ(formats::FloatBits(a[i]), formats::FloatBits(b[i])) << what << ' ' << i;
  }
}

inline void ExpectSame(const Outcome& got, const Outcome& expected,
                       const std::vector<float>& decoded) {
  EXPECT_EQ(got.codes, expected.codes);
  EXPECT_EQ(got.scale_codes, expected.scale_codes);
  EXPECT_EQ(got.mask, expected.mask);
  EXPECT_EQ(got.nonfinite, expected.nonfinite);
  ExpectSameFloats(got.enc, expected.enc, "enc");
  ExpectSameFloats(got.group_scale, expected.group_scale, "group scale");
  ExpectSameFloats(got.outer_scale, expected.outer_scale, "outer scale");
  ExpectSameFloats(got.decoded, decoded, "decoded");
}

}  // namespace nibble::cuda
