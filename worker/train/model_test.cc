// SPDX-License-Identifier: Apache-2.0
//
// The whole model: gradients by finite differences, determinism, accumulation, allocations, and the
// decoder against the training forward pass.
#include "worker/train/model.h"

#include <cmath>
#include <cstdio>
#include <cstring>

#include "worker/train/decoder.h"
#include "worker/train/health.h"
#include "worker/train/memory_report.h"
#include "worker/train/optimizer.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

constexpr int64_t kSequences = 2;
constexpr int64_t kSeqLen = 10;

// A model with its backend and one batch.
struct Fixture {
  explicit Fixture(const std::string& recipe, ModelConfig config = TinyModel(), int threads = 1,
                   int64_t sequences = kSequences, int64_t seq_len = kSeqLen)
      : backend(TestBackend(threads)),
        parameters(Parameters::Create(backend.get(), config).value()) {
    EXPECT_TRUE(parameters.Initialise(config, 11).ok());
    model = Model::Create(backend.get(), &parameters,
                          {config, FindRecipe(recipe).value(), sequences, seq_len})
                .value();
    const auto tokens = TestTokens(2 * kSequences * seq_len + 1, 48, 5);
    whole = static_cast<size_t>(kSequences * seq_len);
    inputs.assign(tokens.begin(), tokens.end() - 1);
    targets.assign(tokens.begin() + 1, tokens.end());
  }
  Batch Whole() const { return Part(0, whole); }
  Batch Part(size_t begin, size_t count) const {
    return {std::span(inputs).subspan(begin, count), std::span(targets).subspan(begin, count)};
  }
  std::vector<float> Gradients() const {
    const TensorView all = parameters.all_gradients();
    return {all.f32(), all.f32() + all.size()};
  }

  std::unique_ptr<Backend> backend;
  Parameters parameters;
  std::unique_ptr<Model> model;
  size_t whole = 0;
  std::vector<int32_t> inputs, targets;
};

// Largest initial weights make every part of the model matter.
ModelConfig LivelyModel(bool tied) {
  ModelConfig config = TinyModel();
  config.init_std = 0.25;
  config.tied_embeddings = tied;
  return config;
}

TEST(Model, GradientsOfEveryParameterPassFiniteDifferences) {
  for (const bool tied : {false, true}) {
    Fixture f("fp32", LivelyModel(tied));
    ASSERT_TRUE(f.model->ForwardBackward({}, f.Whole(), 1.0f).ok());
    for (size_t t = 0; t < f.parameters.list().size(); ++t) {
      // Along the gradient's own direction the derivative is its norm: far above rounding.
      const TensorView w = f.parameters.weight(t);
      const TensorView g = f.parameters.gradient(t);
      const double norm = std::sqrt(f.backend->SumOfSquares(g).value());
      ASSERT_GT(norm, 1e-3) << f.parameters.list()[t].name;
      const std::vector<float> saved(w.f32(), w.f32() + w.size());
      const double h = 2e-3;
      double loss[2];
      for (const int side : {0, 1}) {
        const double factor = (side == 0 ? -h : h) / norm;
        for (int64_t i = 0; i < w.size(); ++i) {
          w.f32()[i] = static_cast<float>(saved[static_cast<size_t>(i)] + factor * g.f32()[i]);
        }
        f.model->WeightsChanged();
        loss[side] = f.model->Forward({}, f.Whole()).value();
      }
      std::memcpy(w.data, saved.data(), saved.size() * sizeof(float));
      const double numeric = (loss[1] - loss[0]) / (2 * h);
      EXPECT_NEAR(numeric / norm, 1.0, 5e-3) << f.parameters.list()[t].name << " tied " << tied;
    }
  }
}

TEST(Model, ResultsDoNotDependOnTheNumberOfThreads) {
  for (const std::string recipe : {"fp32", "fp4_ms_paper"}) {
    std::vector<float> expected;
    for (const int threads : {1, 2, 3}) {
      Fixture f(recipe, LivelyModel(false), threads);
      ASSERT_TRUE(f.model->ForwardBackward({}, f.Whole(), 0.05f).ok());
      const std::vector<float> got = f.Gradients();
      if (threads == 1) expected = got;
      EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), 0)
          << recipe << " with " << threads << " threads";
    }
  }
}

TEST(Model, AccumulatedGradientsEqualThoseOfTheBigBatch) {
  for (const auto& [recipe, tolerance] :
       {std::pair<std::string, double>{"fp32", 1e-5}, {"bf16", 0.02}}) {
    Fixture big(recipe, LivelyModel(false), 1, 2 * kSequences);
    Fixture small(recipe, LivelyModel(false), 1, kSequences);
    const size_t half = static_cast<size_t>(kSequences * kSeqLen);
    const double whole = big.model->ForwardBackward({}, big.Part(0, 2 * half), 0.1f).value();
    double sum = 0;
    for (const size_t begin : {size_t{0}, half}) {
      sum += small.model->ForwardBackward({}, small.Part(begin, half), 0.1f).value();
    }
    EXPECT_NEAR(sum, whole, 1e-5 * whole);
    const std::vector<float> a = big.Gradients(), b = small.Gradients();
    double error = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      error += (a[i] - b[i]) * (a[i] - b[i]);
      norm += a[i] * a[i];
    }
    EXPECT_LE(std::sqrt(error / norm), tolerance) << recipe;
  }
}

TEST(Model, LowPrecisionGradientsStayNearThoseOfFp32) {
  ModelConfig config = TinyModel();
  config.init_std = 0.1;
  const auto gradients = [&](const std::string& recipe) {
    Fixture f(recipe, config);
    EXPECT_TRUE(f.model->ForwardBackward({}, f.Whole(), 1.0f).ok());
    return f.Gradients();
  };
  const std::vector<float> exact = gradients("fp32");
  double previous = 0;
  // Relative error grows with each loss of precision; the limits are twice what was measured.
  for (const auto& [recipe, limit] : {std::pair<std::string, double>{"bf16", 0.012},
                                      {"te_fp8_current", 0.2},
                                      {"fp4_direct", 0.55}}) {
    const std::vector<float> got = gradients(recipe);
    double error = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += (got[i] - exact[i]) * (got[i] - exact[i]);
      norm += exact[i] * exact[i];
    }
    const double relative = std::sqrt(error / norm);
    std::printf("gradient error of %s: %.3g\n", recipe.c_str(), relative);
    EXPECT_GT(relative, previous) << recipe;
    EXPECT_LE(relative, limit) << recipe;
    previous = relative;
  }
}

// Losses and weight gradients of one step under a recipe written out.
struct Trained {
  double loss = 0;
  std::vector<float> gradients;
};
Trained TrainOnce(const Recipe& recipe) {
  Fixture f("fp32", LivelyModel(false));
  auto model = Model::Create(f.backend.get(), &f.parameters,
                             {LivelyModel(false), recipe, kSequences, kSeqLen})
                   .value();
  Trained out;
  out.loss = model->ForwardBackward({}, f.Whole(), 1.0f).value();
  const TensorView all = f.parameters.all_gradients();
  out.gradients.resize(static_cast<size_t>(all.size()));
  EXPECT_TRUE(
      f.backend->CopyOut(out.gradients.data(), all.data, all.size() * int64_t{sizeof(float)}).ok());
  return out;
}

TEST(Model, OverriddenLayersTakeTheirOwnRecipe) {
  const Recipe paper = FindRecipe("fp4_ms_paper").value();
  const Recipe fp8 = FindRecipe("te_fp8_current").value();
  const Trained plain = TrainOnce(paper);
  constexpr uint32_t kAll = (1u << kLinearKinds) - 1;
  Recipe same = paper;
  same.overrides.push_back({kAll, 0, -1, paper.linear});
  EXPECT_EQ(TrainOnce(same).gradients, plain.gradients) << "an override with the same recipe";
  Recipe whole = paper;
  whole.overrides.push_back({kAll, 0, -1, fp8.linear});
  const Trained all_fp8 = TrainOnce(whole);
  EXPECT_EQ(all_fp8.loss, TrainOnce(fp8).loss) << "every layer overridden";
  EXPECT_EQ(all_fp8.gradients, TrainOnce(fp8).gradients);
  // Each layer matters, also one that shares its input with layers of the other recipe.
  for (int kind = 0; kind < kLinearKinds; ++kind) {
    Recipe one = paper;
    one.overrides.push_back({1u << kind, 0, -1, fp8.linear});
    const Trained got = TrainOnce(one);
    EXPECT_NE(got.loss, plain.loss) << LinearKindName(static_cast<LinearKind>(kind));
    EXPECT_NE(got.loss, all_fp8.loss) << LinearKindName(static_cast<LinearKind>(kind));
    EXPECT_EQ(TrainOnce(one).gradients, got.gradients);
  }
  // FP8 for the attention but BF16 for the MLP: what borrows its input and what does not.
  Recipe mixed = FindRecipe("bf16").value();
  mixed.overrides.push_back({0b0000001, 0, 0, fp8.linear});
  EXPECT_NE(TrainOnce(mixed).loss, TrainOnce(FindRecipe("bf16").value()).loss);
}

TEST(Model, AllocatesNothingAfterTheFirstTrainingPass) {
  for (const std::string& recipe : BuiltInRecipeNames()) {
    const bool fits = CheckRecipeFits(TinyModel(), *FindRecipe(recipe), 2 * kSeqLen).ok();
    Fixture f(recipe, fits ? TinyModel() : WideModel(), 1, kSequences, fits ? kSeqLen : 64);
    const auto step = [&](bool health) {
      LinearStep linear_step;
      linear_step.measure_health = health;
      ASSERT_TRUE(f.backend->Fill(f.parameters.all_gradients(), 0.0f).ok());
      ASSERT_TRUE(f.model->ForwardBackward(linear_step, f.Whole(), 0.05f).ok());
      ASSERT_TRUE(GradientNorm(*f.backend, f.parameters).ok());
      ASSERT_TRUE(ApplyAdamW(*f.backend, {}, 1, 1e-3, 1.0, &f.parameters).ok());
      f.model->WeightsChanged();
      ASSERT_TRUE(f.model->Forward({}, f.Whole()).ok());
    };
    step(true);
    step(false);
    // Nothing is free below the peak, so any allocation at all, however short, would raise it.
    const int64_t live = f.backend->allocated_bytes();
    ASSERT_EQ(f.backend->peak_allocated_bytes(), live) << recipe;
    for (int i = 0; i < 3; ++i) step(i == 1);
    EXPECT_EQ(f.backend->allocated_bytes(), live) << recipe;
    EXPECT_EQ(f.backend->peak_allocated_bytes(), live) << recipe;
  }
}

TEST(Model, RefusesABatchOfAnotherSizeAndIdsOutsideTheVocabulary) {
  Fixture f("fp32");
  EXPECT_EQ(f.model->Forward({}, f.Part(0, 7)).status().code(), StatusCode::kInvalidArgument);
  f.inputs[3] = 48;
  EXPECT_EQ(f.model->Forward({}, f.Whole()).status().code(), StatusCode::kOutOfRange);
  f.inputs[3] = 0;
  f.targets[3] = -5;
  EXPECT_EQ(f.model->Forward({}, f.Whole()).status().code(), StatusCode::kOutOfRange);
}

TEST(Model, IgnoredTargetsCountNothing) {
  Fixture f("fp32", LivelyModel(false));
  const double whole = f.model->Forward({}, f.Whole()).value();
  const std::vector<float> losses = f.model->TokenLosses().value();
  f.targets[4] = Backend::kIgnoreTarget;
  EXPECT_NEAR(f.model->Forward({}, f.Whole()).value(), whole - losses[4], 1e-4);
}

TEST(Model, ExcludedBlocksRunInBf16) {
  Recipe recipe = FindRecipe("fp4_ms_paper").value();
  recipe.bf16_blocks_first = 1;
  recipe.bf16_blocks_last = 1;
  const ModelConfig config = TinyModel();
  const auto backend = TestBackend();
  auto parameters = Parameters::Create(backend.get(), config).value();
  ASSERT_TRUE(parameters.Initialise(config, 1).ok());
  auto model = Model::Create(backend.get(), &parameters, {config, recipe, 2, 10}).value();
  Fixture f("fp32");
  LinearStep step;
  step.measure_health = true;
  ASSERT_TRUE(model->ForwardBackward(step, f.Whole(), 1.0f).ok());
  const std::vector<HealthRecord> records = CollectHealth(*model, 1);
  ASSERT_EQ(records.size(), 6u);  // only the middle block is quantized
  EXPECT_EQ(records[0].tensor_class, "activation_attention_middle");
  EXPECT_EQ(records[2].tensor_class, "gradient_attention_middle");
  EXPECT_EQ(records[4].tensor_class, "weight_mlp_middle");
  EXPECT_GT(records[2].grad_noise_ratio, 1);
  EXPECT_GT(records[1].snr_db, 5);
  EXPECT_LT(records[1].snr_db, 60);
}

TEST(Decoder, CachedStepsEqualTheWholeSequenceAndTheTrainingPass) {
  Fixture f("fp32", LivelyModel(false), 1, 1);
  const std::span<const int32_t> ids = std::span(f.inputs).first(kSeqLen);
  Decoder whole =
      Decoder::Create(f.backend.get(), &f.parameters, LivelyModel(false), kSeqLen).value();
  const std::vector<float> expected = whole.Append(ids).value();
  Decoder steps =
      Decoder::Create(f.backend.get(), &f.parameters, LivelyModel(false), kSeqLen).value();
  const double loss = f.model->Forward({}, f.Part(0, static_cast<size_t>(kSeqLen))).value();
  double sum = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::vector<float> logits = steps.Append(ids.subspan(i, 1)).value();
    double total = 0;
    for (size_t v = 0; v < logits.size(); ++v) {
      EXPECT_NEAR(logits[v], expected[i * logits.size() + v], 1e-4);
      total += std::exp(static_cast<double>(logits[v]));
    }
    sum += std::log(total) - logits[static_cast<size_t>(f.targets[i])];
  }
  EXPECT_NEAR(sum, loss, 1e-3);
  EXPECT_EQ(steps.Append(ids.first(1)).status().code(), StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace nibble
