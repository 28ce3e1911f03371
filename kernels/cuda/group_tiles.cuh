// SPDX-License-Identifier: Apache-2.0
//
// Blocks 1xB of 16 to 128 elements, under a Hadamard rotation or none: measured, scaled and encoded
// while a tile of the matrix lies in shared memory.
//
// Purpose: each element is read once, or twice where a scale looks at the whole tensor, and its
// rotation never reaches memory: 4 or 8 bytes of FP32 and the code, where rounding, rotating and
// the kernels of group_kernels.cuh take 24. Sums over a group are formed by one thread in the CPU's
// order: the bits are the CPU's. Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/tile_parts.cuh"
#include "kernels/recipe/product_path.h"

namespace nibble::cuda {

static_assert(kSmallestInTiles == kSegment && kLargestInTiles == kTilePositions);

// The largest of the segments [first, first + count) of a line.
__device__ inline uint32_t SegmentMax(const TileMemory& tile, int line, int first, int count) {
  uint32_t amax = 0;
  for (int s = line * kSegments + first; s < line * kSegments + first + count; ++s) {
    amax = tile.amax[s] > amax ? tile.amax[s] : amax;
  }
  return amax;
}

// Scales of the tile, one thread per group.
__device__ inline void ScaleTile(const TileTask& t, const TilePlace& place, TileMemory* tile) {
  const GroupTask& task = t.group;
  const int extent = static_cast<int>(task.layout.extent);
  const int per_line = kTilePositions / extent;
  const int line = static_cast<int>(threadIdx.x) / per_line;
  const int first = static_cast<int>(threadIdx.x) % per_line * extent;
  if (line >= place.lines || first >= place.positions) return;
  const TileElements elements{*tile, place};
  const int64_t g = (place.position + first) / extent;
  const uint32_t amax = SegmentMax(*tile, line, first / kSegment, extent / kSegment);
  double statistic = static_cast<double>(formats::BitsFloat(amax));
  if (StatisticOf(task.rule.scale) == Statistic::kDeviation) {
    statistic = DeviationOf(elements, place.line + line, g * extent, task.layout.End(g));
  }
  formats::OuterScale outer;
  if (task.layout.outers_per_line != 0 && HasOuterScale(task.rule.scale)) {
    const uint32_t largest = SegmentMax(*tile, line, 0, kSegments);
    outer = OuterScaleOf(task.rule, formats::BitsFloat(largest));
  } else {
    outer = task.OuterOf(0);
  }
  const formats::GroupScale scale =
      ScaleOfGroup(task, elements, place.line + line, g, statistic, outer);
  StoreScale(task, place.line + line, g, scale, outer.scale);
  tile->enc[threadIdx.x] = scale.enc;
  tile->scale[threadIdx.x] = scale.scale;
  if (first == 0) tile->outer[line] = outer.scale;
  if (!IsFiniteStatistic(statistic)) atomicAdd(task.nonfinite, 1);
}

// Elements become codes and masks, one thread per segment.
__device__ inline void EncodeTile(const TileTask& t, const TilePlace& place, TileMemory* tile) {
  const GroupTask& task = t.group;
  const int line = threadIdx.x / kSegments, first = threadIdx.x % kSegments * kSegment;
  if (line >= place.lines || first >= place.positions) return;
  const int extent = static_cast<int>(task.layout.extent);
  const float enc = tile->enc[line * (kTilePositions / extent) + first / extent];
  const int64_t random = task.layout.Random(place.line + line, place.position + first);
  RandomWalk words(task.random, task.round);
  double squares = 0, products = 0;
#pragma unroll 4
  for (int i = 0; i < kSegment; ++i) {
    if (first + i >= place.positions) break;
    uint32_t& at = tile->At(line, first + i);
    const float y = task.Scaled(formats::BitsFloat(at), enc);
    const uint32_t word = Stochastic(task.round) ? words.Word(random + i) : 0;
    const float grid = RoundGroupElem(task.elem, task.round, y, word);
    const uint32_t mask = task.below6 && formats::Magnitude(y) < 6.0f ? 1 : 0;
    at = CodeOf(task.elem, grid) | mask << 8;
    squares += static_cast<double>(y) * static_cast<double>(y);
    products += static_cast<double>(y) * static_cast<double>(grid);
  }
  if (task.sums == nullptr) return;
  // A segment is a group there.
  const int64_t group = task.layout.Group(place.line + line, (place.position + first) / kSegment);
  task.sums[2 * group] = squares;
  task.sums[2 * group + 1] = products;
}

// What the codes mean, along the rows of the matrix.
__device__ inline void DecodeTile(const TileTask& t, const TilePlace& place, TileMemory* tile) {
  const GroupTask& task = t.group;
  const bool turned = task.layout.turned;
  const int extent = static_cast<int>(task.layout.extent);
  const int width = turned ? kTileLines : kTilePositions;
  for (int item = threadIdx.x; item < kTileLines * kTilePositions; item += kThreads) {
    const int line = turned ? item % width : item / width;
    const int position = turned ? item / width : item % width;
    if (line >= place.lines || position >= place.positions) continue;
    const int group = line * (kTilePositions / extent) + position / extent;
    const RunDecoder decoder =
        task.Decoder({tile->enc[group], tile->scale[group], 0}, tile->outer[line]);
    const auto code = static_cast<uint8_t>(tile->At(line, position));
    task.decoded[task.layout.At(place.line + line, place.position + position)] =
        decoder.Decode(GridOf(task.elem, code));
  }
}

// The tensor's absolute maximum, into t.group.outer_amax. Any grid; blocks of kThreads.
__global__ void __launch_bounds__(kThreads, 4) MeasureTilesKernel(TileTask t) {
  __shared__ TileMemory tile;
  uint32_t largest = 0;
  for (int64_t i = blockIdx.x; i < TileCount(t.group.layout); i += gridDim.x) {
    const TileLoad load = LoadTile(t, PlaceOf(t.group.layout, i));
    float x[kSegment];
    if (t.size == 0) {
#pragma unroll
      for (int k = 0; k < kSegment; ++k) x[k] = load.x[k];
    } else {
      PlaceTile(load, &tile);
      TakeSegment(t, &tile, x);
    }
    const uint32_t amax = SegmentAmax(x);
    largest = amax > largest ? amax : largest;
  }
  largest = BlockMax(largest);
  if (threadIdx.x == 0) atomicMax(t.group.outer_amax, largest);
}

// Everything else but the corrections of MS-EDEN. A block of kThreads for each tile.
__global__ void __launch_bounds__(kThreads, 3) QuantizeTilesKernel(TileTask t) {
  __shared__ TileMemory tile;
  const GroupTask& task = t.group;
  const bool turned = task.layout.turned;
  const TilePlace place = PlaceOf(task.layout, blockIdx.x);
  PlaceTile(LoadTile(t, place), &tile);
  float x[kSegment];
  TakeSegment(t, &tile, x);
  tile.amax[threadIdx.x] = SegmentAmax(x);
  if (t.size != 0) PutSegment(x, &tile);
  __syncthreads();
  ScaleTile(t, place, &tile);
  __syncthreads();
  EncodeTile(t, place, &tile);
  __syncthreads();
  if (task.codes != nullptr && task.elem == Elem::kE2M1) {
    StoreTile<2>(place, turned, 0, task.code_row_bytes, task.codes, &tile);
  } else if (task.codes != nullptr) {
    StoreTile<1>(place, turned, 0, task.code_row_bytes, task.codes, &tile);
  }
  if (task.below6) StoreTile<1>(place, turned, 8, task.layout.cols, task.mask, &tile);
  if (task.decoded != nullptr) DecodeTile(t, place, &tile);
}

// On the host: whether a scale looks at the whole tensor, so that the tensor is measured first. The
// corrected scales of MS-EDEN find their outer scale afterwards.
inline bool LooksAtTensor(const Quant& quant) {
  const bool later = quant.scale == ScaleRule::kEden && !GroupRuleOf(quant).corrected_over_groups;
  return HasOuterScale(quant.scale) && quant.outer == Outer::kTensor && (!later || quant.hold > 1);
}

// On the host: `negative(i)` says whether coordinate i of a rotated group changes its sign.
template <typename Negative>
TileTask TileTaskOf(const GroupTask& group, const Quant& quant, const QuantizeContext& context,
                    int size, Negative negative) {
  TileTask task{};
  task.group = group;
  task.size = size;
  const void* const x = group.x != nullptr ? static_cast<const void*>(group.x) : group.bf16;
  task.in_fours = InFours(group.layout.cols, {x});
  if (size == 0) return task;
  task.group.round_source = quant.source != Source::kRequant;
  task.round_rotated = context.round_source;
  task.factor = formats::RotationFactor(size);
  for (int i = 0; i < kTilePositions; ++i) {
    if (negative(i % size)) task.negative[i / 32] |= 1u << (i % 32);
  }
  return task;
}

}  // namespace nibble::cuda
