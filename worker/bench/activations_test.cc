// SPDX-License-Identifier: Apache-2.0
//
// memory.activations: bf16 on a device that stores BF16: the values of a backend that rounds FP32
// numbers in their place, in half the memory.
#include <gtest/gtest.h>

#include "kernels/self_test_ops.h"
#include "worker/bench/sealed_test_backend.h"
#include "worker/spec/estimate.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

// Operands whose split looks at the numbers themselves.
constexpr char kChannels[] = R"({"name":"channels","linear":{
  "Xf":{"elem":"e2m1","block":"1x16","scale":"nv",
        "split":{"channels":{"share":0.1,"elem":"e4m3","from_step":0,"window":2}}},
  "Wf":{"elem":"e2m1","block":"1x16","scale":"nv",
        "split":{"channels":{"share":0.1,"elem":"e4m3","from_step":0,"window":2}}},
  "Gd":{"elem":"e2m1","block":"1x16","scale":"nv"},
  "Wd":{"elem":"e2m1","block":"1x16","scale":"nv"},
  "Gw":{"elem":"e2m1","block":"1x16","scale":"nv"},
  "Xw":{"elem":"e2m1","block":"1x16","scale":"nv"}}})";
constexpr char kMean[] = R"({"name":"mean","linear":{
  "Xf":{"elem":"e2m1","block":"1x16","scale":"nv","split":{"mean":{"elem":"bf16"}}},
  "Wf":{"elem":"e2m1","block":"1x16","scale":"nv"},
  "Gd":{"elem":"e2m1","block":"1x16","scale":"nv"},
  "Wd":{"elem":"e2m1","block":"1x16","scale":"nv"},
  "Gw":{"elem":"e2m1","block":"1x16","scale":"nv"},
  "Xw":{"elem":"e2m1","block":"1x16","scale":"nv"}}})";

class NarrowActivationsTest : public RunTest {
 protected:
  static EndRecord RunNarrow(RunConfig config, int64_t* products = nullptr) {
    RunEnvironment environment;
    environment.make_backend = [&](std::string_view, const BackendOptions& options) {
      return Result<std::unique_ptr<Backend>>(
          std::make_unique<NarrowBackend>(MakeBackend("cpu", options).value(), products));
    };
    config.run.backend = kBackendCuda;
    return Run(config, environment);
  }
  RunConfig Rounded(const std::string& run, const std::string& recipe) const {
    RunConfig config = Config(run, recipe, 8);
    config.memory.activations = Activations::kBf16;
    return config;
  }
};

// Operands that are not quantized are multiplied in BF16 by one and, rounded, in FP32 by the other,
// whose sums have another order; so the first recipes quantize every layer, or none.
TEST_F(NarrowActivationsTest, TrainToTheBitsOfRoundedFp32) {
  for (const char* const name :
       {"fp32", "fp4_foldi8", "fp4_ms_paper", "fp4_fold8_e4m3", "te_fp8_current", "te_fp8_delayed",
        "ue5m3", "quartet", "channels", "mean"}) {
    SCOPED_TRACE(name);
    RunConfig config = Rounded(std::string("host-") + name, name);
    if (name == std::string("channels")) config.recipe_json = kChannels;
    if (name == std::string("mean")) config.recipe_json = kMean;
    const Recipe recipe = config.recipe_json.empty() ? FindRecipe(name).value()
                                                     : ParseRecipeText(config.recipe_json).value();
    if (!CheckRecipeFits(config.model, recipe, 32).ok()) {
      config.model = WideModel();
      config.schedule.micro_batch = config.schedule.global_batch = 8;
    }
    const EndRecord host = Run(config);
    ASSERT_EQ(host.reason, kEndCompleted) << host.message;
    for (const char* const recompute : {"none", "ffn+attention", "block"}) {
      if (config.model.hidden_size > 32 && recompute != std::string("none")) continue;  // slow
      config.run.dir = Path(std::string(name) + recompute);
      config.memory.recompute = ParseRecompute(recompute).value();
      const EndRecord device = RunNarrow(config);
      ASSERT_EQ(device.reason, kEndCompleted) << device.message;
      EXPECT_EQ(device.weights_sha256, host.weights_sha256) << recompute;
    }
  }
}

TEST_F(NarrowActivationsTest, AreMultipliedAsTheyLie) {
  const EndRecord host = Run(Rounded("host", "bf16"));
  ASSERT_EQ(host.reason, kEndCompleted) << host.message;
  int64_t products = 0;
  const EndRecord device = RunNarrow(Rounded("device", "bf16"), &products);
  ASSERT_EQ(device.reason, kEndCompleted) << device.message;
  EXPECT_GT(products, 0);
  EXPECT_NEAR(device.final_validation_loss, host.final_validation_loss, 1e-3);
}

// Heads of 64: tensor cores take Q, K and V as they rest, and copy dO alone.
TEST_F(NarrowActivationsTest, AreNotCopiedForTensorCores) {
  RunConfig config = Rounded("copies", "fp4_fold8_e4m3");
  config.model.hidden_size = 256;
  config.run.backend = kBackendCuda;
  const Recipe recipe = FindRecipe(config.recipe).value();
  int64_t workspace[2] = {};
  for (const bool narrow : {false, true}) {
    const BufferPlan plan = PlanBuffers(config.model, recipe, 2, 16, {}, kDeviceLogits, narrow);
    config.memory.activations = narrow ? Activations::kBf16 : Activations::kFp32;
    workspace[narrow ? 1 : 0] =
        EstimateRun(config, recipe).value().memory.activations - plan.arena_bytes;
  }
  EXPECT_EQ(workspace[0] - workspace[1], 32 * (256 + 2 * config.model.kv_size()) * 2);
}

// Turns every head by another position.
class MisturningBackend final : public NarrowBackend {
 public:
  using NarrowBackend::NarrowBackend;
  Status RopeForward(const RopeParams& params, ConstTensorView x, TensorView out) override {
    RopeParams turned = params;
    if (out.dtype == DType::kBF16) ++turned.position_offset;
    return NarrowBackend::RopeForward(turned, x, out);
  }
};

TEST_F(NarrowActivationsTest, AreProvedBeforeADeviceIsOffered) {
  const auto host = TestBackend();
  NarrowBackend right(TestBackend());
  EXPECT_TRUE(ProveStepOperations(right, *host).ok());
  MisturningBackend wrong(TestBackend());
  const Status status = ProveStepOperations(wrong, *host);
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_NE(status.message().find("self-test of activations in bf16"), std::string::npos)
      << status.message();
}

// The estimate is for any device; what the test's own widening takes is its.
TEST_F(NarrowActivationsTest, TakeHalfTheMemoryAndTheEstimateCountsIt) {
  for (const int64_t kv_heads : {1, 4}) {
    for (const char* const recompute : {"none", "ffn", "attention", "block"}) {
      RunConfig config = Rounded("memory", "fp4_foldi8");
      config.model.kv_heads = kv_heads;
      config.memory.recompute = ParseRecompute(recompute).value();
      config.run.backend = kBackendCuda;
      const Recipe recipe = FindRecipe(config.recipe).value();
      int64_t arena[2] = {}, estimate[2] = {};
      for (const Activations activations : {Activations::kFp32, Activations::kBf16}) {
        config.memory.activations = activations;
        NarrowBackend backend(TestBackend());
        auto parameters = Parameters::Create(&backend, config.model, true, recipe.state).value();
        const auto model =
            Model::Create(&backend, &parameters,
                          {config.model, recipe, 2, 16, config.memory.recompute, activations})
                .value();
        const size_t i = activations == Activations::kBf16 ? 1 : 0;
        arena[i] = model->activation_bytes();
        estimate[i] = EstimateRun(config, recipe).value().memory.activations;
      }
      EXPECT_EQ(estimate[0] - estimate[1], arena[0] - arena[1]) << recompute << ' ' << kv_heads;
      const ModelConfig& m = config.model;
      const bool one_core = config.memory.recompute.attention_core();
      const bool one_gate = config.memory.recompute.gate_up();
      const int64_t t = 32, core = t * (2 * m.hidden_size + 2 * m.kv_size()) * 2;
      const int64_t gates = t * 2 * m.intermediate_size * 2;
      const int64_t gradients = t * (m.hidden_size + 2 * m.kv_size()) * 4;
      const int64_t up_gradient = t * m.intermediate_size * 4;
      EXPECT_EQ(arena[0] - arena[1], (one_core ? 1 : m.layers) * core +
                                         (one_gate ? 1 : m.layers) * gates -
                                         std::max<int64_t>(0, up_gradient - gradients))
          << recompute << ' ' << kv_heads;
    }
  }
}

}  // namespace
}  // namespace nibble
