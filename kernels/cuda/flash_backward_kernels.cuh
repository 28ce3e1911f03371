// SPDX-License-Identifier: Apache-2.0
//
// Backward pass of the tensor-core attention (flash_kernels.cuh).
//
// Purpose: two kernels without atomics, each owner of its sums: keys (dK, dV; query heads of a
// group and queries in ascending order) and queries (dQ; keys in ascending order). Both recompute
// scores from the saved lse, which costs seven products of tiles instead of five and keeps every
// sum in one order. Tiles of the other side come in while those before are worked on. Per tile, p =
// exp(score - lse) and ds = p (dp - delta), both rounded to BF16 for the next product; the scale of
// the scores meets dK and dQ at the end. Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/flash_parts.cuh"

namespace nibble::cuda {

inline constexpr int kGradientKeys = 64;     // owned by a block of the kernel of keys
inline constexpr int kGradientQueries = 64;  // of a tile it meets
inline constexpr int kQueryGradientQueries = kFlashWarps * kWarpRows;
template <int kDim>
inline constexpr int kQueryGradientKeys = kDim <= 64 ? 64 : 32;

// lse, in units of log 2, and delta of the rows of a warp; zeros past `rows`.
template <int kM>
struct RowStatistics {
  float lse[kM][2], delta[kM][2];

  __device__ void Load(const float* lse_at, const float* delta_at, int first, int rows) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first + FragmentRow(m, half);
        lse[m][half] = row < rows ? lse_at[row] * kLog2E : 0.0f;
        delta[m][half] = row < rows ? delta_at[row] : 0.0f;
      }
    }
  }
};

// Scores to p and dp to ds. Row r of the warp sees `visible + r` columns, none from `rows` on; all
// are seen when `whole`.
template <int kM, int kCols>
__device__ inline void ScoreGradients(bool whole, int visible, int rows, float to_log2,
                                      const RowStatistics<kM>& row,
                                      float (&score)[kM][kCols / 8][4],
                                      float (&dp)[kM][kCols / 8][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = FragmentRow(m, half);
      const int end = at < rows ? visible + at : 0;
#pragma unroll
      for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
        for (int i = half * 2; i < half * 2 + 2; ++i) {
          const float p = Exp2(fmaf(score[m][n][i], to_log2, -row.lse[m][half]));
          const bool seen = whole || FragmentColumn(n) + i % 2 < end;
          score[m][n][i] = seen ? p : 0.0f;
          dp[m][n][i] = seen ? p * (dp[m][n][i] - row.delta[m][half]) : 0.0f;
        }
      }
    }
  }
}

// Grid (key tiles, batch * kv_heads). The longest columns of queries come first. Of a tile of
// scores (queries, keys) each warp forms a quarter, 32 x 32; of the sums (keys, head size), through
// shared memory, 32 keys by half of the head.
template <int kDim>
__global__ void __launch_bounds__(kFlashThreads, 2)
    FlashKeyGradientKernel(FlashProblem p, const uint16_t* dout, const uint16_t* q,
                           const uint16_t* k, const uint16_t* v, const float* lse,
                           const float* delta, float* dk, float* dv) {
  constexpr int kM = 2, kHalf = kDim / 2;
  constexpr int kTile = FlashTileValues(kGradientQueries, kDim);
  auto* k_tile = static_cast<uint16_t*>(SharedMemory());
  uint16_t* v_tile = k_tile + FlashTileValues(kGradientKeys, kDim);
  uint16_t* q_tiles = v_tile + FlashTileValues(kGradientKeys, kDim);
  uint16_t* g_tile = q_tiles + 2 * kTile;
  uint16_t* s_tile = g_tile + kTile;
  const int warp = threadIdx.x / 32;
  // Of the scores: rows and columns. Of the sums: the same number of keys, and half of the head.
  const int row = warp % 2 * kWarpRows, column = warp / 2 * kWarpRows, half = warp / 2 * kHalf;
  uint16_t* s_own = s_tile + row * FlashStride(kGradientKeys) + column;
  const int first = static_cast<int>(blockIdx.x) * kGradientKeys;
  const int kv_head = static_cast<int>(blockIdx.y) % p.kv_heads;
  const int batch = static_cast<int>(blockIdx.y) / p.kv_heads;
  const int64_t kv_at = p.key_at(batch, kv_head);
  const float to_log2 = p.scale * kLog2E;
  // Tiles of queries from the diagonal on, head by head.
  const int tiles = (p.seq - first + kGradientQueries - 1) / kGradientQueries;
  const int steps = tiles * p.group();
  const auto head_of = [&](int step) { return kv_head * p.group() + step / tiles; };
  const auto query_of = [&](int step) { return first + step % tiles * kGradientQueries; };
  const auto stage = [&](int step, const uint16_t* from, uint16_t* tile) {
    if (step < steps) {
      StageRows<kDim, kGradientQueries>(tile, from + p.query_at(batch, head_of(step)), p.q_width(),
                                        query_of(step), p.seq);
    }
    CommitCopies();
  };

  StageRows<kDim, kGradientKeys>(k_tile, k + kv_at, p.kv_width(), first, p.seq);
  StageRows<kDim, kGradientKeys>(v_tile, v + kv_at, p.kv_width(), first, p.seq);
  stage(0, q, q_tiles);
  stage(0, dout, g_tile);
  float key_sum[kM][kHalf / 8][4] = {};
  float value_sum[kM][kHalf / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    const uint16_t* q_tile = q_tiles + step % 2 * kTile;
    const int query = query_of(step);
    RowStatistics<kM> statistics;
    const int64_t rows_at = p.row_at(batch, head_of(step));
    statistics.Load(lse + rows_at, delta + rows_at, query + row, p.seq);
    WaitCopies<0>();
    __syncthreads();  // this step's tiles are there, the queries before are used up
    stage(step + 1, q, q_tiles + (step + 1) % 2 * kTile);
    float score[kM][kWarpRows / 8][4], dp[kM][kWarpRows / 8][4];
    MultiplyRows<kDim, kM, kWarpRows>(q_tile + row * FlashStride(kDim),
                                      k_tile + column * FlashStride(kDim), score);
    MultiplyRows<kDim, kM, kWarpRows>(g_tile + row * FlashStride(kDim),
                                      v_tile + column * FlashStride(kDim), dp);
    const bool whole = query > first && query + kGradientQueries <= p.seq;
    ScoreGradients<kM, kWarpRows>(whole, query - first + row + 1 - column, p.seq - query - row,
                                  to_log2, statistics, score, dp);
    StoreTile<kM, kWarpRows>(score, s_own, kGradientKeys);
    __syncthreads();  // p is there
    AccumulateColumns<kDim, kM, kHalf, kGradientQueries>(s_tile + row, kGradientKeys, g_tile + half,
                                                         value_sum);
    __syncthreads();  // p and dout are used up
    stage(step + 1, dout, g_tile);
    StoreTile<kM, kWarpRows>(dp, s_own, kGradientKeys);
    __syncthreads();  // ds is there
    AccumulateColumns<kDim, kM, kHalf, kGradientQueries>(s_tile + row, kGradientKeys, q_tile + half,
                                                         key_sum);
  }
  const int key = first + row;
  const auto scale = [&](int, int) { return p.scale; };
  const auto one = [](int, int) { return 1.0f; };
  StoreRows<kM, kHalf>(key_sum, scale, key, p.seq, p.kv_width(), dk + kv_at + half);
  StoreRows<kM, kHalf>(value_sum, one, key, p.seq, p.kv_width(), dv + kv_at + half);
}

// Grid (query tiles, batch * heads). The longest rows of keys come first. A warp owns 32 queries.
template <int kDim>
__global__ void __launch_bounds__(kFlashThreads, 2)
    FlashQueryGradientKernel(FlashProblem p, const uint16_t* dout, const uint16_t* q,
                             const uint16_t* k, const uint16_t* v, const float* lse,
                             const float* delta, float* dq) {
  constexpr int kM = 2, kKeys = kQueryGradientKeys<kDim>;
  constexpr int kTile = FlashTileValues(kKeys, kDim);
  auto* q_tile = static_cast<uint16_t*>(SharedMemory());
  uint16_t* g_tile = q_tile + FlashTileValues(kQueryGradientQueries, kDim);
  uint16_t* k_tiles = g_tile + FlashTileValues(kQueryGradientQueries, kDim);
  uint16_t* v_tile = k_tiles + 2 * kTile;
  const int row = threadIdx.x / 32 * kWarpRows;
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueryGradientQueries;
  const int head = static_cast<int>(blockIdx.y) % p.heads;
  const int batch = static_cast<int>(blockIdx.y) / p.heads;
  const int end = first + kQueryGradientQueries < p.seq ? first + kQueryGradientQueries : p.seq;
  const int64_t q_at = p.query_at(batch, head);
  const int64_t kv_at = p.key_at(batch, head / p.group());
  const float to_log2 = p.scale * kLog2E;
  const auto stage = [&](int key, const uint16_t* from, uint16_t* tile) {
    if (key < end) StageRows<kDim, kKeys>(tile, from + kv_at, p.kv_width(), key, p.seq);
    CommitCopies();
  };

  RowStatistics<kM> statistics;
  const int64_t rows_at = p.row_at(batch, head);
  statistics.Load(lse + rows_at, delta + rows_at, first + row, p.seq);
  StageRows<kDim, kQueryGradientQueries>(q_tile, q + q_at, p.q_width(), first, p.seq);
  StageRows<kDim, kQueryGradientQueries>(g_tile, dout + q_at, p.q_width(), first, p.seq);
  stage(0, k, k_tiles);
  stage(0, v, v_tile);
  float sum[kM][kDim / 8][4] = {};
  for (int key = 0; key < end; key += kKeys) {
    const uint16_t* k_tile = k_tiles + key / kKeys % 2 * kTile;
    // What the first row of the warp sees of this tile.
    const int visible = first + row + 1 - key;
    const bool any = visible + kWarpRows > 1;
    WaitCopies<0>();
    __syncthreads();  // this tile is there, the keys before are used up
    stage(key + kKeys, k, k_tiles + (key / kKeys + 1) % 2 * kTile);
    float score[kM][kKeys / 8][4], dp[kM][kKeys / 8][4];
    if (any) {
      MultiplyRows<kDim, kM, kKeys>(q_tile + row * FlashStride(kDim), k_tile, score);
      MultiplyRows<kDim, kM, kKeys>(g_tile + row * FlashStride(kDim), v_tile, dp);
    }
    __syncthreads();  // the values are used up
    stage(key + kKeys, v, v_tile);
    if (!any) continue;
    // Rows past the queries are stored by nobody.
    const bool whole = visible >= kKeys;
    ScoreGradients<kM, kKeys>(whole, visible, kWarpRows, to_log2, statistics, score, dp);
    AccumulateRows<kDim, kM, kKeys>(dp, k_tile, sum);
  }
  const auto scale = [&](int, int) { return p.scale; };
  StoreRows<kM, kDim>(sum, scale, first + row, p.seq, p.q_width(), dq + q_at);
}

// Dynamic shared memory, bytes.
template <int kDim>
constexpr int FlashKeyGradientBytes() {
  return 2 * (FlashTileValues(2 * kGradientKeys + 3 * kGradientQueries, kDim) +
              FlashTileValues(kGradientQueries, kGradientKeys));
}
template <int kDim>
constexpr int FlashQueryGradientBytes() {
  return 2 * FlashTileValues(2 * kQueryGradientQueries + 3 * kQueryGradientKeys<kDim>, kDim);
}

}  // namespace nibble::cuda
