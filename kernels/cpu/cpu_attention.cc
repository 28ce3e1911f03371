// SPDX-License-Identifier: Apache-2.0
//
// Causal grouped-query attention by row blocks: a block of queries meets all keys it may see, so
// the scores of one block are all that is ever held per thread.
#include <cblas.h>

#include <algorithm>
#include <cmath>

#include "base/strings.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/formats/bf16.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kBlockRows = 64;

// Row max, then row = exp(scale * row - scale * max) over `visible` columns, zeros up to `cols`.
// Returns the log-sum-exp of scale * row.
NIBBLE_CLONES float SoftmaxRow(float* row, float scale, int64_t visible, int64_t cols) {
  float max = -formats::kLargestFloat;
  for (int64_t j = 0; j < visible; ++j) {
    row[j] *= scale;
    max = row[j] > max ? row[j] : max;
  }
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= visible; j += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      row[j + l] = Exp(row[j + l] - max);
      lanes[l] += row[j + l];
    }
  }
  for (int l = 0; j < visible; ++j, ++l) {
    row[j] = Exp(row[j] - max);
    lanes[l] += row[j];
  }
  const float sum = FoldLanes(lanes);
  const float inverse = 1.0f / sum;
  for (int64_t i = 0; i < visible; ++i) row[i] *= inverse;
  for (int64_t i = visible; i < cols; ++i) row[i] = 0.0f;
  return max + std::log(sum);
}

NIBBLE_CLONES void ProbabilityRow(float* row, float scale, float lse, int64_t visible,
                                  int64_t cols) {
  for (int64_t j = 0; j < visible; ++j) row[j] = Exp(row[j] * scale - lse);
  for (int64_t j = visible; j < cols; ++j) row[j] = 0.0f;
}

// dp becomes dscores = p * (dp - delta) * scale.
NIBBLE_CLONES void ScoreGradientRow(const float* p, float* dp, float delta, float scale,
                                    int64_t cols) {
  NIBBLE_INDEPENDENT
  for (int64_t j = 0; j < cols; ++j) dp[j] = (p[j] * (dp[j] - delta)) * scale;
}

NIBBLE_CLONES float Dot(const float* a, const float* b, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[i + l] * b[i + l];
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += a[i] * b[i];
  return FoldLanes(lanes);
}

NIBBLE_CLONES void RoundInPlace(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = formats::RoundBf16(x[i]);
}

void Multiply(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int64_t m, int64_t n, int64_t k,
              const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
              int64_t ldc) {
  cblas_sgemm(CblasRowMajor, ta, tb, static_cast<blasint>(m), static_cast<blasint>(n),
              static_cast<blasint>(k), 1.0f, a, static_cast<blasint>(lda), b,
              static_cast<blasint>(ldb), beta, c, static_cast<blasint>(ldc));
}

Status CheckParams(const AttentionParams& p, bool backward) {
  const bool sizes = p.batch > 0 && p.seq > 0 && p.kv_seq >= p.seq && p.head_dim > 0 &&
                     p.heads > 0 && p.kv_heads > 0 && p.heads % p.kv_heads == 0;
  if (sizes && (!backward || p.kv_seq == p.seq)) return OkStatus();
  return InvalidArgumentError(StrFormat(
      "Attention: batch %lld, seq %lld, kv_seq %lld, heads %lld, kv_heads %lld, head_dim %lld; "
      "all must be positive, kv_heads must divide heads, kv_seq %s seq",
      static_cast<long long>(p.batch), static_cast<long long>(p.seq),
      static_cast<long long>(p.kv_seq), static_cast<long long>(p.heads),
      static_cast<long long>(p.kv_heads), static_cast<long long>(p.head_dim),
      backward ? "must equal" : "must be at least"));
}

}  // namespace

Status CpuBackend::AttentionForward(const AttentionParams& p, ConstTensorView q, ConstTensorView k,
                                    ConstTensorView v, TensorView out, TensorView lse) {
  RETURN_IF_ERROR(CheckParams(p, false));
  const int64_t q_width = p.heads * p.head_dim;
  const int64_t kv_width = p.kv_heads * p.head_dim;
  RETURN_IF_ERROR(CheckView("AttentionForward", "q", q, p.batch * p.seq, q_width));
  RETURN_IF_ERROR(CheckView("AttentionForward", "k", k, p.batch * p.kv_seq, kv_width));
  RETURN_IF_ERROR(CheckView("AttentionForward", "v", v, p.batch * p.kv_seq, kv_width));
  RETURN_IF_ERROR(CheckView("AttentionForward", "out", out, p.batch * p.seq, q_width));
  RETURN_IF_ERROR(CheckView("AttentionForward", "lse", lse, p.batch * p.heads, p.seq));
  const bool bf16 = p.mode == GemmMode::kBf16;
  if (bf16) {
    ASSIGN_OR_RETURN(float* rounded, Workspace(attention_rounded_, q.size() + k.size() + v.size()));
    const TensorView rq{rounded, q.rows, q.cols}, rk{rounded + q.size(), k.rows, k.cols};
    const TensorView rv{rounded + q.size() + k.size(), v.rows, v.cols};
    RETURN_IF_ERROR(RoundToBf16(q, rq));
    RETURN_IF_ERROR(RoundToBf16(k, rk));
    RETURN_IF_ERROR(RoundToBf16(v, rv));
    q = rq, k = rk, v = rv;
  }
  ASSIGN_OR_RETURN(float* scratch,
                   Workspace(attention_scratch_, pool_.threads() * kBlockRows * p.kv_seq));
  const int64_t blocks = (p.seq + kBlockRows - 1) / kBlockRows;
  const int64_t group = p.heads / p.kv_heads;
  const int64_t past = p.kv_seq - p.seq;
  const float scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  pool_.Run(p.batch * p.heads * blocks, [&](int64_t unit, int worker) {
    const int64_t block = blocks - 1 - unit % blocks;  // long blocks first
    const int64_t head = unit / blocks % p.heads;
    const int64_t batch = unit / blocks / p.heads;
    const int64_t row = block * kBlockRows;
    const int64_t rows = std::min(kBlockRows, p.seq - row);
    const int64_t keys = past + row + rows;
    const int64_t q_offset = (batch * p.seq + row) * q_width + head * p.head_dim;
    const int64_t kv_offset = batch * p.kv_seq * kv_width + head / group * p.head_dim;
    float* scores = scratch + worker * kBlockRows * p.kv_seq;
    Multiply(CblasNoTrans, CblasTrans, rows, keys, p.head_dim, q.f32() + q_offset, q_width,
             k.f32() + kv_offset, kv_width, 0.0f, scores, keys);
    for (int64_t i = 0; i < rows; ++i) {
      lse.f32()[(batch * p.heads + head) * p.seq + row + i] =
          SoftmaxRow(scores + i * keys, scale, past + row + i + 1, keys);
    }
    if (bf16) RoundInPlace(scores, rows * keys);
    Multiply(CblasNoTrans, CblasNoTrans, rows, p.head_dim, keys, scores, keys, v.f32() + kv_offset,
             kv_width, 0.0f, out.f32() + q_offset, q_width);
  });
  return OkStatus();
}

Status CpuBackend::AttentionBackward(const AttentionParams& p, ConstTensorView dout,
                                     ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                     ConstTensorView out, ConstTensorView lse, TensorView dq,
                                     TensorView dk, TensorView dv) {
  RETURN_IF_ERROR(CheckParams(p, true));
  const int64_t tokens = p.batch * p.seq;
  const int64_t q_width = p.heads * p.head_dim;
  const int64_t kv_width = p.kv_heads * p.head_dim;
  const char* op = "AttentionBackward";
  RETURN_IF_ERROR(CheckView(op, "dout", dout, tokens, q_width));
  RETURN_IF_ERROR(CheckView(op, "q", q, tokens, q_width));
  RETURN_IF_ERROR(CheckView(op, "k", k, tokens, kv_width));
  RETURN_IF_ERROR(CheckView(op, "v", v, tokens, kv_width));
  RETURN_IF_ERROR(CheckView(op, "out", out, tokens, q_width));
  RETURN_IF_ERROR(CheckView(op, "lse", lse, p.batch * p.heads, p.seq));
  RETURN_IF_ERROR(CheckView(op, "dq", dq, tokens, q_width));
  RETURN_IF_ERROR(CheckView(op, "dk", dk, tokens, kv_width));
  RETURN_IF_ERROR(CheckView(op, "dv", dv, tokens, kv_width));
  const bool bf16 = p.mode == GemmMode::kBf16;
  if (bf16) {
    ASSIGN_OR_RETURN(float* rounded,
                     Workspace(attention_rounded_, 2 * q.size() + k.size() + v.size()));
    const TensorView rq{rounded, q.rows, q.cols}, rd{rounded + q.size(), q.rows, q.cols};
    const TensorView rk{rounded + 2 * q.size(), k.rows, k.cols};
    const TensorView rv{rounded + 2 * q.size() + k.size(), v.rows, v.cols};
    RETURN_IF_ERROR(RoundToBf16(q, rq));
    RETURN_IF_ERROR(RoundToBf16(dout, rd));
    RETURN_IF_ERROR(RoundToBf16(k, rk));
    RETURN_IF_ERROR(RoundToBf16(v, rv));
    q = rq, dout = rd, k = rk, v = rv;
  }
  ASSIGN_OR_RETURN(float* scratch,
                   Workspace(attention_scratch_, pool_.threads() * 2 * kBlockRows * p.seq));
  const int64_t group = p.heads / p.kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  // One key-value head is one unit: its dk and dv sum over its query heads in a fixed order.
  pool_.Run(p.batch * p.kv_heads, [&](int64_t unit, int worker) {
    const int64_t batch = unit / p.kv_heads;
    const int64_t kv_head = unit % p.kv_heads;
    const int64_t kv_offset = batch * p.seq * kv_width + kv_head * p.head_dim;
    float* scores = scratch + worker * 2 * kBlockRows * p.seq;
    float* dscores = scores + kBlockRows * p.seq;
    for (int64_t t = 0; t < p.seq; ++t) {
      std::fill_n(dk.f32() + kv_offset + t * kv_width, p.head_dim, 0.0f);
      std::fill_n(dv.f32() + kv_offset + t * kv_width, p.head_dim, 0.0f);
    }
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      for (int64_t row = 0; row < p.seq; row += kBlockRows) {
        const int64_t rows = std::min(kBlockRows, p.seq - row);
        const int64_t keys = row + rows;
        const int64_t offset = (batch * p.seq + row) * q_width + head * p.head_dim;
        Multiply(CblasNoTrans, CblasTrans, rows, keys, p.head_dim, q.f32() + offset, q_width,
                 k.f32() + kv_offset, kv_width, 0.0f, scores, keys);
        Multiply(CblasNoTrans, CblasTrans, rows, keys, p.head_dim, dout.f32() + offset, q_width,
                 v.f32() + kv_offset, kv_width, 0.0f, dscores, keys);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t at = offset + i * q_width;
          const float delta = Dot(dout.f32() + at, out.f32() + at, p.head_dim);
          ProbabilityRow(scores + i * keys, scale,
                         lse.f32()[(batch * p.heads + head) * p.seq + row + i], row + i + 1, keys);
          ScoreGradientRow(scores + i * keys, dscores + i * keys, delta, scale, keys);
        }
        if (bf16) {
          RoundInPlace(scores, rows * keys);
          RoundInPlace(dscores, rows * keys);
        }
        Multiply(CblasTrans, CblasNoTrans, keys, p.head_dim, rows, scores, keys,
                 dout.f32() + offset, q_width, 1.0f, dv.f32() + kv_offset, kv_width);
        Multiply(CblasNoTrans, CblasNoTrans, rows, p.head_dim, keys, dscores, keys,
                 k.f32() + kv_offset, kv_width, 0.0f, dq.f32() + offset, q_width);
        Multiply(CblasTrans, CblasNoTrans, keys, p.head_dim, rows, dscores, keys, q.f32() + offset,
                 q_width, 1.0f, dk.f32() + kv_offset, kv_width);
      }
    }
  });
  return OkStatus();
}

}  // namespace nibble::cpu
