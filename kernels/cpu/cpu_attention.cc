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
  for (int64_t j = 0; j < visible; ++j) row[j] *= scale;
  const float max = LargestOf(row, visible);
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

// The views of one attention call after rounding, with sizes worked out.
struct Heads {
  AttentionParams p;
  int64_t q_width, kv_width, group;
  float scale;
  bool bf16;

  explicit Heads(const AttentionParams& params)
      : p(params),
        q_width(params.heads * params.head_dim),
        kv_width(params.kv_heads * params.head_dim),
        group(params.heads / params.kv_heads),
        scale(1.0f / std::sqrt(static_cast<float>(params.head_dim))),
        bf16(params.mode == GemmMode::kBf16) {}
};

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

Status CheckOperands(const char* op, const Heads& h, ConstTensorView q, ConstTensorView k,
                     ConstTensorView v, ConstTensorView out, ConstTensorView lse) {
  RETURN_IF_ERROR(CheckView(op, "q", q, h.p.batch * h.p.seq, h.q_width));
  RETURN_IF_ERROR(CheckView(op, "k", k, h.p.batch * h.p.kv_seq, h.kv_width));
  RETURN_IF_ERROR(CheckView(op, "v", v, h.p.batch * h.p.kv_seq, h.kv_width));
  RETURN_IF_ERROR(CheckView(op, "out", out, h.p.batch * h.p.seq, h.q_width));
  return CheckView(op, "lse", lse, h.p.batch * h.p.heads, h.p.seq);
}

struct BackwardViews {
  ConstTensorView dout, q, k, v, out, lse;
  TensorView dq, dk, dv;
};

// One block of query rows of one head: its dq, and its share of dk and dv.
void BackwardBlock(const Heads& h, const BackwardViews& t, int64_t batch, int64_t head, int64_t row,
                   float* scores, float* dscores) {
  const int64_t dim = h.p.head_dim;
  const int64_t rows = std::min(kBlockRows, h.p.seq - row);
  const int64_t keys = row + rows;
  const int64_t offset = (batch * h.p.seq + row) * h.q_width + head * dim;
  const int64_t kv_offset = batch * h.p.seq * h.kv_width + head / h.group * dim;
  const float* lse = t.lse.f32() + (batch * h.p.heads + head) * h.p.seq + row;
  Multiply(CblasNoTrans, CblasTrans, rows, keys, dim, t.q.f32() + offset, h.q_width,
           t.k.f32() + kv_offset, h.kv_width, 0.0f, scores, keys);
  Multiply(CblasNoTrans, CblasTrans, rows, keys, dim, t.dout.f32() + offset, h.q_width,
           t.v.f32() + kv_offset, h.kv_width, 0.0f, dscores, keys);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = offset + i * h.q_width;
    const float delta = Dot(t.dout.f32() + at, t.out.f32() + at, dim);
    ProbabilityRow(scores + i * keys, h.scale, lse[i], row + i + 1, keys);
    ScoreGradientRow(scores + i * keys, dscores + i * keys, delta, h.scale, keys);
  }
  if (h.bf16) {
    RoundInPlace(scores, rows * keys);
    RoundInPlace(dscores, rows * keys);
  }
  Multiply(CblasTrans, CblasNoTrans, keys, dim, rows, scores, keys, t.dout.f32() + offset,
           h.q_width, 1.0f, t.dv.f32() + kv_offset, h.kv_width);
  Multiply(CblasNoTrans, CblasNoTrans, rows, dim, keys, dscores, keys, t.k.f32() + kv_offset,
           h.kv_width, 0.0f, t.dq.f32() + offset, h.q_width);
  Multiply(CblasTrans, CblasNoTrans, keys, dim, rows, dscores, keys, t.q.f32() + offset, h.q_width,
           1.0f, t.dk.f32() + kv_offset, h.kv_width);
}

}  // namespace

Status CpuBackend::RoundOperands(std::initializer_list<ConstTensorView*> operands) {
  int64_t total = 0;
  for (const ConstTensorView* view : operands) total += view->size();
  ASSIGN_OR_RETURN(float* next, Workspace(attention_rounded_, total));
  for (ConstTensorView* view : operands) {
    const TensorView rounded{next, view->rows, view->cols};
    RETURN_IF_ERROR(RoundToBf16(*view, rounded));
    *view = rounded;
    next += rounded.size();
  }
  return OkStatus();
}

Status CpuBackend::AttentionForward(const AttentionParams& p, ConstTensorView q, ConstTensorView k,
                                    ConstTensorView v, TensorView out, TensorView lse) {
  RETURN_IF_ERROR(CheckParams(p, false));
  const Heads h(p);
  RETURN_IF_ERROR(CheckOperands("AttentionForward", h, q, k, v, out, lse));
  if (h.bf16) RETURN_IF_ERROR(RoundOperands({&q, &k, &v}));
  ASSIGN_OR_RETURN(float* scratch,
                   Workspace(attention_scratch_, pool_.threads() * kBlockRows * p.kv_seq));
  const int64_t blocks = (p.seq + kBlockRows - 1) / kBlockRows;
  const int64_t past = p.kv_seq - p.seq;
  pool_.Run(p.batch * p.heads * blocks, [&](int64_t unit, int worker) {
    const int64_t block = blocks - 1 - unit % blocks;  // long blocks first
    const int64_t head = unit / blocks % p.heads;
    const int64_t batch = unit / blocks / p.heads;
    const int64_t row = block * kBlockRows;
    const int64_t rows = std::min(kBlockRows, p.seq - row);
    const int64_t keys = past + row + rows;
    const int64_t q_offset = (batch * p.seq + row) * h.q_width + head * p.head_dim;
    const int64_t kv_offset = batch * p.kv_seq * h.kv_width + head / h.group * p.head_dim;
    float* scores = scratch + worker * kBlockRows * p.kv_seq;
    Multiply(CblasNoTrans, CblasTrans, rows, keys, p.head_dim, q.f32() + q_offset, h.q_width,
             k.f32() + kv_offset, h.kv_width, 0.0f, scores, keys);
    for (int64_t i = 0; i < rows; ++i) {
      lse.f32()[(batch * p.heads + head) * p.seq + row + i] =
          SoftmaxRow(scores + i * keys, h.scale, past + row + i + 1, keys);
    }
    if (h.bf16) RoundInPlace(scores, rows * keys);
    Multiply(CblasNoTrans, CblasNoTrans, rows, p.head_dim, keys, scores, keys, v.f32() + kv_offset,
             h.kv_width, 0.0f, out.f32() + q_offset, h.q_width);
  });
  return OkStatus();
}

Status CpuBackend::AttentionBackward(const AttentionParams& p, ConstTensorView dout,
                                     ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                     ConstTensorView out, ConstTensorView lse, TensorView dq,
                                     TensorView dk, TensorView dv) {
  RETURN_IF_ERROR(CheckParams(p, true));
  const Heads h(p);
  const char* op = "AttentionBackward";
  RETURN_IF_ERROR(CheckOperands(op, h, q, k, v, out, lse));
  RETURN_IF_ERROR(CheckView(op, "dout", dout, q.rows, q.cols));
  RETURN_IF_ERROR(CheckView(op, "dq", dq, q.rows, q.cols));
  RETURN_IF_ERROR(CheckView(op, "dk", dk, k.rows, k.cols));
  RETURN_IF_ERROR(CheckView(op, "dv", dv, v.rows, v.cols));
  if (h.bf16) RETURN_IF_ERROR(RoundOperands({&dout, &q, &k, &v}));
  ASSIGN_OR_RETURN(float* scratch,
                   Workspace(attention_scratch_, pool_.threads() * 2 * kBlockRows * p.seq));
  RETURN_IF_ERROR(Fill(dk, 0.0f));
  RETURN_IF_ERROR(Fill(dv, 0.0f));
  const BackwardViews views{dout, q, k, v, out, lse, dq, dk, dv};
  // One key-value head is one unit: its dk and dv sum over its query heads in a fixed order.
  pool_.Run(p.batch * p.kv_heads, [&](int64_t unit, int worker) {
    const int64_t batch = unit / p.kv_heads;
    const int64_t first_head = unit % p.kv_heads * h.group;
    float* scores = scratch + worker * 2 * kBlockRows * p.seq;
    for (int64_t head = first_head; head < first_head + h.group; ++head) {
      for (int64_t row = 0; row < p.seq; row += kBlockRows) {
        BackwardBlock(h, views, batch, head, row, scores, scores + kBlockRows * p.seq);
      }
    }
  });
  return OkStatus();
}

}  // namespace nibble::cpu
