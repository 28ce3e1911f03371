// SPDX-License-Identifier: Apache-2.0
//
// What the tensor cores of this GPU do with FP8 and FP4 operands: products through cuBLASLt against
// int64 sums. Skipped, with the reason, where there is no device or no such unit.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cuda/matmul.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/philox.h"
#include "kernels/formats/scale_layout.h"

namespace nibble::cuda {
namespace {

// Device memory with a copy of host values.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& host) : size_(host.size()) {
    EXPECT_EQ(cudaMalloc(&data_, size_ * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  T* data() { return static_cast<T*>(data_); }
  std::vector<T> Host() {
    std::vector<T> host(size_);
    EXPECT_EQ(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return host;
  }

 private:
  void* data_ = nullptr;
  size_t size_;
};

constexpr int64_t kM = 64, kN = 80;

uint32_t Word(uint32_t stream, size_t i) { return formats::RandomWord(77, 0, stream, i); }

// Values of codes in quarter units of their product: E2M1 in halves each.
struct Probe {
  const char* name;
  std::function<float(uint32_t word)> left, right;
};
float E2M1Of(uint32_t word) { return formats::DecodeE2M1(static_cast<uint8_t>(word >> 28)); }
const Probe kProbes[] = {
    {"uniform codes", E2M1Of, E2M1Of},
    {"mean-shifted", [](uint32_t w) { return std::fabs(E2M1Of(w)); },
     [](uint32_t w) { return std::fabs(E2M1Of(w)); }},
    {"all six", [](uint32_t) { return 6.0f; }, [](uint32_t) { return 6.0f; }},
    {"outliers",
     [](uint32_t w) { return w % 50 == 0 ? 8.0f + static_cast<float>(w >> 29) : E2M1Of(w); },
     E2M1Of}};

class CudaMatmul : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no CUDA device";
    ASSERT_EQ(cudaStreamCreate(&stream_), cudaSuccess);
    matmul_ = *Matmul::Make();
  }
  void TearDown() override {
    matmul_.reset();
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  std::vector<float> Run(const MatmulShape& shape, const std::vector<uint8_t>& a,
                         const std::vector<uint8_t>& b, const MatmulScales& scales) {
    OnDevice<uint8_t> left(a), right(b);
    OnDevice<float> out(std::vector<float>(static_cast<size_t>(shape.m * shape.n), NAN));
    const Status status =
        matmul_->Run(stream_, shape, left.data(), right.data(), scales, false, out.data());
    EXPECT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return out.Host();
  }

  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Matmul> matmul_;
};

TEST_F(CudaMatmul, SumsOfCarriedCodesAreExactWithoutFastAccumulation) {
  const MatmulShape any{256, 256, 256, false, true, MatmulElem::kE4M3, MatmulElem::kE4M3};
  if (!matmul_->Has(any)) GTEST_SKIP() << "this device has no FP8 products with scale vectors";
  std::vector<float> ones_a(kM, 1.0f), ones_b(kN, 1.0f);
  OnDevice<float> scale_a(ones_a), scale_b(ones_b);
  for (const Probe& probe : kProbes) {
    for (const int64_t depth : {128, 4096, 11008, 16384}) {
      std::vector<uint8_t> a(static_cast<size_t>(kM * depth)), b(static_cast<size_t>(kN * depth));
      std::vector<int> halves_a(a.size()), halves_b(b.size());
      for (size_t i = 0; i < a.size(); ++i) {
        const float value = probe.left(Word(1, i));
        a[i] = formats::EncodeE4M3(value);
        halves_a[i] = static_cast<int>(value * 2);
      }
      for (size_t i = 0; i < b.size(); ++i) {
        const float value = probe.right(Word(2, i));
        b[i] = formats::EncodeE4M3(value);
        halves_b[i] = static_cast<int>(value * 2);
      }
      for (const bool fast : {false, true}) {
        MatmulShape shape{kM, kN, depth, false, true, MatmulElem::kE4M3, MatmulElem::kE4M3};
        shape.fast_accumulation = fast;
        const std::vector<float> out = Run(shape, a, b, {scale_a.data(), scale_b.data()});
        int64_t inexact = 0;
        double worst = 0;
        for (int64_t i = 0; i < kM; ++i) {
          for (int64_t j = 0; j < kN; ++j) {
            int64_t quarters = 0;
            for (int64_t k = 0; k < depth; ++k) {
              quarters += static_cast<int64_t>(halves_a[static_cast<size_t>(i * depth + k)]) *
                          halves_b[static_cast<size_t>(j * depth + k)];
            }
            const double expected = static_cast<double>(quarters) * 0.25;
            const double error = std::fabs(out[static_cast<size_t>(i * kN + j)] - expected);
            inexact += error == 0 ? 0 : 1;
            worst = std::max(worst, error / std::max(1.0, std::fabs(expected)));
          }
        }
        const std::string what = std::string(probe.name) + ", depth " + std::to_string(depth) +
                                 (fast ? ", fast" : ", promoted");
        printf("probe: %s: %lld of %lld sums inexact, largest relative error %.3g\n", what.c_str(),
               static_cast<long long>(inexact), static_cast<long long>(kM * kN), worst);
        EXPECT_TRUE(fast || inexact == 0) << what;
        EXPECT_LT(worst, 0.1) << what;
      }
    }
  }
}

// Sums for which the library may have no algorithm with scale vectors: long ones of few outputs.
TEST_F(CudaMatmul, LongSumsOfFewOutputsRun) {
  for (const auto& [m, n, k] : {std::tuple<int64_t, int64_t, int64_t>{128, 3072, 9216},
                                {16, 16, 65536},
                                {256, 256, 8208}}) {
    const MatmulShape shape{m, n, k, false, true, MatmulElem::kE4M3, MatmulElem::kE4M3};
    if (!matmul_->Has({256, 256, 256, false, true, MatmulElem::kE4M3, MatmulElem::kE4M3})) {
      GTEST_SKIP() << "this device has no FP8 products with scale vectors";
    }
    ASSERT_TRUE(matmul_->Has(shape)) << m << ' ' << n << ' ' << k;
    // The same 16 lines again and again.
    std::vector<float> lines_a(static_cast<size_t>(16 * k)), lines_b(lines_a.size());
    for (size_t i = 0; i < lines_a.size(); ++i) lines_a[i] = E2M1Of(Word(1, i));
    for (size_t i = 0; i < lines_b.size(); ++i) lines_b[i] = E2M1Of(Word(2, i));
    const auto codes = [&](const std::vector<float>& lines, int64_t rows) {
      std::vector<uint8_t> all(static_cast<size_t>(rows * k));
      for (size_t i = 0; i < all.size(); ++i) all[i] = formats::EncodeE4M3(lines[i % lines.size()]);
      return all;
    };
    OnDevice<float> scale_a(std::vector<float>(static_cast<size_t>(m), 0.5f));
    OnDevice<float> scale_b(std::vector<float>(static_cast<size_t>(n), 4.0f));
    const std::vector<float> out =
        Run(shape, codes(lines_a, m), codes(lines_b, n), {scale_a.data(), scale_b.data()});
    for (int64_t i = 0; i < 16; ++i) {
      for (int64_t j = 0; j < 16; ++j) {
        double sum = 0;  // exact: quarters
        for (int64_t l = 0; l < k; ++l) {
          sum += static_cast<double>(lines_a[static_cast<size_t>(i * k + l)]) *
                 static_cast<double>(lines_b[static_cast<size_t>(j * k + l)]);
        }
        for (const int64_t row : {i, m - 16 + i}) {
          ASSERT_EQ(out[static_cast<size_t>(row * n + j)], 2 * sum) << m << ' ' << n << ' ' << k;
        }
      }
    }
  }
}

// Views may begin at any element and rows have any length: gradients lie one after another.
TEST_F(CudaMatmul, OperandsMayBeginAtAnyElement) {
  constexpr size_t kMost = 3;
  for (const int64_t depth : {64, 37}) {
    std::vector<float> a(static_cast<size_t>(kM * depth) + kMost, 1.0f);
    std::vector<float> b(static_cast<size_t>(kN * depth) + kMost, 1.0f);
    for (size_t i = 0; i < a.size(); ++i) a[i] = E2M1Of(Word(1, i));
    for (size_t i = 0; i < b.size(); ++i) b[i] = E2M1Of(Word(2, i));
    std::vector<uint16_t> narrow_a, narrow_b;
    for (const float value : a) narrow_a.push_back(formats::ToBf16(value));
    for (const float value : b) narrow_b.push_back(formats::ToBf16(value));
    OnDevice<float> wide_left(a), wide_right(b);
    OnDevice<uint16_t> left(narrow_a), right(narrow_b);
    for (const bool bf16 : {false, true}) {
      for (size_t shift = 0; shift <= kMost; ++shift) {
        OnDevice<float> out(std::vector<float>(static_cast<size_t>(kM * kN) + kMost, NAN));
        MatmulShape shape{kM, kN, depth, false, true};
        if (bf16) shape.a = shape.b = MatmulElem::kBf16;
        const void* const x = bf16 ? static_cast<const void*>(left.data() + shift)
                                   : static_cast<const void*>(wide_left.data() + shift);
        const void* const w = bf16 ? static_cast<const void*>(right.data() + shift)
                                   : static_cast<const void*>(wide_right.data() + shift);
        const Status status = matmul_->Run(stream_, shape, x, w, {}, false, out.data() + shift);
        ASSERT_TRUE(status.ok()) << status.ToString();
        ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
        const std::vector<float> got = out.Host();
        for (int64_t i = 0; i < kM; ++i) {
          for (int64_t j = 0; j < kN; ++j) {
            float sum = 0;  // exact: quarters
            for (int64_t k = 0; k < depth; ++k) {
              sum += a[static_cast<size_t>(i * depth + k) + shift] *
                     b[static_cast<size_t>(j * depth + k) + shift];
            }
            ASSERT_EQ(got[static_cast<size_t>(i * kN + j) + shift], sum)
                << (bf16 ? "bf16 " : "fp32 ") << depth << " at " << shift;
          }
        }
      }
    }
  }
}

TEST_F(CudaMatmul, ScaleVectorsMultiplyRowsAndColumns) {
  constexpr int64_t kDepth = 64;
  const MatmulShape shape{kM, kN, kDepth, false, true, MatmulElem::kE4M3, MatmulElem::kE4M3};
  if (!matmul_->Has(shape)) GTEST_SKIP() << "this device has no FP8 products with scale vectors";
  std::vector<float> scale_a(kM), scale_b(kN);
  for (size_t i = 0; i < scale_a.size(); ++i) scale_a[i] = 0.5f + 0.25f * static_cast<float>(i);
  for (size_t i = 0; i < scale_b.size(); ++i) scale_b[i] = 1.0f / static_cast<float>(i + 3);
  OnDevice<float> device_a(scale_a), device_b(scale_b);
  const std::vector<uint8_t> a(static_cast<size_t>(kM * kDepth), formats::EncodeE4M3(1.5f));
  const std::vector<uint8_t> b(static_cast<size_t>(kN * kDepth), formats::EncodeE4M3(-2.0f));
  const std::vector<float> out = Run(shape, a, b, {device_a.data(), device_b.data()});
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t j = 0; j < kN; ++j) {
      const float expected =
          -3.0f * kDepth * scale_a[static_cast<size_t>(i)] * scale_b[static_cast<size_t>(j)];
      ASSERT_NEAR(out[static_cast<size_t>(i * kN + j)], expected, 1e-6f * std::fabs(expected));
    }
  }
}

// One operand of a block-scaled product: codes, scales in their layout, and decoded values.
struct BlockScaled {
  std::vector<uint8_t> codes, scales;
  std::vector<double> values;
};

BlockScaled MakeBlockScaled(bool nv, int64_t rows, int64_t depth, uint32_t stream) {
  const int64_t block = nv ? 16 : 32;
  const int64_t blocks = depth / block;
  BlockScaled x;
  x.codes.assign(static_cast<size_t>(nv ? rows * depth / 2 : rows * depth), 0);
  x.scales.assign(static_cast<size_t>(formats::BlockScaleBytes(rows, blocks)), 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t i = row * depth + k;
      const uint32_t word = Word(stream, static_cast<size_t>(i));
      const uint32_t pick = Word(stream + 1, static_cast<size_t>(row * blocks + k / block)) % 5;
      // Scales 1/4 .. 4 as E8M0 (a biased exponent) or E4M3.
      const float scale = std::ldexp(1.0f, static_cast<int>(pick) - 2);
      const auto at = static_cast<size_t>(formats::BlockScaleOffset(row, k / block, blocks));
      x.scales[at] =
          nv ? formats::EncodeE4M3(scale) : static_cast<uint8_t>(127 + static_cast<int>(pick) - 2);
      const float value = E2M1Of(word);
      if (nv) {
        x.codes[static_cast<size_t>(i / 2)] |=
            static_cast<uint8_t>(formats::EncodeE2M1(value) << (i % 2 * 4));
      } else {
        x.codes[static_cast<size_t>(i)] = formats::EncodeE4M3(value);
      }
      x.values.push_back(static_cast<double>(value) * static_cast<double>(scale));
    }
  }
  return x;
}

TEST_F(CudaMatmul, BlockScaledProductsReadTheirScales) {
  constexpr int64_t kRows = 256, kCols = 128, kDepth = 256;
  bool any = false;
  for (const MatmulElem elem : {MatmulElem::kNvE2M1, MatmulElem::kMxE4M3}) {
    const MatmulShape shape{kRows, kCols, kDepth, false, true, elem, elem};
    if (!matmul_->Has(shape)) continue;
    any = true;
    const bool nv = elem == MatmulElem::kNvE2M1;
    const BlockScaled a = MakeBlockScaled(nv, kRows, kDepth, 10);
    const BlockScaled b = MakeBlockScaled(nv, kCols, kDepth, 20);
    OnDevice<uint8_t> scale_a(a.scales), scale_b(b.scales);
    const std::vector<float> out = Run(shape, a.codes, b.codes, {scale_a.data(), scale_b.data()});
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kCols; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < kDepth; ++k) {
          sum += a.values[static_cast<size_t>(i * kDepth + k)] *
                 b.values[static_cast<size_t>(j * kDepth + k)];
        }
        ASSERT_NEAR(out[static_cast<size_t>(i * kCols + j)], sum, 1e-4 * (1 + std::fabs(sum)))
            << (nv ? "nvfp4 " : "mxfp8 ") << i << ' ' << j;
      }
    }
  }
  if (!any) GTEST_SKIP() << "this device has no block-scaled products";
}

}  // namespace
}  // namespace nibble::cuda
