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

// A part of the product whose right operand is packed: columns and slots of depth from (col,
// first_slot).
struct Block {
  int64_t col, cols, first_slot, slots;
};

// Panels of `width` from lane `lane` and slot `slot` of an operand `depth` deep.
void PackAt(const FloatKernel& kernel, PanelSource source, int64_t depth, int64_t lane,
            int64_t slot, int64_t lanes, int64_t slots, int64_t width, int64_t panel_stride,
            float* out) {
  const int64_t first = slot * kernel.slot_depth;
  source.x += lane * source.lane_stride + first * source.depth_stride;
  kernel.pack(source, lanes, std::min(slots * kernel.slot_depth, depth - first), width,
              panel_stride, out);
}

// How the right operand of a block is packed: pieces of lanes x slots, along memory where it runs.
struct Packing {
  const FloatKernel& kernel;
  const FloatProduct& product;
  Block block;
  int64_t piece_lanes, piece_slots, lane_pieces, slot_pieces;
  float* out;

  Packing(const FloatKernel& k, const FloatProduct& p, const Block& b, float* to)
      : kernel(k),
        product(p),
        block(b),
        piece_lanes(p.right.lane_stride == 1 ? 4 * kPackLanes : kPackLanes),
        piece_slots(p.right.lane_stride == 1 ? kDepthBlock / 4 : kDepthBlock),
        lane_pieces(CeilDiv(b.cols, piece_lanes)),
        slot_pieces(CeilDiv(b.slots, piece_slots)),
        out(to) {}

  int64_t pieces() const { return lane_pieces * slot_pieces; }

  // The panels of kDepthBlock slots begin at lanes (rounded up to panels) times the slots before
  // them.
  void Pack(int64_t piece) const {
    const int64_t slot = piece / lane_pieces * piece_slots;
    const int64_t lane = piece % lane_pieces * piece_lanes;
    const int64_t first = slot / kDepthBlock * kDepthBlock;
    const int64_t deep = std::min(kDepthBlock, block.slots - first);
    PackAt(kernel, product.right, product.depth, block.col + lane, block.first_slot + slot,
           std::min(piece_lanes, block.cols - lane), std::min(piece_slots, block.slots - slot),
           kernel.cols, kernel.cols * deep,
           out + RoundUp(block.cols, kernel.cols) * first + lane * deep +
               (slot - first) * kernel.cols);
  }
};

// Rows [row, row + rows) by columns [col, col + cols) of a block. left: a thread's own panels.
void MultiplyTask(const FloatKernel& kernel, const FloatProduct& p, const Block& b, int64_t row,
                  int64_t rows, int64_t col, int64_t cols, float* left, const float* right) {
  const int64_t padded_cols = RoundUp(b.cols, kernel.cols);
  for (int64_t s = 0; s < b.slots; s += kDepthBlock) {
    const int64_t slots = std::min(kDepthBlock, b.slots - s);
    const bool accumulate = p.accumulate || b.first_slot + s > 0;
    PackAt(kernel, p.left, p.depth, row, b.first_slot + s, rows, slots, kernel.rows,
           kernel.rows * slots, left);
    for (int64_t tile = col; tile < col + cols; tile += kTileCols) {
      const int64_t end = std::min(tile + kTileCols, col + cols);
      for (int64_t i = 0; i < rows; i += kernel.rows) {
        float* out = p.out + (row + i) * p.stride + b.col;
        for (int64_t j = tile; j < end; j += kernel.cols) {
          RunTile(kernel, kernel.run, slots, left + i * slots, right + padded_cols * s + j * slots,
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
  const int64_t all_slots = CeilDiv(p.depth, kernel.slot_depth);
  const int64_t widest =
      std::clamp(RoundUp(p.cols, kPackLanes), kPackLanes, kRightFloats / kDepthBlock);
  const int64_t slot_limit = kRightFloats / widest / kDepthBlock * kDepthBlock;
  const int64_t slots = EvenPiece(all_slots, slot_limit, kDepthBlock);
  const int64_t lane_limit = kRightFloats / std::min(slots, all_slots) / kPackLanes * kPackLanes;
  const int64_t cols = EvenPiece(p.cols, lane_limit, kPackLanes);
  for (int64_t col = 0; col < p.cols; col += cols) {
    for (int64_t slot = 0; slot < all_slots; slot += slots) {
      const Block b{col, std::min(cols, p.cols - col), slot, std::min(slots, all_slots - slot)};
      const Packing right(kernel, p, b, right_panels);
      pool.Run(right.pieces(), [&](int64_t piece, int) { right.Pack(piece); });
      MultiplyBlock(kernel, pool, p, b, left_panels, right_panels);
    }
  }
}

}  // namespace nibble::cpu
