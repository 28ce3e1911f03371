// SPDX-License-Identifier: Apache-2.0
//
// The kernels for groups in tiles, emulated: rotated or not, codes, scales, masks, counters and
// decoded values are the bits of the CPU's Rotate and Quantize.
#include "tests/ops/cuda_emulator.h"
// The emulator first: it is what the kernels see of CUDA.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/backend.h"
#include "kernels/cuda/group_tiles.cuh"
#include "kernels/rotation.h"
#include "tests/ops/cuda_groups.h"

namespace nibble::cuda {
namespace {

// The kernels in the order of CudaBackend::QuantizeInTiles. Half of the runs decode in place.
Outcome InTiles(const Quant& quant, const QuantizeContext& context, const std::vector<float>& x,
                const QuantizedTensor& shape, bool as_bf16, FiberOrder order) {
  EmulatedGroupTask task(quant, context, x, shape, as_bf16);
  const bool in_place = task.t.decoded != nullptr && task.t.x != nullptr;
  if (in_place) {
    task.out.decoded = x;
    task.t.x = task.t.decoded = task.out.decoded.data();
  }
  const int size = quant.rotation.size;
  TileTask t = TileTaskOf(task.t, quant, context, size,
                          [&](int i) { return IsNegative(quant.rotation, context, i); });
  EXPECT_TRUE(CudaQuantizesInTiles(quant, size));
  const auto launch = [&](unsigned grid, void (*kernel)(TileTask)) {
    Emulator::Get().Launch({grid}, kThreads, 0, order, [&] { kernel(t); });
  };
  if (LooksAtTensor(quant) && !HoldsAmax(quant, context)) launch(2, MeasureTilesKernel);
  if (HoldsAmax(quant, context)) t.group.held_amax = HeldAmax(quant, context, 0);
  launch(static_cast<unsigned>(TileCount(t.group.layout)), QuantizeTilesKernel);
  return task.Finish(order);
}

class EmulatedTiles : public testing::TestWithParam<GroupCase> {
 protected:
  void Expect(const Quant& quant, const QuantizeContext& context, const std::vector<float>& x,
              int64_t rows, int64_t cols, bool as_bf16, FiberOrder order) {
    QuantizedTensor q;
    std::vector<float> decoded(x.size()), rotated(x.size());
    const ConstTensorView source(x.data(), rows, cols);
    const TensorView out(decoded.data(), rows, cols);
    const Status status =
        quant.rotation.size == 0
            ? cpu_->Quantize(quant, context, source, &q, out)
            : cpu_->QuantizeRotated(quant, context, source, {rotated.data(), rows, cols}, &q, out);
    ASSERT_TRUE(status.ok()) << status.ToString();
    Outcome got = InTiles(quant, context, x, q, as_bf16, order), expected = OutcomeOf(q);
    if (quant.rotation.size != 0) {
      WithoutSignsOfNans(quant.elem, &got.codes);
      WithoutSignsOfNans(quant.elem, &expected.codes);
    }
    ExpectSame(got, expected, decoded);
  }
  // Which NaN an infinity less itself is differs between instruction sets, and operands may change
  // places in a sum.
  static void WithoutSignsOfNans(Elem elem, std::vector<uint8_t>* codes) {
    if (elem == Elem::kE2M1) return;
    for (uint8_t& code : *codes) code &= std::isnan(GridOf(elem, code)) ? 0x7F : 0xFF;
  }
  static QuantizeContext Context(const GroupCase& c) {
    QuantizeContext context;
    context.seed = 3;
    context.step = 4;
    context.stream = 5;
    context.contraction = c.contraction;
    context.rotation_stream = 6;
    return context;
  }

  const std::unique_ptr<Backend> cpu_ = *MakeBackend("cpu", {1, 0});
};

TEST_P(EmulatedTiles, QuantizeToTheBitsOfTheCpu) {
  const GroupCase& c = GetParam();
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 1}, {37, 300}, {64, 256}, {257, 33}, {30, 134}}) {
    for (const bool odd : {false, true}) {
      SCOPED_TRACE(testing::Message() << rows << 'x' << cols << " non-finite " << odd);
      std::vector<float> x = Source(rows * cols, 1);
      if (odd) {
        x[x.size() / 2] = INFINITY;
        x[x.size() / 3] = NAN;
      }
      // One way round, the elements as an earlier kernel has left them.
      Expect(c.quant, Context(c), x, rows, cols, odd, FiberOrder::kForwards);
      Expect(c.quant, Context(c), x, rows, cols, !odd, FiberOrder::kBackwards);
    }
  }
}

// Every size that a tile holds, odd numbers of lines, sources as they are and rounded, values
// rounded once more or not.
TEST_P(EmulatedTiles, RotateAndQuantizeToTheBitsOfTheCpu) {
  const GroupCase& c = GetParam();
  for (int size = 2; size <= kTilePositions; size *= 2) {
    for (const bool odd : {false, true}) {
      const Signs signs = odd ? Signs::kFresh : (size == 16 ? Signs::kFixed : Signs::kNone);
      SCOPED_TRACE(testing::Message() << "size " << size << " non-finite " << odd);
      Quant quant = c.quant;
      quant.rotation = {size, signs};
      quant.source = odd && size % 32 == 0 ? Source::kRequant : Source::kHp;
      QuantizeContext context = Context(c);
      context.round_source = signs == Signs::kFixed;
      // Beyond a tile both ways; the last one short.
      const int64_t depth = size < 128 ? 192 : 256, lines = odd ? 37 : 6;
      const bool by_rows = c.contraction == Axis::kRows;
      std::vector<float> x = nibble::cuda::Source(lines * depth, 2);
      for (float& value : x) value *= 1.001f;  // no BF16
      if (odd) {
        x[x.size() / 2] = INFINITY;
        x[x.size() / 3] = NAN;
      }
      // One in three as an earlier kernel has left them.
      const bool as_bf16 = quant.source == Source::kHp && size % 3 == 1;
      Expect(quant, context, x, by_rows ? depth : lines, by_rows ? lines : depth, as_bf16,
             odd ? FiberOrder::kBackwards : FiberOrder::kForwards);
    }
  }
}

// A maximum held from an earlier update stands for the tensor's: nothing is measured.
TEST_P(EmulatedTiles, HeldMaximaServe) {
  GroupCase c = GetParam();
  if (!HasOuterScale(c.quant.scale) || c.quant.outer != Outer::kTensor) return;
  c.quant.hold = 50;
  AmaxHistory history;
  history.amax = {7.5f};
  history.enc = 10;
  history.seen = 1;
  QuantizeContext context = Context(c);
  context.history = &history;
  context.completed = 12;
  Expect(c.quant, context, nibble::cuda::Source(37 * 256, 3), 37, 256, false,
         FiberOrder::kForwards);
}

std::vector<GroupCase> TileCases() {
  std::vector<GroupCase> cases;
  for (const GroupCase& c : GroupCases()) {
    if (CudaQuantizesInTiles(c.quant, 0)) cases.push_back(c);
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Quantize, EmulatedTiles, testing::ValuesIn(TileCases()),
                         [](const auto& info) { return info.param.name; });

TEST(TileChoice, LeavesToOthersWhatATileDoesNotHold) {
  Quant quant = GroupQuant(Elem::kE2M1, Block::kGroup, 16, ScaleRule::kNv, 448);
  EXPECT_TRUE(CudaQuantizesInTiles(quant, 128));
  EXPECT_FALSE(CudaQuantizesInTiles(quant, 256));
  for (const int group : {8, 48, 256}) {
    quant.group = group;
    EXPECT_FALSE(CudaQuantizesInTiles(quant, 0)) << group;
  }
  EXPECT_FALSE(
      CudaQuantizesInTiles(GroupQuant(Elem::kE2M1, Block::kTile, 16, ScaleRule::kNv, 448), 0));
  // Sums of a group by one thread.
  EXPECT_FALSE(
      CudaQuantizesInTiles(GroupQuant(Elem::kE2M1, Block::kGroup, 32, ScaleRule::kEden, 256), 0));
}

}  // namespace
}  // namespace nibble::cuda
