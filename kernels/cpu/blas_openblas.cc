// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/blas.h"

#include <cblas.h>

namespace nibble::cpu {
namespace {

void Sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
           int64_t stride_a, const float* b, int64_t stride_b, bool accumulate, float* out,
           int64_t stride_out) {
  cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans,
              transpose_b ? CblasTrans : CblasNoTrans, static_cast<blasint>(m),
              static_cast<blasint>(n), static_cast<blasint>(k), 1.0f, a,
              static_cast<blasint>(stride_a), b, static_cast<blasint>(stride_b),
              accumulate ? 1.0f : 0.0f, out, static_cast<blasint>(stride_out));
}

}  // namespace

SgemmFn BlasSgemm() {
  // The library's own split of a product would depend on its threads.
  openblas_set_num_threads(1);
  return Sgemm;
}

std::string BlasName() { return std::string("OpenBLAS ") + openblas_get_corename(); }

}  // namespace nibble::cpu
