// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/float_gemm.h"

#include <algorithm>

namespace nibble::cpu {
namespace {

// A tile's right panels (kDepthBlock x kTileCols, 384 KiB) stay in the second-level cache while its
// left panels pass, each from the first.
constexpr int64_t kTileCols = 192;
constexpr int64_t kTileRows = 240;
constexpr int64_t kTilesPerThread = 4;  // the more, the more evenly they end; results are the same
constexpr int64_t kPackLanes = 96;      // whole panels of every kernel: 3 x 32, 8 x 12, 16 x 6

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// `lanes` in equal pieces of at most `most`, whole panels each.
int64_t EvenPiece(int64_t lanes, int64_t most, int64_t width) {
  return RoundUp(CeilDiv(lanes, CeilDiv(lanes, most)), width);
}

// A part of the product small enough for the panels: [row, row + rows) and so on.
struct Block {
  int64_t row, rows, col, cols, first_depth, depth;
};

PanelSource At(PanelSource source, int64_t lane, int64_t depth) {
  source.x += lane * source.lane_stride + depth * source.depth_stride;
  return source;
}

// How an operand is packed: pieces of lanes x depths, along memory where it runs.
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

void MultiplyTile(const FloatKernel& kernel, const FloatProduct& p, const Block& b, int64_t row,
                  int64_t rows, int64_t col, int64_t cols, const float* left, const float* right) {
  const int64_t padded_rows = RoundUp(b.rows, kernel.rows);
  const int64_t padded_cols = RoundUp(b.cols, kernel.cols);
  for (int64_t d = 0; d < b.depth; d += kDepthBlock) {
    const int64_t depth = std::min(kDepthBlock, b.depth - d);
    const bool accumulate = p.accumulate || b.first_depth + d > 0;
    for (int64_t i = row; i < row + rows; i += kernel.rows) {
      const float* left_panel = left + padded_rows * d + i * depth;
      float* out = p.out + (b.row + i) * p.stride + b.col;
      for (int64_t j = col; j < col + cols; j += kernel.cols) {
        RunTile(kernel, kernel.run, depth, left_panel, right + padded_cols * d + j * depth,
                accumulate, row + rows - i, col + cols - j, out + j, p.stride);
      }
    }
  }
}

void MultiplyBlock(const FloatKernel& kernel, ThreadPool& pool, const FloatProduct& p,
                   const Block& b, const float* left, const float* right) {
  const int64_t cols = EvenPiece(b.cols, kTileCols, kernel.cols);
  const int64_t across = CeilDiv(b.cols, cols);
  const int64_t most_rows = std::clamp(
      CeilDiv(b.rows, CeilDiv(kTilesPerThread * pool.threads(), across)), kernel.rows, kTileRows);
  const int64_t rows = EvenPiece(b.rows, most_rows, kernel.rows);
  const int64_t down = CeilDiv(b.rows, rows);
  pool.Run(across * down, [&](int64_t tile, int) {
    const int64_t row = tile % down * rows;
    const int64_t col = tile / down * cols;
    MultiplyTile(kernel, p, b, row, std::min(rows, b.rows - row), col, std::min(cols, b.cols - col),
                 left, right);
  });
}

}  // namespace

void FloatGemm(const FloatKernel& kernel, ThreadPool& pool, const FloatProduct& p,
               float* left_panels, float* right_panels) {
  // Depth first: few passes over the result. Then as many lanes as the panels hold.
  const int64_t widest = std::clamp(RoundUp(std::max(p.rows, p.cols), kPackLanes), kPackLanes,
                                    kPanelFloats / kDepthBlock);
  const int64_t depth_limit = kPanelFloats / widest / kDepthBlock * kDepthBlock;
  const int64_t depths = EvenPiece(p.depth, depth_limit, kDepthBlock);
  const int64_t lane_limit = kPanelFloats / std::min(depths, p.depth) / kPackLanes * kPackLanes;
  const int64_t rows = EvenPiece(p.rows, lane_limit, kPackLanes);
  const int64_t cols = EvenPiece(p.cols, lane_limit, kPackLanes);
  for (int64_t col = 0; col < p.cols; col += cols) {
    for (int64_t depth = 0; depth < p.depth; depth += depths) {
      for (int64_t row = 0; row < p.rows; row += rows) {
        const Block b{row,   std::min(rows, p.rows - row),     col, std::min(cols, p.cols - col),
                      depth, std::min(depths, p.depth - depth)};
        const Packing left(At(p.left, b.row, b.first_depth), b.rows, b.depth, kernel.rows,
                           left_panels);
        const Packing right(At(p.right, b.col, b.first_depth), b.cols, b.depth, kernel.cols,
                            right_panels);
        const int64_t right_pieces = row == 0 ? right.pieces() : 0;
        pool.Run(right_pieces + left.pieces(), [&](int64_t piece, int) {
          if (piece < right_pieces) {
            right.Pack(piece);
          } else {
            left.Pack(piece - right_pieces);
          }
        });
        MultiplyBlock(kernel, pool, p, b, left_panels, right_panels);
      }
    }
  }
}

}  // namespace nibble::cpu
