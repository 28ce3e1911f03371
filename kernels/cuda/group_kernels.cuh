// SPDX-License-Identifier: Apache-2.0
//
// Kernels of Quantize and Dequantize for small scale groups, blocks 1xB and BxB: measure, scales,
// encode, and the corrected scales of MS-EDEN.
//
// Purpose: the bits of the CPU's GroupQuantizer. Maxima and counts do not depend on an order; sums
// over a group are formed by one thread in the CPU's order. One thread takes one cell; where groups
// run down the columns, neighbouring threads take neighbouring columns. Thread-safety: kernels,
// ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/group_parts.cuh"
#include "kernels/cuda/quantize_parts.cuh"
#include "kernels/quantize_context.h"

namespace nibble::cuda {

struct GroupTask {
  GroupRule rule;
  GroupLayout layout;
  Elem elem;
  Round round;
  bool round_source;
  bool below6;  // fill the mask
  float alternatives[2];
  ErrorMetric metric;
  RandomSource random;
  int64_t groups;
  int64_t together;  // kEden: scale groups of one correction
  const float* x;    // nullptr: the elements are BF16
  const uint16_t* bf16;
  double* statistics;    // (groups), of rules that look at the deviation
  uint32_t* amax;        // (groups) bits, zero before
  uint32_t* outer_amax;  // (outers) bits, zero before; of rules with an outer scale
  float held_amax;       // above 0: stands for the tensor's
  float outer_divisor;
  float* enc;
  float* group_scale;  // nullptr: no scale codes
  uint8_t* scale_codes;
  float* outer_scale;
  int32_t* nonfinite;
  uint8_t* codes;  // nullptr: not kept
  int64_t code_row_bytes;
  float* decoded;  // nullptr: not wanted; may be x
  uint8_t* mask;
  double* sums;       // (groups, 2) of kEden
  uint32_t* largest;  // bits of the largest corrected scale, zero before

  __device__ float Source(int64_t line, int64_t position) const {
    if (x == nullptr) return formats::FromBf16(bf16[layout.At(line, position)]);
    const float value = x[layout.At(line, position)];
    return round_source ? formats::RoundBf16(value) : value;
  }
  __device__ float Scaled(float value, float by) const {
    return rule.divides() ? value / by : value * by;
  }
  __device__ formats::OuterScale OuterOf(int64_t outer) const {
    if (!HasOuterScale(rule.scale)) return OuterScaleOf(rule, 1.0f);
    const bool held = held_amax > 0.0f;
    return OuterScaleOf(rule, held ? held_amax : formats::BitsFloat(outer_amax[outer]));
  }
  __device__ uint32_t ScaleWord(int64_t group) const {
    if (!rule.draws_scales()) return 0;
    return formats::RandomWord(random.seed, random.step, random.stream,
                               kScaleElement + static_cast<uint64_t>(group));
  }
  __device__ RunDecoder Decoder(const formats::GroupScale& scale, float outer) const {
    return DecoderOf(rule.scale, group_scale != nullptr, scale, outer, outer_divisor);
  }
};

// On the host: what follows from quantizer, elements and the result's description; no memory of the
// result.
inline GroupTask GroupTaskOf(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                             const QuantizedTensor& out) {
  GroupTask task{};
  task.rule = GroupRuleOf(quant);
  task.layout = GroupLayoutOf(out);
  task.elem = quant.elem;
  task.round = quant.round;
  task.round_source = context.round_source;
  task.below6 = quant.mask == Mask::kBelow6;
  task.alternatives[0] = quant.alternatives.maxima[0];
  task.alternatives[1] = quant.alternatives.maxima[1];
  task.metric = quant.alternatives.metric;
  task.random = {context.seed, context.step, context.stream};
  task.groups = out.scale_count();
  task.together = quant.group > 0 ? quant.correction_group / quant.group : 1;
  const bool bf16 = x.dtype == DType::kBF16;
  task.x = bf16 ? nullptr : x.f32();
  task.bf16 = bf16 ? static_cast<const uint16_t*>(x.data) : nullptr;
  task.outer_divisor = out.outer_divisor;
  task.code_row_bytes = out.code_row_bytes();
  return task;
}

// Calls body(line, g, live) for this thread's cells. Down the columns, a warp takes neighbouring
// columns and stays whole: `live` is false past the last one. Grid: (columns / kThreads, rows of
// groups), or (cells / kThreads) along the rows.
template <typename Body>
__device__ void ForCells(const GroupLayout& l, Body body) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (l.turned) {
    for (int64_t g = blockIdx.y; g < l.per_line; g += gridDim.y) body(first, g, first < l.lines);
    return;
  }
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < l.lines * l.per_line; i += stride) {
    body(i / l.per_line, i % l.per_line, true);
  }
}

// Here and below `x` gives elements as GroupTask::Source does.
template <typename Elements>
__device__ double DeviationOf(const Elements& x, int64_t line, int64_t first, int64_t last) {
  double sum = 0;
  for (int64_t at = first; at < last; ++at) sum += static_cast<double>(x.Source(line, at));
  const double mean = sum / static_cast<double>(last - first);
  double squares = 0;
  for (int64_t at = first; at < last; ++at) {
    const double centred = static_cast<double>(x.Source(line, at)) - mean;
    squares += centred * centred;
  }
  return sqrt(squares / static_cast<double>(last - first));
}

__global__ void GroupMeasureKernel(GroupTask t) {
  uint32_t largest = 0;
  ForCells(t.layout, [&](int64_t line, int64_t g, bool live) {
    if (!live) return;
    const int64_t first = g * t.layout.extent, last = t.layout.End(g);
    const int64_t group = t.layout.Group(line, g);
    if (StatisticOf(t.rule.scale) == Statistic::kDeviation) {
      t.statistics[group] = DeviationOf(t, line, first, last);
      return;
    }
    uint32_t bits = 0;
    for (int64_t at = first; at < last; ++at) bits = formats::AmaxUpdate(bits, t.Source(line, at));
    if (t.layout.tile > 1) {
      atomicMax(&t.amax[group], bits);
    } else {
      t.amax[group] = bits;
    }
    if (t.layout.outers_per_line != 0) atomicMax(&t.outer_amax[t.layout.Outer(line, g)], bits);
    largest = bits > largest ? bits : largest;
  });
  if (t.outer_amax == nullptr || t.layout.outers_per_line != 0) return;
  largest = BlockMax(largest);
  if (threadIdx.x == 0) atomicMax(t.outer_amax, largest);
}

// Error of a group under one of its alternatives, in the order of lines and positions. `outer`: its
// second level.
template <typename Elements>
__device__ float AlternativeError(const GroupTask& t, const Elements& elements, int64_t line,
                                  int64_t g, const formats::GroupScale& scale, float outer) {
  const Round round = Stochastic(t.round) ? Round::kEven : t.round;
  const int64_t last_line =
      line + t.layout.tile < t.layout.lines ? line + t.layout.tile : t.layout.lines;
  const RunDecoder decoder = t.Decoder(scale, outer);
  float error = 0;
  for (int64_t l = line; l < last_line; ++l) {
    for (int64_t at = g * t.layout.extent; at < t.layout.End(g); ++at) {
      const float x = elements.Source(l, at);
      const float grid = RoundGroupElem(t.elem, round, t.Scaled(x, scale.enc), 0);
      const float difference = formats::Magnitude(decoder.Decode(grid) - x);
      if (t.metric == ErrorMetric::kMse) error += difference * difference;
      if (t.metric == ErrorMetric::kMae) error += difference;
      if (t.metric == ErrorMetric::kMax) error = difference > error ? difference : error;
    }
  }
  return error;
}

// The scale of group g of `line`, the first of its lines.
template <typename Elements>
__device__ formats::GroupScale ScaleOfGroup(const GroupTask& t, const Elements& elements,
                                            int64_t line, int64_t g, double statistic,
                                            const formats::OuterScale& outer) {
  const bool chooses = t.rule.alternatives;
  const uint32_t word = chooses ? 0 : t.ScaleWord(t.layout.Group(line, g));
  formats::GroupScale best{};
  float smallest = 0;
  // One place where the rules' arithmetic is: it takes many registers.
#pragma unroll 1
  for (int candidate = 0; candidate < (chooses ? 2 : 1); ++candidate) {
    const float mapped = candidate == 0 ? t.alternatives[0] : t.alternatives[1];
    const formats::GroupScale scale =
        GroupScaleOf(t.rule, statistic, outer, chooses ? mapped : t.rule.element_max, word, 1.0f);
    const float error = chooses ? AlternativeError(t, elements, line, g, scale, outer.scale) : 0.0f;
    if (candidate == 0 || error < smallest) {
      best = scale;
      smallest = error;
    }
  }
  return best;
}

// With the outer scale where the group is the first of its scope.
__device__ inline void StoreScale(const GroupTask& t, int64_t line, int64_t g,
                                  const formats::GroupScale& scale, float outer) {
  const int64_t group = t.layout.Group(line, g);
  t.enc[group] = scale.enc;
  if (t.group_scale == nullptr) return;
  t.group_scale[group] = scale.scale;
  t.scale_codes[group] = scale.code;
  const bool first = t.layout.outers_per_line == 0 ? group == 0 : g * t.layout.extent % 128 == 0;
  if (first) t.outer_scale[t.layout.Outer(line, g)] = outer;
}

// Of an absolute maximum or a deviation.
__device__ inline bool IsFiniteStatistic(double statistic) {
  return formats::IsFinite(static_cast<float>(statistic - statistic));
}

// One thread per group.
__global__ void GroupScalesKernel(GroupTask t) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool deviation = StatisticOf(t.rule.scale) == Statistic::kDeviation;
  int32_t nonfinite = 0;
  for (int64_t group = first; group < t.groups; group += stride) {
    const int64_t line = group / t.layout.per_line * t.layout.tile;
    const int64_t g = group % t.layout.per_line;
    const double statistic =
        deviation ? t.statistics[group] : static_cast<double>(formats::BitsFloat(t.amax[group]));
    const formats::OuterScale outer = t.OuterOf(t.layout.Outer(line, g));
    StoreScale(t, line, g, ScaleOfGroup(t, t, line, g, statistic, outer), outer.scale);
    nonfinite += IsFiniteStatistic(statistic) ? 0 : 1;
  }
  nonfinite = BlockSum(nonfinite);
  if (threadIdx.x == 0 && nonfinite != 0) atomicAdd(t.nonfinite, nonfinite);
}

// Stores a code; for E2M1 two of them share a byte, along the thread's own cell or, down the
// columns, with the neighbouring thread. Every thread of the warp calls it.
__device__ inline void StoreCode(const GroupTask& t, bool live, int64_t line, int64_t position,
                                 unsigned code, unsigned* low) {
  const GroupLayout& l = t.layout;
  const unsigned neighbour = l.turned ? __shfl_down_sync(0xFFFFFFFFu, code, 1) : 0u;
  if (!live || t.codes == nullptr) return;
  const int64_t row = l.turned ? position : line;
  const int64_t col = l.turned ? line : position;
  uint8_t* const row_codes = t.codes + row * t.code_row_bytes;
  if (t.elem != Elem::kE2M1) {
    row_codes[col] = static_cast<uint8_t>(code);
  } else if (l.turned) {
    const unsigned odd = col + 1 < l.cols ? neighbour : 0u;
    if (col % 2 == 0) row_codes[col / 2] = static_cast<uint8_t>(code | odd << 4);
  } else if (col % 2 == 0) {
    *low = code;
    if (col + 1 == l.cols) row_codes[col / 2] = static_cast<uint8_t>(code);
  } else {
    row_codes[col / 2] = static_cast<uint8_t>(*low | code << 4);
  }
}

// The grid is a multiple of a warp; groups of E2M1 along the rows have an even extent.
__global__ void GroupEncodeKernel(GroupTask t) {
  RandomWalk words(t.random, t.round);
  const bool eden = t.sums != nullptr;
  ForCells(t.layout, [&](int64_t line, int64_t g, bool live) {
    const int64_t first = g * t.layout.extent;
    const int64_t last = t.layout.End(g);
    const int64_t group = live ? t.layout.Group(line, g) : 0;
    const float enc = t.enc[group];
    const float scale = t.group_scale != nullptr ? t.group_scale[group] : 1.0f;
    const float outer =
        t.group_scale != nullptr && live ? t.outer_scale[t.layout.Outer(line, g)] : 1.0f;
    const RunDecoder decoder = t.Decoder({enc, scale, 0}, outer);
    double squares = 0, products = 0;
    unsigned low = 0;
    for (int64_t at = first; at < last; ++at) {
      const float y = live ? t.Scaled(t.Source(line, at), enc) : 0.0f;
      const uint32_t word = Stochastic(t.round) && live ? words.Word(t.layout.Random(line, at)) : 0;
      const float grid = RoundGroupElem(t.elem, t.round, y, word);
      StoreCode(t, live, line, at, CodeOf(t.elem, grid), &low);
      if (!live) continue;
      if (t.below6) t.mask[t.layout.At(line, at)] = formats::Magnitude(y) < 6.0f ? 1 : 0;
      squares += static_cast<double>(y) * static_cast<double>(y);
      products += static_cast<double>(y) * static_cast<double>(grid);
      if (!eden && t.decoded != nullptr) t.decoded[t.layout.At(line, at)] = decoder.Decode(grid);
    }
    if (!eden || !live) return;
    t.sums[2 * group] = squares;
    t.sums[2 * group + 1] = products;
  });
}

// MS-EDEN (arXiv 2601.22813): each scale times sum y^2 / sum y q over its correction group. One
// thread per correction group.
__global__ void EdenCorrectKernel(GroupTask t) {
  const int64_t per_line = (t.layout.per_line + t.together - 1) / t.together;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  uint32_t largest = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       i < t.layout.lines * per_line; i += stride) {
    const int64_t begin = i % per_line * t.together;
    const int64_t end =
        begin + t.together < t.layout.per_line ? begin + t.together : t.layout.per_line;
    const int64_t line = i / per_line * t.layout.per_line;
    double numerator = 0, denominator = 0;
    for (int64_t g = line + begin; g < line + end; ++g) {
      numerator += t.sums[2 * g];
      denominator += t.sums[2 * g + 1];
    }
    const float correction = formats::EdenCorrection(numerator, denominator);
    for (int64_t g = line + begin; g < line + end; ++g) {
      const float corrected = t.group_scale[g] * correction;
      t.group_scale[g] = t.rule.corrected_over_groups ? corrected : formats::RoundBf16(corrected);
      if (formats::IsFinite(t.group_scale[g]) && t.group_scale[g] > 0.0f) {
        largest = formats::AmaxUpdate(largest, t.group_scale[g]);
      }
    }
  }
  largest = BlockMax(largest);
  if (threadIdx.x == 0) atomicMax(t.largest, largest);
}

// Then the scales on the E4M3 grid, stochastically; the first thread writes the outer scale.
__global__ void EdenFinishKernel(GroupTask t) {
  float global = 1.0f;
  if (!t.rule.corrected_over_groups) {
    const float share = formats::BitsFloat(*t.largest) / t.rule.scale_max;
    // A subnormal share has no reciprocal.
    if (share > 0.0f) global = share > 0x1p-126f ? share : 0x1p-126f;
    if (blockIdx.x == 0 && threadIdx.x == 0) t.outer_scale[0] = global;
  }
  const float inverse = 1.0f / global;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; g < t.groups;
       g += stride) {
    const float wanted = t.group_scale[g] * inverse;
    float scale = 0;
    if (t.rule.scale_round != ScaleRound::kStochastic) {
      scale = formats::RoundE4M3(wanted);
    } else {
      const uint32_t word = formats::RandomWord(t.random.seed, t.random.step, t.random.stream,
                                                kScaleElement + static_cast<uint64_t>(g));
      scale = t.rule.corrected_over_groups ? formats::RoundSr24<formats::E4M3Grid>(wanted, word)
                                           : formats::EdenStochasticScale(wanted, word >> 16);
    }
    t.group_scale[g] = scale;
    t.scale_codes[g] = formats::E4M3CodeOfGridValue(scale);
  }
}

struct DecodeGroupsOp {
  StoredGroups x;
  float* decoded;
  __device__ void operator()(int64_t i) const {
    decoded[i] = x.Decode(i / x.layout.cols, i % x.layout.cols);
  }
};

}  // namespace nibble::cuda
