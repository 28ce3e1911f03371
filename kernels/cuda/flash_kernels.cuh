// SPDX-License-Identifier: Apache-2.0
//
// Causal grouped-query attention on BF16 tensor cores, after FlashAttention-2 (arXiv 2307.08691):
// scores exist one tile at a time, softmax runs along with a running maximum.
//
// Purpose: the forward pass of GemmMode::kBf16 at head sizes 64 and 128. Four warps own 128 queries
// of a block, 32 each, and meet tiles of keys and values in shared memory. exp(score - running
// maximum) is rounded to BF16; the division by the FP32 sum comes at the end. Backward:
// flash_backward_kernels.cuh. Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/flash_parts.cuh"

namespace nibble::cuda {

inline constexpr int kFlashQueries = kFlashWarps * kWarpRows;  // of a block
inline constexpr int kFlashKeys = 64;                          // of a tile

// One tile of scores to exp(score - maximum so far); sums and results so far fade accordingly. Row
// r of the warp sees `visible + r` columns of `columns`; all of them when `whole`.
template <int kDim, int kM, int kKeys>
__device__ inline void SoftmaxTile(bool whole, int visible, int columns, float to_log2,
                                   float (&score)[kM][kKeys / 8][4], float (&max)[kM][2],
                                   float (&sum)[kM][2], float (&result)[kM][kDim / 8][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = max[m][half];
      const int seen = visible + FragmentRow(m, half);
      const int end = seen < columns ? seen : columns;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& s = score[m][n][half * 2 + i];
          if (!whole && FragmentColumn(n) + i >= end) s = -formats::kLargestFloat;
          largest = fmaxf(largest, s);
        }
      }
      largest = QuadMax(largest);
      const float shift = largest * to_log2;
      const float fade = Exp2(fmaf(max[m][half], to_log2, -shift));
      max[m][half] = largest;
      float partial = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& s = score[m][n][half * 2 + i];
          s = Exp2(fmaf(s, to_log2, -shift));
          partial += s;
        }
      }
      sum[m][half] = fmaf(sum[m][half], fade, partial);  // of this lane's columns
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        result[m][n][half * 2] *= fade;
        result[m][n][half * 2 + 1] *= fade;
      }
    }
  }
}

// Grid (query tiles, batch * heads). The longest rows of keys come first.
template <int kDim, typename Out>
__global__ void __launch_bounds__(kFlashThreads, 2)
    FlashForwardKernel(FlashProblem p, const uint16_t* q, const uint16_t* k, const uint16_t* v,
                       Out* out, float* lse) {
  constexpr int kM = 2;
  auto* q_tile = static_cast<uint16_t*>(SharedMemory());
  uint16_t* k_tile = q_tile + FlashTileValues(kFlashQueries, kDim);
  uint16_t* v_tile = k_tile + FlashTileValues(kFlashKeys, kDim);
  const int warp_row = threadIdx.x / 32 * kWarpRows;
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kFlashQueries;
  const int head = static_cast<int>(blockIdx.y) % p.heads;
  const int batch = static_cast<int>(blockIdx.y) / p.heads;
  const int past = p.kv_seq - p.seq;
  const int keys = past + (first + kFlashQueries < p.seq ? first + kFlashQueries : p.seq);
  const int64_t q_at = p.query_at(batch, head);
  const uint16_t* k_at = k + p.key_at(batch, head / p.group());
  const uint16_t* v_at = v + p.key_at(batch, head / p.group());
  const float to_log2 = p.scale * kLog2E;

  StageRows<kDim, kFlashQueries>(q_tile, q + q_at, p.q_width(), first, p.seq);
  StageRows<kDim, kFlashKeys>(k_tile, k_at, p.kv_width(), 0, keys);
  CommitCopies();
  float result[kM][kDim / 8][4] = {};
  float max[kM][2], sum[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      max[m][half] = -formats::kLargestFloat;
      sum[m][half] = 0.0f;
    }
  }
  for (int key = 0; key < keys; key += kFlashKeys) {
    // What the first row of the warp sees of this tile. The tile after its last row's last key is
    // nothing to it; barriers and copies are for all.
    const int visible = past + first + warp_row + 1 - key;
    const bool any = visible + kWarpRows > 1;
    __syncthreads();  // the values of the tile before are used up
    StageRows<kDim, kFlashKeys>(v_tile, v_at, p.kv_width(), key, keys);
    CommitCopies();
    WaitCopies<1>();
    __syncthreads();
    float score[kM][kFlashKeys / 8][4];
    if (any) {
      MultiplyRows<kDim, kM, kFlashKeys>(q_tile + warp_row * FlashStride(kDim), k_tile, score);
    }
    __syncthreads();
    if (key + kFlashKeys < keys) {
      StageRows<kDim, kFlashKeys>(k_tile, k_at, p.kv_width(), key + kFlashKeys, keys);
    }
    CommitCopies();
    if (any) {
      const bool whole = visible >= kFlashKeys && key + kFlashKeys <= keys;
      SoftmaxTile<kDim, kM, kFlashKeys>(whole, visible, keys - key, to_log2, score, max, sum,
                                        result);
    }
    WaitCopies<1>();
    __syncthreads();
    if (any) AccumulateRows<kDim, kM, kFlashKeys>(score, v_tile, result);
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[m][half] = QuadSum(sum[m][half]);
      const int query = first + warp_row + FragmentRow(m, half);
      if (threadIdx.x % 4 == 0 && query < p.seq) {
        lse[p.row_at(batch, head) + query] = fmaf(max[m][half], p.scale, logf(sum[m][half]));
      }
    }
  }
  const auto share = [&](int m, int half) { return 1.0f / sum[m][half]; };
  StoreRows<kM, kDim>(result, share, first + warp_row, p.seq, p.q_width(), out + q_at);
}

// Dynamic shared memory, bytes.
template <int kDim>
constexpr int FlashForwardBytes() {
  return 2 * FlashTileValues(kFlashQueries + 2 * kFlashKeys, kDim);
}

}  // namespace nibble::cuda
