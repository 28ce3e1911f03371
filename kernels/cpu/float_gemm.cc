// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/float_gemm.h"

#include <algorithm>

namespace nibble::cpu {
namespace {

// A thread packs kTileRows rows of the left operand for itself (192 KiB a depth block) and
// multiplies them by kTileCols columns after another (384 KiB): both stay in its second-level
// cache.
constexpr int64_t kTileRows = 96;  // whole panels of every kernel: 8 x 12, 16 x 6
constexpr int64_t kTileCols = 192;
constexpr int64_t kTaskCols = 1536;     // packed left rows serve at least so many columns
constexpr int64_t kTasksPerThread = 4;  // the more, the more evenly they end; results are the same
constexpr int64_t kPackLanes = 96;      // whole right panels: 3 x 32, 6 x 16

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// `lanes` in equal pieces of at most `most`, whole panels each.
int64_t EvenPiece(int64_t lanes, int64_t most, int64_t width) {
  return RoundUp(CeilDiv(lanes, CeilDiv(lanes, most)), width);
}

// A part of the product whose right operand is packed: columns and depths from (col, depth).
struct Block {
  int64_t col, cols, first_depth, depth;
};

PanelSource At(PanelSource source, int64_t lane, int64_t depth) {
  source.x += lane * source.lane_stride + depth * source.depth_stride;
  return source;
}

// How the right operand is packed: pieces of lanes x depths, along memory where it runs.
struct Packing {
  PanelSource source;
  int64_t lanes, depth, width;
  int64_t piece_lanes, piece_depth, lane_pieces, depth_pieces;
  float* out;

  Packing(const PanelSource& from, int64_t lane_count, int64_t depth_count, int64_t panel_width,
          float* to)
      : source(from),
        lanes(lane_count),
        depth(depth_count),
        width(panel_width),
        piece_lanes(from.lane_stride == 1 ? 4 * kPackLanes : kPackLanes),
        piece_depth(from.lane_stride == 1 ? kDepthBlock / 4 : kDepthBlock),
        lane_pieces(CeilDiv(lanes, piece_lanes)),
        depth_pieces(CeilDiv(depth, piece_depth)),
        out(to) {}

  int64_t pieces() const { return lane_pieces * depth_pieces; }

  // The panels of a block of kDepthBlock depths begin at lanes (rounded up to panels) times the
  // depths before it.
  void Pack(int64_t piece) const {
    const int64_t k = piece / lane_pieces * piece_depth;
    const int64_t lane = piece % lane_pieces * piece_lanes;
    const int64_t block = k / kDepthBlock * kDepthBlock;
    const int64_t block_depth = std::min(kDepthBlock, depth - block);
    PackPanels(At(source, lane, k), std::min(piece_lanes, lanes - lane),
               std::min(piece_depth, depth - k), width, width * block_depth,
               out + RoundUp(lanes, width) * block + lane * block_depth + (k - block) * width);
  }
};

// Rows [row, row + rows) by columns [col, col + cols) of a block. left: a thread's own panels.
void MultiplyTask(const FloatKernel& kernel, const FloatProduct& p, const Block& b, int64_t row,
                  int64_t rows, int64_t col, int64_t cols, float* left, const float* right) {
  const int64_t padded_cols = RoundUp(b.cols, kernel.cols);
  for (int64_t d = 0; d < b.depth; d += kDepthBlock) {
    const int64_t depth = std::min(kDepthBlock, b.depth - d);
    const bool accumulate = p.accumulate || b.first_depth + d > 0;
    PackPanels(At(p.left, row, b.first_depth + d), rows, depth, kernel.rows, kernel.rows * depth,
               left);
    for (int64_t tile = col; tile < col + cols; tile += kTileCols) {
      const int64_t end = std::min(tile + kTileCols, col + cols);
      for (int64_t i = 0; i < rows; i += kernel.rows) {
        float* out = p.out + (row + i) * p.stride + b.col;
        for (int64_t j = tile; j < end; j += kernel.cols) {
          RunTile(kernel, kernel.run, depth, left + i * depth, right + padded_cols * d + j * depth,
                  accumulate, rows - i, end - j, out + j, p.stride);
        }
      }
    }
  }
}

void MultiplyBlock(const FloatKernel& kernel, ThreadPool& pool, const FloatProduct& p,
                   const Block& b, float* left, const float* right) {
  const int64_t cols = EvenPiece(b.cols, kTaskCols, kTileCols);
  const int64_t across = CeilDiv(b.cols, cols);
  const int64_t most_rows = std::clamp(
      CeilDiv(p.rows, CeilDiv(kTasksPerThread * pool.threads(), across)), kernel.rows, kTileRows);
  const int64_t rows = EvenPiece(p.rows, most_rows, kernel.rows);
  const int64_t down = CeilDiv(p.rows, rows);
  pool.Run(across * down, [&](int64_t task, int worker) {
    const int64_t row = task % down * rows;
    const int64_t col = task / down * cols;
    MultiplyTask(kernel, p, b, row, std::min(rows, p.rows - row), col, std::min(cols, b.cols - col),
                 left + worker * kLeftFloats, right);
  });
}

}  // namespace

void FloatGemm(const FloatKernel& kernel, ThreadPool& pool, const FloatProduct& p,
               float* left_panels, float* right_panels) {
  // As much depth as fits first: few passes over the result.
  const int64_t widest =
      std::clamp(RoundUp(p.cols, kPackLanes), kPackLanes, kRightFloats / kDepthBlock);
  const int64_t depth_limit = kRightFloats / widest / kDepthBlock * kDepthBlock;
  const int64_t depths = EvenPiece(p.depth, depth_limit, kDepthBlock);
  const int64_t lane_limit = kRightFloats / std::min(depths, p.depth) / kPackLanes * kPackLanes;
  const int64_t cols = EvenPiece(p.cols, lane_limit, kPackLanes);
  for (int64_t col = 0; col < p.cols; col += cols) {
    for (int64_t depth = 0; depth < p.depth; depth += depths) {
      const Block b{col, std::min(cols, p.cols - col), depth, std::min(depths, p.depth - depth)};
      const Packing right(At(p.right, col, depth), b.cols, b.depth, kernel.cols, right_panels);
      pool.Run(right.pieces(), [&](int64_t piece, int) { right.Pack(piece); });
      MultiplyBlock(kernel, pool, p, b, left_panels, right_panels);
    }
  }
}

}  // namespace nibble::cpu
