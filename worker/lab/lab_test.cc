// SPDX-License-Identifier: Apache-2.0
//
// The laboratory: what it writes agrees with the quantizers, and the published counts come out.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/files.h"
#include "base/strings.h"
#include "kernels/formats/bf16.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/philox.h"
#include "worker/lab/lab_args.h"
#include "worker/lab/operand.h"
#include "worker/lab/speedup.h"
#include "worker/lab/tensor_file.h"

namespace nibble {
namespace {

Matrix RandomMatrix(const char* name, int64_t rows, int64_t cols, uint32_t stream) {
  Matrix matrix = MakeMatrix(name, rows, cols);
  for (size_t i = 0; i < matrix.values.size(); ++i) {
    const uint32_t word = formats::RandomWord(11, 0, stream, i);
    const float value = static_cast<float>(word >> 8) * 0x1p-23f - 1.0f;
    matrix.values[i] = formats::RoundBf16(i % 97 == 13 ? 20 * value : value);
  }
  return matrix;
}

const OutputTensor& Tensor(const Operand& operand, const std::string& name) {
  for (const OutputTensor& tensor : operand.tensors) {
    if (tensor.name == name) return tensor;
  }
  ADD_FAILURE() << "no tensor " << name;
  return operand.tensors.front();
}

std::vector<float> Floats(const OutputTensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

class LabTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = MakeTempDirectory("nibble-lab").value();
    backend_ = MakeBackend("cpu", {1, 0}).value();
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  std::string Path(const std::string& name) const { return JoinPath(folder_, name); }

  std::string folder_;
  std::unique_ptr<Backend> backend_;
};

TEST_F(LabTest, MatricesReadBackInBothTypesAndAllShapes) {
  const Matrix x = RandomMatrix("X", 3, 5, 1);
  OutputTensor folded = OutputOf(x);
  folded.name = "folded";
  folded.shape = {3, 1, 5};
  OutputTensor bf16{
      "bf16", "BF16", {5}, std::string("\x80\x3f\x00\xc0\x00\x00\x80\x7f\xc0\x7f", 10)};
  OutputTensor scalar{"scalar", "F32", {}, std::string("\0\0\x80\x3f", 4)};
  OutputTensor bytes{"bytes", "U8", {1}, "x"};
  OutputTensor empty{"empty", "F32", {0, 3}, ""};
  const std::string path = Path("in.safetensors");
  ASSERT_TRUE(SaveTensors(path, {OutputOf(x), folded, bf16, scalar, bytes, empty}, {}).ok());

  const Result<Matrix> read = LoadMatrix(path, "folded");
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  EXPECT_EQ(read->rows, 3);
  EXPECT_EQ(read->cols, 5);
  EXPECT_EQ(read->values, x.values);
  const Matrix wide = LoadMatrix(path, "bf16").value();
  EXPECT_EQ(wide.rows, 1);
  EXPECT_EQ(wide.values[0], 1);
  EXPECT_EQ(wide.values[1], -2);
  EXPECT_TRUE(std::isinf(wide.values[3]));
  EXPECT_TRUE(std::isnan(wide.values[4]));
  EXPECT_EQ(LoadMatrix(path, "scalar")->values, std::vector<float>{1});
  EXPECT_EQ(LoadMatrix(path, "bytes").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(LoadMatrix(path, "empty").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(LoadMatrix(path, "").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(LoadMatrix(path, "fold").status().code(), StatusCode::kNotFound);
}

TEST_F(LabTest, AnOutputFileIsReplacedAsAWhole) {
  const std::string path = Path("out.safetensors");
  ASSERT_TRUE(SaveTensors(path, {OutputOf(RandomMatrix("a", 2, 2, 1))}, {}).ok());
  ASSERT_TRUE(SaveTensors(path, {OutputOf(RandomMatrix("b", 2, 2, 1))}, {}).ok());
  EXPECT_TRUE(LoadMatrix(path, "b").ok());
  // A tensor whose bytes are too few leaves the old file.
  EXPECT_FALSE(SaveTensors(path, {{"c", "F32", {2}, "1234"}}, {}).ok());
  EXPECT_TRUE(LoadMatrix(path, "b").ok());
  EXPECT_EQ(ListDirectory(folder_)->size(), 1u);
}

TEST(LabArgs, TensorPlacesSplitBehindTheExtension) {
  const TensorPlace plain = ParseTensorPlace("a:b/t.safetensors");
  EXPECT_EQ(plain.path, "a:b/t.safetensors");
  EXPECT_EQ(plain.name, "");
  const TensorPlace named = ParseTensorPlace("t.safetensors:model.layers.0:w");
  EXPECT_EQ(named.path, "t.safetensors");
  EXPECT_EQ(named.name, "model.layers.0:w");
  EXPECT_EQ(ParseTensorPlace("weights").path, "weights");
}

// Overridden layers count with their own precision: the MLP's share of a LLaMA block.
TEST_F(LabTest, EstimatesCountOverrides) {
  Recipe recipe = FindRecipe("bf16").value();
  Override mlp;
  mlp.kinds = 1u << static_cast<int>(LinearKind::kGate) | 1u << static_cast<int>(LinearKind::kUp) |
              1u << static_cast<int>(LinearKind::kDown);
  mlp.linear = FindRecipe("te_fp8_current")->linear;
  recipe.overrides = {mlp};
  ModelConfig model = ModelPreset("llama2-7b").value();
  const DeviceRates& h100 = KnownDevices()[0];
  const CountedSpeedup part = CountForRecipe(model, 2048, recipe, h100);
  const double d = static_cast<double>(model.hidden_size);
  const double f = static_cast<double>(model.intermediate_size);
  const double attention = 2 * d + 2 * static_cast<double>(model.kv_size()), rest = 3 * f;
  for (const WorkItem& item : part.items) {
    if (item.name != "fprop") continue;
    EXPECT_NEAR(item.flops_per_token, 32 * 2 * d * (attention + rest), 1e-6 * item.flops_per_token);
    EXPECT_NEAR(item.mean_rate, (attention + rest) / (attention + rest / 2), 1e-9);
  }
  EXPECT_GT(part.speedup, 1.0);
  EXPECT_LT(part.speedup,
            CountForRecipe(model, 2048, FindRecipe("te_fp8_current").value(), h100).speedup);
}

TEST_F(LabTest, RecipesComeByNameAndFromFiles) {
  EXPECT_EQ(LoadRecipe("fp4_direct")->name, "fp4_direct");
  EXPECT_EQ(LoadRecipe("fp4_dirct").status().code(), StatusCode::kNotFound);
  const std::string path = Path("mine.json");
  Recipe mine = FindRecipe("fp4_direct").value();
  mine.name = "mine";
  ASSERT_TRUE(AtomicWriteFile(path, RecipeToJson(mine).Dump()).ok());
  EXPECT_EQ(LoadRecipe(path)->name, "mine");
  const Json report = Json::Object({{"recipe", RecipeToJson(mine)}, {"warnings", Json::Array()}});
  ASSERT_TRUE(AtomicWriteFile(path, report.Dump()).ok());
  EXPECT_EQ(LoadRecipe(path)->name, "mine");
  ASSERT_TRUE(AtomicWriteFile(path, "{\"name\":\"x\",\"linear\":{\"Qf\":{}}}").ok());
  const std::string yaml = Path("mine.yaml");
  ASSERT_TRUE(AtomicWriteFile(yaml, "name: mine\nlinear: fp4_direct\ncomm: bf16\n").ok());
  EXPECT_EQ(LoadRecipe(yaml)->communication, Communication::kBf16);
  const Status bad = LoadRecipe(path).status();
  EXPECT_NE(bad.message().find(path), std::string::npos) << bad.ToString();
  EXPECT_EQ(ParseSlot("Gw").value(), Slot::kGw);
  EXPECT_EQ(ParseSlot("gw").status().code(), StatusCode::kInvalidArgument);
}

// decoded = grid value of the code / scale + residual, element by element, odd width included.
TEST_F(LabTest, CodesScalesAndResidualAddUpToTheDecodedValues) {
  const LinearRecipe recipe = FindRecipe("fp4_ms_paper").value().linear;
  const Matrix x = RandomMatrix("X", 7, 45, 2);
  const Result<Operand> operand = QuantizeOperand(backend_.get(), recipe, Slot::kXf, {}, x);
  ASSERT_TRUE(operand.ok()) << operand.status().ToString();
  const std::string& codes = Tensor(*operand, "codes").bytes;
  const std::vector<float> scales = Floats(Tensor(*operand, "scales"));
  const std::vector<float> decoded = Floats(Tensor(*operand, "decoded"));
  ASSERT_EQ(codes.size(), x.values.size());
  ASSERT_EQ(scales.size(), 7u);
  std::vector<int32_t> offsets(8);
  std::memcpy(offsets.data(), Tensor(*operand, "residual_offsets").bytes.data(), 32);
  EXPECT_GT(offsets[7], 0) << "the test needs outliers";
  size_t differing = 0;
  for (size_t i = 0; i < codes.size(); ++i) {
    ASSERT_LT(static_cast<uint8_t>(codes[i]), 16);
    const float value = formats::DecodeE2M1(static_cast<uint8_t>(codes[i])) / scales[i / 45];
    differing += value != decoded[i] ? 1 : 0;
  }
  EXPECT_EQ(differing, static_cast<size_t>(offsets[7]));
  EXPECT_GT(operand->health.snr_db, 10);
}

TEST_F(LabTest, ReusedSlotsShowTheCodesTheyReuse) {
  const LinearRecipe recipe = FindRecipe("fp4_ms_paper").value().linear;
  const Matrix w = RandomMatrix("W", 6, 33, 3);
  const Operand forward = QuantizeOperand(backend_.get(), recipe, Slot::kWf, {}, w).value();
  const Operand reused = QuantizeOperand(backend_.get(), recipe, Slot::kWd, {}, w).value();
  EXPECT_EQ(reused.holder, Slot::kWf);
  EXPECT_EQ(Tensor(reused, "codes").bytes, Tensor(forward, "codes").bytes);
}

TEST_F(LabTest, OperandsWithoutScalesAreRoundedOrLeftAlone) {
  Matrix x = RandomMatrix("X", 2, 9, 4);
  x.values[3] = 1.00001f;
  const auto decoded = [&](const char* name) {
    const LinearRecipe recipe = FindRecipe(name).value().linear;
    return QuantizeOperand(backend_.get(), recipe, Slot::kXf, {}, x).value();
  };
  EXPECT_EQ(Floats(Tensor(decoded("fp32"), "decoded")), x.values);
  EXPECT_EQ(decoded("fp32").health.snr_db, kMaxSnrDb);
  EXPECT_EQ(Floats(Tensor(decoded("bf16"), "decoded"))[3], 1.0f);
  EXPECT_GT(decoded("bf16").health.mse, 0);
}

TEST(ScaleHistogram, CountsByPowerOfTwo) {
  const float inf = std::numeric_limits<float>::infinity();
  const Json histogram = ScaleHistogram({1, 1.5f, 2, 0.25f, 0, inf, -1});
  EXPECT_EQ(histogram.Dump(), R"([{"log2":-2,"count":1},{"log2":0,"count":2},{"log2":1,"count":1},)"
                              R"({"log2":null,"count":3}])");
}

// Reference values for hidden 4096, sequence 2048, alpha .99 (golden P01).
TEST(Speedup, PublishedCountsComeOut) {
  const PublishedSpeedup s = CountAsPublished(4096, 2048, 0.99);
  EXPECT_NEAR(s.fp4, 3.115459657982325, 1e-6);
  EXPECT_NEAR(s.fp8, 1.8270848758161136, 1e-6);
  EXPECT_NEAR(s.fp4_with_overhead, 3.0272919092291977, 1e-6);
  EXPECT_NEAR(s.fp4_residual_in_bf16, 2.9465336303204768, 1e-6);
}

double Counted(const char* recipe, size_t device) {
  const ModelConfig model = ModelPreset("llama2-7b").value();
  return CountForRecipe(model, 2048, FindRecipe(recipe).value(), KnownDevices()[device]).speedup;
}

TEST(Speedup, OurCountGivesEachGemmItsOwnRate) {
  constexpr size_t kH100 = 0, kB200 = 1;
  EXPECT_DOUBLE_EQ(Counted("bf16", kH100), 1);
  EXPECT_GT(Counted("te_fp8_current", kH100), 1.5);
  // No FP4 units: FP4 codes run no faster than FP8 ones, and the residual costs.
  EXPECT_LT(Counted("fp4_ms_paper", kH100), Counted("te_fp8_current", kH100));
  // One of three GEMMs on FP4 units, the backward ones FP8: far from the published 3.
  EXPECT_GT(Counted("fp4_direct", kB200), Counted("te_fp8_current", kB200));
  EXPECT_LT(Counted("fp4_ms_paper", kB200), 2.3);
}

TEST_F(LabTest, OnACpuProductsOnCodesAreTheFastOnes) {
  const ModelConfig model = ModelPreset("llama2-60m").value();
  DeviceRates cpu;
  cpu.fp4 = 3;
  cpu.backend = backend_.get();
  const auto counted = [&](const char* recipe) {
    return CountForRecipe(model, 512, FindRecipe(recipe).value(), cpu);
  };
  EXPECT_DOUBLE_EQ(counted("te_fp8_current").speedup, 1);  // decoded, in FP32
  for (const WorkItem& item : counted("fp4_direct").items) {
    EXPECT_NEAR(item.mean_rate, item.name == "fprop" ? 3 : 1, 1e-12) << item.name;
  }
}

TEST(Speedup, SharesAddUpToOneAndFlopsToThoseOfTheModel) {
  const ModelConfig model = ModelPreset("llama2-60m").value();
  const CountedSpeedup counted =
      CountForRecipe(model, 512, FindRecipe("bf16").value(), KnownDevices()[0]);
  double share = 0, flops = 0;
  for (const WorkItem& item : counted.items) {
    share += item.seconds_share;
    flops += item.flops_per_token;
  }
  EXPECT_NEAR(share, 1, 1e-12);
  const double d = 512, f = 1376, layers = 8;
  const double expected =
      3 * (layers * (2 * (4 * d * d + 3 * d * f) + 5 * 512 * d + 36 * d) + 2 * d * 32000);
  EXPECT_NEAR(flops, expected, 1e-6 * expected);
}

}  // namespace
}  // namespace nibble
