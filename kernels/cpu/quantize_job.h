// SPDX-License-Identifier: Apache-2.0
//
// One quantization by tensor, row or column on its way through the two passes over rows.
//
// Purpose: what cpu_quantize_measure.cc finds out and cpu_quantize_encode.cc writes codes with.
// Thread-safety: a job is written between the passes only. Ownership: it borrows all it points to.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/quantize_loops.h"

namespace nibble::cpu {

// A counter of the random generator serves four elements: along the rows, four rows of a column.
inline constexpr int64_t kRowsPerBlock = 4;

// Rows per chunk, whole blocks, from the width only.
inline int64_t RowGrain(int64_t cols) {
  constexpr int64_t kElementsPerChunk = 8192;
  const int64_t rows = kElementsPerChunk / std::max<int64_t>(1, cols);
  return std::max(kRowsPerBlock, rows / kRowsPerBlock * kRowsPerBlock);
}

inline const float* Encs(const QuantizedTensor& x) {
  return static_cast<const float*>(x.enc.data());
}

// One quantization under way; two of them share each pass over x.
struct QuantizeJob {
  const Quant& quant;
  const QuantizeContext& context;
  QuantizedTensor* out;
  TensorView decoded;
  RowStats* stats = nullptr;    // (rows)
  uint32_t* columns = nullptr;  // (workers, cols) magnitude bits, per_column only
  // fl(1 / fold), where the loops without divisions may be used; else nullptr.
  const float* reciprocals = nullptr;
  bool fast_encode = false;  // and the scales permit EncodeSr24Fast, too

  bool turned() const { return context.contraction == Axis::kRows; }
  const float* fold() const {
    return out->folded ? static_cast<const float*>(out->fold.data()) : nullptr;
  }
  const float* enc() const { return static_cast<const float*>(out->enc.data()); }
};

}  // namespace nibble::cpu
