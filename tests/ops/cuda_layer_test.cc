// SPDX-License-Identifier: Apache-2.0
//
// What lies between a layer's products, emulated: elementwise operations, RMSNorm's backward,
// rotations of positions, the embedding's gradient, AdamW alone and with the codes of the new
// weight.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/backend.h"
#include "kernels/cuda/adamw_kernels.cuh"
#include "kernels/cuda/elementwise_ops.cuh"
#include "kernels/cuda/embedding_kernels.cuh"
#include "kernels/cuda/ids.cuh"
#include "kernels/cuda/loss_kernels.cuh"
#include "kernels/cuda/norm_kernels.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/cuda/rotate_kernels.cuh"
#include "kernels/formats/philox.h"
#include "tests/ops/cuda_elements.h"

namespace nibble::cuda {
namespace {

std::vector<float> Source(int64_t size, uint32_t stream) {
  std::vector<float> x(static_cast<size_t>(size));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = formats::RandomWord(23, 0, stream, i);
    x[i] = static_cast<float>(static_cast<int32_t>(word)) * (word % 29 == 0 ? 0x1p-28f : 0x1p-31f);
  }
  return x;
}

class EmulatedLayer : public testing::Test {
 protected:
  static TensorView View(std::vector<float>& x, int64_t rows = 1) {
    return {x.data(), rows, static_cast<int64_t>(x.size()) / rows};
  }
  static void ExpectNear(const std::vector<float>& got, const std::vector<float>& expected,
                         float tolerance) {
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], expected[i], tolerance * (1 + std::fabs(expected[i]))) << i;
    }
  }
  // Of numbers; any NaN is as good as another.
  static void ExpectSameBits(const std::vector<float>& got, const std::vector<float>& expected) {
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      if (std::isnan(got[i]) && std::isnan(expected[i])) continue;
      ASSERT_EQ(formats::FloatBits(got[i]), formats::FloatBits(expected[i])) << i;
    }
  }
  std::unique_ptr<Backend> cpu_ = *MakeBackend("cpu", {1, 0});
};

TEST_F(EmulatedLayer, AdamWGivesTheBitsOfTheCpu) {
  constexpr int64_t kSize = 777;
  std::vector<float> g = Source(kSize, 1), p = Source(kSize, 2), other_p = p;
  std::vector<float> m(kSize, 0), v(kSize, 0), other_m = m, other_v = v;
  for (int64_t step = 1; step <= 3; ++step) {
    AdamWParams params;
    params.step = step;
    params.gradient_scale = 0.7f;
    ASSERT_TRUE(cpu_->AdamW(params, View(g), View(m), View(v), View(p)).ok());
    ForEachElement(kSize, AdamWOp{AdamWUpdateOf(params), g.data(), other_m.data(), other_v.data(),
                                  other_p.data()});
  }
  EXPECT_EQ(other_m, m);
  EXPECT_EQ(other_v, v);
  EXPECT_EQ(other_p, p);
}

// Rows within and beyond shared memory, whole fours and not, gradients and weights that are not
// finite, a row of zeros; three updates, the last in another order of threads.
TEST_F(EmulatedLayer, AdamWWithCodesGivesTheBitsOfAdamWAndQuantize) {
  constexpr int64_t kRows = 5;
  struct Case {
    Elem elem;
    ScaleRule scale;
    float max;
    int64_t cols;
  };
  for (const Case& c : {Case{Elem::kE2M1, ScaleRule::kF32, 6, 1},
                        {Elem::kE2M1, ScaleRule::kP2, 6, 7},
                        {Elem::kE2M1, ScaleRule::kF32, 6, 36},
                        {Elem::kE2M1, ScaleRule::kF32, 6, 1030},
                        {Elem::kE4M3, ScaleRule::kF32, 448, 33},
                        {Elem::kE4M3, ScaleRule::kCurrent, 448, 2052},
                        {Elem::kE2M1, ScaleRule::kF32, 6, kUpdateHeld + 70},
                        {Elem::kE2M1, ScaleRule::kF32, 6, kUpdateHeld + 1028}}) {
    Quant quant;
    quant.elem = c.elem;
    quant.block = Block::kToken;
    quant.scale = c.scale;
    quant.scale_max = c.max;
    ASSERT_TRUE(UpdatesByRow(quant));
    std::vector<float> g = Source(kRows * c.cols, 1), p = Source(kRows * c.cols, 2);
    for (int64_t i = 0; i < c.cols; ++i) g[static_cast<size_t>(i)] = p[static_cast<size_t>(i)] = 0;
    g[static_cast<size_t>(c.cols)] = NAN;
    p[static_cast<size_t>(2 * c.cols)] = -INFINITY;
    std::vector<float> m(p.size(), 0), v = m, other_m = m, other_v = v, other_p = p;
    QuantizedTensor expected;
    for (int64_t step = 1; step <= 3; ++step) {
      AdamWParams params;
      params.step = step;
      params.learning_rate = 0.03f;
      params.gradient_scale = 0.7f;
      ASSERT_TRUE(cpu_->AdamWQuantize(params, quant, {}, View(g, kRows), View(m, kRows),
                                      View(v, kRows), View(p, kRows), &expected)
                      .ok());
      const auto* expected_enc = static_cast<const float*>(expected.enc.data());
      const auto* expected_codes = static_cast<const uint8_t*>(expected.codes.data());
      const int64_t bytes = kRows * expected.code_row_bytes();
      std::vector<float> enc(kRows);
      std::vector<uint8_t> codes(static_cast<size_t>(bytes), 0xEE);
      int32_t nonfinite = 0;
      const AdamWOp op{AdamWUpdateOf(params), g.data(), other_m.data(), other_v.data(),
                       other_p.data()};
      const AdamWRowsTask task{op,        kRows, c.cols,     expected.code_row_bytes(),
                               c.scale,   c.max, enc.data(), codes.data(),
                               &nonfinite};
      const bool four = InFours(c.cols, {});
      const bool fp4 = c.elem == Elem::kE2M1;
      Emulator::Get().Launch({2}, kThreads, 0,
                             step < 3 ? FiberOrder::kForwards : FiberOrder::kBackwards, [&] {
                               if (fp4 && four) AdamWRowsKernel<Elem::kE2M1, true>(task);
                               if (fp4 && !four) AdamWRowsKernel<Elem::kE2M1, false>(task);
                               if (!fp4 && four) AdamWRowsKernel<Elem::kE4M3, true>(task);
                               if (!fp4 && !four) AdamWRowsKernel<Elem::kE4M3, false>(task);
                             });
      EXPECT_EQ(codes, std::vector<uint8_t>(expected_codes, expected_codes + bytes)) << c.cols;
      EXPECT_EQ(std::memcmp(enc.data(), expected_enc, kRows * sizeof(float)), 0) << c.cols;
      EXPECT_EQ(nonfinite, expected.nonfinite_amax);
      EXPECT_GE(nonfinite, 2);
      ExpectSameBits(other_m, m);
      ExpectSameBits(other_v, v);
      ExpectSameBits(other_p, p);
    }
  }
}

TEST_F(EmulatedLayer, SumsAndRoundingGiveTheBitsOfTheCpu) {
  constexpr int64_t kSize = 301;
  std::vector<float> a = Source(kSize, 3), b = Source(kSize, 4), out(kSize), expected(kSize);
  ASSERT_TRUE(cpu_->Add(View(a), View(b), View(expected)).ok());
  ForEachPacked(kSize, AddOp{a.data(), b.data(), out.data()});
  EXPECT_EQ(out, expected);
  ASSERT_TRUE(cpu_->Axpy(0.3f, View(a), View(expected)).ok());
  ForEachElement(kSize, AxpyOp{0.3f, a.data(), out.data()});
  EXPECT_EQ(out, expected);
  ASSERT_TRUE(cpu_->Scale(1.7f, View(expected)).ok());
  ForEachElement(kSize, ScaleOp{1.7f, out.data()});
  EXPECT_EQ(out, expected);
  ASSERT_TRUE(cpu_->RoundToBf16(View(expected), View(expected)).ok());
  ForEachPacked(kSize, RoundOp{out.data(), out.data()});
  EXPECT_EQ(out, expected);
}

TEST_F(EmulatedLayer, SwiGluIsTheCpusBothWays) {
  constexpr int64_t kSize = 999;
  std::vector<float> gate = Source(kSize, 5), up = Source(kSize, 6), dout = Source(kSize, 7);
  std::vector<float> out(kSize), dgate(kSize), dup(kSize), expected[3];
  for (auto& e : expected) e.resize(kSize);
  for (float& g : gate) g *= 9.0f;  // into both tails
  ASSERT_TRUE(cpu_->SwiGluForward(View(gate), View(up), View(expected[0])).ok());
  ASSERT_TRUE(
      cpu_->SwiGluBackward(View(dout), View(gate), View(up), View(expected[1]), View(expected[2]))
          .ok());
  ForEachPacked(kSize, SwiGluOp{gate.data(), up.data(), out.data()});
  ForEachPacked(kSize,
                SwiGluBackwardOp{dout.data(), gate.data(), up.data(), dgate.data(), dup.data()});
  ExpectNear(out, expected[0], 1e-6f);
  ExpectNear(dgate, expected[1], 1e-6f);
  ExpectNear(dup, expected[2], 1e-6f);
}

// Rows within and beyond what registers hold, whole packs or not.
TEST_F(EmulatedLayer, TheSumWithItsNormGivesTheBitsOfBothAlone) {
  constexpr int64_t kRows = 3;
  constexpr int kFours = 2;
  const auto check = [&](int64_t width, auto whole) {
    SCOPED_TRACE(width);
    const auto size = static_cast<size_t>(kRows * width);
    const std::vector<float> a = Source(kRows * width, 8), b = Source(kRows * width, 9);
    const std::vector<float> weight = Source(width, 10);
    std::vector<float> sum = a, out(size), rstd(kRows), alone(size), alone_rstd(kRows);
    std::vector<float> expected(size), expected_rstd(kRows), expected_sum(size);
    for (size_t i = 0; i < size; ++i) expected_sum[i] = a[i] + b[i];
    const NormTask<float> both{sum.data(), b.data(),   weight.data(), 1e-5f,      kRows,
                               width,      sum.data(), out.data(),    rstd.data()};
    Emulator::Get().Launch({2}, kThreads, 0, FiberOrder::kBackwards,
                           [&] { RmsNormKernel<kFours, decltype(whole)::value>(both); });
    const NormTask<float> norm{
        expected_sum.data(), nullptr,          weight.data(), 1e-5f, kRows, width, nullptr,
        alone.data(),        alone_rstd.data()};
    Emulator::Get().Launch({3}, kThreads, 0, FiberOrder::kForwards,
                           [&] { RmsNormKernel<kFours, decltype(whole)::value>(norm); });
    EXPECT_EQ(sum, expected_sum);
    EXPECT_EQ(out, alone);
    EXPECT_EQ(rstd, alone_rstd);
    std::vector<float> cpu_sum(size);
    const ConstTensorView left(a.data(), kRows, width), right(b.data(), kRows, width);
    ASSERT_TRUE(cpu_->AddRmsNormForward(left, right, {weight.data(), 1, width}, 1e-5f,
                                        {cpu_sum.data(), kRows, width},
                                        {expected.data(), kRows, width},
                                        {expected_rstd.data(), 1, kRows})
                    .ok());
    EXPECT_EQ(cpu_sum, expected_sum);
    for (size_t i = 0; i < size; ++i) {
      ASSERT_NEAR(out[i], expected[i], 1e-5f * (1 + std::fabs(expected[i]))) << i;
    }
  };
  for (const int64_t width : {int64_t{1}, int64_t{301}, kNormHeld<kFours> + 70}) {
    check(width, std::false_type());
  }
  for (const int64_t width : {int64_t{300}, kNormHeld<kFours>, kNormHeld<kFours> + 1028}) {
    check(width, std::true_type());
  }
}

// More rows than a block takes; rows within and beyond what registers hold, whole packs or not.
TEST_F(EmulatedLayer, RmsNormBackwardIsTheCpus) {
  constexpr int64_t kRows = 2 * kNormChunkRows + 9, kChunks = 3;
  constexpr int kFours = 2;
  const auto check = [&](int64_t width, bool accumulate, auto whole) {
    SCOPED_TRACE(width);
    std::vector<float> x = Source(kRows * width, 8), dout = Source(kRows * width, 9);
    std::vector<float> weight = Source(width, 10), out(x.size()), rstd(kRows);
    ASSERT_TRUE(
        cpu_->RmsNormForward(View(x, kRows), View(weight), 1e-5f, View(out, kRows), View(rstd))
            .ok());
    std::vector<float> dx = Source(kRows * width, 11), dweight = Source(width, 12);
    std::vector<float> expected_dx = dx, expected_dweight = dweight;
    ASSERT_TRUE(cpu_->RmsNormBackward(View(dout, kRows), View(x, kRows), View(weight), View(rstd),
                                      View(expected_dx, kRows), accumulate, View(expected_dweight))
                    .ok());
    std::vector<float> partials(static_cast<size_t>(kChunks * width), 1e30f);
    if (!accumulate) dx = dout;  // in place
    const NormGradientTask task{accumulate ? dout.data() : dx.data(),
                                x.data(),
                                weight.data(),
                                rstd.data(),
                                kRows,
                                width,
                                accumulate,
                                dx.data(),
                                partials.data()};
    Emulator::Get().Launch({kChunks}, kThreads, 0, FiberOrder::kBackwards,
                           [&] { RmsNormBackwardKernel<kFours, decltype(whole)::value>(task); });
    const auto folds = static_cast<unsigned>((width + kFoldColumns - 1) / kFoldColumns);
    Emulator::Get().Launch({folds}, kThreads, 0, FiberOrder::kForwards, [&] {
      FoldPartialsKernel(partials.data(), kChunks, width, dweight.data());
    });
    ExpectNear(dx, expected_dx, 1e-5f);
    ExpectNear(dweight, expected_dweight, 1e-5f);
  };
  for (const bool accumulate : {false, true}) {
    check(301, accumulate, std::false_type());
    check(300, accumulate, std::true_type());
    check(kNormHeld<kFours> + 70, accumulate, std::false_type());
    check(kNormHeld<kFours> + 1028, accumulate, std::true_type());
  }
}

// Pairs four at a time and one at a time.
TEST_F(EmulatedLayer, RotationsOfPositionsAreTheCpusBothWays) {
  for (const int64_t head_dim : {int64_t{6}, int64_t{24}}) {
    const RopeParams params{2, 7, 3, head_dim, 5, 500.0};
    const int64_t rows = params.batch * params.seq, positions = params.position_offset + params.seq;
    std::vector<float> table(static_cast<size_t>(positions * head_dim));
    ForEachElement(positions * head_dim / 2, RopeTableOp{params.theta, head_dim, table.data()});
    std::vector<float> x = Source(rows * params.heads * head_dim, 13), got = x;
    for (const float sign : {1.0f, -1.0f}) {
      const Status status = sign > 0 ? cpu_->RopeForward(params, View(x, rows), View(x, rows))
                                     : cpu_->RopeBackward(params, View(x, rows));
      ASSERT_TRUE(status.ok());
      const RopeTask<float> task{got.data(),
                                 got.data(),
                                 table.data(),
                                 rows,
                                 params.seq,
                                 params.position_offset,
                                 static_cast<int>(params.heads),
                                 static_cast<int>(head_dim),
                                 sign};
      Emulator::Get().Launch({3}, kThreads, 0, FiberOrder::kBackwards, [&] {
        head_dim % 8 == 0 ? RopeKernel<4>(task) : RopeKernel<1>(task);
      });
      ExpectNear(got, x, 1e-6f);
    }
  }
}

// Every size the kernel has, along either axis, both ways, signs as the CPU draws them.
TEST_F(EmulatedLayer, HadamardRotationsAreTheCpusBits) {
  constexpr uint64_t kSeed = 3;
  constexpr uint32_t kStep = 4, kStream = 5;
  for (int size = 2; size <= formats::kMaxRotation; size *= 2) {
    const int64_t rows = 2 * size, cols = size;
    for (const bool by_rows : {false, true}) {
      std::vector<float> x = Source(rows * cols, 16), got = x;
      QuantizeContext context;
      context.seed = kSeed;
      context.step = kStep;
      context.rotation_stream = kStream;
      context.contraction = by_rows ? Axis::kRows : Axis::kCols;
      for (const bool inverse : {false, true}) {
        ASSERT_TRUE(
            cpu_->Rotate({size, Signs::kFresh}, context, inverse, View(x, rows), View(x, rows))
                .ok());
        RotationTask task = RotationTaskOf(size, inverse, by_rows, rows, cols);
        for (int i = 0; i < size; ++i) {
          const uint32_t word =
              formats::RandomWord(kSeed, kStep, kStream, static_cast<uint64_t>(i));
          task.negative[i / 32] |= (word >> 31) << (i % 32);
        }
        task.x = got.data();
        task.out = got.data();
        Emulator::Get().Launch({3}, static_cast<unsigned>(size), 0, FiberOrder::kBackwards,
                               [&] { RotateKernel(task); });
        EXPECT_EQ(got, x) << size << ' ' << by_rows << ' ' << inverse;
      }
    }
  }
}

// Repeated ids add in ascending order: the CPU's bits. Ids that are none add nothing.
TEST_F(EmulatedLayer, EmbeddingGradientsAreTheCpusBits) {
  constexpr int64_t kVocabulary = 90;
  struct Case {
    int64_t tokens, width;
    uint32_t kinds;
  };
  for (const Case& c : {Case{1, 1, 1},
                        {60, 270, 11},
                        {2 * kThreads + 40, 7, 3},
                        {3 * kThreads, 4, 1},
                        {300, 4 * kThreads + 8, 90}}) {
    std::vector<int32_t> ids(static_cast<size_t>(c.tokens));
    for (size_t t = 0; t < ids.size(); ++t) {
      ids[t] = static_cast<int32_t>(formats::RandomWord(1, 2, 3, t) % c.kinds * (90 / c.kinds));
    }
    std::vector<float> dout = Source(c.tokens * c.width, 14);
    std::vector<float> dtable = Source(kVocabulary * c.width, 15), expected = dtable;
    ASSERT_TRUE(cpu_->EmbeddingBackward({ids.data(), 1, c.tokens, DType::kI32},
                                        View(dout, c.tokens), View(expected, kVocabulary))
                    .ok());
    for (const int32_t bad : {-3, -64, static_cast<int32_t>(kVocabulary), INT32_MAX, INT32_MIN}) {
      ids.push_back(bad);
      dout.insert(dout.end(), static_cast<size_t>(c.width), 1.0f);
    }
    const auto tokens = static_cast<int64_t>(ids.size());
    const auto runs = static_cast<unsigned>((tokens + kThreads - 1) / kThreads);
    std::vector<int32_t> place(ids.size()), order(ids.size(), -1);
    Emulator::Get().Launch({runs, 2}, kThreads, 0, FiberOrder::kForwards,
                           [&] { RankTokensKernel(ids.data(), tokens, place.data()); });
    ForEachElement(tokens, OrderTokensOp{place.data(), order.data()});
    const EmbeddingTask task{ids.data(),  order.data(), dout.data(),  tokens,
                             kVocabulary, c.width,      dtable.data()};
    const auto strips = static_cast<unsigned>((c.width + 4 * kThreads - 1) / (4 * kThreads));
    Emulator::Get().Launch({strips, 5}, kThreads, 0, FiberOrder::kBackwards, [&] {
      c.width % 4 == 0 ? EmbeddingBackwardKernel<true>(task) : EmbeddingBackwardKernel<false>(task);
    });
    ExpectSameBits(dtable, expected);
  }
}

template <bool kWhole>
void ExpectCrossEntropyOfTheCpu(int64_t vocabulary) {
  SCOPED_TRACE(vocabulary);
  constexpr int64_t kRows = 5;
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {1, 0});
  std::vector<float> logits = Source(kRows * vocabulary, 4);
  logits[static_cast<size_t>(3 * vocabulary + 5)] = 80.0f;  // one certain row
  std::vector<float> expected = logits, losses(kRows), expected_losses(kRows);
  const auto last = static_cast<int32_t>(vocabulary - 1);
  std::vector<int32_t> targets = {0, last, Backend::kIgnoreTarget, 5, 300};
  const ConstTensorView ids(targets.data(), 1, kRows, DType::kI32);
  const TensorView in_place(expected.data(), kRows, vocabulary);
  ASSERT_TRUE(
      cpu->CrossEntropy(in_place, ids, 0.25f, in_place, {expected_losses.data(), 1, kRows}).ok());
  for (const FiberOrder order : {FiberOrder::kForwards, FiberOrder::kBackwards}) {
    std::vector<float> got = logits;
    Emulator::Get().Launch({2}, kThreads, 0, order, [&] {
      CrossEntropyKernel<kWhole>(got.data(), targets.data(), kRows, vocabulary, 0.25f, got.data(),
                                 losses.data());
    });
    std::vector<uint16_t> narrow(got.size()), rounded;
    Emulator::Get().Launch({2}, kThreads, 0, order, [&] {
      CrossEntropyKernel<kWhole>(logits.data(), targets.data(), kRows, vocabulary, 0.25f,
                                 narrow.data(), losses.data());
    });
    for (const float value : got) rounded.push_back(formats::ToBf16(value));
    EXPECT_EQ(narrow, rounded);
    for (size_t i = 0; i < losses.size(); ++i) {
      EXPECT_NEAR(losses[i], expected_losses[i], 2e-6f * (1 + expected_losses[i])) << i;
    }
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 3e-7f) << i;
  }
}

TEST(EmulatedCrossEntropy, EqualsTheCpu) {
  ExpectCrossEntropyOfTheCpu<true>(700);
  ExpectCrossEntropyOfTheCpu<true>(9500);
  ExpectCrossEntropyOfTheCpu<false>(5123);
  ExpectCrossEntropyOfTheCpu<false>(703);
}

// Ids that are none leave nothing; the first of them is noted with its position.
TEST(EmulatedIds, BadOnesAreNotedAndLeftAlone) {
  const std::vector<int32_t> ids = {2, -1, 9, 0, -7};
  const std::vector<float> table = {1, 2, 3, 4, 5, 6};  // three tokens
  std::vector<float> out(10, -1.0f);
  for (const bool backwards : {false, true}) {
    unsigned long long tokens = ~0ull, targets = ~0ull;
    const CheckIdsOp check_tokens{ids.data(), 3, 0, &tokens};
    const CheckIdsOp check_targets{ids.data(), 3, Backend::kIgnoreTarget, &targets};
    for (int64_t i = 0; i < 5; ++i) {
      check_tokens(backwards ? 4 - i : i);
      check_targets(backwards ? 4 - i : i);
    }
    EXPECT_EQ(tokens, (1ull << 32 | 0xFFFFFFFFull));
    EXPECT_EQ(targets, (2ull << 32 | 9));
  }
  const GatherOp gather{table.data(), ids.data(), 3, 2, out.data()};
  for (int64_t i = 0; i < 10; ++i) gather(i);
  EXPECT_EQ(out, (std::vector<float>{5, 6, 0, 0, 0, 0, 1, 2, 0, 0}));
}

}  // namespace
}  // namespace nibble::cuda
