// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/codes/reference.h"

#include <algorithm>
#include <cstring>

namespace nibble::cpu::codes {
namespace {

constexpr int64_t kExactFloat = int64_t{1} << 24;
constexpr int64_t kRowGrain = 16;

// Contraction elements [first, last) of the operand as FP32 integers, (extent, last - first).
void DecodePiece(ThreadPool& pool, const CodeOperand& operand, int64_t first, int64_t last,
                 float* out) {
  const QuantizedTensor& x = *operand.tensor;
  const int64_t width = last - first;
  const bool along = operand.contraction_along_cols;
  pool.RunRanges(operand.extent, kRowGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      float* line = out + i * width;
      for (int64_t k = first; k < last; ++k) {
        line[k - first] = static_cast<float>(along ? operand.CodeAt(i, k) : operand.CodeAt(k, i));
      }
    }
  });
  if (!operand.wide) return;
  const int32_t* offsets = static_cast<const int32_t*>(x.residual_offsets.data());
  const int32_t* columns = static_cast<const int32_t*>(x.residual_columns.data());
  const int8_t* values = static_cast<const int8_t*>(x.residual_values.data());
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int32_t r = offsets[row]; r < offsets[row + 1]; ++r) {
      const int64_t i = along ? row : columns[r];
      const int64_t k = along ? columns[r] : row;
      if (k >= first && k < last) out[i * width + k - first] += static_cast<float>(values[r]);
    }
  }
}

// Adds `product` (FP32 integers) to the 32-bit sums.
void AddProduct(ThreadPool& pool, const float* product, int64_t size, int32_t* sums) {
  pool.RunRanges(size, 16384, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) sums[i] += static_cast<int32_t>(product[i]);
  });
}

// sums (float) += fl(product * fl(left * right)) of one group.
void AddGroup(ThreadPool& pool, const CodeGemm& gemm, int64_t group, const int32_t* product,
              float* sums) {
  const float* left = gemm.left_group + group * gemm.left_group_stride;
  const float* right = gemm.right_group + group * gemm.right_group_stride;
  pool.RunRanges(gemm.rows, kRowGrain, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      const int32_t* in = product + i * gemm.cols;
      float* out = sums + i * gemm.cols;
      for (int64_t j = 0; j < gemm.cols; ++j) {
        out[j] += static_cast<float>(in[j]) * (left[i] * right[j]);
      }
    }
  });
}

// c of one element: the outliers of row i against column j of the right operand.
float Correction(const CodeGemm& gemm, int64_t i, int64_t j) {
  const QuantizedTensor& x = *gemm.left.tensor;
  const int32_t* offsets = static_cast<const int32_t*>(x.residual_offsets.data());
  const int32_t* columns = static_cast<const int32_t*>(x.residual_columns.data());
  float sum = 0;
  for (int32_t r = offsets[i]; r < offsets[i + 1]; ++r) {
    const int64_t k = columns[r];
    const bool along = gemm.right.contraction_along_cols;
    float w = static_cast<float>(along ? gemm.right.CodeAt(j, k) : gemm.right.CodeAt(k, j));
    if (gemm.group > 0) w *= gemm.right_group[k / gemm.group * gemm.right_group_stride + j];
    sum += ResidualValue(x, r) * w;
  }
  return sum;
}

template <typename Sum>
void Finish(ThreadPool& pool, const CodeGemm& gemm, const Sum* sums) {
  pool.RunRanges(gemm.rows, kRowGrain, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t j = 0; j < gemm.cols; ++j) {
        float y = static_cast<float>(sums[i * gemm.cols + j]) * gemm.left_scale[i];
        if (gemm.sparse) y += Correction(gemm, i, j);
        y *= gemm.right_scale[j];
        float* out = gemm.out + i * gemm.cols + j;
        *out = gemm.accumulate ? *out + y : y;
      }
    }
  });
}

}  // namespace

int64_t ReferenceWorkspace::size_bytes() const {
  return left.capacity_bytes() + right.capacity_bytes() + product.capacity_bytes() +
         sums.capacity_bytes();
}

Status ReferenceCodeGemm(Backend& backend, ThreadPool& pool, const CodeGemm& gemm,
                         ReferenceWorkspace* workspace) {
  const int64_t size = gemm.rows * gemm.cols;
  const int64_t exact = kExactFloat / (int64_t{gemm.left.max_code} * int64_t{gemm.right.max_code});
  const int64_t span = gemm.group > 0 ? gemm.group : std::max<int64_t>(gemm.depth, 1);
  const int64_t piece = std::min(exact, span);
  // 32-bit sums of a group or of everything, then with groups the FP32 sums over groups.
  RETURN_IF_ERROR(workspace->sums.Reserve(backend, size * (gemm.group > 0 ? 8 : 4)));
  int32_t* sums = static_cast<int32_t*>(workspace->sums.data());
  float* group_sums = reinterpret_cast<float*>(sums + size);
  if (gemm.group > 0) std::fill(group_sums, group_sums + size, 0.0f);
  std::fill(sums, sums + size, 0);
  for (int64_t start = 0; start < gemm.depth; start += span) {
    const int64_t stop = std::min(start + span, gemm.depth);
    for (int64_t first = start; first < stop; first += piece) {
      const int64_t width = std::min(piece, stop - first);
      ASSIGN_OR_RETURN(const TensorView left, workspace->left.View(backend, gemm.rows, width));
      ASSIGN_OR_RETURN(const TensorView right, workspace->right.View(backend, gemm.cols, width));
      ASSIGN_OR_RETURN(const TensorView product,
                       workspace->product.View(backend, gemm.rows, gemm.cols));
      DecodePiece(pool, gemm.left, first, first + width, left.f32());
      DecodePiece(pool, gemm.right, first, first + width, right.f32());
      RETURN_IF_ERROR(backend.Gemm(GemmMode::kF32, left, Transpose::kNo, right, Transpose::kYes,
                                   false, product));
      AddProduct(pool, product.f32(), size, sums);
    }
    if (gemm.group == 0) break;
    AddGroup(pool, gemm, start / span, sums, group_sums);
    std::fill(sums, sums + size, 0);
  }
  if (gemm.group > 0) {
    Finish(pool, gemm, group_sums);
  } else {
    Finish(pool, gemm, sums);
  }
  return OkStatus();
}

}  // namespace nibble::cpu::codes
