// SPDX-License-Identifier: Apache-2.0
//
// Gemm, and the reference form of QuantizedGemm: codes as integer-valued FP32, exact sums, scales
// in the epilogue.
#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/e2m1.h"

namespace nibble::cuda {
namespace {

struct ToBf16Op {
  const float* x;
  uint16_t* out;
  __device__ void operator()(int64_t i) const { out[i] = formats::ToBf16(x[i]); }
};

// E2M1 codes in half units, INT8 codes as they are; outliers are added afterwards.
struct IntegersOp {
  const uint8_t* codes;
  int64_t cols, row_bytes;
  bool nibbles;
  float* out;
  __device__ void operator()(int64_t i) const {
    const int64_t row = i / cols;
    const int64_t col = i % cols;
    if (nibbles) {
      const uint8_t pair = codes[row * row_bytes + col / 2];
      const uint8_t code = col % 2 == 0 ? pair & 15u : pair >> 4;
      out[i] = 2.0f * formats::DecodeE2M1(code);
    } else {
      out[i] = static_cast<float>(static_cast<int8_t>(codes[row * row_bytes + col]));
    }
  }
};

struct AddWideOp {
  const int32_t *offsets, *columns;
  const int8_t* values;
  int64_t cols;
  float* out;
  __device__ void operator()(int64_t row) const {
    for (int32_t i = offsets[row]; i < offsets[row + 1]; ++i) {
      out[row * cols + columns[i]] += static_cast<float>(values[i]);
    }
  }
};

// out = fl(fl(S * ra) * rb) [+ out]; a null enc stands for scale 1 (folded into the other operand).
struct EpilogueOp {
  const float* sums;
  int64_t cols;
  const float *enc_a, *enc_b;
  bool per_row_a, per_row_b;
  float unit_a, unit_b;
  bool accumulate;
  float* out;
  __device__ void operator()(int64_t i) const {
    const float ra = enc_a == nullptr ? unit_a : unit_a / enc_a[per_row_a ? i / cols : 0];
    const float rb = enc_b == nullptr ? unit_b : unit_b / enc_b[per_row_b ? i % cols : 0];
    const float value = (sums[i] * ra) * rb;
    out[i] = accumulate ? out[i] + value : value;
  }
};

bool IsIntegerElem(Elem elem) { return elem == Elem::kE2M1 || elem == Elem::kInt8; }

}  // namespace

Status CudaBackend::Gemm(GemmMode mode, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
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
  const MatmulShape shape{m, n, k, ta, tb, mode == GemmMode::kBf16};
  if (!shape.bf16) return matmul_->Run(stream_, shape, a.data, b.data, accumulate, out.f32());
  RETURN_IF_ERROR(gemm_a_.Reserve(*this, a.size() * 2));
  RETURN_IF_ERROR(gemm_b_.Reserve(*this, b.size() * 2));
  uint16_t* rounded_a = static_cast<uint16_t*>(gemm_a_.data());
  uint16_t* rounded_b = static_cast<uint16_t*>(gemm_b_.data());
  RETURN_IF_ERROR(ForEach(stream_, "Gemm", a.size(), ToBf16Op{a.f32(), rounded_a}));
  RETURN_IF_ERROR(ForEach(stream_, "Gemm", b.size(), ToBf16Op{b.f32(), rounded_b}));
  return matmul_->Run(stream_, shape, rounded_a, rounded_b, accumulate, out.f32());
}

Status CudaBackend::Integers(const QuantizedTensor& x, Buffer& buffer) {
  if (!x.has_codes || !IsIntegerElem(x.elem)) {
    return UnimplementedError("QuantizedGemm: the CUDA backend takes e2m1 and int8 codes, not " +
                              ElemName(x.elem));
  }
  if (x.comp == OccComp::kE4M3 || x.comp == OccComp::kBf16) {
    return UnimplementedError(
        "QuantizedGemm: the CUDA backend adds outliers as wide codes only; use the decoded path");
  }
  RETURN_IF_ERROR(buffer.Reserve(*this, x.rows * x.cols * 4));
  float* out = static_cast<float*>(buffer.data());
  RETURN_IF_ERROR(ForEach(stream_, "QuantizedGemm", x.rows * x.cols,
                          IntegersOp{static_cast<const uint8_t*>(x.codes.data()), x.cols,
                                     x.code_row_bytes(), x.elem == Elem::kE2M1, out}));
  if (x.comp != OccComp::kWide || x.residual_count == 0) return OkStatus();
  return ForEach(stream_, "QuantizedGemm", x.rows,
                 AddWideOp{static_cast<const int32_t*>(x.residual_offsets.data()),
                           static_cast<const int32_t*>(x.residual_columns.data()),
                           static_cast<const int8_t*>(x.residual_values.data()), x.cols, out});
}

Status CudaBackend::QuantizedGemm(const QuantizedGemmParams& params, const QuantizedTensor& a,
                                  const QuantizedTensor& b, TensorView out) {
  constexpr int64_t kExactDepth = (int64_t{1} << 24) / (127 * 12);  // FP32 sums stay whole numbers
  const bool ta = params.transpose_a == Transpose::kYes;
  const bool tb = params.transpose_b == Transpose::kYes;
  const int64_t k = ta ? a.rows : a.cols;
  if ((ta ? a.cols : a.rows) != out.rows || (tb ? b.rows : b.cols) != out.cols ||
      (tb ? b.cols : b.rows) != k) {
    return InvalidArgumentError(
        StrFormat("QuantizedGemm: a (%lld, %lld), b (%lld, %lld), out (%lld, %lld) do not fit",
                  static_cast<long long>(a.rows), static_cast<long long>(a.cols),
                  static_cast<long long>(b.rows), static_cast<long long>(b.cols),
                  static_cast<long long>(out.rows), static_cast<long long>(out.cols)));
  }
  if (params.path == Support::kFast || k > kExactDepth || a.block == Block::kGroup ||
      b.block == Block::kGroup || a.block == Block::kTile || b.block == Block::kTile) {
    return UnimplementedError(
        "QuantizedGemm: the CUDA backend has the reference form for outer scales only");
  }
  // A vector of scales must lie along the output; along the contraction it cannot leave the sum.
  if ((!params.fold_a && (ta ? a.per_row() : a.per_column())) ||
      (!params.fold_b && (tb ? b.per_column() : b.per_row()))) {
    return InvalidArgumentError(
        "QuantizedGemm: a vector of scales lies along the contraction; fold it or decode");
  }
  if (out.size() == 0) return OkStatus();
  RETURN_IF_ERROR(Integers(a, code_a_));
  RETURN_IF_ERROR(Integers(b, code_b_));
  RETURN_IF_ERROR(code_out_.Reserve(*this, out.size() * 4));
  float* sums = static_cast<float*>(code_out_.data());
  RETURN_IF_ERROR(matmul_->Run(stream_, {out.rows, out.cols, k, ta, tb, false}, code_a_.data(),
                               code_b_.data(), false, sums));
  const auto unit = [](Elem elem) { return elem == Elem::kE2M1 ? 0.5f : 1.0f; };
  const auto enc = [](const QuantizedTensor& x, bool folded) {
    return folded ? nullptr : static_cast<const float*>(x.enc.data());
  };
  return ForEach(stream_, "QuantizedGemm", out.size(),
                 EpilogueOp{sums, out.cols, enc(a, params.fold_a), enc(b, params.fold_b),
                            a.block != Block::kTensor, b.block != Block::kTensor, unit(a.elem),
                            unit(b.elem), params.accumulate, out.f32()});
}

}  // namespace nibble::cuda
