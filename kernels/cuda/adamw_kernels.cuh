// SPDX-License-Identifier: Apache-2.0
//
// AdamW and the codes of the new weight in one pass.
//
// Purpose: a weight's codes are wanted once per update, right after it: made while its row is at
// hand they cost no read. Per element 16 bytes read (gradient, moments, weight), 12 and a code
// written. The bits of AdamW and of QuantizeRowsKernel. Thread-safety: kernels, ordered by their
// stream.
#pragma once

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/elementwise_ops.cuh"
#include "kernels/cuda/four.cuh"
#include "kernels/cuda/quantize_parts.cuh"

namespace nibble::cuda {

struct AdamWRowsTask {
  AdamWOp op;
  int64_t rows, cols, code_row_bytes;
  ScaleRule scale;
  float max;
  float* enc;  // by row
  uint8_t* codes;
  int32_t* nonfinite;  // counts rows whose amax is not finite
};

// On the host: whether the kernel below makes codes as `quant` says, of a matrix as it is stored.
inline bool UpdatesByRow(const Quant& quant) {
  return quant.block == Block::kToken && (quant.elem == Elem::kE2M1 || quant.elem == Elem::kE4M3) &&
         quant.round == Round::kEven && !quant.has_history() && !quant.pre.enabled && !quant.fold &&
         quant.rotation.size == 0;
}

inline constexpr int kUpdateHeld = 16384;  // numbers of a row in shared memory, as BF16

// The codes of four neighbours in one store, or those of them below `live`.
template <Elem kElem, bool kFour>
__device__ inline void StoreFourCodes(const float (&grid)[4], int64_t live, uint8_t* to) {
  if constexpr (kElem == Elem::kE2M1) {
    Pack<uint8_t, 2> pairs;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      pairs.x[k] = formats::PackE2M1(CodeOf(kElem, grid[2 * k]), CodeOf(kElem, grid[2 * k + 1]));
    }
    StoreSome<kFour>(pairs, (live + 1) / 2, to);
  } else {
    Pack<uint8_t, 4> codes;
#pragma unroll
    for (int k = 0; k < 4; ++k) codes.x[k] = CodeOf(kElem, grid[k]);
    StoreSome<kFour>(codes, live, to);
  }
}

// One block per row, four neighbours per thread. kFour: rows are whole fours.
template <Elem kElem, bool kFour>
__global__ void AdamWRowsKernel(AdamWRowsTask t) {
  __shared__ Pack<uint16_t, 4> held[kUpdateHeld / 4];
  constexpr int64_t kStride = 4 * kThreads;
  for (int64_t row = blockIdx.x; row < t.rows; row += gridDim.x) {
    uint32_t bits = 0;
    for (int64_t col = 4 * static_cast<int64_t>(threadIdx.x); col < t.cols; col += kStride) {
      const int64_t at = row * t.cols + col;
      const int64_t live = t.cols - col;
      const auto gradient = LoadSome<kFour>(t.op.gradient + at, live);
      auto m = LoadSome<kFour>(t.op.m + at, live);
      auto v = LoadSome<kFour>(t.op.v + at, live);
      auto weight = LoadSome<kFour>(t.op.parameter + at, live);
      Pack<uint16_t, 4> rounded;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        weight.x[k] = t.op.update.Apply(gradient.x[k], &m.x[k], &v.x[k], weight.x[k]);
        rounded.x[k] = formats::ToBf16(weight.x[k]);
        if (kFour || k < live) bits = formats::AmaxUpdate(bits, formats::FromBf16(rounded.x[k]));
      }
      StoreSome<kFour>(m, live, t.op.m + at);
      StoreSome<kFour>(v, live, t.op.v + at);
      StoreSome<kFour>(weight, live, t.op.parameter + at);
      if (col < kUpdateHeld) held[col / 4] = rounded;
    }
    bits = BlockMax(bits);
    const float enc = EncOf(t.scale, t.max, bits);
    if (threadIdx.x == 0) {
      t.enc[row] = enc;
      if (!formats::IsFinite(formats::BitsFloat(bits))) atomicAdd(t.nonfinite, 1);
    }
    // Each thread reads what it has written.
    for (int64_t col = 4 * static_cast<int64_t>(threadIdx.x); col < t.cols; col += kStride) {
      const int64_t live = t.cols - col;
      Pack<uint16_t, 4> rounded;
      if (col < kUpdateHeld) {
        rounded = held[col / 4];
      } else {
        const auto weight = LoadSome<kFour>(t.op.parameter + row * t.cols + col, live);
#pragma unroll
        for (int k = 0; k < 4; ++k) rounded.x[k] = formats::ToBf16(weight.x[k]);
      }
      float grid[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float scaled = k < live ? formats::FromBf16(rounded.x[k]) * enc : 0.0f;
        grid[k] = RoundToGrid(kElem, Round::kEven, {}, 0, scaled);
      }
      const int64_t byte = kElem == Elem::kE2M1 ? col / 2 : col;
      StoreFourCodes<kElem, kFour>(grid, live, t.codes + row * t.code_row_bytes + byte);
    }
  }
}

}  // namespace nibble::cuda
