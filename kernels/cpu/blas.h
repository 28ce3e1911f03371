// SPDX-License-Identifier: Apache-2.0
//
// The matrix product of a BLAS library, where the build has one (OpenBLAS).
//
// Purpose: one place that knows the library. Builds without it (cpu/blas_absent.cc) form every
// product with FloatGemm. Thread-safety: thread-safe; each call runs on the caller's thread.
#pragma once

#include <cstdint>
#include <string>

namespace nibble::cpu {

// out (m, n) = op(a) (m, k) op(b) (k, n), plus out when `accumulate`; row-major FP32 with the row
// strides given.
using SgemmFn = void (*)(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                         const float* a, int64_t stride_a, const float* b, int64_t stride_b,
                         bool accumulate, float* out, int64_t stride_out);

// The library's product on one thread; nullptr in a build without a library.
SgemmFn BlasSgemm();
// "OpenBLAS Zen"; "no BLAS" in a build without a library.
std::string BlasName();

}  // namespace nibble::cpu
