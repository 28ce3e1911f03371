// SPDX-License-Identifier: Apache-2.0
//
// GEMM: our own blocked product where the CPU has a kernel for it; OpenBLAS, one thread per tile
// and tiles fixed by the shape, elsewhere and for products too thin to be worth packing. A build
// without OpenBLAS forms every product with its own.
#include <algorithm>

#include "base/strings.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/float_gemm.h"

namespace nibble::cpu {
namespace {

// Tiles this large lose little to repacking; smaller ones are used until a shape gives enough
// pieces to keep several threads busy.
constexpr int64_t kTileRows = 256;
constexpr int64_t kTileCols = 1024;
constexpr int64_t kSmallestTile = 64;
constexpr int64_t kWantedTiles = 8;

struct Tiling {
  int64_t rows, cols, count_rows, count_cols;
};

// Below this many rows or columns most of a packed operand would be used once.
constexpr int64_t kThin = 24;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

Tiling TilingOf(int64_t m, int64_t n) {
  Tiling tiling{std::min(kTileRows, m), std::min(kTileCols, n), 0, 0};
  while (CeilDiv(m, tiling.rows) * CeilDiv(n, tiling.cols) < kWantedTiles) {
    int64_t& larger = tiling.cols >= tiling.rows ? tiling.cols : tiling.rows;
    if (larger < 2 * kSmallestTile) break;
    larger = CeilDiv(larger / 2, kSmallestTile) * kSmallestTile;
  }
  tiling.count_rows = CeilDiv(m, tiling.rows);
  tiling.count_cols = CeilDiv(n, tiling.cols);
  return tiling;
}

}  // namespace

Status CpuBackend::Gemm(GemmMode mode, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                        Transpose transpose_b, bool accumulate, TensorView out) {
  const bool ta = transpose_a == Transpose::kYes;
  const bool tb = transpose_b == Transpose::kYes;
  const int64_t m = out.rows;
  const int64_t n = out.cols;
  const int64_t k = ta ? a.rows : a.cols;
  RETURN_IF_ERROR(CheckView("Gemm", "out", out, m, n));
  RETURN_IF_ERROR(CheckView("Gemm", "a", a, ta ? k : m, ta ? m : k));
  RETURN_IF_ERROR(CheckView("Gemm", "b", b, tb ? n : k, tb ? k : n));
  if (m == 0 || n == 0) return OkStatus();
  if (k == 0) return accumulate ? OkStatus() : Fill(out, 0.0f);
  const bool bf16 = mode == GemmMode::kBf16;
  const FloatKernel& kernel = bf16 ? bf16_kernel_ : BestFloatKernel();
  if (blas_ == nullptr || (kernel.fused && std::min(m, n) >= kThin)) {
    const FloatProduct product{m,
                               n,
                               k,
                               {a.f32(), ta ? 1 : a.cols, ta ? a.cols : 1, bf16},
                               {b.f32(), tb ? b.cols : 1, tb ? 1 : b.cols, bf16},
                               accumulate,
                               out.f32(),
                               n};
    ASSIGN_OR_RETURN(float* left, Workspace(gemm_a_, pool_.threads() * kLeftFloats));
    ASSIGN_OR_RETURN(float* right, Workspace(gemm_b_, kRightFloats));
    FloatGemm(kernel, pool_, product, left, right);
    return OkStatus();
  }
  if (bf16) {
    ASSIGN_OR_RETURN(const TensorView rounded_a, gemm_a_.View(*this, a.rows, a.cols));
    ASSIGN_OR_RETURN(const TensorView rounded_b, gemm_b_.View(*this, b.rows, b.cols));
    RETURN_IF_ERROR(RoundToBf16(a, rounded_a));
    RETURN_IF_ERROR(RoundToBf16(b, rounded_b));
    a = rounded_a;
    b = rounded_b;
  }
  const Tiling tiling = TilingOf(m, n);
  pool_.Run(tiling.count_rows * tiling.count_cols, [&](int64_t tile, int) {
    const int64_t row = tile / tiling.count_cols * tiling.rows;
    const int64_t col = tile % tiling.count_cols * tiling.cols;
    const int64_t rows = std::min(tiling.rows, m - row);
    const int64_t cols = std::min(tiling.cols, n - col);
    const float* left = a.f32() + (ta ? row : row * a.cols);
    const float* right = b.f32() + (tb ? col * b.cols : col);
    blas_(ta, tb, rows, cols, k, left, a.cols, right, b.cols, accumulate, out.f32() + row * n + col,
          n);
  });
  return OkStatus();
}

}  // namespace nibble::cpu
