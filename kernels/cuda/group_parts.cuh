// SPDX-License-Identifier: Apache-2.0
//
// Small scale groups on the device: how lines, groups and cells of a matrix lie, random words, and
// rounding to any element grid.
//
// Purpose: the vocabulary of group_kernels.cuh. A line is a row, or a column where groups run along
// a contraction over the rows; a cell is what one line has of one group. Thread-safety: pure
// functions.
#pragma once

#include <cstdint>

#include "kernels/cuda/element.cuh"
#include "kernels/formats/grids.h"
#include "kernels/group_rules.h"

namespace nibble::cuda {

struct GroupLayout {
  bool turned;   // lines are columns
  bool by_rows;  // the contraction runs over the rows; the random stream counts along it
  int64_t rows, cols;
  int64_t lines, depth;     // depth: elements of a line
  int64_t extent;           // elements of a group along its line
  int64_t per_line;         // groups
  int64_t tile;             // lines that share a group
  int64_t outers_per_line;  // 0: one outer scale for the tensor

  __device__ int64_t At(int64_t line, int64_t position) const {
    return turned ? position * cols + line : line * cols + position;
  }
  // Number in the random stream: contraction-major.
  __device__ int64_t Random(int64_t line, int64_t position) const {
    const int64_t row = turned ? position : line;
    const int64_t col = turned ? line : position;
    return by_rows ? col * rows + row : row * cols + col;
  }
  __device__ int64_t Group(int64_t line, int64_t g) const { return line / tile * per_line + g; }
  __device__ int64_t Outer(int64_t line, int64_t g) const {
    return outers_per_line == 0 ? 0 : line * outers_per_line + g * extent / 128;
  }
  __device__ int64_t End(int64_t g) const {
    return (g + 1) * extent < depth ? (g + 1) * extent : depth;
  }
};

// On the host.
inline GroupLayout GroupLayoutOf(const QuantizedTensor& x) {
  const bool tiles = x.block == Block::kTile;
  GroupLayout layout{};
  layout.by_rows = x.contraction == Axis::kRows;
  layout.turned = layout.by_rows && !tiles;
  layout.rows = x.rows;
  layout.cols = x.cols;
  layout.lines = layout.turned ? x.cols : x.rows;
  layout.depth = layout.turned ? x.rows : x.cols;
  layout.extent = x.group;
  layout.per_line = (layout.depth + layout.extent - 1) / layout.extent;
  layout.tile = tiles ? x.group : 1;
  layout.outers_per_line = x.outer == Outer::k128 ? (layout.depth + 127) / 128 : 0;
  return layout;
}

// The words of elements asked for in turn; neighbours come from one draw of the generator.
class RandomWalk {
 public:
  __device__ RandomWalk(const RandomSource& source, Round round)
      : source_(source), bytes_(round == Round::kTe8) {}
  __device__ uint32_t Word(int64_t element) {
    const uint64_t index = static_cast<uint64_t>(element);
    const uint64_t word = bytes_ ? index / 4 : index;
    if (word / 4 != group_) {
      group_ = word / 4;
      drawn_ = formats::RandomGroup(source_.seed, source_.step, source_.stream, group_);
    }
    // By choice, not by index: an indexed array would leave the registers.
    const uint32_t low = word % 2 == 0 ? drawn_.word[0] : drawn_.word[1];
    const uint32_t high = word % 2 == 0 ? drawn_.word[2] : drawn_.word[3];
    const uint32_t value = word % 4 < 2 ? low : high;
    return bytes_ ? (value >> (8 * (index % 4))) & 0xFFu : value;
  }

 private:
  RandomSource source_;
  bool bytes_;
  uint64_t group_ = ~uint64_t{0};
  formats::PhiloxWords drawn_{};
};

__device__ inline bool Stochastic(Round round) {
  return round == Round::kSr24 || round == Round::kTe8;
}

template <typename Grid>
__device__ inline float RoundOnto(Round round, float y, uint32_t word) {
  switch (round) {
    case Round::kHalfUp:
      return formats::RoundNearest<Grid>(y, formats::TieRule::kHalfUp);
    case Round::kAway:
      return formats::RoundNearest<Grid>(y, formats::TieRule::kAway);
    case Round::kZero:
      return formats::RoundNearest<Grid>(y, formats::TieRule::kZero);
    case Round::kSr24:
      return formats::RoundSr24<Grid>(y, word);
    case Round::kTe8:
      return formats::RoundTe8<Grid>(y, word);
    default:
      return formats::RoundNearest<Grid>(y, formats::TieRule::kEven);
  }
}

// E2M1 and FP8, as groups hold them.
__device__ inline float RoundGroupElem(Elem elem, Round round, float y, uint32_t word) {
  switch (elem) {
    case Elem::kE2M1:
      return round == Round::kEven ? formats::RoundE2M1Even(y)
                                   : RoundOnto<formats::E2M1Grid>(round, y, word);
    case Elem::kE4M3:
      return round == Round::kEven ? formats::RoundE4M3(y)
                                   : RoundOnto<formats::E4M3Grid>(round, y, word);
    default:
      return round == Round::kEven ? formats::RoundE5M2(y)
                                   : RoundOnto<formats::E5M2Grid>(round, y, word);
  }
}

// Codes and scales of small groups as Dequantize and the products read them.
struct StoredGroups {
  GroupLayout layout;
  Elem elem;
  ScaleRule scale;
  bool has_group_scale;
  float outer_divisor;
  int64_t code_row_bytes;
  const uint8_t* codes;
  const float *enc, *group_scale, *outer_scale;

  __device__ float Grid(int64_t row, int64_t col) const {
    const uint8_t* row_codes = codes + row * code_row_bytes;
    if (elem != Elem::kE2M1) return GridOf(elem, row_codes[col]);
    const uint8_t pair = row_codes[col / 2];
    return formats::DecodeE2M1(col % 2 == 0 ? pair & 15u : pair >> 4);
  }
  __device__ int64_t GroupAt(int64_t row, int64_t col) const {
    const int64_t position = layout.turned ? row : col;
    return layout.Group(layout.turned ? col : row, position / layout.extent);
  }
  __device__ float Decode(int64_t row, int64_t col) const {
    const int64_t group = GroupAt(row, col);
    const int64_t line = layout.turned ? col : row;
    const int64_t g = (layout.turned ? row : col) / layout.extent;
    const float inner = has_group_scale ? group_scale[group] : 1.0f;
    const float outer = has_group_scale ? outer_scale[layout.Outer(line, g)] : 1.0f;
    return DecoderOf(scale, has_group_scale, {enc[group], inner, 0}, outer, outer_divisor)
        .Decode(Grid(row, col));
  }
};

// On the host.
inline StoredGroups StoredGroupsOf(const QuantizedTensor& x) {
  return {GroupLayoutOf(x),
          x.elem,
          x.scale,
          x.has_group_scale,
          x.outer_divisor,
          x.code_row_bytes(),
          static_cast<const uint8_t*>(x.codes.data()),
          static_cast<const float*>(x.enc.data()),
          static_cast<const float*>(x.group_scale.data()),
          static_cast<const float*>(x.outer_scale.data())};
}

}  // namespace nibble::cuda
