// SPDX-License-Identifier: Apache-2.0
#include "worker/spec/run_config.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

constexpr char kMinimal[] = R"({"apiVersion":"nibble/v1","kind":"TrainJob",
  "metadata":{"name":"a"},"queue":"main","model":{"preset":"llama2-60m"},
  "data":{"path":"/d"},"schedule":{"steps":10}})";

std::string ErrorsOf(const std::string& text) {
  const auto json = Json::Parse(text);
  EXPECT_TRUE(json.ok()) << json.status().ToString();
  return RunConfigFromJson(*json).status().message();
}

TEST(RunConfig, MinimalSpecTakesTheDocumentedDefaults) {
  const auto config = RunConfigFromJson(Json::Parse(kMinimal).value());
  ASSERT_TRUE(config.ok()) << config.status().ToString();
  EXPECT_EQ(config->model.hidden_size, 512);
  EXPECT_EQ(config->model.kv_heads, 8);
  EXPECT_EQ(config->recipe, "fp4_foldi8");
  EXPECT_EQ(config->seed, 1234u);
  EXPECT_DOUBLE_EQ(config->optimizer.peak_lr, 3e-4);
  EXPECT_DOUBLE_EQ(config->optimizer.warmup_fraction, 0.05);
  EXPECT_EQ(config->schedule.global_batch, 8);
  EXPECT_EQ(config->accumulation_steps(), 1);
  EXPECT_EQ(config->checkpoint.keep_last, 2);
}

TEST(RunConfig, JsonRoundTripKeepsEveryField) {
  auto config = RunConfigFromJson(Json::Parse(kMinimal).value()).value();
  config.model.tied_embeddings = true;
  config.data.train = {"a", "b"};
  config.schedule.global_batch = 32;
  config.optimizer.min_lr_ratio = 0;
  config.memory.recompute = ParseRecompute("norm+swiglu").value();
  config.memory.offload_optimizer = true;
  config.memory.activations = Activations::kBf16;
  config.run = {"/run", "j-1", 3, 17, 0, 1, 2, kBackendCuda, true, kCommunicatorNccl};
  const Json json = RunConfigToJson(config);
  const auto again = RunConfigFromJson(json);
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_EQ(RunConfigToJson(*again).Dump(), json.Dump());
  EXPECT_EQ(again->memory.recompute, config.memory.recompute);
  EXPECT_TRUE(again->memory.offload_optimizer);
  EXPECT_EQ(again->memory.activations, Activations::kBf16);
}

TEST(RunConfig, ActivationsAreFp32OrBf16) {
  auto json = Json::Parse(kMinimal).value();
  EXPECT_EQ(RunConfigFromJson(json)->memory.activations, Activations::kFp32);
  for (const auto& [text, expected] : {std::pair{"fp32", Activations::kFp32},
                                       {"bf16", Activations::kBf16},
                                       {"", Activations::kFp32}}) {
    json.Set("memory", Json::Object({{"activations", text}}));
    EXPECT_EQ(RunConfigFromJson(json)->memory.activations, expected) << text;
  }
  json.Set("memory", Json::Object({{"activations", "fp16"}}));
  EXPECT_NE(RunConfigFromJson(json).status().message().find(
                R"(memory.activations is "fp16"; expected "fp32" or "bf16")"),
            std::string::npos);
}

TEST(RunConfig, TokensBecomeWholeSteps) {
  auto json = Json::Parse(kMinimal).value();
  json.Set("schedule", Json::Object({{"tokens", 10000}, {"microBatch", 2}, {"globalBatch", 4}}));
  const auto config = RunConfigFromJson(json).value();
  EXPECT_EQ(config.schedule.steps, 10);  // 4 x 256 tokens a step
  EXPECT_EQ(config.accumulation_steps(), 2);
}

TEST(RunConfig, SixtyFourBitNumbersMayBeText) {
  auto json = Json::Parse(kMinimal).value();
  json.Set("schedule", Json::Object({{"steps", "123"}}));
  EXPECT_EQ(RunConfigFromJson(json)->schedule.steps, 123);
}

TEST(RunConfig, EveryMistakeIsReportedWithItsFieldValueAndFix) {
  const std::string errors = ErrorsOf(R"({"apiVersion":"v9","modle":{},
    "model":{"hiddenSize":100,"heads":3,"layers":-1,"intermediateSize":"x"},
    "data":{"seqLen":0},"schedule":{"steps":5,"tokens":5,"microBatch":3,"globalBatch":7},
    "optimizer":{"beta1":1.5,"peak_lr":1}})");
  for (const char* expected :
       {"apiVersion is 'v9'", "modle is not a known key; did you mean 'model'?",
        "model.heads is 3, which does not divide hiddenSize 100", "model.layers is -1",
        "model.intermediateSize is \"x\", expected a whole number", "data.path is missing",
        "data.seqLen is 0, allowed is 1", "schedule.steps and tokens are both given",
        "schedule.globalBatch is 7, not a multiple", "optimizer.beta1 is 1.5",
        "optimizer.peak_lr is not a known key; did you mean 'peakLr'?"}) {
    EXPECT_NE(errors.find(expected), std::string::npos) << expected << "\n in:\n" << errors;
  }
}

TEST(RunConfig, RecomputeTakesOneChoiceOrSeveral) {
  for (const std::string text : {"none", "swiglu", "norm", "ffn", "attention", "block"}) {
    EXPECT_EQ(RecomputeText(ParseRecompute(text).value()), text);
  }
  EXPECT_EQ(ParseRecompute("").value(), Recompute());
  EXPECT_EQ(RecomputeText(ParseRecompute("norm+swiglu").value()), "swiglu+norm");
  auto json = Json::Parse(kMinimal).value();
  for (const std::string text : {"everything", "norm+", "none+norm", "Block"}) {
    json.Set("memory", Json::Object({{"recompute", text}}));
    EXPECT_EQ(
        RunConfigFromJson(json).status().message(),
        "memory.recompute is \"" + text +
            "\"; expected none, swiglu, norm, ffn, attention or block, or several joined by +");
  }
}

TEST(RunConfig, ImpossibleHeadSizesAreRefused) {
  auto json = Json::Parse(kMinimal).value();
  json.Set("model", Json::Object({{"preset", "llama2-9m"}, {"heads", 128}}));
  EXPECT_NE(RunConfigFromJson(json).status().message().find("even size"), std::string::npos);
  json.Set("model", Json::Object({{"preset", "llama2-60m"}, {"kvHeads", 3}}));
  EXPECT_NE(RunConfigFromJson(json).status().message().find("does not divide heads 8"),
            std::string::npos);
}

TEST(RunConfig, UnknownPresetListsTheKnownOnes) {
  auto json = Json::Parse(kMinimal).value();
  json.Set("model", Json::Object({{"preset", "llama2-6m"}}));
  const std::string error = RunConfigFromJson(json).status().message();
  EXPECT_NE(error.find("model.preset unknown model preset 'llama2-6m'; known: llama2-9m"),
            std::string::npos)
      << error;
  for (const std::string& name : ModelPresetNames()) EXPECT_TRUE(ModelPreset(name).ok()) << name;
}

TEST(RunConfig, WrongJsonTypesNeverCrash) {
  for (const char* text : {"[]", "3", "{\"model\":[]}", "{\"data\":{\"train\":[1]}}",
                           "{\"seed\":1e300}", "{\"seed\":\"x\"}", "{\"metrics\":7}"}) {
    EXPECT_FALSE(ErrorsOf(text).empty()) << text;
  }
}

}  // namespace
}  // namespace nibble
