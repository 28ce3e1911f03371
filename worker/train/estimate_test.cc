// SPDX-License-Identifier: Apache-2.0
//
// The estimate against what a training step really holds.
#include "worker/spec/estimate.h"

#include "worker/train/memory_report.h"
#include "worker/train/optimizer.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

void ExpectWithin(int64_t estimate, int64_t measured, const std::string& what) {
  EXPECT_NEAR(static_cast<double>(estimate), static_cast<double>(measured),
              0.05 * static_cast<double>(measured))
      << what;
}

ModelConfig NarrowModel() {
  ModelConfig model;
  model.vocab_size = 1024;
  model.hidden_size = 64;
  model.intermediate_size = 176;
  model.layers = 4;
  model.heads = 4;
  model.kv_heads = 2;
  return model;
}

ModelConfig WideTiedModel() {
  ModelConfig model = NarrowModel();
  model.hidden_size = 192;
  model.intermediate_size = 384;
  model.layers = 2;
  model.kv_heads = 4;
  model.tied_embeddings = true;
  return model;
}

// One update under `config`, whose estimate it must meet.
void ExpectEstimateHolds(const RunConfig& config, const Recipe& recipe, const std::string& what) {
  const int64_t sequences = config.schedule.micro_batch;
  const auto tokens = static_cast<size_t>(sequences * config.data.seq_len);
  const RunEstimate estimate = EstimateRun(config, recipe).value();
  const auto backend = TestBackend();
  auto parameters = Parameters::Create(backend.get(), config.model, true, recipe.state).value();
  ASSERT_TRUE(parameters.Initialise(config.model, 1).ok());
  auto trained =
      Model::Create(backend.get(), &parameters,
                    {config.model, recipe, sequences, config.data.seq_len, config.memory.recompute})
          .value();
  const auto ids = TestTokens(static_cast<int64_t>(tokens) + 1, 1024, 3);
  const std::span<const int32_t> all(ids);
  LinearStep step;
  step.defer_factor = true;  // as TrainingStep does
  ASSERT_TRUE(trained->ForwardBackward(step, {all.first(tokens), all.last(tokens)}, 0.01f).ok());
  ASSERT_TRUE(ApplyAdamW(*backend, {}, 1, 1e-3, 1.0, &parameters).ok());

  const MemoryBytes measured = MeasureMemory(*backend, *trained, parameters);
  EXPECT_EQ(estimate.parameters, parameters.count());
  EXPECT_EQ(estimate.memory.weights, measured.weights) << what;
  EXPECT_EQ(estimate.memory.gradients, measured.gradients) << what;
  EXPECT_EQ(estimate.memory.optimizer, measured.optimizer) << what;
  ExpectWithin(estimate.memory.activations, measured.activations, what + ": activations");
  ExpectWithin(estimate.memory.quantized, measured.quantized, what + ": quantized");
  ExpectWithin(estimate.memory.total(), backend->peak_allocated_bytes(), what + ": total");
}

RunConfig OneStep(const ModelConfig& model) {
  RunConfig config;
  config.model = model;
  config.data.seq_len = 128;
  config.schedule.micro_batch = config.schedule.global_batch = 16;
  config.schedule.steps = 1;
  return config;
}

TEST(Estimate, MemoryByClassIsWithinFivePercentOfTheMeasuredPeak) {
  for (const ModelConfig& model : {NarrowModel(), WideTiedModel()}) {
    for (const std::string recipe_name :
         {"fp4_ms_paper", "bf16", "te_fp8_current", "fp8_lm", "fp32", "fp4_fold4", "te_mxfp8",
          "mxfp4_plain", "nvfp4_te", "quartet", "tetrajet2", "fp4_allway"}) {
      const Recipe recipe = FindRecipe(recipe_name).value();
      if (!CheckRecipeFits(model, recipe, 16 * 128).ok()) continue;
      ExpectEstimateHolds(OneStep(model), recipe,
                          recipe_name + ", hidden " + std::to_string(model.hidden_size));
    }
  }
}

TEST(Estimate, CountsWhatIsRecomputed) {
  RunConfig config = OneStep(WideTiedModel());
  config.model.layers = 3;
  for (const std::string recipe_name : {"bf16", "fp4_foldi8", "te_fp8_delayed", "nvfp4_te"}) {
    for (const std::string choice : {"swiglu", "norm", "ffn", "attention", "block"}) {
      config.memory.recompute = ParseRecompute(choice).value();
      ExpectEstimateHolds(config, FindRecipe(recipe_name).value(), recipe_name + ", " + choice);
    }
  }
}

TEST(Estimate, CountsThePublishedSizes) {
  // LLaMA-2 7B and 13B have 6,738,415,616 and 13,015,864,320 parameters.
  EXPECT_EQ(CountParameters(ModelPreset("llama2-7b").value()), 6'738'415'616);
  EXPECT_EQ(CountParameters(ModelPreset("llama2-13b").value()), 13'015'864'320);
}

TEST(Estimate, FlopsAreSixPerMatrixWeightAndAttention) {
  RunConfig config;
  config.model = ModelPreset("llama2-7b").value();
  config.data.seq_len = 4096;
  config.schedule.micro_batch = config.schedule.global_batch = 1;
  config.schedule.steps = 3;
  const RunEstimate e = EstimateRun(config, FindRecipe("bf16").value()).value();
  const double matrices = 6'738'415'616.0 - 32000.0 * 4096 - (2 * 32 + 1) * 4096.0;
  EXPECT_DOUBLE_EQ(e.flops_per_token, 6 * matrices + 12.0 * 32 * 4096 * 4096);
  EXPECT_EQ(e.tokens_per_step, 4096);
  EXPECT_EQ(e.steps, 3);
  EXPECT_EQ(e.parameters, 6'738'415'616);
}

TEST(Estimate, UnresolvedVocabularyIsRefused) {
  RunConfig config;
  config.model = TinyModel();
  config.model.vocab_size = 0;
  EXPECT_EQ(EstimateRun(config, FindRecipe("bf16").value()).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
