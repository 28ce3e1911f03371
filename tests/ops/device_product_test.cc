// SPDX-License-Identifier: Apache-2.0
//
// Products on codes, folded gradients and tensor-core attention of a device against the CPU's.
// Skipped, with the reason, without a device.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/formats/philox.h"
#include "tests/ops/device.h"

namespace nibble {
namespace {

std::vector<float> Draws(int64_t n, uint32_t stream) {
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t word = formats::RandomWord(21, 0, stream, i);
    const float u = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f;
    values[i] = i % 61 == 7 ? u * 30 : u;
  }
  return values;
}

// Tensors of one backend, alive as long as this object.
class Place {
 public:
  explicit Place(Backend& backend) : backend(backend) {}
  TensorView In(const std::vector<float>& host, int64_t rows, int64_t cols) {
    const TensorView view = Out(rows, cols);
    EXPECT_TRUE(backend.CopyIn(view.data, host.data(), view.size_bytes()).ok());
    return view;
  }
  TensorView Out(int64_t rows, int64_t cols) {
    buffers_.push_back(std::make_unique<Buffer>());
    return *buffers_.back()->View(backend, rows, cols);
  }
  std::vector<float> Host(TensorView view) {
    std::vector<float> host(static_cast<size_t>(view.size()));
    EXPECT_TRUE(backend.CopyOut(host.data(), view.data, view.size_bytes()).ok());
    return host;
  }
  Backend& backend;

 private:
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

Quant RowQuant(Elem elem, float max, OccComp comp = OccComp::kNone) {
  Quant quant;
  quant.elem = elem;
  quant.block = Block::kToken;
  quant.scale = ScaleRule::kF32;
  quant.scale_max = max;
  if (comp != OccComp::kNone) quant.pre = {true, 0.97, OccScope::kTensor, comp};
  return quant;
}

// The three products of a layer of (tokens, in) -> out, gradients folded as fp4_fold8 has them.
struct LayerProducts {
  std::vector<float> y, dx, dw;
};
LayerProducts RunLayer(Backend& backend, OccComp comp, bool backward, int64_t tokens, int64_t in,
                       int64_t out, Support path) {
  Place place(backend);
  const TensorView x = place.In(Draws(tokens * in, 1), tokens, in);
  const TensorView w = place.In(Draws(out * in, 2), out, in);
  const TensorView dy = place.In(Draws(tokens * out, 3), tokens, out);
  QuantizedTensor xq, wq, gd, gw;
  EXPECT_TRUE(backend.Quantize(RowQuant(Elem::kE2M1, 6, comp), {}, x, &xq, {}).ok());
  EXPECT_TRUE(backend.Quantize(RowQuant(Elem::kE2M1, 6), {}, w, &wq, {}).ok());
  const TensorView y = place.Out(tokens, out);
  QuantizedGemmParams params;
  params.transpose_b = Transpose::kYes;
  params.path = path;
  Status status = backend.QuantizedGemm(params, xq, wq, y);
  EXPECT_TRUE(status.ok()) << status.ToString();
  LayerProducts products{place.Host(y), {}, {}};
  if (!backward) return products;

  QuantizeContext dgrad, wgrad;
  dgrad.fold = &wq;
  wgrad.fold = &xq;
  wgrad.contraction = Axis::kRows;
  Quant by_column = RowQuant(Elem::kE4M3, 448);
  by_column.block = Block::kOutputChannel;
  status = backend.Quantize(RowQuant(Elem::kE4M3, 448), dgrad, dy, &gd, {});
  EXPECT_TRUE(status.ok()) << status.ToString();
  status = backend.Quantize(by_column, wgrad, dy, &gw, {});
  EXPECT_TRUE(status.ok()) << status.ToString();
  const TensorView dx = place.Out(tokens, in), dw = place.Out(out, in);
  params = {};
  params.fold_b = true;
  params.path = path;
  status = backend.QuantizedGemm(params, gd, wq, dx);
  EXPECT_TRUE(status.ok()) << status.ToString();
  params.transpose_a = Transpose::kYes;
  status = backend.QuantizedGemm(params, gw, xq, dw);
  EXPECT_TRUE(status.ok()) << status.ToString();
  products.dx = place.Host(dx);
  products.dw = place.Host(dw);
  return products;
}

// |got - expected| <= tolerance * the largest expected magnitude.
void ExpectNear(const std::vector<float>& got, const std::vector<float>& expected, double tolerance,
                const char* what) {
  ASSERT_EQ(got.size(), expected.size());
  double largest = 0;
  for (const float value : expected) largest = std::max(largest, std::fabs(double{value}));
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], tolerance * largest) << what << ' ' << i;
  }
}

// Sums of E2M1 codes are exact, wide ones too, so forward products differ by the rounding of the
// scales alone. Outliers with a scale of their own are summed in FP32, in another order, and cut
// instead of rounded by tensor cores. FP8 gradients and outliers leave more: an FP8 tensor core
// keeps 13 bits below the largest term, 128 terms between promotions.
constexpr double kExactTolerance = 4e-7, kFp32Tolerance = 1e-5, kFp8Tolerance = 2e-3;

double ForwardTolerance(OccComp comp, Support path) {
  if (comp == OccComp::kE4M3 && path == Support::kFast) return kFp8Tolerance;
  return comp == OccComp::kE4M3 || comp == OccComp::kBf16 ? kFp32Tolerance : kExactTolerance;
}

TEST(Device, ProductsOnCodesAreTheCpus) {
  Result<std::unique_ptr<Backend>> cuda = MakeDevice();
  if (!cuda.ok()) GTEST_SKIP() << cuda.status().message();
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {});
  struct Shape {
    int64_t tokens, in, out;
  };
  for (const Shape& s : {Shape{64, 128, 96}, {37, 51, 29}, {256, 1024, 512}}) {
    for (const OccComp comp : {OccComp::kNone, OccComp::kWide, OccComp::kE4M3, OccComp::kBf16}) {
      const bool backward = comp == OccComp::kNone || comp == OccComp::kWide;
      for (const Support path : {Support::kFast, Support::kReference}) {
        SCOPED_TRACE(testing::Message() << s.tokens << 'x' << s.in << 'x' << s.out << " outliers "
                                        << static_cast<int>(comp) << ' ' << SupportName(path));
        const LayerProducts device = RunLayer(**cuda, comp, backward, s.tokens, s.in, s.out, path);
        const LayerProducts reference =
            RunLayer(*cpu, comp, false, s.tokens, s.in, s.out, Support::kFast);
        ExpectNear(device.y, reference.y, ForwardTolerance(comp, path), "y");
        if (!backward) continue;
        const LayerProducts exact =
            RunLayer(**cuda, comp, true, s.tokens, s.in, s.out, Support::kReference);
        ExpectNear(device.dx, exact.dx, kFp8Tolerance, "dx");
        ExpectNear(device.dw, exact.dw, kFp8Tolerance, "dw");
      }
    }
  }
}

TEST(Device, Bf16InMemoryGivesTheProductsOfRoundedOperands) {
  Result<std::unique_ptr<Backend>> cuda = MakeDevice();
  if (!cuda.ok()) GTEST_SKIP() << cuda.status().message();
  Place device(**cuda);
  ASSERT_TRUE(device.backend.StoresBf16());
  constexpr int64_t kM = 33, kN = 48, kK = 70;
  const TensorView a = device.In(Draws(kM * kK, 1), kM, kK);
  const TensorView b = device.In(Draws(kN * kK, 2), kN, kK);
  Buffer memory;
  const TensorView narrow = memory.View(device.backend, kM, kK, DType::kBF16).value();
  ASSERT_TRUE(device.backend.RoundToBf16(a, narrow).ok());
  const TensorView expected = device.Out(kM, kN), got = device.Out(kM, kN);
  const auto multiply = [&](ConstTensorView left, TensorView out) {
    return device.backend.Gemm(GemmMode::kBf16, left, Transpose::kNo, b, Transpose::kYes, false,
                               out);
  };
  ASSERT_TRUE(multiply(a, expected).ok());
  ASSERT_TRUE(multiply(narrow, got).ok());
  EXPECT_EQ(device.Host(got), device.Host(expected));
  EXPECT_EQ(
      device.backend.Gemm(GemmMode::kF32, narrow, Transpose::kNo, b, Transpose::kYes, false, got)
          .code(),
      StatusCode::kUnimplemented);
}

TEST(Device, TensorCoreAttentionIsTheCpus) {
  Result<std::unique_ptr<Backend>> cuda = MakeDevice();
  if (!cuda.ok()) GTEST_SKIP() << cuda.status().message();
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {});
  for (const AttentionParams& p : {AttentionParams{1, 67, 67, 2, 1, 64, GemmMode::kBf16},
                                   {2, 300, 300, 4, 2, 64, GemmMode::kBf16},
                                   {1, 257, 257, 2, 2, 128, GemmMode::kBf16}}) {
    SCOPED_TRACE(testing::Message() << p.seq << ' ' << p.head_dim);
    std::vector<std::vector<float>> results[2];
    Backend* const backends[2] = {cpu.get(), cuda->get()};
    for (int i = 0; i < 2; ++i) {
      Place place(*backends[i]);
      const int64_t rows = p.batch * p.seq;
      const int64_t wide = p.heads * p.head_dim, narrow = p.kv_heads * p.head_dim;
      const TensorView q = place.In(Draws(rows * wide, 4), rows, wide);
      const TensorView k = place.In(Draws(rows * narrow, 5), rows, narrow);
      const TensorView v = place.In(Draws(rows * narrow, 6), rows, narrow);
      const TensorView dout = place.In(Draws(rows * wide, 7), rows, wide);
      const TensorView out = place.Out(rows, wide), lse = place.Out(p.batch * p.heads, p.seq);
      const TensorView dq = place.Out(rows, wide);
      const TensorView dk = place.Out(rows, narrow), dv = place.Out(rows, narrow);
      ASSERT_TRUE(backends[i]->AttentionForward(p, q, k, v, out, lse).ok());
      ASSERT_TRUE(backends[i]->AttentionBackward(p, dout, q, k, v, out, lse, dq, dk, dv).ok());
      for (const TensorView view : {out, lse, dq, dk, dv}) results[i].push_back(place.Host(view));
    }
    const char* names[] = {"out", "lse", "dq", "dk", "dv"};
    for (size_t n = 0; n < 5; ++n) {
      ExpectNear(results[1][n], results[0][n], n == 1 ? 1e-5 : 1e-2, names[n]);
    }
  }
}

TEST(Device, QuantizesGradientsTwiceAsTwoCallsDo) {
  Result<std::unique_ptr<Backend>> cuda = MakeDevice();
  if (!cuda.ok()) GTEST_SKIP() << cuda.status().message();
  Backend& backend = **cuda;
  Place place(backend);
  constexpr int64_t kTokens = 203, kOut = 140;
  const TensorView dy = place.In(Draws(kTokens * kOut, 8), kTokens, kOut);
  Quant by_column = RowQuant(Elem::kE4M3, 448);
  by_column.block = Block::kOutputChannel;
  QuantizeContext turned;
  turned.contraction = Axis::kRows;
  QuantizedTensor both[2], single[2];
  ASSERT_TRUE(
      backend
          .QuantizeBoth(RowQuant(Elem::kE4M3, 448), {}, by_column, turned, dy, &both[0], &both[1])
          .ok());
  ASSERT_TRUE(backend.Quantize(RowQuant(Elem::kE4M3, 448), {}, dy, &single[0], {}).ok());
  ASSERT_TRUE(backend.Quantize(by_column, turned, dy, &single[1], {}).ok());
  for (int i = 0; i < 2; ++i) {
    std::vector<uint8_t> codes[2];
    const Buffer* const buffers[2] = {&both[i].codes, &single[i].codes};
    for (int k = 0; k < 2; ++k) {
      codes[k].resize(static_cast<size_t>(kTokens * kOut));
      ASSERT_TRUE(backend.CopyOut(codes[k].data(), buffers[k]->data(), kTokens * kOut).ok());
    }
    EXPECT_EQ(codes[0], codes[1]) << i;
  }
}

}  // namespace
}  // namespace nibble
