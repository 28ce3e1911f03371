// SPDX-License-Identifier: Apache-2.0
//
// Attention over several blocks of keys and panels of queries, against the formulas in FP64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/backend.h"

namespace nibble {
namespace {

using Floats = std::vector<float>;

Floats Numbers(int64_t count, uint32_t seed, float amplitude) {
  Floats x(static_cast<size_t>(count));
  uint32_t state = seed;
  for (float& value : x) {
    state = state * 1664525u + 1013904223u;
    value = amplitude * (static_cast<float>(state >> 8) / 8388608.0f - 1.0f);
  }
  return x;
}

struct Problem {
  AttentionParams p;
  Floats q, k, v, dout;

  explicit Problem(const AttentionParams& params)
      : p(params),
        q(Numbers(p.batch * p.seq * p.heads * p.head_dim, 1, 3)),
        k(Numbers(p.batch * p.kv_seq * p.kv_heads * p.head_dim, 2, 3)),
        v(Numbers(p.batch * p.kv_seq * p.kv_heads * p.head_dim, 3, 1)),
        dout(Numbers(p.batch * p.seq * p.heads * p.head_dim, 4, 1)) {}
};

struct Results {
  Floats out, lse, dq, dk, dv;
};

Results Attend(const Problem& problem, int threads) {
  const AttentionParams& p = problem.p;
  const int64_t rows = p.batch * p.seq, kv_rows = p.batch * p.kv_seq;
  const int64_t width = p.heads * p.head_dim, kv_width = p.kv_heads * p.head_dim;
  Results r{Floats(problem.q.size()), Floats(static_cast<size_t>(p.batch * p.heads * p.seq)),
            Floats(problem.q.size()), Floats(problem.k.size()), Floats(problem.k.size())};
  BackendOptions options;
  options.threads = threads;
  const auto backend = MakeBackend("cpu", options).value();
  const ConstTensorView q{problem.q.data(), rows, width}, k{problem.k.data(), kv_rows, kv_width};
  const ConstTensorView v{problem.v.data(), kv_rows, kv_width};
  const TensorView out{r.out.data(), rows, width}, lse{r.lse.data(), p.batch * p.heads, p.seq};
  EXPECT_TRUE(backend->AttentionForward(p, q, k, v, out, lse).ok());
  if (p.seq == p.kv_seq) {
    EXPECT_TRUE(backend
                    ->AttentionBackward(p, {problem.dout.data(), rows, width}, q, k, v, out, lse,
                                        {r.dq.data(), rows, width},
                                        {r.dk.data(), kv_rows, kv_width},
                                        {r.dv.data(), kv_rows, kv_width})
                    .ok());
  }
  return r;
}

struct Expected {
  std::vector<double> out, dq, dk, dv;
};

Expected Reference(const Problem& problem) {
  const AttentionParams& p = problem.p;
  Expected e{std::vector<double>(problem.q.size()), std::vector<double>(problem.q.size()),
             std::vector<double>(problem.k.size()), std::vector<double>(problem.k.size())};
  const double scale = 1 / std::sqrt(static_cast<double>(p.head_dim));
  for (int64_t unit = 0; unit < p.batch * p.heads * p.seq; ++unit) {
    const int64_t batch = unit / p.seq / p.heads, head = unit / p.seq % p.heads, t = unit % p.seq;
    const auto at = static_cast<size_t>(((batch * p.seq + t) * p.heads + head) * p.head_dim);
    const int64_t keys = p.kv_seq - p.seq + t + 1;
    const auto key = [&](int64_t j, int64_t c) {
      const int64_t kv_head = head / (p.heads / p.kv_heads);
      return static_cast<size_t>(((batch * p.kv_seq + j) * p.kv_heads + kv_head) * p.head_dim + c);
    };
    std::vector<double> probability(static_cast<size_t>(keys)), dp(static_cast<size_t>(keys));
    double sum = 0, delta = 0;
    for (int64_t j = 0; j < keys; ++j) {
      double score = 0;
      for (int64_t c = 0; c < p.head_dim; ++c) {
        score += double{problem.q[at + static_cast<size_t>(c)]} * double{problem.k[key(j, c)]};
      }
      probability[static_cast<size_t>(j)] = score * scale;
    }
    const double max = *std::max_element(probability.begin(), probability.end());
    for (double& x : probability) sum += x = std::exp(x - max);
    for (int64_t j = 0; j < keys; ++j) {
      double& weight = probability[static_cast<size_t>(j)];
      weight /= sum;
      for (int64_t c = 0; c < p.head_dim; ++c) {
        const size_t element = at + static_cast<size_t>(c);
        e.out[element] += weight * double{problem.v[key(j, c)]};
        e.dv[key(j, c)] += weight * double{problem.dout[element]};
        dp[static_cast<size_t>(j)] += double{problem.dout[element]} * double{problem.v[key(j, c)]};
      }
      delta += weight * dp[static_cast<size_t>(j)];
    }
    for (int64_t j = 0; j < keys; ++j) {
      const auto index = static_cast<size_t>(j);
      const double dscore = probability[index] * (dp[index] - delta) * scale;
      for (int64_t c = 0; c < p.head_dim; ++c) {
        e.dq[at + static_cast<size_t>(c)] += dscore * double{problem.k[key(j, c)]};
        e.dk[key(j, c)] += dscore * double{problem.q[at + static_cast<size_t>(c)]};
      }
    }
  }
  return e;
}

void ExpectNear(const Floats& actual, const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(double{actual[i]}, expected[i], tolerance) << "element " << i;
  }
}

TEST(BlockedAttention, EqualsTheFormulasOverSeveralBlocks) {
  for (const int64_t dim : {20, 64}) {
    const Problem problem({2, 611, 611, 4, 2, dim});
    const Results r = Attend(problem, 2);
    const Expected e = Reference(problem);
    ExpectNear(r.out, e.out, 2e-6);
    ExpectNear(r.dq, e.dq, 2e-5);
    ExpectNear(r.dk, e.dk, 4e-5);
    ExpectNear(r.dv, e.dv, 2e-5);
  }
}

TEST(BlockedAttention, QueriesAtTheEndOfACacheSeeAllOfIt) {
  const Problem problem({1, 37, 620, 4, 1, 24});
  ExpectNear(Attend(problem, 2).out, Reference(problem).out, 2e-6);
}

TEST(BlockedAttention, ThreadsDoNotChangeABit) {
  for (const GemmMode mode : {GemmMode::kF32, GemmMode::kBf16}) {
    const Problem problem({1, 333, 333, 6, 3, 32, mode});
    const Results one = Attend(problem, 1), three = Attend(problem, 3);
    EXPECT_EQ(one.out, three.out);
    EXPECT_EQ(one.lse, three.lse);
    EXPECT_EQ(one.dq, three.dq);
    EXPECT_EQ(one.dk, three.dk);
    EXPECT_EQ(one.dv, three.dv);
  }
}

// Scores far apart: every exponential but one vanishes, and none overflows.
TEST(BlockedAttention, LargeScoresStayFinite) {
  Problem problem({1, 300, 300, 1, 1, 16});
  for (float& x : problem.q) x *= 100;
  const Results r = Attend(problem, 1);
  ExpectNear(r.out, Reference(problem).out, 2e-3);
  for (const float x : r.dk) ASSERT_TRUE(std::isfinite(x));
}

}  // namespace
}  // namespace nibble
