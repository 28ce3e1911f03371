// SPDX-License-Identifier: Apache-2.0
//
// What the tensor-core attention kernels have in common: tiles in shared memory, products of tiles,
// softmax of a tile, results to memory.
//
// Purpose: fragments are those of mma.cuh. A warp holds 16 kM rows of a product, so that what it
// loads of the right operand serves kM multiplications: at kM = 2 tensor cores and shared memory
// are busy about equally. Thread-safety: device functions; whole warps call together.
#pragma once

#include "kernels/cuda/four.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/formats/bits.h"

namespace nibble::cuda {

inline constexpr int kFlashThreads = 128;  // four warps
inline constexpr int kFlashWarps = kFlashThreads / 32;
inline constexpr int kWarpRows = 32;  // of a warp's product: kM = 2
inline constexpr float kLog2E = 1.44269504088896340736f;

// Positions within a sequence fit int; those within a tensor need not.
struct FlashProblem {
  int batch, seq, kv_seq, heads, kv_heads, head_dim;
  float scale;

  __host__ __device__ int group() const { return heads / kv_heads; }
  __host__ __device__ int64_t q_width() const { return static_cast<int64_t>(heads) * head_dim; }
  __host__ __device__ int64_t kv_width() const { return static_cast<int64_t>(kv_heads) * head_dim; }
  // Offsets of a head's first row: of queries, keys and row statistics.
  __host__ __device__ int64_t query_at(int64_t b, int head) const {
    return b * seq * q_width() + head * head_dim;
  }
  __host__ __device__ int64_t key_at(int64_t b, int kv_head) const {
    return b * kv_seq * kv_width() + kv_head * head_dim;
  }
  __host__ __device__ int64_t row_at(int64_t b, int head) const { return (b * heads + head) * seq; }
};

// Rows of `cols` values in shared memory lie 16 bytes further apart than their data: eight rows of
// one matrix load then touch all banks.
__host__ __device__ constexpr int FlashStride(int cols) { return cols + 8; }
__host__ __device__ constexpr int FlashTileValues(int rows, int cols) {
  return rows * FlashStride(cols);
}

// Rows [first, first + kRows) of a matrix of row stride `stride` on their way to `tile`; zeros past
// `rows`.
template <int kDim, int kRows>
__device__ inline void StageRows(uint16_t* tile, const uint16_t* base, int64_t stride, int first,
                                 int rows) {
  constexpr int kPieces = kDim / 8;  // of 16 bytes
  const int column = static_cast<int>(threadIdx.x) % kPieces * 8;
#pragma unroll 2
  for (int row = threadIdx.x / kPieces; row < kRows; row += kFlashThreads / kPieces) {
    const bool live = first + row < rows;
    const uint16_t* from = base + static_cast<int64_t>(live ? first + row : 0) * stride + column;
    CopyAsync16(tile + row * FlashStride(kDim) + column, from, live);
  }
}

// c (16 kM, kCols) += left (16 kM, 16) times what load(right, n) brings of columns n to n + 15.
template <int kM, int kCols, typename Load>
__device__ inline void MultiplyStep(const uint32_t (&left)[kM][4], Load load,
                                    float (&c)[kM][kCols / 8][4]) {
#pragma unroll
  for (int n = 0; n < kCols; n += 16) {
    uint32_t right[4];
    load(right, n);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      MmaBf16(c[m][n / 8], left[m], right[0], right[1]);
      MmaBf16(c[m][n / 8 + 1], left[m], right[2], right[3]);
    }
  }
}

// c (16 kM, kCols) = rows [0, 16 kM) of a times rows [0, kCols) of b, transposed; both of kDim.
template <int kDim, int kM, int kCols>
__device__ inline void MultiplyRows(const uint16_t* a, const uint16_t* b,
                                    float (&c)[kM][kCols / 8][4]) {
  constexpr int kStride = FlashStride(kDim);
  const int lane = threadIdx.x % 32;
  const uint16_t* a_at = a + lane % 16 * kStride + lane / 16 * 8;
  const uint16_t* b_at = b + (lane % 8 + lane / 16 * 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < kDim; k += 16) {
    uint32_t left[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) LoadMatrices(left[m], a_at + m * 16 * kStride + k);
    MultiplyStep<kM, kCols>(
        left, [&](auto& right, int n) { LoadMatrices(right, b_at + n * kStride + k); }, c);
  }
}

// c (16 kM, kDim) += p (16 kM, kRows), rounded to BF16, times rows [0, kRows) of b.
template <int kDim, int kM, int kRows>
__device__ inline void AccumulateRows(const float (&p)[kM][kRows / 8][4], const uint16_t* b,
                                      float (&c)[kM][kDim / 8][4]) {
  constexpr int kStride = FlashStride(kDim);
  const int lane = threadIdx.x % 32;
  const uint16_t* b_at = b + lane % 16 * kStride + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kRows; k += 16) {
    uint32_t left[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const float(&low)[4] = p[m][k / 8];
      const float(&high)[4] = p[m][k / 8 + 1];
      left[m][0] = PackBf16(low[0], low[1]);
      left[m][1] = PackBf16(low[2], low[3]);
      left[m][2] = PackBf16(high[0], high[1]);
      left[m][3] = PackBf16(high[2], high[3]);
    }
    MultiplyStep<kM, kDim>(
        left, [&](auto& right, int n) { LoadMatricesTransposed(right, b_at + k * kStride + n); },
        c);
  }
}

// c (16 kM, kCols) += columns [0, 16 kM) of a, transposed, times columns [0, kCols) of b; kRows
// rows each, of a_cols and kDim columns in shared memory.
template <int kDim, int kM, int kCols, int kRows>
__device__ inline void AccumulateColumns(const uint16_t* a, int a_cols, const uint16_t* b,
                                         float (&c)[kM][kCols / 8][4]) {
  constexpr int kStride = FlashStride(kDim);
  const int a_stride = FlashStride(a_cols);
  const int lane = threadIdx.x % 32;
  const uint16_t* a_at = a + (lane % 8 + lane / 16 * 8) * a_stride + lane / 8 % 2 * 8;
  const uint16_t* b_at = b + lane % 16 * kStride + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kRows; k += 16) {
    uint32_t left[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) LoadMatricesTransposed(left[m], a_at + k * a_stride + m * 16);
    MultiplyStep<kM, kCols>(
        left, [&](auto& right, int n) { LoadMatricesTransposed(right, b_at + k * kStride + n); },
        c);
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

// The row of element `half` * 2 of fragment m, and the column of element 0 of fragment n.
__device__ inline int FragmentRow(int m, int half) {
  return m * 16 + half * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
}
__device__ inline int FragmentColumn(int n) {
  return n * 8 + static_cast<int>(threadIdx.x) % 4 * 2;
}

// c to a tile in shared memory of `cols` columns, rounded to BF16.
template <int kM, int kCols>
__device__ inline void StoreTile(const float (&c)[kM][kCols / 8][4], uint16_t* tile, int cols) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint16_t* row = tile + FragmentRow(m, half) * FlashStride(cols);
#pragma unroll
      for (int n = 0; n < kCols / 8; ++n) {
        *reinterpret_cast<uint32_t*>(row + FragmentColumn(n)) =
            PackBf16(c[m][n][half * 2], c[m][n][half * 2 + 1]);
      }
    }
  }
}

// Two neighbours as FP32 or BF16, in one store.
__device__ inline void StoreTwo(float* to, float first, float second) {
  StoreSome<true>(Pack<float, 2>{{first, second}}, 2, to);
}
__device__ inline void StoreTwo(uint16_t* to, float first, float second) {
  *reinterpret_cast<uint32_t*>(to) = PackBf16(first, second);
}

// c, times the factor of its row, to rows [first, rows) of a row-major matrix of FP32 or BF16.
template <int kM, int kCols, typename Factor, typename Out>
__device__ inline void StoreRows(const float (&c)[kM][kCols / 8][4], Factor factor, int first,
                                 int rows, int64_t stride, Out* out) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + FragmentRow(m, half);
      if (row >= rows) continue;
      const float by = factor(m, half);
#pragma unroll
      for (int n = 0; n < kCols / 8; ++n) {
        StoreTwo(out + row * stride + FragmentColumn(n), c[m][n][half * 2] * by,
                 c[m][n][half * 2 + 1] * by);
      }
    }
  }
}

}  // namespace nibble::cuda
