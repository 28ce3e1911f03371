// SPDX-License-Identifier: Apache-2.0
//
// A tile of a matrix in shared memory, as group_tiles.cuh works on it: loaded, rotated, stored.
//
// Purpose: a tile is 32 lines of 128 positions, so that rotated groups, scale groups and second
// levels per 128 lie within it; a thread has 16 positions of a line, the threads of a line are
// eight neighbours of a warp. Butterflies are formed in the order of formats::HadamardInPlace, so
// that the bits are the CPU's. Thread-safety: device functions for one block of kThreads.
#pragma once

#include "kernels/cuda/group_kernels.cuh"
#include "kernels/cuda/values.cuh"
#include "kernels/formats/hadamard.h"

namespace nibble::cuda {

inline constexpr int kTileLines = 32;
inline constexpr int kTilePositions = 128;
inline constexpr int kSegment = 16;  // positions of one thread
inline constexpr int kSegments = kTilePositions / kSegment;
static_assert(kTileLines * kSegments == kThreads);

struct TileTask {
  GroupTask group;     // of one line per group; round_source: before the rotation
  int size;            // of the rotation; 0: none
  float factor;        // of the rotated values
  bool round_rotated;  // to BF16
  bool in_fours;       // every row begins where four elements may be loaded at a time
  uint32_t negative[kTilePositions / 32];  // signs of the positions, one bit each
};

// A tile of the matrix, and how much of it there is.
struct TilePlace {
  int64_t line, position;
  int lines, positions;
};

// Elements, which become their code and, eight bits above, their mask. Padded so that threads meet
// in no bank, neither along lines nor along positions.
struct TileMemory {
  static constexpr int kLineWords = kTilePositions + kSegments + 1;
  uint32_t words[kTileLines * kLineWords];
  uint32_t amax[kThreads];  // of each segment
  // Of each group in the tile: kTilePositions / extent of a line.
  float enc[kThreads], scale[kThreads];
  float outer[kTileLines];

  __device__ uint32_t& At(int line, int position) {
    return words[line * kLineWords + position + position / kSegment];
  }
};

// Elements of the tile at their places in the matrix.
struct TileElements {
  TileMemory& memory;
  TilePlace place;
  __device__ float Source(int64_t line, int64_t position) const {
    return formats::BitsFloat(memory.At(static_cast<int>(line - place.line),
                                        static_cast<int>(position - place.position)));
  }
};

__host__ __device__ inline int64_t TileCount(const GroupLayout& l) {
  return (l.lines + kTileLines - 1) / kTileLines *
         ((l.depth + kTilePositions - 1) / kTilePositions);
}

// Tiles one after another lie beside each other in memory.
__device__ inline TilePlace PlaceOf(const GroupLayout& l, int64_t tile) {
  const int64_t down = (l.lines + kTileLines - 1) / kTileLines;
  const int64_t along = (l.depth + kTilePositions - 1) / kTilePositions;
  TilePlace place;
  place.line = (l.turned ? tile % down : tile / along) * kTileLines;
  place.position = (l.turned ? tile / down : tile % along) * kTilePositions;
  const int64_t lines = l.lines - place.line, positions = l.depth - place.position;
  place.lines = lines < kTileLines ? static_cast<int>(lines) : kTileLines;
  place.positions = positions < kTilePositions ? static_cast<int>(positions) : kTilePositions;
  return place;
}

// Sixteen elements of the tile, zeros past its end. Element k is at Line(k), Position(k): a warp
// reads along the rows of the matrix.
struct TileLoad {
  float x[kSegment];
  bool turned, in_fours;

  __device__ int Line(int k) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    return turned ? lane : warp * 4 + k / 4;
  }
  __device__ int Position(int k) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (turned) return warp * kSegment + k;
    return in_fours ? lane * 4 + k % 4 : k % 4 * 32 + lane;
  }
};

// Four neighbours along a row.
__device__ inline FourFloats SourceFour(const GroupTask& t, int64_t i) {
  FourFloats four;
  if (t.x == nullptr) {
    const Four stored = *reinterpret_cast<const Four*>(t.bf16 + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) four.x[j] = formats::FromBf16(stored.x[j]);
    return four;
  }
  four = *reinterpret_cast<const FourFloats*>(t.x + i);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (t.round_source) four.x[j] = formats::RoundBf16(four.x[j]);
  }
  return four;
}

__device__ inline TileLoad LoadTile(const TileTask& t, const TilePlace& place) {
  const GroupTask& g = t.group;
  TileLoad load;
  load.turned = g.layout.turned;
  load.in_fours = t.in_fours && !g.layout.turned;
  if (!load.in_fours) {
#pragma unroll
    for (int k = 0; k < kSegment; ++k) {
      const int line = load.Line(k), position = load.Position(k);
      const bool live = line < place.lines && position < place.positions;
      load.x[k] = live ? g.Source(place.line + line, place.position + position) : 0.0f;
    }
    return load;
  }
#pragma unroll
  for (int k = 0; k < kSegment; k += 4) {
    const int line = load.Line(k), position = load.Position(k);
    const bool live = line < place.lines && position < place.positions;
    FourFloats four{};
    if (live) four = SourceFour(g, g.layout.At(place.line + line, place.position + position));
#pragma unroll
    for (int j = 0; j < 4; ++j) load.x[k + j] = four.x[j];
  }
  return load;
}

// This thread's positions, whole rotated groups with its neighbours'.
__device__ inline void RotateSegment(const TileTask& t, float (&x)[kSegment]) {
  const int segment = threadIdx.x % kSegments;
  // By choice, not by index: an indexed array would leave the registers.
  const uint32_t low = segment < 2 ? t.negative[0] : t.negative[1];
  const uint32_t high = segment < 6 ? t.negative[2] : t.negative[3];
  const uint32_t negative = (segment < 4 ? low : high) >> (segment % 2 * kSegment);
#pragma unroll
  for (int i = 0; i < kSegment; ++i) x[i] *= (negative >> i & 1u) != 0 ? -1.0f : 1.0f;
#pragma unroll
  for (int half = 1; half < kSegment; half *= 2) {
    if (half >= t.size) break;
#pragma unroll
    for (int i = 0; i < kSegment; ++i) {
      if ((i & half) != 0) continue;
      const float sum = x[i] + x[i + half];
      x[i + half] = x[i] - x[i + half];
      x[i] = sum;
    }
  }
#pragma unroll
  for (int lanes = 1; lanes < kSegments; lanes *= 2) {
    if (lanes * kSegment >= t.size) break;
#pragma unroll
    for (int i = 0; i < kSegment; ++i) {
      const float other = __shfl_xor_sync(0xFFFFFFFFu, x[i], lanes);
      x[i] = (segment & lanes) == 0 ? x[i] + other : other - x[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kSegment; ++i) {
    x[i] *= t.factor;
    if (t.round_rotated) x[i] = formats::RoundBf16(x[i]);
  }
}

// A tile into shared memory, once the one before it has been read.
__device__ inline void PlaceTile(const TileLoad& load, TileMemory* tile) {
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kSegment; ++k) {
    tile->At(load.Line(k), load.Position(k)) = formats::FloatBits(load.x[k]);
  }
  __syncthreads();
}

// This thread's positions of it, rotated.
__device__ inline void TakeSegment(const TileTask& t, TileMemory* tile, float (&x)[kSegment]) {
  const int line = threadIdx.x / kSegments, first = threadIdx.x % kSegments * kSegment;
#pragma unroll
  for (int i = 0; i < kSegment; ++i) x[i] = formats::BitsFloat(tile->At(line, first + i));
  if (t.size != 0) RotateSegment(t, x);
}
__device__ inline void PutSegment(const float (&x)[kSegment], TileMemory* tile) {
  const int line = threadIdx.x / kSegments, first = threadIdx.x % kSegments * kSegment;
#pragma unroll
  for (int i = 0; i < kSegment; ++i) tile->At(line, first + i) = formats::FloatBits(x[i]);
}
__device__ inline uint32_t SegmentAmax(const float (&x)[kSegment]) {
  uint32_t amax = 0;
#pragma unroll
  for (int i = 0; i < kSegment; ++i) amax = formats::AmaxUpdate(amax, x[i]);
  return amax;
}

// Bits [shift, shift + 8 / kPerByte) of the tile's words into rows of bytes, kPerByte to a byte,
// four bytes at a time where rows begin there.
template <int kPerByte>
__device__ void StoreTile(const TilePlace& place, bool turned, int shift, int64_t row_bytes,
                          uint8_t* out, TileMemory* tile) {
  constexpr int kPerWord = 4 * kPerByte;
  constexpr uint32_t kBits = kPerByte == 2 ? 0xFu : 0xFFu;
  const int words_of_row = (turned ? kTileLines : kTilePositions) / kPerWord;
  const int rows = turned ? place.positions : place.lines;
  const int cols = turned ? place.lines : place.positions;
  const int64_t first_row = turned ? place.position : place.line;
  const int64_t first_byte = (turned ? place.line : place.position) / kPerByte;
  for (int item = threadIdx.x; item < rows * words_of_row; item += kThreads) {
    const int row = item / words_of_row, col = item % words_of_row * kPerWord;
    if (col >= cols) continue;
    uint32_t word = 0;
#pragma unroll
    for (int j = 0; j < kPerWord; ++j) {
      if (col + j >= cols) break;
      const uint32_t bits = turned ? tile->At(col + j, row) : tile->At(row, col + j);
      word |= (bits >> shift & kBits) << (8 / kPerByte * j);
    }
    uint8_t* const to = out + (first_row + row) * row_bytes + first_byte + col / kPerByte;
    if (row_bytes % 4 == 0) {
      *reinterpret_cast<uint32_t*>(to) = word;
      continue;
    }
    for (int b = 0; b < 4 && col + b * kPerByte < cols; ++b) {
      to[b] = static_cast<uint8_t>(word >> (8 * b));
    }
  }
}

}  // namespace nibble::cuda
