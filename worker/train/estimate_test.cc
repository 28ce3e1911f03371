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

TEST(Estimate, MemoryByClassIsWithinFivePercentOfTheMeasuredPeak) {
  ModelConfig narrow;
  narrow.vocab_size = 1024;
  narrow.hidden_size = 64;
  narrow.intermediate_size = 176;
  narrow.layers = 4;
  narrow.heads = 4;
  narrow.kv_heads = 2;
  ModelConfig wide = narrow;
  wide.hidden_size = 192;
  wide.intermediate_size = 384;
  wide.layers = 2;
  wide.kv_heads = 4;
  wide.tied_embeddings = true;
  for (const ModelConfig& model : {narrow, wide}) {
    for (const std::string recipe_name :
         {"fp4_ms_paper", "bf16", "te_fp8_current", "fp8_lm", "fp32", "fp4_fold4", "te_mxfp8",
          "mxfp4_plain", "nvfp4_te", "quartet", "tetrajet2", "fp4_allway"}) {
      RunConfig config;
      config.model = model;
      config.data.seq_len = 128;
      config.schedule.micro_batch = config.schedule.global_batch = 16;
      config.schedule.steps = 1;
      const Recipe recipe = FindRecipe(recipe_name).value();
      if (!CheckRecipeFits(model, recipe, 16 * 128).ok()) continue;
      const RunEstimate estimate = EstimateRun(config, recipe).value();

      const auto backend = TestBackend();
      auto parameters = Parameters::Create(backend.get(), model, true, recipe.state).value();
      ASSERT_TRUE(parameters.Initialise(model, 1).ok());
      auto trained =
          Model::Create(backend.get(), &parameters, {model, recipe, 16, config.data.seq_len})
              .value();
      const auto tokens = TestTokens(16 * 128 + 1, 1024, 3);
      const std::span<const int32_t> all(tokens);
      ASSERT_TRUE(
          trained->ForwardBackward({}, {all.first(16 * 128), all.last(16 * 128)}, 0.01f).ok());
      ASSERT_TRUE(ApplyAdamW(*backend, {}, 1, 1e-3, 1.0, &parameters).ok());

      const MemoryBytes measured = MeasureMemory(*backend, *trained, parameters);
      const std::string what = recipe_name + ", hidden " + std::to_string(model.hidden_size);
      EXPECT_EQ(estimate.parameters, parameters.count());
      EXPECT_EQ(estimate.memory.weights, measured.weights) << what;
      EXPECT_EQ(estimate.memory.gradients, measured.gradients) << what;
      EXPECT_EQ(estimate.memory.optimizer, measured.optimizer) << what;
      ExpectWithin(estimate.memory.activations, measured.activations, what + ": activations");
      ExpectWithin(estimate.memory.quantized, measured.quantized, what + ": quantized");
      ExpectWithin(estimate.memory.total(), backend->peak_allocated_bytes(), what + ": total");
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
