// SPDX-License-Identifier: Apache-2.0
//
// Codes carried to a tensor core, emulated: every value arrives exactly, transposed or not, and the
// products of what arrives are the CPU's products on codes, bit for bit.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/backend.h"
#include "kernels/cuda/carry_bytes.cuh"
#include "kernels/cuda/carry_kernels.cuh"
#include "kernels/cuda/code_carrier.h"
#include "kernels/formats/philox.h"
#include "tests/ops/group_quant.h"

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

  QuantizedTensor Quantized(const Quant& quant, int64_t rows, int64_t cols, uint32_t stream,
                            const QuantizeContext& context = {}) {
    std::vector<float> x(static_cast<size_t>(rows * cols));
    for (size_t i = 0; i < x.size(); ++i) {
      const uint32_t word = formats::RandomWord(9, 0, stream, i);
      x[i] =
          static_cast<float>(static_cast<int32_t>(word)) * (word % 19 == 0 ? 0x1p-27f : 0x1p-31f);
    }
    QuantizedTensor q;
    EXPECT_TRUE(cpu_->Quantize(quant, context, {x.data(), rows, cols}, &q, {}).ok());
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
    if (q.comp == OccComp::kNone || (!IsWide(q.comp) && !residual_alone)) return out;
    const CarriedResidual residual{q.comp, static_cast<const int32_t*>(q.residual_offsets.data()),
                                   static_cast<const int32_t*>(q.residual_columns.data()),
                                   q.residual_values.data()};
    for (int64_t thread = 0; thread < q.rows * kOutlierLanes; ++thread) {
      CarryOutliersOp<Carrier>{codes, residual, transposed, to}(thread);
    }
    return out;
  }

  // out (m, n) = a (m, k) b (n, k)^T as a product on carried values and OuterProductKernel form it.
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
    const OuterProduct<float> epilogue{sums.data(),     a.rows, b.rows,    scales_a.data(),
                                       scales_b.data(), false,  out.data()};
    Emulator::Get().Launch({3}, kThreads, 0, FiberOrder::kBackwards, [&] {
      b.rows % 4 == 0 ? OuterProductKernel<4>(epilogue) : OuterProductKernel<1>(epilogue);
    });
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

// Sixteen at a time: the bytes of one at a time, more and fewer rows than a tile and a grid has.
TEST_F(CarryTest, PiecesAreTheBytesOfSingleCodes) {
  const auto expect = [&](Elem elem, float max, auto as, int64_t rows, int64_t cols) {
    SCOPED_TRACE(testing::Message() << ElemName(elem) << ' ' << rows << 'x' << cols);
    using Carrier = decltype(as);
    constexpr bool kIsE4M3 = std::is_same_v<Carrier, AsE4M3>;
    const bool pairs = elem == Elem::kE2M1;
    const QuantizedTensor q = Quantized(RowsOf(elem, max, OccComp::kNone), rows, cols, 5);
    ASSERT_TRUE(CarriesInPieces(elem, kIsE4M3, rows, cols));
    const auto* codes = static_cast<const uint8_t*>(q.codes.data());
    std::vector<uint8_t> turned(static_cast<size_t>(rows * cols), 0xAA), straight = turned;
    const auto tiles = static_cast<unsigned>((cols + kByteColumns - 1) / kByteColumns);
    Emulator::Get().Launch({tiles, 2}, kThreads, 0, FiberOrder::kBackwards, [&] {
      pairs ? TurnBytesKernel<true>(codes, rows, cols, turned.data())
            : TurnBytesKernel<false>(codes, rows, cols, turned.data());
    });
    EXPECT_EQ(turned, Carried<Carrier>(q, true));
    if (!pairs) return;
    Emulator::Get().Launch({2}, kThreads, 0, FiberOrder::kForwards,
                           [&] { SpreadPairsKernel(codes, rows * cols, straight.data()); });
    EXPECT_EQ(straight, Carried<Carrier>(q, false));
  };
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{16, 16}, {144, 80}, {400, 208}, {32, 4096}}) {
    expect(Elem::kE2M1, 6, AsE4M3(), rows, cols);
    expect(Elem::kE4M3, 448, AsE4M3(), rows, cols);
    expect(Elem::kE5M2, 57344, AsE5M2(), rows, cols);
  }
  EXPECT_FALSE(CarriesInPieces(Elem::kE2M1, false, 16, 16));
  EXPECT_FALSE(CarriesInPieces(Elem::kInt8, true, 16, 16));
  EXPECT_FALSE(CarriesInPieces(Elem::kE2M1, true, 16, 24));
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

TEST_F(CarryTest, CarriedFloat8ProductsOfWideCodesOnTheE4M3GridAreTheCpusBits) {
  const QuantizedTensor a = Quantized(RowsOf(Elem::kE2M1, 6, OccComp::kWideE4M3), 19, 301, 4);
  const QuantizedTensor b = Quantized(RowsOf(Elem::kE2M1, 6, OccComp::kNone), 13, 301, 5);
  const auto* wide = static_cast<const int8_t*>(a.residual_values.data());
  ASSERT_GT(*std::max_element(wide, wide + a.residual_count), 16);  // beyond E2M1's 12 halves
  EXPECT_EQ(Product<AsE4M3>(a, b, formats::DecodeE4M3), CpuProduct(a, b));
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

const Quant kGroupQuants[] = {
    GroupQuant(Elem::kE2M1, Block::kGroup, 16, ScaleRule::kNv, 448),
    GroupQuant(Elem::kE2M1, Block::kTile, 16, ScaleRule::kNv, 448),
    GroupQuant(Elem::kE2M1, Block::kGroup, 16, ScaleRule::kU53, 448),
    GroupQuant(Elem::kE2M1, Block::kGroup, 32, ScaleRule::kE8Floor, 6),
    GroupQuant(Elem::kE4M3, Block::kGroup, 32, ScaleRule::kE8Up, 448),
    GroupQuant(Elem::kE2M1, Block::kGroup, 32, ScaleRule::kA34, 6),
    GroupQuant(Elem::kE4M3, Block::kGroup, 128, ScaleRule::kCurrentP2, 448),
    GroupQuant(Elem::kE2M1, Block::kGroup, 128, ScaleRule::kF32, 6)};

// Elements times their group's scale are BF16 numbers: with the second level they are the decoded
// tensor; and the FP32 form is, too.
TEST_F(CarryTest, GroupsArriveAsBf16AndFp32) {
  for (const Quant& quant : kGroupQuants) {
    SCOPED_TRACE(ScaleName(quant) + " " + BlockName(quant.block, quant.group));
    const QuantizedTensor q = Quantized(quant, 64, 128, 7);
    std::vector<float> decoded(64 * 128), whole(decoded.size());
    ASSERT_TRUE(cpu_->Dequantize(q, {decoded.data(), 64, 128}).ok());
    std::vector<uint16_t> bf16(decoded.size());
    const StoredGroups stored = StoredGroupsOf(q);
    const CarriedGroups full{stored, CarriedGroups::Form::kDecoded, 64, 128};
    const CarriedGroups scaled{stored, CarriedGroups::Form::kScaled, 64, 128};
    Emulator::Get().Launch({4, 2}, kThreads, 0, FiberOrder::kForwards,
                           [&] { CarryKernel<AsF32>(full, false, whole.data()); });
    EXPECT_EQ(whole, decoded);
    if (ChooseCarrier({}, Support::kFast, q, q, 64, 64, 128) == CodeCarrier::kF32) {
      EXPECT_EQ(quant.scale, ScaleRule::kF32);  // the one rule here whose scales have 24 bits
      continue;
    }
    Emulator::Get().Launch({4, 2}, kThreads, 0, FiberOrder::kBackwards,
                           [&] { CarryKernel<AsBf16>(scaled, false, bf16.data()); });
    const float outer =
        q.has_group_scale ? static_cast<const float*>(q.outer_scale.data())[0] : 1.0f;
    for (size_t i = 0; i < decoded.size(); ++i) {
      ASSERT_EQ((formats::FromBf16(bf16[i]) * outer) / q.outer_divisor, decoded[i]) << i;
    }
  }
}

// What a block-scaled product reads back, bytes and scales apart, is the decoded tensor.
TEST_F(CarryTest, BlockScaledOperandsAreTheDecodedTensor) {
  constexpr int64_t kRows = 96, kCols = 160;
  const NarrowProducts blackwell{false, true, true};
  for (const Quant& quant : kGroupQuants) {
    for (const bool turned : {false, true}) {
      SCOPED_TRACE(ScaleName(quant) + " " + BlockName(quant.block, quant.group) +
                   (turned ? " turned" : ""));
      QuantizeContext context;
      context.contraction = turned ? Axis::kRows : Axis::kCols;
      const QuantizedTensor q = Quantized(quant, kRows, kCols, 8, context);
      const CodeCarrier carrier = ChooseCarrier(blackwell, Support::kFast, q, q, 96, 160, 96);
      const bool fp4 = carrier == CodeCarrier::kBlockFp4;
      if (!fp4 && carrier != CodeCarrier::kBlockFp8) continue;
      const int64_t lines = turned ? kCols : kRows, depth = turned ? kRows : kCols;
      std::vector<uint8_t> bytes(static_cast<size_t>(lines * depth));
      const StoredGroups stored = StoredGroupsOf(q);
      const CarriedGroups values{stored, CarriedGroups::Form::kElement, kRows, kCols};
      Emulator::Get().Launch({5, 2}, kThreads, 0, FiberOrder::kBackwards, [&] {
        if (!fp4) return CarryKernel<AsE4M3>(values, turned, bytes.data());
        if (turned) {
          TurnPairsKernel(stored.codes, kRows, kCols, q.code_row_bytes(), bytes.data());
        }
      });
      if (fp4 && !turned) std::memcpy(bytes.data(), q.codes.data(), bytes.size() / 2);
      const int64_t group = fp4 ? 16 : 32, blocks = depth / group;
      std::vector<uint8_t> scales(static_cast<size_t>(formats::BlockScaleBytes(lines, blocks)), 0);
      const BlockScaleOp op{
          stored,       static_cast<const uint8_t*>(q.scale_codes.data()), 0, turned, blocks, group,
          scales.data()};
      for (int64_t i = 0; i < lines * blocks; ++i) op(i);
      std::vector<float> decoded(bytes.size());
      ASSERT_TRUE(cpu_->Dequantize(q, {decoded.data(), kRows, kCols}).ok());
      const float outer = static_cast<const float*>(q.outer_scale.data())[0];
      for (int64_t line = 0; line < lines; ++line) {
        for (int64_t i = 0; i < depth; ++i) {
          const auto at = static_cast<size_t>(line * depth + i);
          const uint8_t pair = fp4 ? bytes[at / 2] : bytes[at];
          const float grid = fp4 ? formats::DecodeE2M1(i % 2 == 0 ? pair & 15u : pair >> 4)
                                 : formats::DecodeE4M3(pair);
          const uint8_t code =
              scales[static_cast<size_t>(formats::BlockScaleOffset(line, i / group, blocks))];
          const float scale = fp4 ? formats::DecodeE4M3(code) : formats::DecodeE8M0(code);
          const auto source = static_cast<size_t>(turned ? i * kCols + line : line * kCols + i);
          ASSERT_EQ(((grid * scale) * outer) / q.outer_divisor, decoded[source])
              << line << ' ' << i;
        }
      }
    }
  }
}

// Formats, scales and sizes decide alone which unit multiplies.
TEST_F(CarryTest, TheCarrierFollowsDeviceFormatsAndSizes) {
  const NarrowProducts none{}, hopper{true, false, false}, blackwell{false, true, true};
  const auto choose = [&](const NarrowProducts& device, const Quant& a, const Quant& b,
                          int64_t k = 128) {
    const QuantizedTensor left = Quantized(a, 64, k, 9), right = Quantized(b, 32, k, 10);
    return std::string(
        CodeCarrierName(ChooseCarrier(device, Support::kFast, left, right, 64, 32, k)));
  };
  const Quant rows = RowsOf(Elem::kE2M1, 6, OccComp::kNone);
  const Quant wide = RowsOf(Elem::kE2M1, 6, OccComp::kWide);
  const Quant int8 = RowsOf(Elem::kInt8, 127, OccComp::kNone);
  const Quant residual = RowsOf(Elem::kE2M1, 6, OccComp::kE4M3);
  EXPECT_EQ(choose(none, rows, rows), "bf16");
  EXPECT_EQ(choose(hopper, rows, rows), "fp8");
  EXPECT_EQ(choose(hopper, rows, rows, 120), "bf16");
  EXPECT_EQ(choose(hopper, residual, rows), "fp8");
  EXPECT_EQ(choose(hopper, wide, rows), "bf16");
  EXPECT_EQ(choose(hopper, int8, rows), "bf16");
  const Quant wide_e4m3 = RowsOf(Elem::kE2M1, 6, OccComp::kWideE4M3);
  EXPECT_EQ(choose(hopper, wide_e4m3, rows), "fp8");
  EXPECT_EQ(choose(blackwell, wide_e4m3, rows), "mxfp8");
  EXPECT_EQ(choose(blackwell, rows, rows), "nvfp4");
  EXPECT_EQ(choose(blackwell, RowsOf(Elem::kE4M3, 448, OccComp::kNone), rows), "mxfp8");
  EXPECT_EQ(choose(blackwell, RowsOf(Elem::kE5M2, 57344, OccComp::kNone), rows), "bf16");
  const Quant& nv = kGroupQuants[0];
  const Quant& nv_tile = kGroupQuants[1];
  const Quant& u53 = kGroupQuants[2];
  const Quant& mx = kGroupQuants[3];
  EXPECT_EQ(choose(blackwell, nv, nv_tile), "nvfp4");
  EXPECT_EQ(choose(blackwell, u53, u53), "bf16");
  EXPECT_EQ(choose(blackwell, mx, kGroupQuants[4]), "mxfp8");
  EXPECT_EQ(choose(hopper, nv, nv_tile), "bf16");
  EXPECT_EQ(choose(hopper, mx, mx), "bf16");
  Quant outer_128 = nv, simulated = nv;
  outer_128.outer = Outer::k128;
  simulated.round = Round::kAway;
  EXPECT_EQ(choose(blackwell, outer_128, nv), "fp32");
  EXPECT_EQ(choose(blackwell, simulated, nv), "fp32");
  const QuantizedTensor q = Quantized(rows, 64, 128, 9);
  EXPECT_EQ(ChooseCarrier(hopper, Support::kReference, q, q, 64, 64, 128), CodeCarrier::kF32);
}

}  // namespace
}  // namespace nibble::cuda
