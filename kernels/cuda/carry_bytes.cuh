// SPDX-License-Identifier: Apache-2.0
//
// Codes on their way to FP8 tensor cores, sixteen at a time: E2M1 pairs spread to E4M3 bytes, as
// they lie or transposed; FP8 bytes transposed.
//
// Purpose: what CarryKernel does code by code, for matrices of whole sixteens both ways, at 1.5 and
// 2 bytes of traffic per element. The same bytes. Thread-safety: kernels, ordered by their stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/four.cuh"
#include "kernels/recipe/recipe.h"

namespace nibble::cuda {

inline constexpr int kBytePiece = 16;  // codes of a thread at a time

// E4M3 codes of the E2M1 magnitudes 0, 1/2, 1, 3/2, 2, 3, 4, 6: a byte each, the smallest in the
// lowest byte.
inline constexpr uint32_t kE4M3OfLowE2M1 = 0x3C383000u, kE4M3OfHighE2M1 = 0x4C484440u;

// Four E2M1 codes, the first in the lowest four of 16 bits, as E4M3 bytes.
__device__ inline uint32_t E4M3OfPairs(uint32_t codes) {
  const uint32_t magnitudes = __byte_perm(kE4M3OfLowE2M1, kE4M3OfHighE2M1, codes & 0x7777u);
  uint32_t spread = (codes | codes << 8) & 0x00FF00FFu;
  spread = (spread | spread << 4) & 0x0F0F0F0Fu;
  return magnitudes | (spread & 0x08080808u) << 4;
}

// Sixteen codes as bytes; kPairs: from eight bytes of E2M1, else those sixteen.
template <bool kPairs>
__device__ inline Pack<uint32_t, 4> LoadPiece(const uint8_t* codes, int64_t element) {
  if constexpr (!kPairs) {
    return *reinterpret_cast<const Pack<uint32_t, 4>*>(codes + element);
  } else {
    const auto pairs = *reinterpret_cast<const Pack<uint32_t, 2>*>(codes + element / 2);
    return {{E4M3OfPairs(pairs.x[0] & 0xFFFFu), E4M3OfPairs(pairs.x[0] >> 16),
             E4M3OfPairs(pairs.x[1] & 0xFFFFu), E4M3OfPairs(pairs.x[1] >> 16)}};
  }
}

// n codes, a multiple of kBytePiece; kBytesAhead pieces of a thread are loaded before the first is
// stored.
inline constexpr int kBytesAhead = 4;
__global__ void SpreadPairsKernel(const uint8_t* codes, int64_t n, uint8_t* out) {
  const int64_t pieces = n / kBytePiece;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pieces;
       i += kBytesAhead * stride) {
    Pack<uint32_t, 4> piece[kBytesAhead];
#pragma unroll
    for (int k = 0; k < kBytesAhead; ++k) {
      const int64_t at = i + k * stride;
      if (at < pieces) piece[k] = LoadPiece<true>(codes, at * kBytePiece);
    }
#pragma unroll
    for (int k = 0; k < kBytesAhead; ++k) {
      const int64_t at = i + k * stride;
      if (at < pieces) *reinterpret_cast<Pack<uint32_t, 4>*>(out + at * kBytePiece) = piece[k];
    }
  }
}

// A tile is 128 rows by 64 columns: its columns leave as whole lines of memory.
inline constexpr int kByteRows = 128, kByteColumns = 64;
inline constexpr int kByteStride = kByteRows + 16;  // of a column in shared memory

// out (cols, rows) bytes of codes (rows, cols), both multiples of kBytePiece. Grid (column tiles,
// row tiles).
template <bool kPairs>
__global__ void TurnBytesKernel(const uint8_t* codes, int64_t rows, int64_t cols, uint8_t* out) {
  __shared__ Pack<uint32_t, 4> shared[kByteColumns * kByteStride / kBytePiece];
  auto* const tile = reinterpret_cast<uint8_t*>(shared);
  const int64_t first_col = static_cast<int64_t>(blockIdx.x) * kByteColumns;
  const int64_t row_step = static_cast<int64_t>(gridDim.y) * kByteRows;
  for (int64_t first_row = static_cast<int64_t>(blockIdx.y) * kByteRows; first_row < rows;
       first_row += row_step) {
    // Neighbouring threads take neighbouring rows: their bytes of a column share words.
    const int row = threadIdx.x % kByteRows;
    constexpr int kPieces = kByteColumns / kBytePiece, kTogether = kThreads / kByteRows;
    Pack<uint32_t, 4> piece[kPieces / kTogether];
#pragma unroll
    for (int k = 0; k < kPieces / kTogether; ++k) {
      const int64_t col = first_col + (threadIdx.x / kByteRows + k * kTogether) * kBytePiece;
      if (first_row + row < rows && col < cols) {
        piece[k] = LoadPiece<kPairs>(codes, (first_row + row) * cols + col);
      }
    }
    __syncthreads();  // the tile before has left
#pragma unroll
    for (int k = 0; k < kPieces / kTogether; ++k) {
      const int column = (threadIdx.x / kByteRows + k * kTogether) * kBytePiece;
#pragma unroll
      for (int j = 0; j < kBytePiece; ++j) {
        tile[(column + j) * kByteStride + row] =
            static_cast<uint8_t>(piece[k].x[j / 4] >> j % 4 * 8);
      }
    }
    __syncthreads();
    constexpr int kOfColumn = kByteRows / kBytePiece;
    for (int i = threadIdx.x; i < kByteColumns * kOfColumn; i += kThreads) {
      const int column = i / kOfColumn, place = i % kOfColumn * kBytePiece;
      if (first_col + column >= cols || first_row + place >= rows) continue;
      *reinterpret_cast<Pack<uint32_t, 4>*>(out + (first_col + column) * rows + first_row + place) =
          shared[(column * kByteStride + place) / kBytePiece];
    }
  }
}

// On the host: whether the kernels above carry `elem` as FP8 bytes of the same value.
inline bool CarriesInPieces(Elem elem, bool as_e4m3, int64_t rows, int64_t cols) {
  const bool same = elem == Elem::kE2M1 ? as_e4m3 : elem == (as_e4m3 ? Elem::kE4M3 : Elem::kE5M2);
  return same && rows % kBytePiece == 0 && cols % kBytePiece == 0;
}

}  // namespace nibble::cuda
