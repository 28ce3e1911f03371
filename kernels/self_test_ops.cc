// SPDX-License-Identifier: Apache-2.0
#include "kernels/self_test_ops.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "kernels/formats/bf16.h"
#include "kernels/self_test_paths.h"

namespace nibble {
namespace {

constexpr double kBound = 1e-5;
constexpr double kBf16AttentionBound = 2e-2;
// Beside that, values that round to the BF16 above or below.
constexpr double kKeptBound = 3e-2;

// Results of an operation by name.
using Results = std::vector<std::pair<std::string, std::vector<float>>>;
using Operation = std::function<Result<Results>(Backend&)>;

// Matrices of one backend, with random values or zeros.
class Matrices {
 public:
  explicit Matrices(Backend& backend) : backend_(backend) {}

  Result<TensorView> Random(int64_t rows, int64_t cols, float scale = 1.0f) {
    const auto stream = static_cast<uint32_t>(100 + made_.size());
    return Add(rows, cols, SelfTestValues(stream, rows * cols, scale));
  }
  Result<TensorView> Zeros(int64_t rows, int64_t cols) {
    return Add(rows, cols, std::vector<float>(static_cast<size_t>(rows * cols), 0.0f));
  }
  // Numbers in [0, limit).
  Result<TensorView> Ids(int64_t count, int64_t limit) {
    const std::vector<float> values = SelfTestValues(99, count, 1.0f);
    std::vector<int32_t> ids;
    for (const float value : values) {
      ids.push_back(static_cast<int32_t>(std::fabs(value) * 1e4f) % static_cast<int32_t>(limit));
    }
    ASSIGN_OR_RETURN(const TensorView place, Zeros(1, count));
    RETURN_IF_ERROR(backend_.CopyIn(place.data, ids.data(), count * 4));
    return TensorView{place.data, 1, count, DType::kI32};
  }
  // A place for what a run keeps in BF16: of that type where the backend stores it.
  Result<TensorView> Kept(int64_t rows, int64_t cols) {
    ASSIGN_OR_RETURN(TensorView place, Zeros(rows, cols));
    if (backend_.StoresBf16()) place.dtype = DType::kBF16;
    return place;
  }
  // Rounds what an operation has left in such a place, unless the operation has.
  Status Settle(TensorView kept) {
    return kept.dtype == DType::kBF16 ? OkStatus() : backend_.RoundToBf16(kept, kept);
  }
  Result<std::vector<float>> Read(TensorView view) {
    std::vector<float> values(static_cast<size_t>(view.size()));
    if (view.dtype == DType::kBF16) {
      std::vector<uint16_t> bits(values.size());
      RETURN_IF_ERROR(backend_.CopyOut(bits.data(), view.data, view.size_bytes()));
      std::transform(bits.begin(), bits.end(), values.begin(), formats::FromBf16);
      return values;
    }
    RETURN_IF_ERROR(backend_.CopyOut(values.data(), view.data, view.size_bytes()));
    return values;
  }

 private:
  Result<TensorView> Add(int64_t rows, int64_t cols, const std::vector<float>& values) {
    ASSIGN_OR_RETURN(DeviceMatrix matrix, DeviceMatrix::Create(backend_, rows, cols, values));
    made_.push_back(std::move(matrix));
    return made_.back().view();
  }

  Backend& backend_;
  std::vector<DeviceMatrix> made_;
};

Result<Results> ReadAll(Matrices& m, const std::vector<std::pair<std::string, TensorView>>& views) {
  Results results;
  for (const auto& [name, view] : views) {
    ASSIGN_OR_RETURN(std::vector<float> values, m.Read(view));
    results.emplace_back(name, std::move(values));
  }
  return results;
}

Result<Results> RunAttention(Backend& backend, GemmMode mode, int64_t head_dim, int64_t kv_heads) {
  AttentionParams p;
  p.batch = 2;
  p.seq = p.kv_seq = 77;
  p.heads = 4;
  p.kv_heads = kv_heads;
  p.head_dim = head_dim;
  p.mode = mode;
  const int64_t rows = p.batch * p.seq, wide = p.heads * head_dim, narrow = kv_heads * head_dim;
  Matrices m(backend);
  ASSIGN_OR_RETURN(const TensorView q, m.Random(rows, wide));
  ASSIGN_OR_RETURN(const TensorView k, m.Random(rows, narrow));
  ASSIGN_OR_RETURN(const TensorView v, m.Random(rows, narrow));
  ASSIGN_OR_RETURN(const TensorView dout, m.Random(rows, wide));
  ASSIGN_OR_RETURN(const TensorView out, m.Zeros(rows, wide));
  ASSIGN_OR_RETURN(const TensorView lse, m.Zeros(p.batch * p.heads, p.seq));
  ASSIGN_OR_RETURN(const TensorView dq, m.Zeros(rows, wide));
  ASSIGN_OR_RETURN(const TensorView dk, m.Zeros(rows, narrow));
  ASSIGN_OR_RETURN(const TensorView dv, m.Zeros(rows, narrow));
  RETURN_IF_ERROR(backend.AttentionForward(p, q, k, v, out, lse));
  RETURN_IF_ERROR(backend.AttentionBackward(p, dout, q, k, v, out, lse, dq, dk, dv));
  return ReadAll(m, {{"out", out}, {"lse", lse}, {"dq", dq}, {"dk", dk}, {"dv", dv}});
}

Result<Results> RunNorm(Backend& backend) {
  constexpr int64_t kRows = 67, kCols = 328;
  constexpr float kEpsilon = 1e-5f;
  Matrices m(backend);
  ASSIGN_OR_RETURN(const TensorView x, m.Random(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView b, m.Random(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView weight, m.Random(1, kCols));
  ASSIGN_OR_RETURN(const TensorView dout, m.Random(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView out, m.Zeros(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView rstd, m.Zeros(1, kRows));
  ASSIGN_OR_RETURN(const TensorView sum, m.Zeros(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView sum_out, m.Zeros(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView sum_rstd, m.Zeros(1, kRows));
  ASSIGN_OR_RETURN(const TensorView dx, m.Random(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView dweight, m.Random(1, kCols));
  RETURN_IF_ERROR(backend.RmsNormForward(x, weight, kEpsilon, out, rstd));
  RETURN_IF_ERROR(backend.AddRmsNormForward(x, b, weight, kEpsilon, sum, sum_out, sum_rstd));
  RETURN_IF_ERROR(backend.RmsNormBackward(dout, x, weight, rstd, dx, true, dweight));
  return ReadAll(m, {{"out", out},
                     {"rstd", rstd},
                     {"sum", sum},
                     {"out of the sum", sum_out},
                     {"rstd of the sum", sum_rstd},
                     {"dx", dx},
                     {"dweight", dweight}});
}

Result<Results> RunRope(Backend& backend) {
  RopeParams p;
  p.batch = 2;
  p.seq = 83;
  p.heads = 3;
  p.head_dim = 64;
  p.position_offset = 1000;
  Matrices m(backend);
  ASSIGN_OR_RETURN(const TensorView x, m.Random(p.batch * p.seq, p.heads * p.head_dim));
  ASSIGN_OR_RETURN(const TensorView dx, m.Random(p.batch * p.seq, p.heads * p.head_dim));
  RETURN_IF_ERROR(backend.RopeForward(p, x, x));
  RETURN_IF_ERROR(backend.RopeBackward(p, dx));
  return ReadAll(m, {{"x", x}, {"dx", dx}});
}

Result<Results> RunSwiGlu(Backend& backend) {
  constexpr int64_t kRows = 67, kCols = 173;
  Matrices m(backend);
  ASSIGN_OR_RETURN(const TensorView gate, m.Random(kRows, kCols, 3.0f));
  ASSIGN_OR_RETURN(const TensorView up, m.Random(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView dout, m.Random(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView out, m.Zeros(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView dgate, m.Zeros(kRows, kCols));
  ASSIGN_OR_RETURN(const TensorView dup, m.Zeros(kRows, kCols));
  RETURN_IF_ERROR(backend.SwiGluForward(gate, up, out));
  RETURN_IF_ERROR(backend.SwiGluBackward(dout, gate, up, dgate, dup));
  return ReadAll(m, {{"out", out}, {"dgate", dgate}, {"dup", dup}});
}

// What a block keeps in BF16 (memory.activations), from where it is written to where it is read.
Result<Results> RunKept(Backend& backend, GemmMode mode, int64_t head_dim) {
  AttentionParams p;
  p.seq = p.kv_seq = 77;
  p.heads = 4;
  p.kv_heads = 2;
  p.head_dim = head_dim;
  p.mode = mode;
  const int64_t wide = p.heads * head_dim, narrow = p.kv_heads * head_dim, depth = 96;
  RopeParams rope{1, p.seq, p.heads, head_dim};
  Matrices m(backend);
  ASSIGN_OR_RETURN(const TensorView x, m.Random(p.seq, depth));
  ASSIGN_OR_RETURN(const TensorView weight, m.Random(narrow, depth, 0.1f));
  ASSIGN_OR_RETURN(const TensorView query, m.Random(p.seq, wide));
  ASSIGN_OR_RETURN(const TensorView key, m.Random(p.seq, narrow));
  ASSIGN_OR_RETURN(const TensorView dout, m.Random(p.seq, wide));
  ASSIGN_OR_RETURN(const TensorView q, m.Kept(p.seq, wide));
  ASSIGN_OR_RETURN(const TensorView k, m.Kept(p.seq, narrow));
  ASSIGN_OR_RETURN(const TensorView v, m.Kept(p.seq, narrow));
  ASSIGN_OR_RETURN(const TensorView out, m.Kept(p.seq, wide));
  ASSIGN_OR_RETURN(const TensorView lse, m.Zeros(p.heads, p.seq));
  ASSIGN_OR_RETURN(const TensorView dq, m.Zeros(p.seq, wide));
  ASSIGN_OR_RETURN(const TensorView dk, m.Zeros(p.seq, narrow));
  ASSIGN_OR_RETURN(const TensorView dv, m.Zeros(p.seq, narrow));
  ASSIGN_OR_RETURN(const TensorView hidden, m.Zeros(p.seq, narrow));
  ASSIGN_OR_RETURN(const TensorView dgate, m.Zeros(p.seq, narrow));
  ASSIGN_OR_RETURN(const TensorView dup, m.Zeros(p.seq, narrow));
  RETURN_IF_ERROR(backend.RopeForward(rope, query, q));
  rope.heads = p.kv_heads;
  RETURN_IF_ERROR(backend.RopeForward(rope, key, k));
  RETURN_IF_ERROR(backend.Gemm(mode, x, Transpose::kNo, weight, Transpose::kYes, false, v));
  for (const TensorView& kept : {q, k, v}) RETURN_IF_ERROR(m.Settle(kept));
  RETURN_IF_ERROR(backend.AttentionForward(p, q, k, v, out, lse));
  RETURN_IF_ERROR(m.Settle(out));
  RETURN_IF_ERROR(backend.AttentionBackward(p, dout, q, k, v, out, lse, dq, dk, dv));
  RETURN_IF_ERROR(backend.SwiGluForward(k, v, hidden));
  RETURN_IF_ERROR(backend.SwiGluBackward(key, k, v, dgate, dup));
  return ReadAll(m, {{"query", q},
                     {"key", k},
                     {"value", v},
                     {"out", out},
                     {"lse", lse},
                     {"dq", dq},
                     {"dk", dk},
                     {"dv", dv},
                     {"hidden", hidden},
                     {"dgate", dgate},
                     {"dup", dup}});
}

Result<Results> RunEmbedding(Backend& backend) {
  constexpr int64_t kVocab = 91, kTokens = 300, kCols = 72;
  Matrices m(backend);
  ASSIGN_OR_RETURN(const TensorView table, m.Random(kVocab, kCols));
  ASSIGN_OR_RETURN(const TensorView ids, m.Ids(kTokens, kVocab));
  ASSIGN_OR_RETURN(const TensorView dout, m.Random(kTokens, kCols));
  ASSIGN_OR_RETURN(const TensorView out, m.Zeros(kTokens, kCols));
  ASSIGN_OR_RETURN(const TensorView dtable, m.Random(kVocab, kCols));
  RETURN_IF_ERROR(backend.EmbeddingForward(table, ids, out));
  RETURN_IF_ERROR(backend.EmbeddingBackward(ids, dout, dtable));
  return ReadAll(m, {{"out", out}, {"dtable", dtable}});
}

Result<Results> RunCrossEntropy(Backend& backend) {
  constexpr int64_t kRows = 45, kVocab = 2003;
  Matrices m(backend);
  ASSIGN_OR_RETURN(const TensorView logits, m.Random(kRows, kVocab, 4.0f));
  ASSIGN_OR_RETURN(const TensorView targets, m.Ids(kRows, kVocab));
  ASSIGN_OR_RETURN(const TensorView losses, m.Zeros(1, kRows));
  RETURN_IF_ERROR(backend.CrossEntropy(logits, targets, 0.25f, logits, losses));
  return ReadAll(m, {{"losses", losses}, {"gradient", logits}});
}

Result<Results> RunAdamW(Backend& backend) {
  constexpr int64_t kSize = 5003;
  Matrices m(backend);
  ASSIGN_OR_RETURN(const TensorView gradient, m.Random(1, kSize, 1e-2f));
  ASSIGN_OR_RETURN(const TensorView parameter, m.Random(1, kSize, 0.1f));
  ASSIGN_OR_RETURN(const TensorView first, m.Zeros(1, kSize));
  ASSIGN_OR_RETURN(const TensorView second, m.Zeros(1, kSize));
  AdamWParams params;
  params.gradient_scale = 0.7f;
  for (params.step = 1; params.step <= 3; ++params.step) {
    RETURN_IF_ERROR(backend.AdamW(params, gradient, first, second, parameter));
  }
  return ReadAll(m, {{"parameter", parameter}, {"m", first}, {"v", second}});
}

// Every element within `bound` of the largest expected; NaN is within nothing.
Status ExpectNear(const std::string& what, double bound, const std::vector<float>& got,
                  const std::vector<float>& expected) {
  double largest = 0;
  for (const float value : expected) {
    largest = std::max(largest, std::fabs(static_cast<double>(value)));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto a = static_cast<double>(got[i]), b = static_cast<double>(expected[i]);
    if (std::fabs(a - b) <= bound * largest) continue;
    return InternalError(
        StrFormat("self-test of %s failed: element %zu is %.9g, expected %.9g within "
                  "%.2g",
                  what.c_str(), i, a, b, bound * largest));
  }
  return OkStatus();
}

Status ProveOperation(Backend& backend, Backend& reference, const std::string& name, double bound,
                      const Operation& run) {
  const Result<Results> got = run(backend);
  if (got.status().code() == StatusCode::kUnimplemented) {
    return FailedPreconditionError("self-test of " + name + ": nothing trains without it: " +
                                   std::string(got.status().message()));
  }
  if (!got.ok()) return got.status().WithContext("self-test of " + name);
  ASSIGN_OR_RETURN(const Results expected, run(reference));
  for (size_t i = 0; i < expected.size(); ++i) {
    RETURN_IF_ERROR(
        ExpectNear(name + ", " + expected[i].first, bound, (*got)[i].second, expected[i].second));
  }
  return OkStatus();
}

}  // namespace

Status ProveStepOperations(Backend& backend, Backend& reference) {
  for (const GemmMode mode : {GemmMode::kF32, GemmMode::kBf16}) {
    const bool bf16 = mode == GemmMode::kBf16;
    for (const int64_t head_dim : {int64_t{64}, int64_t{128}}) {
      const int64_t kv_heads = head_dim == 64 ? 2 : 4;
      RETURN_IF_ERROR(
          ProveOperation(backend, reference,
                         StrFormat("attention (%s, heads of %lld)", bf16 ? "bf16" : "fp32",
                                   static_cast<long long>(head_dim)),
                         bf16 ? kBf16AttentionBound : kBound,
                         [=](Backend& b) { return RunAttention(b, mode, head_dim, kv_heads); }));
    }
  }
  for (const auto& [mode, head_dim] : {std::pair{GemmMode::kF32, int64_t{48}},
                                       {GemmMode::kBf16, int64_t{64}},
                                       {GemmMode::kBf16, int64_t{128}}}) {
    if (!backend.StoresBf16()) break;
    RETURN_IF_ERROR(ProveOperation(
        backend, reference,
        StrFormat("activations in bf16 (heads of %lld)", static_cast<long long>(head_dim)),
        kKeptBound, [m = mode, d = head_dim](Backend& b) { return RunKept(b, m, d); }));
  }
  const std::pair<const char*, Operation> operations[] = {{"rms_norm", RunNorm},
                                                          {"rope", RunRope},
                                                          {"swiglu", RunSwiGlu},
                                                          {"embedding", RunEmbedding},
                                                          {"cross_entropy", RunCrossEntropy},
                                                          {"adamw", RunAdamW}};
  for (const auto& [name, run] : operations) {
    RETURN_IF_ERROR(ProveOperation(backend, reference, name, kBound, run));
  }
  return OkStatus();
}

}  // namespace nibble
