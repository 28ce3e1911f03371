// SPDX-License-Identifier: Apache-2.0
#include <cblas.h>

#include "worker/bench/peers.h"

namespace nibble::bench {

void OpenBlasGemm(const GemmShape& shape, bool transpose_a, bool transpose_b, const float* a,
                  const float* b, float beta, float* out, int threads) {
  const auto m = static_cast<blasint>(shape.m);
  const auto n = static_cast<blasint>(shape.n);
  const auto k = static_cast<blasint>(shape.k);
  openblas_set_num_threads(threads);
  cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans,
              transpose_b ? CblasTrans : CblasNoTrans, m, n, k, 1.0f, a, transpose_a ? m : k, b,
              transpose_b ? k : n, beta, out, n);
  openblas_set_num_threads(1);
}

std::string OpenBlasDescription() {
  return std::string(openblas_get_config()) + " (" + openblas_get_corename() + ")";
}

}  // namespace nibble::bench
