// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/codes/outliers.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace nibble::cpu::codes {
namespace {

// An outlier costs as much as ten to fifteen codes of the dense product. Against E2M1 the dense
// form of wide codes is slower by nothing to a fifth, as the machine is loaded; against INT8 by
// half.
constexpr double kMostAgainstNarrow = 0.004;
constexpr double kMostAgainstBytes = 0.05;
// Codes up to this have a dense form of nearly full speed.
constexpr int kNearlyNarrow = 40;
constexpr int64_t kGrain = 4096;

CodeOutlier Placed(const PanelLayout& right, int64_t k, int value) {
  const int64_t place = right.At(k, 0);
  return {static_cast<int32_t>(place / 4 * 4),
          static_cast<uint32_t>(std::abs(value)) << (place % 4 * 8),
          value < 0 ? 0xFFFFFFFFu : 0x00010001u};
}

}  // namespace

void SplitOutliers(const KernelSet& kernels, CodeGemm* gemm) {
  if (kernels.outlier_sums == nullptr || gemm->group > 0 || gemm->sparse) return;
  if (gemm->left.wide == gemm->right.wide) return;
  CodeOperand& wide = gemm->left.wide ? gemm->left : gemm->right;
  const CodeOperand& other = gemm->left.wide ? gemm->right : gemm->left;
  const bool narrow = other.max_code <= wide.table.max_code;
  if (narrow && wide.max_code <= kNearlyNarrow) return;
  const double most = narrow ? kMostAgainstNarrow : kMostAgainstBytes;
  const auto size = static_cast<double>(wide.extent * wide.depth);
  if (static_cast<double>(wide.tensor->residual_count) > most * size) return;
  wide.wide = false;
  wide.max_code = wide.table.max_code;
  gemm->split = true;
  if (&wide == &gemm->left) return;
  std::swap(gemm->left, gemm->right);
  std::swap(gemm->rows, gemm->cols);
  gemm->transposed = true;
}

Result<PlacedOutliers> PlaceOutliers(Backend& backend, ThreadPool& pool, const CodeGemm& gemm,
                                     const PanelLayout& right, Buffer* memory) {
  const QuantizedTensor& x = *gemm.left.tensor;
  const int64_t count = x.residual_count;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(CodeOutlier));
  RETURN_IF_ERROR(memory->Reserve(backend, bytes + (gemm.rows + 2) * 4));
  auto* outliers = static_cast<CodeOutlier*>(memory->data());
  auto* starts = reinterpret_cast<int32_t*>(outliers + count);
  const auto* offsets = static_cast<const int32_t*>(x.residual_offsets.data());
  const auto* columns = static_cast<const int32_t*>(x.residual_columns.data());
  const auto* values = static_cast<const int8_t*>(x.residual_values.data());
  if (gemm.left.contraction_along_cols) {
    pool.RunRanges(count, kGrain, [&](int64_t first, int64_t last, int) {
      for (int64_t i = first; i < last; ++i) outliers[i] = Placed(right, columns[i], values[i]);
    });
    return PlacedOutliers{offsets, outliers};
  }
  // Sorted by column. starts[c + 1] is where those of column c go; in the end, where they end.
  std::fill(starts, starts + gemm.rows + 2, 0);
  for (int64_t i = 0; i < count; ++i) ++starts[columns[i] + 2];
  for (int64_t c = 0; c < gemm.rows; ++c) starts[c + 1] += starts[c];
  for (int64_t k = 0; k < x.rows; ++k) {
    for (int32_t i = offsets[k]; i < offsets[k + 1]; ++i) {
      outliers[starts[columns[i] + 1]++] = Placed(right, k, values[i]);
    }
  }
  return PlacedOutliers{starts, outliers};
}

}  // namespace nibble::cpu::codes
