// SPDX-License-Identifier: Apache-2.0
//
// The tensor-core attention of the CUDA backend, emulated: against the CPU backend's attention.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/cuda/attention_delta.cuh"
#include "kernels/cuda/flash_backward_kernels.cuh"
#include "kernels/cuda/flash_kernels.cuh"
#include "kernels/formats/philox.h"

namespace nibble::cuda {
namespace {

std::vector<float> Draws(int64_t n, uint32_t stream) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = formats::RandomWord(5, 0, stream, i);
    x[i] = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f;
  }
  return x;
}
std::vector<uint16_t> Rounded(const std::vector<float>& x) {
  std::vector<uint16_t> out;
  for (const float value : x) out.push_back(formats::ToBf16(value));
  return out;
}

struct Shape {
  int64_t batch, seq, kv_seq, heads, kv_heads;
};

// Inputs, and the results of one backend.
struct Attention {
  AttentionParams params;
  std::vector<float> q, k, v, dout, out, lse, dq, dk, dv;
  std::vector<uint16_t> narrow;  // out, left as BF16

  Attention(const Shape& s, int64_t head_dim) {
    params = {s.batch, s.seq, s.kv_seq, s.heads, s.kv_heads, head_dim, GemmMode::kBf16};
    q = Draws(q_rows() * q_cols(), 1);
    k = Draws(kv_rows() * kv_cols(), 2);
    v = Draws(kv_rows() * kv_cols(), 3);
    dout = Draws(q_rows() * q_cols(), 4);
    out = dq = std::vector<float>(q.size(), 1e30f);
    dk = dv = std::vector<float>(k.size(), 1e30f);
    lse.assign(static_cast<size_t>(s.batch * s.heads * s.seq), 1e30f);
  }
  int64_t q_rows() const { return params.batch * params.seq; }
  int64_t q_cols() const { return params.heads * params.head_dim; }
  int64_t kv_rows() const { return params.batch * params.kv_seq; }
  int64_t kv_cols() const { return params.kv_heads * params.head_dim; }

  void RunOnCpu() {
    const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
    const auto by_q = [&](std::vector<float>& x) {
      return TensorView{x.data(), q_rows(), q_cols()};
    };
    const auto by_k = [&](std::vector<float>& x) {
      return TensorView{x.data(), kv_rows(), kv_cols()};
    };
    const TensorView rows{lse.data(), params.batch * params.heads, params.seq};
    ASSERT_TRUE(cpu->AttentionForward(params, by_q(q), by_k(k), by_k(v), by_q(out), rows).ok());
    if (params.seq != params.kv_seq) return;
    ASSERT_TRUE(cpu->AttentionBackward(params, by_q(dout), by_q(q), by_k(k), by_k(v), by_q(out),
                                       rows, by_q(dq), by_k(dk), by_k(dv))
                    .ok());
  }

  template <int kDim>
  void RunEmulated(FiberOrder order) {
    const auto as_int = [](int64_t x) { return static_cast<int>(x); };
    const FlashProblem p{as_int(params.batch),
                         as_int(params.seq),
                         as_int(params.kv_seq),
                         as_int(params.heads),
                         as_int(params.kv_heads),
                         as_int(params.head_dim),
                         1.0f / std::sqrt(static_cast<float>(kDim))};
    const auto bq = Rounded(q), bk = Rounded(k), bv = Rounded(v);
    std::vector<uint16_t> bg;
    const auto tiles = [&](int64_t tile) {
      return static_cast<unsigned>((params.seq + tile - 1) / tile);
    };
    const auto by_head = static_cast<unsigned>(params.batch * params.heads);
    const auto by_kv_head = static_cast<unsigned>(params.batch * params.kv_heads);
    Emulator::Get().Launch(
        {tiles(kFlashQueries), by_head}, kFlashThreads, FlashForwardBytes<kDim>(), order, [&] {
          FlashForwardKernel<kDim>(p, bq.data(), bk.data(), bv.data(), out.data(), lse.data());
        });
    narrow.assign(out.size(), 0x7FFF);
    std::vector<float> same_lse(lse.size());
    Emulator::Get().Launch({tiles(kFlashQueries), by_head}, kFlashThreads,
                           FlashForwardBytes<kDim>(), order, [&] {
                             FlashForwardKernel<kDim>(p, bq.data(), bk.data(), bv.data(),
                                                      narrow.data(), same_lse.data());
                           });
    EXPECT_EQ(same_lse, lse);
    if (params.seq != params.kv_seq) return;
    const std::vector<float> delta = Delta(order, &bg);
    EXPECT_EQ(bg, Rounded(dout));
    Emulator::Get().Launch({tiles(kGradientKeys), by_kv_head}, kFlashThreads,
                           FlashKeyGradientBytes<kDim>(), order, [&] {
                             FlashKeyGradientKernel<kDim>(p, bg.data(), bq.data(), bk.data(),
                                                          bv.data(), lse.data(), delta.data(),
                                                          dk.data(), dv.data());
                           });
    Emulator::Get().Launch({tiles(kQueryGradientQueries), by_head}, kFlashThreads,
                           FlashQueryGradientBytes<kDim>(), order, [&] {
                             FlashQueryGradientKernel<kDim>(p, bg.data(), bq.data(), bk.data(),
                                                            bv.data(), lse.data(), delta.data(),
                                                            dq.data());
                           });
  }

  // dout . out of each query and head, and dout as BF16.
  std::vector<float> Delta(FiberOrder order, std::vector<uint16_t>* narrow) const {
    std::vector<float> delta(lse.size(), 1e30f);
    narrow->assign(dout.size(), 0);
    const DeltaTask<float> task{static_cast<int64_t>(lse.size()),
                                params.seq,
                                static_cast<int>(params.heads),
                                static_cast<int>(params.head_dim),
                                dout.data(),
                                out.data(),
                                delta.data(),
                                narrow->data()};
    Emulator::Get().Launch({2}, kThreads, 0, order, [&] { DeltaKernel(task); });
    return delta;
  }
};

void ExpectNear(const std::vector<float>& got, const std::vector<float>& expected, float tolerance,
                const char* what) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], tolerance) << what << ' ' << i;
  }
}

// BF16 probabilities on both sides, rounded before or after the division by their sum: results
// differ by less than two roundings of the largest term.
constexpr float kTolerance = 0.006f;

template <int kDim>
void ExpectEqualsCpu(const Shape& shape) {
  SCOPED_TRACE(testing::Message() << kDim << ": " << shape.batch << ' ' << shape.seq << ' '
                                  << shape.kv_seq << ' ' << shape.heads << '/' << shape.kv_heads);
  Attention cpu(shape, kDim), forwards(shape, kDim), backwards(shape, kDim);
  cpu.RunOnCpu();
  forwards.RunEmulated<kDim>(FiberOrder::kForwards);
  backwards.RunEmulated<kDim>(FiberOrder::kBackwards);
  EXPECT_EQ(forwards.out, backwards.out);
  EXPECT_EQ(forwards.narrow, Rounded(forwards.out));
  EXPECT_EQ(forwards.dk, backwards.dk);
  EXPECT_EQ(forwards.dv, backwards.dv);
  EXPECT_EQ(forwards.dq, backwards.dq);
  ExpectNear(forwards.out, cpu.out, kTolerance, "out");
  ExpectNear(forwards.lse, cpu.lse, 2e-5f, "lse");
  if (shape.seq != shape.kv_seq) return;
  const float grouped = static_cast<float>(shape.heads / shape.kv_heads);
  ExpectNear(forwards.dq, cpu.dq, kTolerance, "dq");
  ExpectNear(forwards.dk, cpu.dk, kTolerance * grouped, "dk");
  ExpectNear(forwards.dv, cpu.dv, kTolerance * grouped, "dv");
}

TEST(EmulatedAttention, EqualsTheCpuAtHeadSize64) {
  for (const Shape& shape : {Shape{1, 1, 1, 1, 1},
                             {1, 67, 67, 2, 1},
                             {2, 64, 64, 1, 1},
                             {1, 130, 130, 1, 1},
                             {1, 3, 70, 2, 2},
                             {1, 150, 341, 2, 1},
                             {1, 260, 260, 2, 2}}) {
    ExpectEqualsCpu<64>(shape);
  }
}

TEST(EmulatedAttention, EqualsTheCpuAtHeadSize128) {
  for (const Shape& shape :
       {Shape{1, 33, 33, 2, 1}, {2, 97, 97, 1, 1}, {1, 65, 129, 1, 1}, {1, 200, 200, 2, 1}}) {
    ExpectEqualsCpu<128>(shape);
  }
}

}  // namespace
}  // namespace nibble::cuda
