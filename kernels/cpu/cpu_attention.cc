// SPDX-License-Identifier: Apache-2.0
//
// Causal grouped-query attention after FlashAttention-2 (Dao 2023): blocks of keys meet panels of
// queries, softmax runs along, and no more than one block of scores exists per thread.
//
// Everything is computed turned: scores lie key by key with a panel of queries side by side, so a
// block of probabilities is the right operand of the next product as it stands. The backward pass
// takes one key-value head as a unit: its dk and dv sum over queries in a fixed order.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/strings.h"
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/float_kernel.h"

namespace nibble::cpu {
namespace {

// Keys that meet a panel of queries at a time: whole register tiles of every kernel (12, 6, 4);
// scores of a block (36 KiB with 32 queries) stay near the core.
constexpr int64_t kKeyBlock = 288;
constexpr int64_t kQueryRows = 128;  // of one head, the forward pass's unit of work: whole panels

int64_t RoundUp(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Hands out parts of a thread's scratch memory, each on 64 bytes; with a null base it measures.
class Scratch {
 public:
  explicit Scratch(float* base) : base_(base) {}
  float* Take(int64_t floats) {
    float* part = base_ == nullptr ? nullptr : base_ + used_;
    used_ += RoundUp(floats, 16);
    return part;
  }
  int64_t used() const { return used_; }

 private:
  float* base_;
  int64_t used_ = 0;
};

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

// Sizes in a kernel's terms.
struct Tiles {
  const FloatKernel& kernel = BestFloatKernel();
  int64_t width = kernel.cols;  // queries of a panel
  int64_t dim, dims;            // head dimension; the same rounded up to register tiles
  int64_t keys, padded_keys;
  bool bf16;

  explicit Tiles(const Heads& h)
      : dim(h.p.head_dim),
        dims(RoundUp(dim, kernel.rows)),
        keys(h.p.kv_seq),
        padded_keys(RoundUp(keys, kernel.rows)),
        bf16(h.bf16) {}

  // Rows of x (`rows` of them, `stride` apart) as lanes, dimensions as depth.
  void PackRows(const float* x, int64_t stride, int64_t rows, int64_t panel, float* out) const {
    PackPanels({x, stride, 1, bf16}, rows, dim, panel, panel * dim, out);
  }
  // Dimensions as lanes, rows as depth.
  void PackDims(const float* x, int64_t stride, int64_t rows, int64_t panel, float* out) const {
    PackPanels({x, 1, stride, bf16}, dim, rows, panel, panel * rows, out);
  }
};

// Keys and values of one head for the forward pass: keys as lanes, and dimensions as lanes.
int64_t PackedHeadFloats(const Tiles& t) { return t.padded_keys * t.dim + t.dims * t.keys; }

struct ForwardScratch {
  float *query, *scores, *out, *max, *sum, *rescale;

  ForwardScratch(const Tiles& t, Scratch& s)
      : query(s.Take(t.dim * t.width)),
        scores(s.Take(kKeyBlock * t.width)),
        out(s.Take(t.dims * t.width)),
        max(s.Take(t.width)),
        sum(s.Take(t.width)),
        rescale(s.Take(t.width)) {}
};

// One panel of queries: first position `row` of a head, `rows` of them at q; out and lse likewise.
void ForwardPanel(const Heads& h, const Tiles& t, const ForwardScratch& s, int64_t row,
                  int64_t rows, const float* q, const float* packed, float* out, float* lse) {
  const FloatKernel& kernel = t.kernel;
  const float* packed_values = packed + t.padded_keys * t.dim;
  const int64_t past = h.p.kv_seq - h.p.seq;
  t.PackRows(q, h.q_width, rows, t.width, s.query);
  std::fill(s.max, s.max + t.width, -std::numeric_limits<float>::max());
  std::fill(s.sum, s.sum + t.width, 0.0f);
  const int64_t end = past + row + rows;
  for (int64_t first = 0; first < end; first += kKeyBlock) {
    const int64_t keys = std::min(kKeyBlock, end - first);
    for (int64_t j = 0; j < keys; j += kernel.rows) {
      kernel.run(t.dim, packed + (first + j) * t.dim, s.query, false, s.scores + j * t.width,
                 t.width);
    }
    OnlineSoftmax(s.scores, keys, t.width, h.scale, h.bf16, past + row + 1 - first, s.max, s.sum,
                  s.rescale);
    if (first > 0) ScaleColumns(s.out, t.dims, t.width, s.rescale);
    for (int64_t c = 0; c < t.dims; c += kernel.rows) {
      kernel.run(keys, packed_values + c * t.keys + first * kernel.rows, s.scores, first > 0,
                 s.out + c * t.width, t.width);
    }
  }
  for (int64_t l = 0; l < t.width; ++l) s.rescale[l] = 1.0f / s.sum[l];
  ScaleColumns(s.out, t.dims, t.width, s.rescale);
  TransposeInto(s.out, t.width, t.dim, rows, out, h.q_width);
  for (int64_t l = 0; l < rows; ++l) lse[l] = s.max[l] + std::log(s.sum[l]);
}

struct BackwardScratch {
  float *keys, *values, *key_dims;  // of the head: keys as lanes twice, dimensions as lanes
  float *query, *dout, *query_dims, *dout_dims;  // of a panel: queries as lanes; dimensions
  float *scores, *dscores, *dquery, *lse, *delta;

  BackwardScratch(const Tiles& t, Scratch& s)
      : keys(s.Take(t.padded_keys * t.dim)),
        values(s.Take(t.padded_keys * t.dim)),
        key_dims(s.Take(t.dims * t.keys)),
        query(s.Take(t.dim * t.width)),
        dout(s.Take(t.dim * t.width)),
        query_dims(s.Take(RoundUp(t.dim, t.width) * t.width)),
        dout_dims(s.Take(RoundUp(t.dim, t.width) * t.width)),
        scores(s.Take(kKeyBlock * t.width)),
        dscores(s.Take(kKeyBlock * t.width)),
        dquery(s.Take(t.dims * t.width)),
        lse(s.Take(t.width)),
        delta(s.Take(t.width)) {}
};

// gradient (keys, dim; rows kv_width apart) += tile^T panel: tile (keys, queries), panel the
// dimensions of `rows` queries.
void AddKeyGradient(const Heads& h, const Tiles& t, int64_t keys, int64_t rows, const float* tile,
                    const float* panel, float* gradient) {
  const FloatKernel& kernel = t.kernel;
  for (int64_t j = 0; j < keys; j += kernel.rows) {
    for (int64_t c = 0; c < t.dim; c += t.width) {
      RunTile(kernel, kernel.run_tile, rows, tile + j * t.width, panel + c * rows, true, keys - j,
              t.dim - c, gradient + j * h.kv_width + c, h.kv_width);
    }
  }
}

// One panel of queries of one head: its dq, and its share of dk and dv. `at` is the element of the
// panel's first query, kv_at that of the head's first key.
void BackwardPanel(const Heads& h, const Tiles& t, const BackwardViews& v, const BackwardScratch& s,
                   int64_t row, int64_t rows, int64_t at, int64_t kv_at, const float* lse) {
  const FloatKernel& kernel = t.kernel;
  t.PackRows(v.q.f32() + at, h.q_width, rows, t.width, s.query);
  t.PackRows(v.dout.f32() + at, h.q_width, rows, t.width, s.dout);
  t.PackDims(v.q.f32() + at, h.q_width, rows, t.width, s.query_dims);
  t.PackDims(v.dout.f32() + at, h.q_width, rows, t.width, s.dout_dims);
  std::fill(s.lse, s.lse + t.width, 0.0f);
  std::fill(s.delta, s.delta + t.width, 0.0f);
  for (int64_t l = 0; l < rows; ++l) {
    s.lse[l] = lse[l];
    s.delta[l] =
        RowProduct(v.dout.f32() + at + l * h.q_width, v.out.f32() + at + l * h.q_width, t.dim);
  }
  const int64_t end = row + rows;
  for (int64_t first = 0; first < end; first += kKeyBlock) {
    const int64_t keys = std::min(kKeyBlock, end - first);
    for (int64_t j = 0; j < keys; j += kernel.rows) {
      const int64_t panel = (first + j) * t.dim;
      kernel.run(t.dim, s.keys + panel, s.query, false, s.scores + j * t.width, t.width);
      kernel.run(t.dim, s.values + panel, s.dout, false, s.dscores + j * t.width, t.width);
    }
    ScoreGradients(s.scores, s.dscores, keys, t.width, h.scale, h.bf16, row + 1 - first, s.lse,
                   s.delta);
    const int64_t kv = kv_at + first * h.kv_width;
    AddKeyGradient(h, t, keys, rows, s.scores, s.dout_dims, v.dv.f32() + kv);
    AddKeyGradient(h, t, keys, rows, s.dscores, s.query_dims, v.dk.f32() + kv);
    for (int64_t c = 0; c < t.dims; c += kernel.rows) {
      kernel.run(keys, s.key_dims + c * t.keys + first * kernel.rows, s.dscores, first > 0,
                 s.dquery + c * t.width, t.width);
    }
  }
  TransposeInto(s.dquery, t.width, t.dim, rows, v.dq.f32() + at, h.q_width);
}

// One key-value head with all its query heads.
void BackwardHead(const Heads& h, const Tiles& t, const BackwardViews& v, const BackwardScratch& s,
                  int64_t batch, int64_t kv_head) {
  const int64_t kv_at = batch * h.p.seq * h.kv_width + kv_head * t.dim;
  t.PackRows(v.k.f32() + kv_at, h.kv_width, t.keys, t.kernel.rows, s.keys);
  t.PackRows(v.v.f32() + kv_at, h.kv_width, t.keys, t.kernel.rows, s.values);
  t.PackDims(v.k.f32() + kv_at, h.kv_width, t.keys, t.kernel.rows, s.key_dims);
  for (int64_t key = 0; key < t.keys; ++key) {
    std::fill_n(v.dk.f32() + kv_at + key * h.kv_width, t.dim, 0.0f);
    std::fill_n(v.dv.f32() + kv_at + key * h.kv_width, t.dim, 0.0f);
  }
  for (int64_t head = kv_head * h.group; head < (kv_head + 1) * h.group; ++head) {
    for (int64_t row = 0; row < h.p.seq; row += t.width) {
      const int64_t at = (batch * h.p.seq + row) * h.q_width + head * t.dim;
      BackwardPanel(h, t, v, s, row, std::min(t.width, h.p.seq - row), at, kv_at,
                    v.lse.f32() + (batch * h.p.heads + head) * h.p.seq + row);
    }
  }
}

}  // namespace

Status CpuBackend::AttentionForward(const AttentionParams& p, ConstTensorView q, ConstTensorView k,
                                    ConstTensorView v, TensorView out, TensorView lse) {
  RETURN_IF_ERROR(CheckParams(p, false));
  const Heads h(p);
  RETURN_IF_ERROR(CheckOperands("AttentionForward", h, q, k, v, out, lse));
  const Tiles t(h);
  Scratch measure(nullptr);
  const ForwardScratch sizes(t, measure);
  const int64_t per_thread = measure.used();
  const int64_t per_head = RoundUp(PackedHeadFloats(t), 16);
  ASSIGN_OR_RETURN(float* scratch, Workspace(attention_scratch_, pool_.threads() * per_thread));
  ASSIGN_OR_RETURN(float* packed, Workspace(attention_packed_, p.batch * p.kv_heads * per_head));
  pool_.Run(p.batch * p.kv_heads, [&](int64_t unit, int) {
    const int64_t at = unit / p.kv_heads * p.kv_seq * h.kv_width + unit % p.kv_heads * t.dim;
    float* keys = packed + unit * per_head;
    t.PackRows(k.f32() + at, h.kv_width, t.keys, t.kernel.rows, keys);
    t.PackDims(v.f32() + at, h.kv_width, t.keys, t.kernel.rows, keys + t.padded_keys * t.dim);
  });
  const int64_t blocks = (p.seq + kQueryRows - 1) / kQueryRows;
  pool_.Run(p.batch * p.heads * blocks, [&](int64_t unit, int worker) {
    const int64_t block = blocks - 1 - unit % blocks;  // long blocks first
    const int64_t head = unit / blocks % p.heads;
    const int64_t batch = unit / blocks / p.heads;
    Scratch own(scratch + worker * per_thread);
    const ForwardScratch s(t, own);
    const float* keys = packed + (batch * p.kv_heads + head / h.group) * per_head;
    const int64_t end = std::min(p.seq, (block + 1) * kQueryRows);
    for (int64_t row = block * kQueryRows; row < end; row += t.width) {
      const int64_t at = (batch * p.seq + row) * h.q_width + head * t.dim;
      ForwardPanel(h, t, s, row, std::min(t.width, end - row), q.f32() + at, keys, out.f32() + at,
                   lse.f32() + (batch * p.heads + head) * p.seq + row);
    }
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
  const Tiles t(h);
  Scratch measure(nullptr);
  const BackwardScratch sizes(t, measure);
  const int64_t per_thread = measure.used();
  ASSIGN_OR_RETURN(float* scratch, Workspace(attention_scratch_, pool_.threads() * per_thread));
  const BackwardViews views{dout, q, k, v, out, lse, dq, dk, dv};
  pool_.Run(p.batch * p.kv_heads, [&](int64_t unit, int worker) {
    Scratch own(scratch + worker * per_thread);
    const BackwardScratch s(t, own);
    BackwardHead(h, t, views, s, unit / p.kv_heads, unit % p.kv_heads);
  });
  return OkStatus();
}

}  // namespace nibble::cpu
