// SPDX-License-Identifier: Apache-2.0
//
// GEMM, AdamW, reductions, memory and refusals of the CPU backend.
#include "kernels/backend.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"

namespace nibble {
namespace {

using Values = std::vector<float>;

Values Random(uint32_t stream, int64_t size) {
  Values x(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t word = formats::RandomWord(13, 0, stream, static_cast<uint64_t>(i));
    x[static_cast<size_t>(i)] = static_cast<float>(word >> 8) * 0x1p-23f - 1.0f;
  }
  return x;
}

std::unique_ptr<Backend> MakeCpu(int threads = 2, int64_t limit = 0) {
  BackendOptions options;
  options.threads = threads;
  options.memory_limit_bytes = limit;
  Result<std::unique_ptr<Backend>> made = MakeBackend("cpu", options);
  EXPECT_TRUE(made.ok()) << made.status().ToString();
  return std::move(*made);
}

struct GemmShape {
  int64_t m, n, k;
};

Values Gemm(int threads, GemmMode mode, GemmShape s, bool ta, bool tb, bool accumulate) {
  const Values a = Random(1, s.m * s.k), b = Random(2, s.k * s.n);
  Values c = Random(3, s.m * s.n);
  const Status status = MakeCpu(threads)->Gemm(
      mode, {a.data(), ta ? s.k : s.m, ta ? s.m : s.k}, ta ? Transpose::kYes : Transpose::kNo,
      {b.data(), tb ? s.n : s.k, tb ? s.k : s.n}, tb ? Transpose::kYes : Transpose::kNo, accumulate,
      {c.data(), s.m, s.n});
  EXPECT_TRUE(status.ok()) << status.ToString();
  return c;
}

TEST(Gemm, EqualsTheFloat64SumWithinTheAccumulationBound) {
  for (const GemmShape s : {GemmShape{1, 1, 1}, {1, 263, 31}, {67, 1, 129}, {131, 257, 61}}) {
    const Values a = Random(1, s.m * s.k), b = Random(2, s.k * s.n), before = Random(3, s.m * s.n);
    for (int variant = 0; variant < 16; ++variant) {
      const bool ta = variant & 1, tb = variant & 2, accumulate = variant & 4, bf16 = variant & 8;
      const Values c = Gemm(2, bf16 ? GemmMode::kBf16 : GemmMode::kF32, s, ta, tb, accumulate);
      for (int64_t i = 0; i < s.m; ++i) {
        for (int64_t j = 0; j < s.n; ++j) {
          const double start = accumulate ? static_cast<double>(before[i * s.n + j]) : 0.0;
          double sum = start, absolute = std::fabs(start);
          for (int64_t l = 0; l < s.k; ++l) {
            float x = a[static_cast<size_t>(ta ? l * s.m + i : i * s.k + l)];
            float y = b[static_cast<size_t>(tb ? j * s.k + l : l * s.n + j)];
            if (bf16) x = formats::RoundBf16(x), y = formats::RoundBf16(y);
            sum += static_cast<double>(x) * static_cast<double>(y);
            absolute += std::fabs(static_cast<double>(x) * static_cast<double>(y));
          }
          ASSERT_NEAR(c[static_cast<size_t>(i * s.n + j)], sum,
                      4.0 * static_cast<double>(s.k + 1) * 0x1p-24 * absolute)
              << variant;
        }
      }
    }
  }
}

TEST(Gemm, GivesTheSameBitsForEveryThreadCount) {
  for (const GemmShape s :
       {GemmShape{512, 300, 129}, {64, 64, 512}, {1, 2051, 67}, {1031, 3, 64}}) {
    for (int variant = 0; variant < 4; ++variant) {
      const Values one = Gemm(1, GemmMode::kF32, s, variant & 1, variant & 2, false);
      for (const int threads : {2, 3}) {
        const Values many = Gemm(threads, GemmMode::kF32, s, variant & 1, variant & 2, false);
        EXPECT_EQ(std::memcmp(one.data(), many.data(), one.size() * 4), 0) << threads;
      }
    }
  }
}

TEST(Gemm, Bf16GivesTheSameBitsForEveryThreadCount) {
  for (const GemmShape s : {GemmShape{512, 300, 129}, {64, 2051, 67}}) {
    for (int variant = 0; variant < 4; ++variant) {
      const Values one = Gemm(1, GemmMode::kBf16, s, variant & 1, variant & 2, false);
      const Values many = Gemm(3, GemmMode::kBf16, s, variant & 1, variant & 2, false);
      EXPECT_EQ(std::memcmp(one.data(), many.data(), one.size() * 4), 0) << variant;
    }
  }
}

TEST(Gemm, EmptySumsAndWrongShapes) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  Values a(6), b(6), c(4, 7.0f);
  ASSERT_TRUE(backend
                  ->Gemm(GemmMode::kF32, {a.data(), 2, 0}, Transpose::kNo, {b.data(), 0, 2},
                         Transpose::kNo, false, {c.data(), 2, 2})
                  .ok());
  EXPECT_EQ(c, Values(4, 0.0f));
  const Status status = backend->Gemm(GemmMode::kF32, {a.data(), 2, 3}, Transpose::kNo,
                                      {b.data(), 2, 3}, Transpose::kNo, false, {c.data(), 2, 2});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("b is (2, 3); expected (3, 2)"), std::string::npos)
      << status.message();
}

TEST(AdamW, FollowsThePlainFormulaForSeveralSteps) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  constexpr int64_t kSize = 20011;  // two chunks, odd tail
  Values p = Random(1, kSize), m(kSize, 0.0f), v(kSize, 0.0f);
  std::vector<double> dp(p.begin(), p.end()), dm(kSize, 0.0), dv(kSize, 0.0);
  AdamWParams params;
  params.learning_rate = 0.01f;
  params.gradient_scale = 0.5f;
  for (int step = 1; step <= 3; ++step) {
    const Values g = Random(10 + static_cast<uint32_t>(step), kSize);
    params.step = step;
    ASSERT_TRUE(backend
                    ->AdamW(params, {g.data(), 1, kSize}, {m.data(), 1, kSize},
                            {v.data(), 1, kSize}, {p.data(), 1, kSize})
                    .ok());
    for (size_t i = 0; i < p.size(); ++i) {
      const double gradient = 0.5 * static_cast<double>(g[i]);
      dm[i] = 0.9 * dm[i] + 0.1 * gradient;
      dv[i] = 0.95 * dv[i] + 0.05 * gradient * gradient;
      dp[i] -= 0.01 * 0.1 * dp[i];
      dp[i] -= 0.01 * (dm[i] / (1 - std::pow(0.9, step))) /
               (std::sqrt(dv[i] / (1 - std::pow(0.95, step))) + 1e-8);
      ASSERT_NEAR(p[i], dp[i], 2e-6) << step << " " << i;
    }
  }
  params.step = 0;
  EXPECT_EQ(
      backend->AdamW(params, {p.data(), 1, 1}, {m.data(), 1, 1}, {v.data(), 1, 1}, {p.data(), 1, 1})
          .code(),
      StatusCode::kInvalidArgument);
}

TEST(Reductions, AreExactInDoubleAndTheSameForEveryThreadCount) {
  const Values x = Random(4, 100003);
  double sum = 0, squares = 0;
  for (const float value : x) {
    sum += static_cast<double>(value);
    squares += static_cast<double>(value) * static_cast<double>(value);
  }
  const double one_sum = *MakeCpu(1)->Sum({x.data(), 1, 100003});
  const double one_squares = *MakeCpu(1)->SumOfSquares({x.data(), 1, 100003});
  EXPECT_NEAR(one_sum, sum, 1e-9);
  EXPECT_NEAR(one_squares, squares, 1e-8);
  for (const int threads : {2, 3, 7}) {
    EXPECT_EQ(*MakeCpu(threads)->Sum({x.data(), 1, 100003}), one_sum);
    EXPECT_EQ(*MakeCpu(threads)->SumOfSquares({x.data(), 1, 100003}), one_squares);
  }
  EXPECT_EQ(*MakeCpu()->Sum({nullptr, 0, 0}), 0.0);
}

TEST(CrossEntropy, IgnoresMarkedRowsAndScalesTheGradient) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  Values logits = Random(5, 3 * 7), copy = logits, losses(3, 9.0f);
  const std::vector<int32_t> targets = {2, Backend::kIgnoreTarget, 6};
  const ConstTensorView ids(targets.data(), 1, 3, DType::kI32);
  ASSERT_TRUE(
      backend->CrossEntropy({logits.data(), 3, 7}, ids, 1.0f, {}, {losses.data(), 1, 3}).ok());
  EXPECT_EQ(logits, copy);
  EXPECT_EQ(losses[1], 0.0f);
  const TensorView view(logits.data(), 3, 7);
  ASSERT_TRUE(backend->CrossEntropy(view, ids, 0.25f, view, {losses.data(), 1, 3}).ok());
  for (int row = 0; row < 3; ++row) {
    float sum = 0, magnitude = 0;
    for (int i = 0; i < 7; ++i) {
      sum += logits[static_cast<size_t>(row * 7 + i)];
      magnitude += std::fabs(logits[static_cast<size_t>(row * 7 + i)]);
    }
    EXPECT_NEAR(sum, 0, 1e-6);
    EXPECT_EQ(magnitude > 0, row != 1);
  }
  EXPECT_NEAR(logits[2], 0.25 * (std::exp(-static_cast<double>(losses[0])) - 1), 1e-6);
}

TEST(Ids, OutsideTheVocabularyAreRefusedByPosition) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  Values table(4 * 2), out(3 * 2), logits(3 * 4), losses(3);
  const std::vector<int32_t> ids = {0, 4, 1};
  const ConstTensorView view(ids.data(), 1, 3, DType::kI32);
  Status status = backend->EmbeddingForward({table.data(), 4, 2}, view, {out.data(), 3, 2});
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_NE(status.message().find("token 4 at position 1"), std::string::npos) << status.message();
  status = backend->EmbeddingBackward(view, {out.data(), 3, 2}, {table.data(), 4, 2});
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  status = backend->CrossEntropy({logits.data(), 3, 4}, view, 1, {}, {losses.data(), 1, 3});
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_EQ(
      backend->EmbeddingForward({table.data(), 4, 2}, {losses.data(), 1, 3}, {out.data(), 3, 2})
          .code(),
      StatusCode::kUnimplemented);  // f32 where i32 belongs
}

TEST(Attention, ImpossibleHeadsAreRefused) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  Values x(64);
  AttentionParams params;
  params.seq = params.kv_seq = 2;
  params.heads = 3;
  params.kv_heads = 2;
  params.head_dim = 4;
  const Status status =
      backend->AttentionForward(params, {x.data(), 2, 12}, {x.data(), 2, 8}, {x.data(), 2, 8},
                                {x.data(), 2, 12}, {x.data(), 3, 2});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("kv_heads must divide heads"), std::string::npos);
  RopeParams rope;
  rope.seq = 2;
  rope.heads = 1;
  rope.head_dim = 3;
  EXPECT_EQ(backend->RopeForward(rope, {x.data(), 2, 3}, {x.data(), 2, 3}).code(),
            StatusCode::kInvalidArgument);
}

TEST(Attention, Bf16ModeIsNearFp32) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  AttentionParams params;
  params.batch = 2;
  params.seq = params.kv_seq = 70;
  params.heads = params.kv_heads = 2;
  params.head_dim = 8;
  const Values q = Random(1, 140 * 16), k = Random(2, 140 * 16), v = Random(3, 140 * 16);
  const Values dout = Random(4, 140 * 16);
  Values out[2], dq[2], dk[2], dv[2];
  for (const int mode : {0, 1}) {
    params.mode = mode == 0 ? GemmMode::kF32 : GemmMode::kBf16;
    Values lse(4 * 70);
    for (Values* values : {&out[mode], &dq[mode], &dk[mode], &dv[mode]}) values->resize(140 * 16);
    ASSERT_TRUE(backend
                    ->AttentionForward(params, {q.data(), 140, 16}, {k.data(), 140, 16},
                                       {v.data(), 140, 16}, {out[mode].data(), 140, 16},
                                       {lse.data(), 4, 70})
                    .ok());
    ASSERT_TRUE(backend
                    ->AttentionBackward(params, {dout.data(), 140, 16}, {q.data(), 140, 16},
                                        {k.data(), 140, 16}, {v.data(), 140, 16},
                                        {out[mode].data(), 140, 16}, {lse.data(), 4, 70},
                                        {dq[mode].data(), 140, 16}, {dk[mode].data(), 140, 16},
                                        {dv[mode].data(), 140, 16})
                    .ok());
  }
  for (const Values* pair : {out, dq, dk, dv}) {
    EXPECT_NE(pair[0], pair[1]);
    for (size_t i = 0; i < pair[0].size(); ++i) EXPECT_NEAR(pair[0][i], pair[1][i], 0.02);
  }
}

TEST(Memory, IsCountedLimitedAndGivenBack) {
  const std::unique_ptr<Backend> backend = MakeCpu(1, 1000);
  EXPECT_EQ(backend->allocated_bytes(), 0);
  {
    Buffer buffer;
    ASSERT_TRUE(buffer.Reserve(*backend, 600).ok());
    void* kept = buffer.data();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(kept) % 64, 0u);
    ASSERT_TRUE(buffer.Reserve(*backend, 100).ok());
    EXPECT_EQ(buffer.data(), kept);
    EXPECT_EQ(backend->allocated_bytes(), 600);
    Buffer second;
    const Status full = second.Reserve(*backend, 401);
    EXPECT_EQ(full.code(), StatusCode::kResourceExhausted);
    EXPECT_NE(full.message().find("limit of 1000 B"), std::string::npos) << full.message();
    Buffer moved = std::move(buffer);
    EXPECT_EQ(moved.data(), kept);
  }
  EXPECT_EQ(backend->allocated_bytes(), 0);
  EXPECT_EQ(backend->peak_allocated_bytes(), 600);
}

TEST(MakeBackend, RefusesBadOptions) {
  BackendOptions options;
  options.threads = kMaxThreads + 1;
  EXPECT_EQ(MakeBackend("cpu", options).status().code(), StatusCode::kInvalidArgument);
  options.threads = 1;
  options.memory_limit_bytes = -1;
  EXPECT_EQ(MakeBackend("cpu", options).status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(MakeCpu(3)->description().find("3 threads"), std::string::npos);
}

}  // namespace
}  // namespace nibble
