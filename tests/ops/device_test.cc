// SPDX-License-Identifier: Apache-2.0
//
// The CUDA plug-in: how it answers without a device, and that its codes and scales equal the CPU's.
#include "tests/ops/device.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda_plugin.h"
#include "kernels/formats/philox.h"
#include "kernels/plugin.h"

namespace nibble {
namespace {

std::vector<float> Draws(int64_t n, float spread, uint32_t stream) {
  std::vector<float> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t word = formats::RandomWord(7, 0, stream, static_cast<uint64_t>(i));
    const float u = static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f;
    values[static_cast<size_t>(i)] = i % 53 == 5 ? u * spread * 20 : u * spread;
  }
  return values;
}

std::vector<uint8_t> Bytes(Backend& backend, const Buffer& buffer, int64_t size) {
  std::vector<uint8_t> bytes(static_cast<size_t>(size));
  EXPECT_TRUE(backend.CopyOut(bytes.data(), buffer.data(), size).ok());
  return bytes;
}

// Any NaN is as good as another: an x86 CPU keeps the bits of the one it was given, a GPU makes one
// of its own.
std::vector<uint8_t> OneNan(std::vector<uint8_t> floats) {
  for (size_t i = 0; i + 4 <= floats.size(); i += 4) {
    float value = 0;
    std::memcpy(&value, &floats[i], 4);
    if (!std::isnan(value)) continue;
    value = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(&floats[i], &value, 4);
  }
  return floats;
}

// Everything a quantized tensor holds, on the host.
struct HostCopy {
  std::vector<uint8_t> codes, enc, offsets, columns, values, scale_codes, outer_scale, decoded;
  int64_t count, nonfinite;
  float residual_enc;
};

HostCopy QuantizeOn(Backend& backend, const Quant& quant, const std::vector<float>& source,
                    int64_t rows, int64_t cols, const QuantizeContext& context = {}) {
  Buffer x_buffer, decoded_buffer;
  const TensorView x = *x_buffer.View(backend, rows, cols);
  const TensorView decoded = *decoded_buffer.View(backend, rows, cols);
  EXPECT_TRUE(backend.CopyIn(x.data, source.data(), x.size_bytes()).ok());
  QuantizedTensor q;
  Buffer rotated_buffer;
  const Status status =
      quant.rotation.size == 0
          ? backend.Quantize(quant, context, x, &q, decoded)
          : backend.QuantizeRotated(quant, context, x, *rotated_buffer.View(backend, rows, cols),
                                    &q, decoded);
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_TRUE(backend.ReadCounters(&q).ok());
  HostCopy host;
  host.codes = Bytes(backend, q.codes, rows * q.code_row_bytes());
  host.enc = OneNan(Bytes(backend, q.enc, q.scale_count() * 4));
  if (q.has_group_scale) {
    host.scale_codes = Bytes(backend, q.scale_codes, q.scale_count());
    host.outer_scale = OneNan(Bytes(backend, q.outer_scale, q.outer_count() * 4));
  }
  if (q.comp != OccComp::kNone) {
    host.offsets = Bytes(backend, q.residual_offsets, (rows + 1) * 4);
    host.columns = Bytes(backend, q.residual_columns, q.residual_count * 4);
    host.values =
        Bytes(backend, q.residual_values, q.residual_count * (q.comp == OccComp::kBf16 ? 4 : 1));
  }
  host.decoded = OneNan(Bytes(backend, decoded_buffer, decoded.size_bytes()));
  host.count = q.residual_count;
  host.nonfinite = q.nonfinite_amax;
  host.residual_enc = q.residual_enc;
  return host;
}

Quant E2M1Rows(Round round) {
  Quant quant;
  quant.elem = Elem::kE2M1;
  quant.block = Block::kToken;
  quant.scale = ScaleRule::kF32;
  quant.scale_max = 6;
  quant.round = round;
  return quant;
}

Quant Clamped(OccScope scope, OccComp comp) {
  Quant quant = E2M1Rows(Round::kEven);
  quant.pre = {true, 0.97, scope, comp};
  return quant;
}

Quant Float8(Elem elem, ScaleRule rule, float max) {
  Quant quant;
  quant.elem = elem;
  quant.scale = rule;
  quant.scale_max = max;
  return quant;
}

Quant Groups(Block block, int group, ScaleRule rule, float max, Round round) {
  Quant quant = Float8(Elem::kE2M1, rule, max);
  quant.block = block;
  quant.group = group;
  quant.round = round;
  return quant;
}

TEST(CudaPlugin, WithoutPluginOrDeviceSaysWhatIsMissing) {
  const Status status = MakeBackend("cuda", {}).status();
  if (status.ok()) GTEST_SKIP() << "a device is present";
  EXPECT_TRUE(status.code() == StatusCode::kNotFound || status.code() == StatusCode::kUnavailable)
      << status.ToString();
  EXPECT_NE(status.message().find("backend cuda"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("use backend cpu"), std::string::npos) << status.message();
}

// cuda_plugin.cmake builds one and runs these two; elsewhere NIBBLE_CUDA_PLUGIN may name one.
TEST(CudaPlugin, ABuiltPluginRefusesAProgramOfAnotherVersion) {
  if (std::getenv("NIBBLE_CUDA_PLUGIN") == nullptr) GTEST_SKIP() << "no plug-in was built";
  const Result<void*> symbol =
      OpenPlugin({"backend cuda", "NIBBLE_CUDA_PLUGIN", kCudaPluginFile, kMakeCudaBackendSymbol,
                  "the CUDA 13 libraries", "backend cpu"});
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  std::unique_ptr<Backend> backend;
  for (const uint32_t version : {kCudaPluginVersion - 1, kCudaPluginVersion + 1}) {
    const Status status = reinterpret_cast<MakeCudaBackendFn>(*symbol)(version, {}, &backend);
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
    EXPECT_EQ(backend, nullptr);
  }
}

TEST(CudaPlugin, ABuiltPluginHasADeviceOrSaysThatThereIsNone) {
  if (std::getenv("NIBBLE_CUDA_PLUGIN") == nullptr) GTEST_SKIP() << "no plug-in was built";
  const Result<std::unique_ptr<Backend>> backend = MakeBackend("cuda", {});
  if (backend.ok()) {
    EXPECT_EQ((*backend)->name(), "cuda");
    return;
  }
  const std::string text = backend.status().ToString();
  EXPECT_EQ(backend.status().code(), StatusCode::kUnavailable) << text;
  EXPECT_NE(text.find("backend cuda: no usable device"), std::string::npos) << text;
}

TEST(CudaPlugin, RefusesAFileThatIsNoPlugin) {
  const char* const named = std::getenv("NIBBLE_CUDA_PLUGIN");
  const bool was_named = named != nullptr;
  const std::string before = was_named ? named : "";
  ASSERT_EQ(setenv("NIBBLE_CUDA_PLUGIN", "/proc/self/exe", 1), 0);
  const Status status = MakeBackend("cuda", {}).status();
  // The tests after this one want the plug-in that was named.
  if (!was_named) {
    unsetenv("NIBBLE_CUDA_PLUGIN");
  } else {
    ASSERT_EQ(setenv("NIBBLE_CUDA_PLUGIN", before.c_str(), 1), 0);
  }
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status.ToString();
}

TEST(Device, QuantizesToTheBitsOfTheCpu) {
  Result<std::unique_ptr<Backend>> cuda = MakeDevice();
  if (!cuda.ok()) GTEST_SKIP() << cuda.status().message();
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {});
  const Quant quants[] = {E2M1Rows(Round::kEven),
                          E2M1Rows(Round::kHalfUp),
                          E2M1Rows(Round::kAway),
                          E2M1Rows(Round::kZero),
                          E2M1Rows(Round::kSr24),
                          E2M1Rows(Round::kTe8),
                          Clamped(OccScope::kTensor, OccComp::kE4M3),
                          Clamped(OccScope::kTensor, OccComp::kBf16),
                          Clamped(OccScope::kTensor, OccComp::kWide),
                          Clamped(OccScope::kToken, OccComp::kNone),
                          Float8(Elem::kE4M3, ScaleRule::kCurrent, 448),
                          Float8(Elem::kE5M2, ScaleRule::kP2, 57344),
                          Groups(Block::kGroup, 16, ScaleRule::kNv, 448, Round::kTe8),
                          Groups(Block::kTile, 16, ScaleRule::kNv, 448, Round::kEven),
                          Groups(Block::kGroup, 32, ScaleRule::kE8Up, 6, Round::kSr24),
                          Groups(Block::kGroup, 16, ScaleRule::kU53, 448, Round::kSr24),
                          Groups(Block::kGroup, 32, ScaleRule::kQuartet, 6, Round::kEven)};
  // The last two: rows that many blocks have under way at once, and rows beyond shared memory.
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1},     {3, 7},     {64, 256}, {37, 1031},
                                                {300, 129}, {2500, 48}, {3, 17000}};
  for (const Quant& quant : quants) {
    for (const auto& [rows, cols] : shapes) {
      SCOPED_TRACE(testing::Message() << ElemName(quant.elem) << ' ' << RoundName(quant.round)
                                      << ' ' << rows << 'x' << cols);
      std::vector<float> source = Draws(rows * cols, 3.0f, 1);
      if (rows * cols > 100) source[17] = std::nanf("");
      const HostCopy a = QuantizeOn(*cpu, quant, source, rows, cols);
      const HostCopy b = QuantizeOn(**cuda, quant, source, rows, cols);
      EXPECT_EQ(a.codes, b.codes);
      EXPECT_EQ(a.enc, b.enc);
      EXPECT_EQ(a.scale_codes, b.scale_codes);
      EXPECT_EQ(a.outer_scale, b.outer_scale);
      EXPECT_EQ(a.offsets, b.offsets);
      EXPECT_EQ(a.columns, b.columns);
      EXPECT_EQ(a.values, b.values);
      EXPECT_EQ(a.count, b.count);
      EXPECT_EQ(a.nonfinite, b.nonfinite);
      EXPECT_EQ(a.residual_enc, b.residual_enc);
      EXPECT_EQ(a.decoded, b.decoded);
    }
  }
}

// In tiles and, where a tile does not hold the rotation or the blocks, one after the other.
TEST(Device, RotatesWhileItQuantizesToTheBitsOfTheCpu) {
  Result<std::unique_ptr<Backend>> cuda = MakeDevice();
  if (!cuda.ok()) GTEST_SKIP() << cuda.status().message();
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {});
  Quant eden = Groups(Block::kGroup, 16, ScaleRule::kEden, 256, Round::kEven);
  eden.scale_factor = 0.988125f;
  eden.correction_group = 16;
  eden.scale_round = ScaleRound::kStochastic;
  const Quant quants[] = {Groups(Block::kGroup, 16, ScaleRule::kNv, 448, Round::kTe8),
                          Groups(Block::kTile, 16, ScaleRule::kNv, 448, Round::kEven),
                          Groups(Block::kGroup, 32, ScaleRule::kA34, 6, Round::kSr24),
                          Groups(Block::kGroup, 32, ScaleRule::kQuartet, 6, Round::kEven), eden};
  for (Quant quant : quants) {
    for (const int size : {16, 32, 128, 256}) {
      for (const Axis axis : {Axis::kCols, Axis::kRows}) {
        SCOPED_TRACE(testing::Message() << ScaleName(quant) << ' ' << size);
        quant.rotation = {size, size == 16 ? Signs::kFixed : Signs::kFresh};
        QuantizeContext context;
        context.seed = 3;
        context.rotation_stream = 5;
        context.contraction = axis;
        context.round_source = quant.rotation.signs == Signs::kFixed;
        const int64_t rows = axis == Axis::kRows ? 512 : 37, cols = axis == Axis::kRows ? 90 : 768;
        const std::vector<float> source = Draws(rows * cols, 3.0f, 6);
        const HostCopy a = QuantizeOn(*cpu, quant, source, rows, cols, context);
        const HostCopy b = QuantizeOn(**cuda, quant, source, rows, cols, context);
        EXPECT_EQ(a.codes, b.codes);
        EXPECT_EQ(a.enc, b.enc);
        EXPECT_EQ(a.scale_codes, b.scale_codes);
        EXPECT_EQ(a.outer_scale, b.outer_scale);
        EXPECT_EQ(a.nonfinite, b.nonfinite);
        EXPECT_EQ(a.decoded, b.decoded);
      }
    }
  }
}

// Scales from past maxima: what the host keeps advances as on the CPU.
TEST(Device, WindowsOfPastMaximaAreTheCpus) {
  Result<std::unique_ptr<Backend>> cuda = MakeDevice();
  if (!cuda.ok()) GTEST_SKIP() << cuda.status().message();
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", {});
  for (const ScaleRule rule : {ScaleRule::kP2, ScaleRule::kDelayed}) {
    Quant quant = Float8(Elem::kE4M3, rule, 448);
    quant.window = 3;
    AmaxHistory histories[2];
    Backend* const backends[2] = {cpu.get(), cuda->get()};
    for (int step = 0; step < 6; ++step) {
      const std::vector<float> source = Draws(64 * 48, static_cast<float>(1 + step % 4), 4);
      HostCopy copies[2];
      for (int i = 0; i < 2; ++i) {
        QuantizeContext context;
        context.history = &histories[i];
        copies[i] = QuantizeOn(*backends[i], quant, source, 64, 48, context);
      }
      EXPECT_EQ(copies[0].codes, copies[1].codes) << step;
      EXPECT_EQ(copies[0].enc, copies[1].enc) << step;
      EXPECT_EQ(histories[0].amax, histories[1].amax) << step;
    }
  }
}

// Five steps of a few operations, gathered into graphs after the second, and the same without.
TEST(Device, RecordedStepsGiveTheBitsOfSingleLaunches) {
  Result<std::unique_ptr<Backend>> cuda = MakeBackend("cuda", {0, 0, int64_t{64} << 20});
  if (!cuda.ok()) GTEST_SKIP() << cuda.status().message();
  constexpr int64_t kRows = 96, kCols = 160;
  const std::vector<float> source = Draws(kRows * kCols, 2.0f, 3);
  std::vector<float> results[2];
  for (const bool recorded : {false, true}) {
    Backend& backend = **cuda;
    Buffer x_buffer, y_buffer;
    const TensorView x = *x_buffer.View(backend, kRows, kCols);
    const TensorView y = *y_buffer.View(backend, kRows, kCols);
    ASSERT_TRUE(backend.CopyIn(x.data, source.data(), x.size_bytes()).ok());
    QuantizedTensor q;
    for (uint32_t step = 0; step < 5; ++step) {
      ASSERT_TRUE(!recorded || backend.BeginStep().ok());
      QuantizeContext context;
      context.step = step;
      ASSERT_TRUE(backend.Quantize(E2M1Rows(Round::kSr24), context, x, &q, y).ok());
      ASSERT_TRUE(backend.Axpy(0.5f / static_cast<float>(step + 1), y, x).ok());
      ASSERT_TRUE(backend.SumOfSquares(x).ok());  // waits
      ASSERT_TRUE(backend.Scale(1.0f - 0.1f * static_cast<float>(step), x).ok());
      ASSERT_TRUE(!recorded || backend.EndStep().ok());
    }
    results[recorded].resize(source.size());
    ASSERT_TRUE(backend.CopyOut(results[recorded].data(), x.data, x.size_bytes()).ok());
  }
  EXPECT_EQ(results[0], results[1]);
}

// What the optimizer's side of two steps leaves: gradients with their factors, the norm, weight and
// moments, codes, the embedding's gradient.
struct Updated {
  std::vector<float> gradient, weight, m, v, table;
  std::vector<uint8_t> codes, enc;
  double squares = 0;
};

Updated UpdateOn(Backend& backend, int64_t rows, int64_t cols) {
  constexpr int64_t kGap = 64;  // of gradients without a factor, before and after
  const int64_t size = rows * cols;
  std::vector<Buffer> buffers(6);
  const auto place = [&](int index, int64_t count, std::vector<float> values) {
    const TensorView view = *buffers[static_cast<size_t>(index)].View(backend, 1, count);
    EXPECT_TRUE(backend.CopyIn(view.data, values.data(), count * 4).ok());
    return view;
  };
  const TensorView all = place(0, size + 2 * kGap, Draws(size + 2 * kGap, 0.1f, 1));
  const TensorView weight = place(1, size, Draws(size, 1.0f, 2)).Reshaped(rows, cols);
  const std::vector<float> zeros(static_cast<size_t>(size));
  const TensorView m = place(2, size, zeros).Reshaped(rows, cols);
  const TensorView v = place(3, size, zeros).Reshaped(rows, cols);
  const TensorView table = place(4, 40 * cols, Draws(40 * cols, 1.0f, 3)).Reshaped(40, cols);
  const TensorView gradient = {all.f32() + kGap, rows, cols};
  const Quant quant = E2M1Rows(Round::kEven);
  QuantizedTensor codes;
  EXPECT_TRUE(backend.Quantize(quant, {}, weight, &codes, {}).ok());
  Updated out;
  for (int64_t step = 1; step <= 2; ++step) {
    PendingFactor factor{{}, weight, &codes, gradient};
    factor.estimator.kind = Estimator::kDge;
    out.squares += *backend.ScaledSumOfSquares({&factor, 1}, all);
    AdamWParams params;
    params.step = step;
    EXPECT_TRUE(backend.AdamWQuantize(params, quant, {}, gradient, m, v, weight, &codes).ok());
  }
  std::vector<int32_t> ids(static_cast<size_t>(rows));
  for (size_t t = 0; t < ids.size(); ++t) ids[t] = static_cast<int32_t>(t * t % 7 * 5);
  const TensorView on_device = *buffers[5].View(backend, 1, rows, DType::kI32);
  EXPECT_TRUE(backend.CopyIn(on_device.data, ids.data(), rows * 4).ok());
  EXPECT_TRUE(backend.EmbeddingBackward(on_device, gradient, table).ok());
  const auto host = [&](std::vector<float>& to, TensorView from) {
    to.resize(static_cast<size_t>(from.size()));
    EXPECT_TRUE(backend.CopyOut(to.data(), from.data, from.size_bytes()).ok());
  };
  host(out.gradient, all);
  host(out.weight, weight);
  host(out.m, m);
  host(out.v, v);
  host(out.table, table);
  out.codes = Bytes(backend, codes.codes, rows * codes.code_row_bytes());
  out.enc = Bytes(backend, codes.enc, rows * 4);
  return out;
}

TEST(Device, UpdatesGiveTheBitsOfTheCpu) {
  const auto cpu = *MakeBackend("cpu", {1, 0});
  Result<std::unique_ptr<Backend>> cuda = MakeDevice();
  std::unique_ptr<Backend> other = cuda.ok() ? std::move(*cuda) : *MakeBackend("cpu", {3, 0});
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{96, 160}, {33, 47}, {5, 17000}}) {
    const Updated expected = UpdateOn(*cpu, rows, cols), got = UpdateOn(*other, rows, cols);
    EXPECT_EQ(got.gradient, expected.gradient);
    EXPECT_EQ(got.weight, expected.weight);
    EXPECT_EQ(got.m, expected.m);
    EXPECT_EQ(got.v, expected.v);
    EXPECT_EQ(got.codes, expected.codes);
    EXPECT_EQ(got.enc, expected.enc);
    EXPECT_EQ(got.table, expected.table);
    EXPECT_NEAR(got.squares, expected.squares, 1e-12 * expected.squares);
  }
  if (!cuda.ok()) GTEST_SKIP() << "on two thread counts only: " << cuda.status().message();
}

}  // namespace
}  // namespace nibble
