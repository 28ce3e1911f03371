// SPDX-License-Identifier: Apache-2.0
//
// Codes carried to a tensor core, emulated: every value arrives exactly, transposed or not, and the
// products of what arrives are the CPU's products on codes, bit for bit.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/cuda/carry_kernels.cuh"
#include "kernels/formats/philox.h"

namespace nibble::cuda {
namespace {

Quant RowsOf(Elem elem, float max, OccComp comp) {
  Quant quant;
  quant.elem = elem;
  quant.block = Block::kToken;
  quant.scale = ScaleRule::kF32;
  quant.scale_max = max;
  if (comp != OccComp::kNone) quant.pre = {true, 0.95, OccScope::kTensor, comp};
  return quant;
}

class CarryTest : public testing::Test {
 protected:
  void SetUp() override { cpu_ = *MakeBackend("cpu", {1, 0}); }

  QuantizedTensor Quantized(const Quant& quant, int64_t rows, int64_t cols, uint32_t stream) {
    std::vector<float> x(static_cast<size_t>(rows * cols));
    for (size_t i = 0; i < x.size(); ++i) {
      const uint32_t word = formats::RandomWord(9, 0, stream, i);
      x[i] =
          static_cast<float>(static_cast<int32_t>(word)) * (word % 19 == 0 ? 0x1p-27f : 0x1p-31f);
    }
    QuantizedTensor q;
    EXPECT_TRUE(cpu_->Quantize(quant, {}, {x.data(), rows, cols}, &q, {}).ok());
    return q;
  }

  template <typename Carrier>
  static std::vector<typename Carrier::Stored> Carried(const QuantizedTensor& q, bool transposed,
                                                       bool residual_alone = false) {
    std::vector<typename Carrier::Stored> out(static_cast<size_t>(q.rows * q.cols), 0);
    const CarriedCodes codes{q.elem, q.rows, q.cols, q.code_row_bytes(),
                             static_cast<const uint8_t*>(q.codes.data())};
    const auto tiles = static_cast<unsigned>((q.cols + kCarryTile - 1) / kCarryTile);
    auto* to = out.data();
    if (!residual_alone) {
      Emulator::Get().Launch({tiles, 2}, kThreads, 0, FiberOrder::kBackwards,
                             [=] { CarryKernel<Carrier>(codes, transposed, to); });
    }
    if (q.comp == OccComp::kNone || (q.comp != OccComp::kWide && !residual_alone)) return out;
    const CarriedResidual residual{q.comp, static_cast<const int32_t*>(q.residual_offsets.data()),
                                   static_cast<const int32_t*>(q.residual_columns.data()),
                                   q.residual_values.data()};
    for (int64_t row = 0; row < q.rows; ++row) {
      CarryOutliersOp<Carrier>{codes, residual, transposed, to}(row);
    }
    return out;
  }

  // out (m, n) = a (m, k) b (n, k)^T as a product on carried values and OuterProductOp form it.
  template <typename Carrier, typename Decode>
  std::vector<float> Product(const QuantizedTensor& a, const QuantizedTensor& b, Decode decode) {
    const auto left = Carried<Carrier>(a, false), right = Carried<Carrier>(b, false);
    std::vector<float> sums(static_cast<size_t>(a.rows * b.rows)), out(sums.size());
    for (int64_t i = 0; i < a.rows; ++i) {
      for (int64_t j = 0; j < b.rows; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < a.cols; ++k) {
          sum += static_cast<double>(decode(left[static_cast<size_t>(i * a.cols + k)])) *
                 static_cast<double>(decode(right[static_cast<size_t>(j * b.cols + k)]));
        }
        sums[static_cast<size_t>(i * b.rows + j)] = static_cast<float>(sum);
      }
    }
    std::vector<float> scales_a(static_cast<size_t>(a.rows)), scales_b(static_cast<size_t>(b.rows));
    const OuterScaleOp scale_a{static_cast<const float*>(a.enc.data()), true, scales_a.data()};
    const OuterScaleOp scale_b{static_cast<const float*>(b.enc.data()), true, scales_b.data()};
    for (int64_t i = 0; i < a.rows; ++i) scale_a(i);
    for (int64_t i = 0; i < b.rows; ++i) scale_b(i);
    const OuterProductOp epilogue{sums.data(),     b.rows, scales_a.data(),
                                  scales_b.data(), false,  out.data()};
    for (int64_t i = 0; i < a.rows * b.rows; ++i) epilogue(i);
    return out;
  }
  std::vector<float> CpuProduct(const QuantizedTensor& a, const QuantizedTensor& b) {
    std::vector<float> out(static_cast<size_t>(a.rows * b.rows));
    QuantizedGemmParams params;
    params.transpose_b = Transpose::kYes;
    EXPECT_TRUE(cpu_->QuantizedGemm(params, a, b, {out.data(), a.rows, b.rows}).ok());
    return out;
  }

  std::unique_ptr<Backend> cpu_;
};

TEST_F(CarryTest, TransposesEveryElement) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {33, 65}, {70, 31}}) {
    const QuantizedTensor q = Quantized(RowsOf(Elem::kE2M1, 6, OccComp::kNone), rows, cols, 1);
    const auto straight = Carried<AsE4M3>(q, false), turned = Carried<AsE4M3>(q, true);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        ASSERT_EQ(straight[static_cast<size_t>(r * cols + c)],
                  turned[static_cast<size_t>(c * rows + r)]);
      }
    }
  }
}

TEST_F(CarryTest, CarriedFloat8ProductsAreTheCpusBits) {
  const QuantizedTensor a = Quantized(RowsOf(Elem::kE2M1, 6, OccComp::kNone), 19, 301, 2);
  const QuantizedTensor b = Quantized(RowsOf(Elem::kE2M1, 6, OccComp::kNone), 13, 301, 3);
  EXPECT_EQ(Product<AsE4M3>(a, b, formats::DecodeE4M3), CpuProduct(a, b));
}

TEST_F(CarryTest, CarriedBf16ProductsOfWideCodesAreTheCpusBits) {
  const QuantizedTensor a = Quantized(RowsOf(Elem::kE2M1, 6, OccComp::kWide), 19, 301, 4);
  const QuantizedTensor b = Quantized(RowsOf(Elem::kE2M1, 6, OccComp::kNone), 13, 301, 5);
  ASSERT_GT(a.residual_count, 0);
  EXPECT_EQ(Product<AsBf16>(a, b, formats::FromBf16), CpuProduct(a, b));
}

// Codes over their scales and residuals over theirs are the decoded tensor.
TEST_F(CarryTest, CodesAndResidualsAreTheDecodedTensor) {
  const QuantizedTensor q = Quantized(RowsOf(Elem::kE2M1, 6, OccComp::kE4M3), 37, 64, 6);
  ASSERT_GT(q.residual_count, 0);
  const auto codes = Carried<AsE4M3>(q, false);
  const auto residual = Carried<AsE4M3>(q, false, true);
  std::vector<float> decoded(codes.size());
  ASSERT_TRUE(cpu_->Dequantize(q, {decoded.data(), q.rows, q.cols}).ok());
  for (size_t i = 0; i < codes.size(); ++i) {
    const float enc = static_cast<const float*>(q.enc.data())[static_cast<int64_t>(i) / q.cols];
    const float code = formats::DecodeE4M3(codes[i]) / enc;
    ASSERT_EQ(code + formats::DecodeE4M3(residual[i]) / q.residual_enc, decoded[i]) << i;
  }
}

TEST_F(CarryTest, EveryValueOfAFormatArrives) {
  for (const Elem elem : {Elem::kE4M3, Elem::kE5M2}) {
    uint8_t codes[256];
    for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
    const CarriedCodes x{elem, 1, 256, 256, codes};
    for (int i = 0; i < 256; ++i) {
      const float value = x.Value(0, i);
      if (!std::isfinite(value)) continue;
      EXPECT_EQ(formats::FromBf16(AsBf16::Of(value)), value);
      EXPECT_EQ(elem == Elem::kE4M3 ? AsE4M3::Of(value) : AsE5M2::Of(value), codes[i]);
    }
  }
}

}  // namespace
}  // namespace nibble::cuda
