// SPDX-License-Identifier: Apache-2.0
//
// Causal grouped-query attention on BF16 tensor cores, after FlashAttention-2 (arXiv 2307.08691):
// scores exist one tile at a time, softmax runs along with a running maximum.
//
// Purpose: GemmMode::kBf16 at head sizes 64 and 128. Four warps own 64 rows of a block, 16 each,
// and meet tiles of the other side in shared memory. Forward rounds exp(score - running maximum) to
// BF16 and divides by the FP32 sum at the end. Backward is two kernels without atomics, each owner
// of its sums: keys (dK, dV; query heads of a group and queries in ascending order) and queries
// (dQ). Both recompute scores from the saved lse. Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/formats/bits.h"

namespace nibble::cuda {

inline constexpr int kFlashThreads = 128;
inline constexpr int kFlashRows = 64;  // of a block: 16 of each warp
inline constexpr float kLog2E = 1.44269504088896340736f;

struct FlashProblem {
  int64_t batch, seq, kv_seq, heads, kv_heads, head_dim;
  float scale;

  __host__ __device__ int64_t group() const { return heads / kv_heads; }
  __host__ __device__ int64_t q_width() const { return heads * head_dim; }
  __host__ __device__ int64_t kv_width() const { return kv_heads * head_dim; }
};

// Rows of a tile in shared memory lie 16 bytes further apart than their data: eight rows of one
// matrix load then touch all banks.
template <int kDim>
inline constexpr int kFlashStride = kDim + 8;

// Bytes of `rows` rows.
template <int kDim>
constexpr int FlashTileBytes(int rows) {
  return rows * kFlashStride<kDim> * 2;
}

// Rows [first, first + kRows) of a matrix of row stride `stride` on their way to `tile`; zeros past
// `rows`.
template <int kDim, int kRows>
__device__ inline void StageRows(uint16_t* tile, const uint16_t* base, int64_t stride,
                                 int64_t first, int64_t rows) {
  constexpr int kPieces = kDim / 8;  // of 16 bytes
  for (int i = threadIdx.x; i < kRows * kPieces; i += kFlashThreads) {
    const int row = i / kPieces;
    const int piece = i % kPieces;
    const bool live = first + row < rows;
    const uint16_t* from = base + (live ? first + row : 0) * stride + piece * 8;
    CopyAsync16(tile + row * kFlashStride<kDim> + piece * 8, from, live);
  }
}

// c (16, kCols) = rows [row, row + 16) of a times rows [0, kCols) of b, transposed.
template <int kDim, int kCols>
__device__ inline void MultiplyRows(const uint16_t* a, int row, const uint16_t* b,
                                    float (&c)[kCols / 8][4]) {
  const int lane = threadIdx.x % 32;
  const uint16_t* a_at =
      a + (row + lane % 8 + lane / 8 % 2 * 8) * kFlashStride<kDim> + lane / 16 * 8;
  const uint16_t* b_at = b + (lane % 8 + lane / 16 * 8) * kFlashStride<kDim> + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kDim; k += 16) {
    uint32_t left[4];
    LoadMatrices(left, a_at + k);
#pragma unroll
    for (int n = 0; n < kCols; n += 16) {
      uint32_t right[4];
      LoadMatrices(right, b_at + n * kFlashStride<kDim> + k);
      MmaBf16(c[n / 8], left, right[0], right[1]);
      MmaBf16(c[n / 8 + 1], left, right[2], right[3]);
    }
  }
}

// c (16, kDim) += p (16, kRows), rounded to BF16, times rows [0, kRows) of b.
template <int kDim, int kRows>
__device__ inline void AccumulateRows(const float (&p)[kRows / 8][4], const uint16_t* b,
                                      float (&c)[kDim / 8][4]) {
  const int lane = threadIdx.x % 32;
  const uint16_t* b_at = b + (lane % 8 + lane / 8 % 2 * 8) * kFlashStride<kDim> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kRows; k += 16) {
    const float(&low)[4] = p[k / 8];
    const float(&high)[4] = p[k / 8 + 1];
    const uint32_t left[4] = {PackBf16(low[0], low[1]), PackBf16(low[2], low[3]),
                              PackBf16(high[0], high[1]), PackBf16(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < kDim; n += 16) {
      uint32_t right[4];
      LoadMatricesTransposed(right, b_at + k * kFlashStride<kDim> + n);
      MmaBf16(c[n / 8], left, right[0], right[1]);
      MmaBf16(c[n / 8 + 1], left, right[2], right[3]);
    }
  }
}

// Sum and maximum over the four lanes that share a row of a fragment.
__device__ inline float QuadSum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}
__device__ inline float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

// Rows first + g and first + g + 8 of a fragment to a row-major FP32 matrix, times factor[0..1].
template <int kDim>
__device__ inline void StoreRows(const float (&c)[kDim / 8][4], const float (&factor)[2],
                                 int64_t first, int64_t rows, int64_t stride, float* out) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + lane / 4 + half * 8;
    if (row >= rows) continue;
    float* to = out + row * stride + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      to[n * 8] = c[n][half * 2] * factor[half];
      to[n * 8 + 1] = c[n][half * 2 + 1] * factor[half];
    }
  }
}

// One tile of scores to exp(score - maximum so far); sums and results so far fade accordingly. Row
// half of a lane sees `visible + 8 * half` columns of `columns`; all of them when `whole`.
template <int kDim, int kKeys>
__device__ inline void SoftmaxTile(bool whole, int64_t visible, int64_t columns, float to_log2,
                                   float (&score)[kKeys / 8][4], float (&max)[2], float (&sum)[2],
                                   float (&result)[kDim / 8][4]) {
  const int first_column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = max[half];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& s = score[n][half * 2 + i];
        const int column = n * 8 + first_column + i;
        if (!whole && (column >= visible + half * 8 || column >= columns)) {
          s = -formats::kLargestFloat;
        }
        largest = fmaxf(largest, s);
      }
    }
    largest = QuadMax(largest);
    const float shift = largest * to_log2;
    const float fade = Exp2(fmaf(max[half], to_log2, -shift));
    max[half] = largest;
    float partial = 0.0f;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& s = score[n][half * 2 + i];
        s = Exp2(fmaf(s, to_log2, -shift));
        partial += s;
      }
    }
    sum[half] = sum[half] * fade + partial;  // of this lane's columns
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      result[n][half * 2] *= fade;
      result[n][half * 2 + 1] *= fade;
    }
  }
}

// Grid (query tiles, batch * heads). The longest rows of keys come first.
template <int kDim>
__global__ void __launch_bounds__(kFlashThreads)
    FlashForwardKernel(FlashProblem p, const uint16_t* q, const uint16_t* k, const uint16_t* v,
                       float* out, float* lse) {
  constexpr int kKeys = 64;
  auto* q_tile = static_cast<uint16_t*>(SharedMemory());
  uint16_t* k_tile = q_tile + kFlashRows * kFlashStride<kDim>;
  uint16_t* v_tile = k_tile + kKeys * kFlashStride<kDim>;
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 * 16;
  const int64_t first = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kFlashRows;
  const int64_t head = blockIdx.y % p.heads;
  const int64_t batch = blockIdx.y / p.heads;
  const int64_t past = p.kv_seq - p.seq;
  const int64_t last = first + kFlashRows < p.seq ? first + kFlashRows : p.seq;  // past the queries
  const int64_t keys = past + last;
  const int64_t q_at = batch * p.seq * p.q_width() + head * p.head_dim;
  const uint16_t* k_at = k + batch * p.kv_seq * p.kv_width() + head / p.group() * p.head_dim;
  const uint16_t* v_at = v + batch * p.kv_seq * p.kv_width() + head / p.group() * p.head_dim;
  const float to_log2 = p.scale * kLog2E;

  StageRows<kDim, kFlashRows>(q_tile, q + q_at, p.q_width(), first, p.seq);
  StageRows<kDim, kKeys>(k_tile, k_at, p.kv_width(), 0, keys);
  CommitCopies();
  float result[kDim / 8][4] = {};
  float max[2] = {-formats::kLargestFloat, -formats::kLargestFloat};
  float sum[2] = {0.0f, 0.0f};
  for (int64_t key = 0; key < keys; key += kKeys) {
    __syncthreads();  // the values of the tile before are used up
    StageRows<kDim, kKeys>(v_tile, v_at, p.kv_width(), key, keys);
    CommitCopies();
    WaitCopies<1>();
    __syncthreads();
    float score[kKeys / 8][4];
    MultiplyRows<kDim, kKeys>(q_tile, warp_row, k_tile, score);
    __syncthreads();
    if (key + kKeys < keys) {
      StageRows<kDim, kKeys>(k_tile, k_at, p.kv_width(), key + kKeys, keys);
    }
    CommitCopies();
    const int64_t visible = past + first + warp_row + lane / 4 + 1 - key;
    const bool whole = key + kKeys <= past + first + warp_row + 1;
    SoftmaxTile<kDim, kKeys>(whole, visible, keys - key, to_log2, score, max, sum, result);
    WaitCopies<1>();
    __syncthreads();
    AccumulateRows<kDim, kKeys>(score, v_tile, result);
  }
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = QuadSum(sum[half]);
    factor[half] = 1.0f / total;
    const int64_t query = first + warp_row + lane / 4 + half * 8;
    if (lane % 4 == 0 && query < p.seq) {
      lse[(batch * p.heads + head) * p.seq + query] = max[half] * p.scale + logf(total);
    }
  }
  StoreRows<kDim>(result, factor, first + warp_row, p.seq, p.q_width(), out + q_at);
}

// Rows of the other side staged at a time in backward: what leaves the sums in registers. The owner
// of keys has two sums.
template <int kDim>
inline constexpr int kFlashQueryTile = kDim <= 64 ? 64 : 16;
template <int kDim>
inline constexpr int kFlashKeyTile = kDim <= 64 ? 64 : 32;

// p (score in, probability out) and ds = p (dp - delta) scale, in place of dp.
__device__ inline void ScoreGradient(const FlashProblem& p, bool visible, float lse, float delta,
                                     float* score, float* dp) {
  const float probability = visible ? Exp2(fmaf(*score, p.scale * kLog2E, -lse * kLog2E)) : 0.0f;
  *score = probability;
  *dp = visible ? (probability * (*dp - delta)) * p.scale : 0.0f;
}

// Grid (key tiles, batch * kv_heads).
template <int kDim>
__global__ void __launch_bounds__(kFlashThreads)
    FlashKeyGradientKernel(FlashProblem p, const uint16_t* dout, const uint16_t* q,
                           const uint16_t* k, const uint16_t* v, const float* lse,
                           const float* delta, float* dk, float* dv) {
  constexpr int kQueries = kFlashQueryTile<kDim>;
  auto* k_tile = static_cast<uint16_t*>(SharedMemory());
  uint16_t* v_tile = k_tile + kFlashRows * kFlashStride<kDim>;
  uint16_t* q_tile = v_tile + kFlashRows * kFlashStride<kDim>;
  uint16_t* g_tile = q_tile + kQueries * kFlashStride<kDim>;
  auto* row_lse = reinterpret_cast<float*>(g_tile + kQueries * kFlashStride<kDim>);
  float* row_delta = row_lse + kQueries;
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 * 16;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFlashRows;
  const int64_t kv_head = blockIdx.y % p.kv_heads;
  const int64_t batch = blockIdx.y / p.kv_heads;
  const int64_t kv_at = batch * p.seq * p.kv_width() + kv_head * p.head_dim;

  StageRows<kDim, kFlashRows>(k_tile, k + kv_at, p.kv_width(), first, p.seq);
  StageRows<kDim, kFlashRows>(v_tile, v + kv_at, p.kv_width(), first, p.seq);
  float key_sum[kDim / 8][4] = {};
  float value_sum[kDim / 8][4] = {};
  for (int64_t head = kv_head * p.group(); head < (kv_head + 1) * p.group(); ++head) {
    const int64_t q_at = batch * p.seq * p.q_width() + head * p.head_dim;
    const int64_t rows_at = (batch * p.heads + head) * p.seq;
    for (int64_t query = first / kQueries * kQueries; query < p.seq; query += kQueries) {
      __syncthreads();  // the tiles before are used up
      StageRows<kDim, kQueries>(q_tile, q + q_at, p.q_width(), query, p.seq);
      StageRows<kDim, kQueries>(g_tile, dout + q_at, p.q_width(), query, p.seq);
      CommitCopies();
      for (int i = threadIdx.x; i < kQueries; i += kFlashThreads) {
        const bool live = query + i < p.seq;
        row_lse[i] = live ? lse[rows_at + query + i] : 0.0f;
        row_delta[i] = live ? delta[rows_at + query + i] : 0.0f;
      }
      WaitCopies<0>();
      __syncthreads();
      float score[kQueries / 8][4], dp[kQueries / 8][4];
      MultiplyRows<kDim, kQueries>(k_tile, warp_row, q_tile, score);
      MultiplyRows<kDim, kQueries>(v_tile, warp_row, g_tile, dp);
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = n * 8 + lane % 4 * 2 + i % 2;
          const int64_t key = first + warp_row + lane / 4 + i / 2 * 8;
          const bool visible = query + column >= key && query + column < p.seq;
          ScoreGradient(p, visible, row_lse[column], row_delta[column], &score[n][i], &dp[n][i]);
        }
      }
      AccumulateRows<kDim, kQueries>(score, g_tile, value_sum);
      AccumulateRows<kDim, kQueries>(dp, q_tile, key_sum);
    }
  }
  const float one[2] = {1.0f, 1.0f};
  StoreRows<kDim>(key_sum, one, first + warp_row, p.seq, p.kv_width(), dk + kv_at);
  StoreRows<kDim>(value_sum, one, first + warp_row, p.seq, p.kv_width(), dv + kv_at);
}

// Grid (query tiles, batch * heads).
template <int kDim>
__global__ void __launch_bounds__(kFlashThreads)
    FlashQueryGradientKernel(FlashProblem p, const uint16_t* dout, const uint16_t* q,
                             const uint16_t* k, const uint16_t* v, const float* lse,
                             const float* delta, float* dq) {
  constexpr int kKeys = kFlashKeyTile<kDim>;
  auto* q_tile = static_cast<uint16_t*>(SharedMemory());
  uint16_t* g_tile = q_tile + kFlashRows * kFlashStride<kDim>;
  uint16_t* k_tile = g_tile + kFlashRows * kFlashStride<kDim>;
  uint16_t* v_tile = k_tile + kKeys * kFlashStride<kDim>;
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 * 16;
  const int64_t first = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kFlashRows;
  const int64_t head = blockIdx.y % p.heads;
  const int64_t batch = blockIdx.y / p.heads;
  const int64_t last = first + kFlashRows < p.seq ? first + kFlashRows : p.seq;
  const int64_t q_at = batch * p.seq * p.q_width() + head * p.head_dim;
  const int64_t kv_at = batch * p.seq * p.kv_width() + head / p.group() * p.head_dim;
  float row_lse[2], row_delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t query = first + warp_row + lane / 4 + half * 8;
    const int64_t at = (batch * p.heads + head) * p.seq + query;
    row_lse[half] = query < p.seq ? lse[at] : 0.0f;
    row_delta[half] = query < p.seq ? delta[at] : 0.0f;
  }

  StageRows<kDim, kFlashRows>(q_tile, q + q_at, p.q_width(), first, p.seq);
  StageRows<kDim, kFlashRows>(g_tile, dout + q_at, p.q_width(), first, p.seq);
  float sum[kDim / 8][4] = {};
  for (int64_t key = 0; key < last; key += kKeys) {
    __syncthreads();  // the tiles before are used up
    StageRows<kDim, kKeys>(k_tile, k + kv_at, p.kv_width(), key, p.seq);
    StageRows<kDim, kKeys>(v_tile, v + kv_at, p.kv_width(), key, p.seq);
    CommitCopies();
    WaitCopies<0>();
    __syncthreads();
    float score[kKeys / 8][4], dp[kKeys / 8][4];
    MultiplyRows<kDim, kKeys>(q_tile, warp_row, k_tile, score);
    MultiplyRows<kDim, kKeys>(g_tile, warp_row, v_tile, dp);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + lane % 4 * 2 + i % 2;
        const int64_t query = first + warp_row + lane / 4 + i / 2 * 8;
        const bool visible = key + column <= query && query < p.seq;
        ScoreGradient(p, visible, row_lse[i / 2], row_delta[i / 2], &score[n][i], &dp[n][i]);
      }
    }
    AccumulateRows<kDim, kKeys>(dp, k_tile, sum);
  }
  const float one[2] = {1.0f, 1.0f};
  StoreRows<kDim>(sum, one, first + warp_row, p.seq, p.q_width(), dq + q_at);
}

// Dynamic shared memory of the kernels above.
template <int kDim>
constexpr int FlashForwardBytes() {
  return FlashTileBytes<kDim>(3 * kFlashRows);
}
template <int kDim>
constexpr int FlashKeyGradientBytes() {
  constexpr int kTile = kFlashQueryTile<kDim>;
  return FlashTileBytes<kDim>(2 * kFlashRows + 2 * kTile) + 2 * kTile * 4;
}
template <int kDim>
constexpr int FlashQueryGradientBytes() {
  return FlashTileBytes<kDim>(2 * kFlashRows + 2 * kFlashKeyTile<kDim>);
}

}  // namespace nibble::cuda
