// SPDX-License-Identifier: Apache-2.0
//
// Causal grouped-query attention without a (T, T) matrix, FP32 arithmetic on CUDA cores: FP32 mode,
// and BF16 mode at head sizes that flash_attention.cu does not take.
//
// Four threads share one row (a query in forward and dq, a key in dk and dv); each holds a quarter
// of the head in registers. Tiles of the other side pass through shared memory. Forward makes two
// passes over the keys, so that the probabilities are final before they are rounded (kBf16), as the
// contract says. dk and dv sum over query heads and queries in ascending order.
#include <cmath>
#include <type_traits>
#include <utility>

#include "base/strings.h"
#include "kernels/checks.h"
#include "kernels/cuda/attention_delta.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/values.cuh"
#include "kernels/formats/bf16.h"
#include "kernels/formats/bits.h"

namespace nibble::cuda {
namespace {

constexpr int kPartsPerRow = 4;
constexpr int kBlockRows = kThreads / kPartsPerRow;
constexpr int kTile = 16;  // rows of the other side staged at a time

struct Problem {
  int64_t batch, seq, kv_seq, heads, kv_heads, head_dim;
  float scale;
  bool bf16;

  __host__ __device__ int64_t group() const { return heads / kv_heads; }
  __host__ __device__ int64_t q_width() const { return heads * head_dim; }
  __host__ __device__ int64_t kv_width() const { return kv_heads * head_dim; }
};

__device__ inline float Rounded(float x, bool bf16) { return bf16 ? formats::RoundBf16(x) : x; }

// Sum over the four threads of a row; they are neighbours in a warp.
__device__ inline float RowSum(float value) {
  value += __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  value += __shfl_xor_sync(0xFFFFFFFFu, value, 2);
  return value;
}

// A quarter of one row of a matrix: dimensions part * kPart .. of the head; zeros past its end.
template <int kPart>
struct Quarter {
  float value[kPart];

  __device__ void Load(const float* row, int part, int64_t head_dim) {
    for (int i = 0; i < kPart; ++i) {
      const int64_t d = part * kPart + i;
      value[i] = row != nullptr && d < head_dim ? row[d] : 0.0f;
    }
  }
  __device__ void Clear() {
    for (int i = 0; i < kPart; ++i) value[i] = 0.0f;
  }
  template <typename Out>
  __device__ void Store(Out* row, int part, int64_t head_dim) const {
    for (int i = 0; i < kPart; ++i) {
      const int64_t d = part * kPart + i;
      if (d < head_dim) Put(row, d, value[i]);
    }
  }
  __device__ float Dot(const float* shared_row, int part) const {
    float sum = 0;
    for (int i = 0; i < kPart; ++i) sum += value[i] * shared_row[part * kPart + i];
    return RowSum(sum);
  }
  __device__ void AddScaled(float factor, const float* shared_row, int part) {
    for (int i = 0; i < kPart; ++i) value[i] += factor * shared_row[part * kPart + i];
  }
};

// rows [first, first + kTile) of a strided matrix into shared memory, zeros past `rows` and past
// the head. Barriers on both sides.
template <int kPart>
__device__ void StageTile(float (*tile)[kPart * kPartsPerRow], const float* base, int64_t stride,
                          int64_t first, int64_t rows, int64_t head_dim) {
  constexpr int kWidth = kPart * kPartsPerRow;
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * kWidth; i += kThreads) {
    const int64_t row = first + i / kWidth;
    const int64_t d = i % kWidth;
    tile[i / kWidth][d] = row < rows && d < head_dim ? base[row * stride + d] : 0.0f;
  }
  __syncthreads();
}

template <int kPart, typename Out>
__global__ void ForwardKernel(Problem p, const float* q, const float* k, const float* v, Out* out,
                              float* lse) {
  __shared__ float tile[kTile][kPart * kPartsPerRow];
  const int part = threadIdx.x % kPartsPerRow;
  const int64_t head = blockIdx.y % p.heads;
  const int64_t batch = blockIdx.y / p.heads;
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kBlockRows + threadIdx.x / kPartsPerRow;
  const bool live = query < p.seq;
  const int64_t past = p.kv_seq - p.seq;
  const int64_t visible = live ? past + query + 1 : 0;
  const int64_t last_query = min(static_cast<int64_t>(blockIdx.x + 1) * kBlockRows, p.seq) - 1;
  const int64_t keys = past + last_query + 1;  // of the whole block
  const int64_t q_at = (batch * p.seq + query) * p.q_width() + head * p.head_dim;
  const int64_t kv_at = batch * p.kv_seq * p.kv_width() + head / p.group() * p.head_dim;

  Quarter<kPart> mine;
  mine.Load(live ? q + q_at : nullptr, part, p.head_dim);
  float max = -formats::kLargestFloat;
  float sum = 0;
  for (int64_t first = 0; first < keys; first += kTile) {
    StageTile<kPart>(tile, k + kv_at, p.kv_width(), first, p.kv_seq, p.head_dim);
    for (int j = 0; j < kTile; ++j) {
      const float score = mine.Dot(tile[j], part) * p.scale;
      if (first + j >= visible) continue;
      const float larger = score > max ? score : max;
      sum = sum * expf(max - larger) + expf(score - larger);
      max = larger;
    }
  }
  const float row_lse = max + logf(sum);
  Quarter<kPart> result;
  result.Clear();
  __shared__ float values[kTile][kPart * kPartsPerRow];
  for (int64_t first = 0; first < keys; first += kTile) {
    StageTile<kPart>(tile, k + kv_at, p.kv_width(), first, p.kv_seq, p.head_dim);
    StageTile<kPart>(values, v + kv_at, p.kv_width(), first, p.kv_seq, p.head_dim);
    for (int j = 0; j < kTile; ++j) {
      const float score = mine.Dot(tile[j], part) * p.scale;
      if (first + j >= visible) continue;
      result.AddScaled(Rounded(expf(score - row_lse), p.bf16), values[j], part);
    }
  }
  if (!live) return;
  result.Store(out + q_at, part, p.head_dim);
  if (part == 0) lse[(batch * p.heads + head) * p.seq + query] = row_lse;
}

template <int kPart>
__global__ void QueryGradientKernel(Problem p, const float* dout, const float* q, const float* k,
                                    const float* v, const float* lse, const float* delta,
                                    float* dq) {
  __shared__ float keys[kTile][kPart * kPartsPerRow];
  __shared__ float values[kTile][kPart * kPartsPerRow];
  const int part = threadIdx.x % kPartsPerRow;
  const int64_t head = blockIdx.y % p.heads;
  const int64_t batch = blockIdx.y / p.heads;
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kBlockRows + threadIdx.x / kPartsPerRow;
  const bool live = query < p.seq;
  const int64_t last = min(static_cast<int64_t>(blockIdx.x + 1) * kBlockRows, p.seq);
  const int64_t q_at = (batch * p.seq + query) * p.q_width() + head * p.head_dim;
  const int64_t kv_at = batch * p.seq * p.kv_width() + head / p.group() * p.head_dim;
  const int64_t row = (batch * p.heads + head) * p.seq + query;
  const float row_lse = live ? lse[row] : 0.0f;
  const float row_delta = live ? delta[row] : 0.0f;

  Quarter<kPart> mine, gradient, result;
  mine.Load(live ? q + q_at : nullptr, part, p.head_dim);
  gradient.Load(live ? dout + q_at : nullptr, part, p.head_dim);
  result.Clear();
  for (int64_t first = 0; first < last; first += kTile) {
    StageTile<kPart>(keys, k + kv_at, p.kv_width(), first, p.seq, p.head_dim);
    StageTile<kPart>(values, v + kv_at, p.kv_width(), first, p.seq, p.head_dim);
    for (int j = 0; j < kTile; ++j) {
      const float score = mine.Dot(keys[j], part) * p.scale;
      const float dp = gradient.Dot(values[j], part);
      if (!live || first + j > query) continue;
      const float probability = expf(score - row_lse);
      const float ds = Rounded((probability * (dp - row_delta)) * p.scale, p.bf16);
      result.AddScaled(ds, keys[j], part);
    }
  }
  if (live) result.Store(dq + q_at, part, p.head_dim);
}

template <int kPart>
__global__ void KeyGradientKernel(Problem p, const float* dout, const float* q, const float* k,
                                  const float* v, const float* lse, const float* delta, float* dk,
                                  float* dv) {
  __shared__ float queries[kTile][kPart * kPartsPerRow];
  __shared__ float gradients[kTile][kPart * kPartsPerRow];
  const int part = threadIdx.x % kPartsPerRow;
  const int64_t kv_head = blockIdx.y % p.kv_heads;
  const int64_t batch = blockIdx.y / p.kv_heads;
  const int64_t key = static_cast<int64_t>(blockIdx.x) * kBlockRows + threadIdx.x / kPartsPerRow;
  const bool live = key < p.seq;
  const int64_t kv_at = (batch * p.seq + key) * p.kv_width() + kv_head * p.head_dim;

  Quarter<kPart> my_key, my_value, key_sum, value_sum;
  my_key.Load(live ? k + kv_at : nullptr, part, p.head_dim);
  my_value.Load(live ? v + kv_at : nullptr, part, p.head_dim);
  key_sum.Clear();
  value_sum.Clear();
  const int64_t first_query = static_cast<int64_t>(blockIdx.x) * kBlockRows / kTile * kTile;
  for (int64_t head = kv_head * p.group(); head < (kv_head + 1) * p.group(); ++head) {
    const int64_t q_at = batch * p.seq * p.q_width() + head * p.head_dim;
    const int64_t rows_at = (batch * p.heads + head) * p.seq;
    for (int64_t first = first_query; first < p.seq; first += kTile) {
      StageTile<kPart>(queries, q + q_at, p.q_width(), first, p.seq, p.head_dim);
      StageTile<kPart>(gradients, dout + q_at, p.q_width(), first, p.seq, p.head_dim);
      for (int j = 0; j < kTile; ++j) {
        const float score = my_key.Dot(queries[j], part) * p.scale;
        const float dp = my_value.Dot(gradients[j], part);
        const int64_t query = first + j;
        if (!live || query >= p.seq || query < key) continue;
        const float probability = expf(score - lse[rows_at + query]);
        const float ds = (probability * (dp - delta[rows_at + query])) * p.scale;
        value_sum.AddScaled(Rounded(probability, p.bf16), gradients[j], part);
        key_sum.AddScaled(Rounded(ds, p.bf16), queries[j], part);
      }
    }
  }
  if (!live) return;
  key_sum.Store(dk + kv_at, part, p.head_dim);
  value_sum.Store(dv + kv_at, part, p.head_dim);
}

Status CheckParams(const AttentionParams& p, bool backward) {
  const bool sizes = p.batch > 0 && p.seq > 0 && p.kv_seq >= p.seq && p.head_dim > 0 &&
                     p.heads > 0 && p.kv_heads > 0 && p.heads % p.kv_heads == 0;
  // A block has the head of one sequence as its second coordinate.
  if (sizes && p.batch * p.heads > kLargestGrid) {
    return InvalidArgumentError(
        StrFormat("Attention: %lld sequences of %lld heads; at most %lld of both together, use a "
                  "smaller micro-batch",
                  static_cast<long long>(p.batch), static_cast<long long>(p.heads),
                  static_cast<long long>(kLargestGrid)));
  }
  if (sizes && (!backward || p.kv_seq == p.seq) && p.head_dim <= 128) return OkStatus();
  return InvalidArgumentError(StrFormat(
      "Attention: batch %lld, seq %lld, kv_seq %lld, heads %lld, kv_heads %lld, head_dim %lld; "
      "all must be positive, kv_heads must divide heads, kv_seq %s seq, head_dim at most 128",
      static_cast<long long>(p.batch), static_cast<long long>(p.seq),
      static_cast<long long>(p.kv_seq), static_cast<long long>(p.heads),
      static_cast<long long>(p.kv_heads), static_cast<long long>(p.head_dim),
      backward ? "must equal" : "must be at least"));
}

Problem ProblemOf(const AttentionParams& p) {
  return {p.batch,
          p.seq,
          p.kv_seq,
          p.heads,
          p.kv_heads,
          p.head_dim,
          1.0f / std::sqrt(static_cast<float>(p.head_dim)),
          p.mode == GemmMode::kBf16};
}

// Calls launch with the smallest quarter size that holds the head, as a template argument.
template <typename Launch>
void WithPart(int64_t head_dim, Launch launch) {
  if (head_dim <= 32) return launch(std::integral_constant<int, 8>());
  if (head_dim <= 64) return launch(std::integral_constant<int, 16>());
  launch(std::integral_constant<int, 32>());
}

unsigned BlocksOf(int64_t rows) {
  return static_cast<unsigned>((rows + kBlockRows - 1) / kBlockRows);
}

}  // namespace

Status CudaBackend::AttentionForward(const AttentionParams& p, ConstTensorView q, ConstTensorView k,
                                     ConstTensorView v, TensorView out, TensorView lse) {
  RETURN_IF_ERROR(CheckParams(p, false));
  const Problem problem = ProblemOf(p);
  const char* op = "AttentionForward";
  const DType type = FloatType(q);
  RETURN_IF_ERROR(CheckView(op, "q", q, p.batch * p.seq, problem.q_width(), type));
  RETURN_IF_ERROR(CheckView(op, "k", k, p.batch * p.kv_seq, problem.kv_width(), type));
  RETURN_IF_ERROR(CheckView(op, "v", v, p.batch * p.kv_seq, problem.kv_width(), type));
  RETURN_IF_ERROR(CheckView(op, "out", out, q.rows, q.cols, type));
  RETURN_IF_ERROR(CheckView(op, "lse", lse, p.batch * p.heads, p.seq));
  if (TakesFlash(p)) return FlashForward(p, q, k, v, out, lse);
  RETURN_IF_ERROR(WideOperands(problem.bf16, {&q, &k, &v}));
  WithPart(p.head_dim, [&](auto part) {
    const dim3 grid(BlocksOf(p.seq), static_cast<unsigned>(p.batch * p.heads));
    WithOut(out, [&](auto* to) {
      ForwardKernel<decltype(part)::value>
          <<<grid, kThreads, 0, stream_>>>(problem, q.f32(), k.f32(), v.f32(), to, lse.f32());
    });
  });
  return LaunchStatus(op);
}

Status CudaBackend::AttentionBackward(const AttentionParams& p, ConstTensorView dout,
                                      ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                      ConstTensorView out, ConstTensorView lse, TensorView dq,
                                      TensorView dk, TensorView dv) {
  RETURN_IF_ERROR(CheckParams(p, true));
  const Problem problem = ProblemOf(p);
  const char* op = "AttentionBackward";
  const DType type = FloatType(q);
  RETURN_IF_ERROR(CheckView(op, "q", q, p.batch * p.seq, problem.q_width(), type));
  RETURN_IF_ERROR(CheckView(op, "k", k, p.batch * p.seq, problem.kv_width(), type));
  RETURN_IF_ERROR(CheckView(op, "v", v, k.rows, k.cols, type));
  RETURN_IF_ERROR(CheckView(op, "out", out, q.rows, q.cols, type));
  RETURN_IF_ERROR(CheckView(op, "dout", dout, q.rows, q.cols));
  RETURN_IF_ERROR(CheckView(op, "dq", dq, q.rows, q.cols));
  RETURN_IF_ERROR(CheckView(op, "dk", dk, k.rows, k.cols));
  RETURN_IF_ERROR(CheckView(op, "dv", dv, k.rows, k.cols));
  RETURN_IF_ERROR(CheckView(op, "lse", lse, p.batch * p.heads, p.seq));
  const bool flash = TakesFlash(p);
  if (!flash) RETURN_IF_ERROR(WideOperands(problem.bf16, {&dout, &q, &k, &v}));
  const int64_t rows = p.batch * p.heads * p.seq;
  RETURN_IF_ERROR(attention_delta_.Reserve(*this, rows * 4));
  float* delta = static_cast<float*>(attention_delta_.data());
  TensorView narrow;  // dout as the tensor cores take it
  if (flash) {
    ASSIGN_OR_RETURN(narrow, attention_gradient_.View(*this, dout.rows, dout.cols, DType::kBF16));
  }
  RETURN_IF_ERROR(WithIn(out, [&](auto* from) {
    const DeltaTask<std::remove_const_t<std::remove_pointer_t<decltype(from)>>> task{
        rows, p.seq, static_cast<int>(p.heads),          static_cast<int>(p.head_dim), dout.f32(),
        from, delta, static_cast<uint16_t*>(narrow.data)};
    DeltaKernel<<<GridForRows((rows + kWarps - 1) / kWarps), kThreads, 0, stream_>>>(task);
    return LaunchStatus(op);
  }));
  if (flash) return FlashBackward(p, narrow, q, k, v, lse, delta, dq, dk, dv);
  WithPart(p.head_dim, [&](auto part) {
    constexpr int kPart = decltype(part)::value;
    const dim3 by_query(BlocksOf(p.seq), static_cast<unsigned>(p.batch * p.heads));
    QueryGradientKernel<kPart><<<by_query, kThreads, 0, stream_>>>(
        problem, dout.f32(), q.f32(), k.f32(), v.f32(), lse.f32(), delta, dq.f32());
    const dim3 by_key(BlocksOf(p.seq), static_cast<unsigned>(p.batch * p.kv_heads));
    KeyGradientKernel<kPart><<<by_key, kThreads, 0, stream_>>>(
        problem, dout.f32(), q.f32(), k.f32(), v.f32(), lse.f32(), delta, dk.f32(), dv.f32());
  });
  return LaunchStatus(op);
}

Status CudaBackend::WideOperands(bool rounds, std::initializer_list<ConstTensorView*> operands) {
  const auto is_ready = [rounds](const ConstTensorView& x) {
    return !rounds && x.dtype == DType::kF32;
  };
  int64_t total = 0;
  for (const ConstTensorView* view : operands) total += is_ready(*view) ? 0 : view->size();
  if (total == 0) return OkStatus();
  RETURN_IF_ERROR(attention_rounded_.Reserve(*this, total * 4));
  float* next = static_cast<float*>(attention_rounded_.data());
  for (ConstTensorView* view : operands) {
    if (is_ready(*view)) continue;
    const TensorView wide{next, view->rows, view->cols};
    RETURN_IF_ERROR(RoundToBf16(*view, wide));
    *view = wide;
    next += wide.size();
  }
  return OkStatus();
}

}  // namespace nibble::cuda
