// SPDX-License-Identifier: Apache-2.0
//
// Rows with a scale of their own, measured and encoded in one pass over memory, outliers included.
//
// Purpose: a row stays in its block's shared memory between the two halves, so its elements are
// read once: 4 bytes of FP32 or 2 of BF16, and a row beyond shared memory a second time. Where a
// row's outliers go depends on how many the rows before it have: each row publishes its count, then
// adds up its predecessors' (decoupled look-back, Merrill & Garland 2016). Integers and maxima of
// bits: the order does not matter. Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/quantize_kernels.cuh"

namespace nibble::cuda {

inline constexpr int kRowStep = kThreads * 4;   // columns of a block at a time
inline constexpr int kRowBatch = 4;             // steps whose loads are under way together
inline constexpr int64_t kRowHeld = 16384;      // columns of a row that shared memory holds
inline constexpr int64_t kMostScanned = 65536;  // columns of a row with outliers
inline constexpr int kScanEntries = kMostScanned / kRowStep * kWarps;
inline constexpr int64_t kMostOutliers = 1 << 29;  // of a tensor: a count and two bits fit a word

// Zeros before the launch; one word of `rows` per row.
struct RowScan {
  uint32_t* ticket;  // the next row
  uint32_t* poison;  // whether a residual was not finite
  uint32_t* rows;    // 0, or the row's outliers * 4 + 1, or all up to its end * 4 + 2
};

struct RowTask {
  EncodeTask encode;  // stats: nullptr without bounds; offsets: nullptr without outliers
  float max;
  bool in_fours;  // every row begins where four elements may be loaded at a time
  int32_t* offsets;
  QuantizeCounters* counters;  // zeros before
  RowScan scan;                // of outliers
};

__device__ inline void Publish(uint32_t* word, uint32_t value) {
  *static_cast<volatile uint32_t*>(word) = value;
}

// Outliers of all rows before `row`, which has `count`; by one warp, the same in every lane. Rows
// are taken in order, so those before are done or under way.
__device__ inline int32_t OutliersBefore(const RowScan& scan, int64_t row, int32_t count) {
  const int lane = threadIdx.x % 32;
  const auto word = [](int32_t n, uint32_t kind) { return static_cast<uint32_t>(n) << 2 | kind; };
  if (lane == 0 && row > 0) Publish(&scan.rows[row], word(count, 1));
  int32_t before = 0;
  for (int64_t last = row - 1; last >= 0; last -= 32) {
    uint32_t seen = 2;  // nothing before the first row
    do {
      if (last >= lane) seen = static_cast<volatile const uint32_t*>(scan.rows)[last - lane];
    } while (__ballot_sync(0xFFFFFFFFu, (seen & 3u) == 0) != 0);
    const unsigned ends = __ballot_sync(0xFFFFFFFFu, (seen & 3u) == 2);
    const int nearest = ends != 0 ? __ffs(static_cast<int>(ends)) - 1 : 31;
    before +=
        static_cast<int32_t>(__reduce_add_sync(0xFFFFFFFFu, lane <= nearest ? seen >> 2 : 0u));
    if (ends != 0) break;
  }
  if (lane == 0) Publish(&scan.rows[row], word(before + count, 2));
  return before;
}

// Four neighbours of a row, those past its end zero.
template <typename Values>
__device__ Four LoadFour(const Values& x, bool in_fours, int64_t row, int64_t col, int64_t cols) {
  Four four{};
  if (col >= cols) return four;
  if (in_fours) return x.Together(row * cols + col);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (col + j < cols) four.x[j] = x.Bits(row * cols + col + j);
  }
  return four;
}

// Codes of four neighbours whose grid values are `grid`.
__device__ inline void StoreRowCodes(const EncodeTask& t, int64_t row, int64_t col,
                                     const float (&grid)[4]) {
  if (t.codes == nullptr || col >= t.cols) return;
  uint8_t* const row_codes = t.codes + row * t.code_row_bytes;
  uint32_t codes = 0;
  if (t.elem == Elem::kE2M1) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      // Half a byte past the end of a row is zero.
      const uint32_t code = col + j < t.cols ? CodeOf(t.elem, grid[j]) : 0u;
      codes |= code << (4 * j);
    }
    if (t.cols % 4 == 0) {
      *reinterpret_cast<uint16_t*>(row_codes + col / 2) = static_cast<uint16_t>(codes);
      return;
    }
    row_codes[col / 2] = static_cast<uint8_t>(codes);
    if (col + 2 < t.cols) row_codes[col / 2 + 1] = static_cast<uint8_t>(codes >> 8);
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) codes |= static_cast<uint32_t>(CodeOf(t.elem, grid[j])) << (8 * j);
  if (t.cols % 4 == 0) {
    *reinterpret_cast<uint32_t*>(row_codes + col) = codes;
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (col + j < t.cols) row_codes[col + j] = static_cast<uint8_t>(codes >> (8 * j));
  }
}

struct RowBounds {
  float low, high;
  __device__ bool Outside(float value) const { return value < low || value > high; }
};

// What one thread finds among four neighbours.
struct RowFound {
  uint32_t amax = 0;
  int32_t outliers = 0;
  bool poison = false;
};
__device__ inline void MeasureFour(const EncodeTask& t, const RowBounds& bounds, const Four& four,
                                   int64_t row, int64_t col, RowFound* found) {
  found->outliers = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (col + j >= t.cols) continue;
    const float value = t.fold.Apply(formats::FromBf16(four.x[j]), row, col + j);
    const float clamped =
        t.stats != nullptr ? formats::OccClamp(value, bounds.low, bounds.high) : value;
    found->amax = formats::AmaxUpdate(found->amax, clamped);
    if (t.offsets == nullptr) continue;
    found->outliers += bounds.Outside(value) ? 1 : 0;
    found->poison |= !formats::IsFinite(value - clamped);
  }
}

// Codes, outliers and decoded values of four neighbours. `next`: where the warp's first outlier
// goes.
__device__ inline void EncodeFour(const EncodeTask& t, const RowBounds& bounds, const Four& four,
                                  int64_t row, int64_t col, float enc, int32_t next) {
  float value[4], clamped[4], grid[4];
  bool outlier[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t at = col + j < t.cols ? col + j : 0;
    value[j] = t.fold.Apply(formats::FromBf16(four.x[j]), row, at);
    clamped[j] =
        t.stats != nullptr ? formats::OccClamp(value[j], bounds.low, bounds.high) : value[j];
    const int64_t position = t.turned ? (col + j) * t.rows + row : row * t.cols + col + j;
    grid[j] = RoundToGrid(t.elem, t.round, t.random, position, clamped[j] * enc);
    outlier[j] = t.offsets != nullptr && col + j < t.cols && bounds.Outside(value[j]);
  }
  StoreRowCodes(t, row, col, grid);
  if (t.offsets != nullptr) {
    const unsigned lanes_before = (1u << threadIdx.x % 32) - 1u;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      next += __popc(__ballot_sync(0xFFFFFFFFu, outlier[j]) & lanes_before);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float decoded = DecodeGrid(t.scale, enc, grid[j]);
    if (outlier[j]) {
      decoded = StoreResidual(t, next, col + j, value[j], clamped[j], enc, grid[j], decoded);
      ++next;
    }
    if (t.decoded != nullptr && col + j < t.cols) {
      t.decoded[row * t.cols + col + j] = t.fold.Undo(decoded, row, col + j);
    }
  }
}

// starts[e] = sum of counts before e; starts[entries] the total.
__device__ inline void ScanCounts(const int32_t* counts, int entries, int32_t* starts) {
  __syncthreads();
  for (int e = threadIdx.x; e <= entries; e += kThreads) {
    int32_t sum = 0;
    for (int i = 0; i < e; ++i) sum += counts[i];
    starts[e] = sum;
  }
  __syncthreads();
}

// The row a block takes next.
__device__ inline int64_t NextRow(const RowTask& r, int64_t row) {
  __shared__ uint32_t taken;
  if (r.encode.offsets == nullptr) return row < 0 ? blockIdx.x : row + gridDim.x;
  __syncthreads();
  if (threadIdx.x == 0) taken = atomicAdd(r.scan.ticket, 1u);
  __syncthreads();
  return taken;
}

// Dynamic shared memory: 2 bytes per column, rounded up to a multiple of four columns, up to
// kRowHeld columns. Any grid; blocks of kThreads.
template <typename Values>
__global__ void QuantizeRowsKernel(RowTask r, Values x) {
  __shared__ int32_t counts[kScanEntries], starts[kScanEntries + 1], base;
  auto* const held = static_cast<Four*>(SharedMemory());
  const EncodeTask& t = r.encode;
  const bool outliers = t.offsets != nullptr;
  const int warp = threadIdx.x / 32;
  for (int64_t row = NextRow(r, -1); row < t.rows; row = NextRow(r, row)) {
    RowBounds bounds{};
    if (t.stats != nullptr) bounds = {t.stats[row].low, t.stats[row].high};
    RowFound found;
    for (int64_t first = 0; first < t.cols; first += kRowBatch * kRowStep) {
      Four batch[kRowBatch];
#pragma unroll
      for (int b = 0; b < kRowBatch; ++b) {
        batch[b] = LoadFour(x, r.in_fours, row, first + b * kRowStep + threadIdx.x * 4, t.cols);
      }
#pragma unroll
      for (int b = 0; b < kRowBatch; ++b) {
        const int64_t begin = first + b * kRowStep;
        if (begin >= t.cols) break;  // the same for the whole block
        const int64_t col = begin + threadIdx.x * 4;
        if (col < t.cols && col < kRowHeld) held[col / 4] = batch[b];
        MeasureFour(t, bounds, batch[b], row, col, &found);
        if (!outliers) continue;
        const unsigned count =
            __reduce_add_sync(0xFFFFFFFFu, static_cast<unsigned>(found.outliers));
        if (threadIdx.x % 32 == 0) {
          counts[begin / kRowStep * kWarps + warp] = static_cast<int32_t>(count);
        }
      }
    }
    const uint32_t amax = BlockMax(found.amax);
    const float enc = EncOf(t.scale, r.max, amax);
    if (threadIdx.x == 0) {
      t.enc[row] = enc;
      if (!formats::IsFinite(formats::BitsFloat(amax))) atomicAdd(&r.counters->nonfinite_amax, 1);
    }
    if (outliers) {
      if (found.poison && atomicExch(r.scan.poison, 1u) == 0) {
        atomicAdd(&r.counters->nonfinite_amax, 1);
      }
      const int entries = static_cast<int>((t.cols + kRowStep - 1) / kRowStep) * kWarps;
      ScanCounts(counts, entries, starts);
      const int32_t total = starts[entries];
      if (warp == 0) {
        const int32_t before = OutliersBefore(r.scan, row, total);
        if (threadIdx.x == 0) {
          base = before;
          r.offsets[row] = before;
          if (row + 1 == t.rows) r.offsets[t.rows] = r.counters->residual_count = before + total;
        }
      }
      __syncthreads();
    }
    for (int64_t begin = 0; begin < t.cols; begin += kRowStep) {
      const int64_t col = begin + threadIdx.x * 4;
      Four four{};
      if (col < t.cols)
        four = col < kRowHeld ? held[col / 4] : LoadFour(x, r.in_fours, row, col, t.cols);
      const int32_t next = outliers ? base + starts[begin / kRowStep * kWarps + warp] : 0;
      EncodeFour(t, bounds, four, row, col, enc, next);
    }
  }
}

// On the host: dynamic shared memory of QuantizeRowsKernel.
inline int64_t HeldBytes(int64_t cols) {
  const int64_t fours = (cols + 3) / 4 * 8;
  return fours < kRowHeld * 2 ? fours : kRowHeld * 2;
}

}  // namespace nibble::cuda
