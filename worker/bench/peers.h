// SPDX-License-Identifier: Apache-2.0
//
// Peers: other libraries doing the same product, as users call them.
//
// Purpose: Y (M, N) = A (M, K) B^T, B (N, K), row-major, on `threads` threads.
// Thread-safety: one thread. Ownership: borrows every matrix for the call or, OneDnn*, the
// lifetime.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"

namespace nibble::bench {

struct GemmShape {
  int64_t m = 0, n = 0, k = 0;
  double operations() const {
    return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  }
};

// One cblas_sgemm, the library's own threading. Leaves the library at one thread, as the CPU
// backend wants it. op(a) (m, k), op(b) (k, n).
void OpenBlasGemm(const GemmShape& shape, bool transpose_a, bool transpose_b, const float* a,
                  const float* b, float beta, float* out, int threads);
std::string OpenBlasDescription();

// A prepared oneDNN product.
class OneDnnGemm {
 public:
  virtual ~OneDnnGemm() = default;
  virtual Status Run() = 0;
};
// "oneDNN 2.6.3", or "" when this build has none.
std::string OneDnnDescription();
// FP32: both operands as they lie. UNIMPLEMENTED when this build or oneDNN has no such product.
Result<std::unique_ptr<OneDnnGemm>> MakeOneDnnF32(const GemmShape& shape, const float* a,
                                                  const float* b, float* out, int threads);
// u8 x s8 -> s32 on arbitrary bytes; B is brought into the library's own layout beforehand.
Result<std::unique_ptr<OneDnnGemm>> MakeOneDnnInt8(const GemmShape& shape, int threads);

}  // namespace nibble::bench
