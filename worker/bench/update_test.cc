// SPDX-License-Identifier: Apache-2.0
//
// The optimizer's side of a step: factors of weight estimators that come once per update, and codes
// of weights made while they are updated, are the numbers of doing each where it is needed.
#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "worker/bench/timed_backend.h"
#include "worker/train/gradient_exchange.h"
#include "worker/train/optimizer.h"
#include "worker/train/run_inputs.h"
#include "worker/train/schedule.h"
#include "worker/train/test_support.h"
#include "worker/train/training_step.h"

namespace nibble {
namespace {

// The CPU backend; counts, and may claim to make codes of weights while it updates them.
class CountingBackend final : public bench::TimedBackend {
 public:
  CountingBackend(std::unique_ptr<Backend> inner, bool in_update)
      : TimedBackend(inner.get(), bench::ClockKind::kWall),
        inner_(std::move(inner)),
        in_update_(in_update) {}

  Status Quantize(const Quant& quant, const QuantizeContext& context, ConstTensorView x,
                  QuantizedTensor* out, TensorView decoded) override {
    if (context.stream % 8 == static_cast<uint32_t>(Slot::kWf)) ++weights_quantized;
    return TimedBackend::Quantize(quant, context, x, out, decoded);
  }
  bool QuantizesInUpdate(const Quant&) const override { return in_update_; }
  Status AdamWQuantize(const AdamWParams& params, const Quant& quant,
                       const QuantizeContext& context, ConstTensorView gradient, TensorView m,
                       TensorView v, TensorView parameter, QuantizedTensor* out) override {
    ++updated_with_codes;
    return TimedBackend::AdamWQuantize(params, quant, context, gradient, m, v, parameter, out);
  }
  Status DgeAccumulate(const WeightEstimator& estimator, ConstTensorView wgrad,
                       ConstTensorView weight, const QuantizedTensor& quantized,
                       TensorView gradient) override {
    ++factors_per_product;
    return TimedBackend::DgeAccumulate(estimator, wgrad, weight, quantized, gradient);
  }
  Status DgeScale(const PendingFactor& pending) override {
    ++factors_per_update;
    return TimedBackend::DgeScale(pending);
  }
  Result<double> ScaledSumOfSquares(std::span<const PendingFactor> pending,
                                    ConstTensorView gradients) override {
    factors_with_norm += static_cast<int>(pending.size());
    return TimedBackend::ScaledSumOfSquares(pending, gradients);
  }

  int weights_quantized = 0, updated_with_codes = 0;
  int factors_per_product = 0, factors_per_update = 0, factors_with_norm = 0;

 private:
  std::unique_ptr<Backend> inner_;
  bool in_update_;
};

class UpdateTest : public RunTest {
 protected:
  static constexpr int64_t kSteps = 3;

  // What a few steps leave.
  struct Outcome {
    std::vector<float> weights;
    std::vector<double> norms;
    int weights_quantized = 0, updated_with_codes = 0;
    int factors_per_product = 0, factors_per_update = 0, factors_with_norm = 0;
  };

  struct Engine {
    RunConfig config;
    std::unique_ptr<CountingBackend> backend;
    std::unique_ptr<Communicator> communicator;
    std::optional<Parameters> parameters;
    std::unique_ptr<Model> model;
    std::optional<Datasets> data;

    Outcome Ended(std::vector<double> norms) const {
      const TensorView w = parameters->all_weights();
      return {{w.f32(), w.f32() + w.size()}, std::move(norms),
              backend->weights_quantized,    backend->updated_with_codes,
              backend->factors_per_product,  backend->factors_per_update,
              backend->factors_with_norm};
    }
  };

  Engine Start(const Recipe& recipe, int64_t micro_batches, bool in_update) const {
    Engine e;
    e.config = Config("unused");
    const bool tiny = CheckRecipeFits(TinyModel(), recipe, 32).ok();
    e.config.model = tiny ? TinyModel() : WideModel();
    e.config.model.init_std = 0.1;
    e.config.data.seq_len = tiny ? 16 : 64;
    e.config.schedule.global_batch = 2 * micro_batches;
    e.backend = std::make_unique<CountingBackend>(TestBackend(), in_update);
    e.communicator = MakeCommunicator("single", e.backend.get(), 0, 1).value();
    e.parameters.emplace(
        Parameters::Create(e.backend.get(), e.config.model, true, recipe.state).value());
    EXPECT_TRUE(e.parameters->Initialise(e.config.model, 5).ok());
    e.model = Model::Create(e.backend.get(), &*e.parameters,
                            {e.config.model, recipe, 2, e.config.data.seq_len})
                  .value();
    e.data.emplace(OpenDatasets(e.config).value());
    return e;
  }

  // By the trainer's step, with a validation pass after each.
  Outcome ByStep(const Recipe& recipe, int64_t micro_batches, bool in_update) const {
    Engine e = Start(recipe, micro_batches, in_update);
    TrainingStep step(e.config, e.backend.get(), e.communicator.get(), &*e.parameters,
                      e.model.get());
    std::vector<double> norms;
    for (int64_t number = 1; number <= kSteps; ++number) {
      const auto outcome = step.Run(number, number == 2, &e.data->train);
      EXPECT_TRUE(outcome.ok()) << outcome.status().ToString();
      if (!outcome.ok()) break;
      EXPECT_EQ(outcome->end_message, "");
      norms.push_back(outcome->gradient_norm);
      EXPECT_TRUE(step.Validate(number, &*e.data->validation).ok());
    }
    return e.Ended(std::move(norms));
  }

  // One micro-batch per update, every factor in its product, every code when it is needed.
  Outcome ByHand(const Recipe& recipe) const {
    Engine e = Start(recipe, 1, false);
    const TrainingStep places(e.config, e.backend.get(), e.communicator.get(), &*e.parameters,
                              e.model.get());
    const auto tokens = static_cast<size_t>(2 * e.config.data.seq_len);
    std::vector<int32_t> inputs(tokens), targets(tokens);
    std::vector<double> norms;
    for (int64_t number = 1; number <= kSteps; ++number) {
      EXPECT_TRUE(e.backend->Fill(e.parameters->all_gradients(), 0.0f).ok());
      EXPECT_TRUE(e.data->train.NextBatch(2, inputs, targets).ok());
      EXPECT_TRUE(e.model
                      ->ForwardBackward(places.StepFor(number - 1, 0), {inputs, targets},
                                        static_cast<float>(1.0 / static_cast<double>(tokens)))
                      .ok());
      EXPECT_TRUE(
          ExchangeGradients(*e.backend, *e.communicator, recipe.communication, &*e.parameters)
              .ok());
      norms.push_back(GradientNorm(*e.backend, *e.parameters).value());
      EXPECT_TRUE(ApplyAdamW(*e.backend, e.config.optimizer, number,
                             LearningRate(e.config.optimizer, number, e.config.schedule.steps),
                             ClipFactor(norms.back(), e.config.optimizer.clip_norm), &*e.parameters,
                             e.config.seed)
                      .ok());
      e.model->WeightsChanged();
    }
    return e.Ended(std::move(norms));
  }

  static bool SameWeights(const Outcome& a, const Outcome& b) {
    return a.weights.size() == b.weights.size() &&
           std::memcmp(a.weights.data(), b.weights.data(), a.weights.size() * sizeof(float)) == 0;
  }
};

TEST_F(UpdateTest, OneMicroBatchGivesTheBitsOfFactorsInTheirProducts) {
  int deferred = 0;
  for (const std::string& name : BuiltInRecipeNames()) {
    const Recipe recipe = FindRecipe(name).value();
    const Outcome expected = ByHand(recipe);
    EXPECT_EQ(expected.factors_per_update + expected.factors_with_norm, 0) << name;
    for (const bool in_update : {false, true}) {
      const Outcome got = ByStep(recipe, 1, in_update);
      EXPECT_EQ(got.norms, expected.norms) << name;
      EXPECT_TRUE(SameWeights(got, expected)) << name << ' ' << in_update;
      deferred += got.factors_with_norm;
    }
  }
  EXPECT_GT(deferred, 0);
}

TEST_F(UpdateTest, FactorsComeOncePerUpdateAndBeforeARoundedExchange) {
  const int linears = kLinearKinds * static_cast<int>(TinyModel().layers);
  Recipe recipe = FindRecipe("fp4_ms_paper").value();
  const Outcome expected = ByHand(recipe);
  EXPECT_EQ(expected.factors_per_product, linears * kSteps);
  const Outcome got = ByStep(recipe, 4, false);
  EXPECT_EQ(got.factors_per_product, 0);
  EXPECT_EQ(got.factors_with_norm, linears * kSteps);
  recipe.communication = Communication::kBf16;
  const Outcome rounded = ByStep(recipe, 1, false);
  EXPECT_EQ(rounded.factors_per_product + rounded.factors_with_norm, 0);
  EXPECT_EQ(rounded.factors_per_update, linears * kSteps);
  EXPECT_TRUE(SameWeights(rounded, ByHand(recipe)));
  // Codes of a stochastic weight are new in each micro-batch.
  recipe = FindRecipe("fp4_ms_paper").value();
  recipe.linear.slots[static_cast<size_t>(Slot::kWf)].round = Round::kSr24;
  const Outcome drawn = ByStep(recipe, 2, true);
  EXPECT_EQ(drawn.factors_per_product, 2 * linears * kSteps);
  EXPECT_EQ(drawn.factors_with_norm + drawn.updated_with_codes, 0);
}

TEST_F(UpdateTest, CodesMadeInTheUpdateServeEveryPassAndGiveTheSameRun) {
  const int linears = kLinearKinds * static_cast<int>(TinyModel().layers);
  for (const char* name : {"fp4_fold8", "fp4_fold8_e4m3", "fp4_fold4", "fp4_foldi8"}) {
    const Recipe recipe = FindRecipe(name).value();
    const Outcome apart = ByStep(recipe, 2, false);
    const Outcome together = ByStep(recipe, 2, true);
    EXPECT_TRUE(SameWeights(together, apart)) << name;
    EXPECT_EQ(together.norms, apart.norms) << name;
    EXPECT_EQ(apart.updated_with_codes, 0) << name;
    EXPECT_EQ(apart.weights_quantized, linears * (kSteps + 1)) << name;
    EXPECT_EQ(together.updated_with_codes, linears * kSteps) << name;
    EXPECT_EQ(together.weights_quantized, linears) << name << ": only before the first update";
  }
  // Weights that are more than a function of themselves, or wanted decoded, are left alone.
  for (const char* name : {"bf16", "quartet", "te_fp8_delayed"}) {
    EXPECT_EQ(ByStep(FindRecipe(name).value(), 1, true).updated_with_codes, 0) << name;
  }
}

// Stages, checkpoints and the weight rule put weights and layers in place of those that the codes
// were made of.
TEST_F(UpdateTest, RunsThatStopAndChangeCourseDoNotReadOldCodes) {
  constexpr char kChanging[] = R"({"name":"changing","linear":"fp4_fold8",
      "weight_rule":{"oscireset":{"from_share":0.1,"period":4,"window":2,"ratio":1.5}},
      "stages":[{"from_share":0.5,"linear":"fp4_fold4"}]})";
  std::string expected;
  for (const bool in_update : {false, true}) {
    for (const bool stops : {false, true}) {
      RunConfig config = Config(StrFormat("run-%d-%d", in_update, stops));
      config.recipe_json = kChanging;
      RunEnvironment environment;
      environment.make_backend =
          [in_update](std::string_view,
                      const BackendOptions& options) -> Result<std::unique_ptr<Backend>> {
        ASSIGN_OR_RETURN(std::unique_ptr<Backend> cpu, MakeBackend("cpu", options));
        return std::unique_ptr<Backend>(
            std::make_unique<CountingBackend>(std::move(cpu), in_update));
      };
      int asked = 0;
      if (stops) {
        environment.stop_requested = [&asked] { return asked++ == 3; };
        ASSERT_EQ(Run(config, environment).reason, kEndPreempted);
        environment.stop_requested = [] { return false; };
      }
      const EndRecord end = Run(config, environment);
      ASSERT_EQ(end.reason, kEndCompleted) << end.message;
      if (expected.empty()) expected = end.weights_sha256;
      EXPECT_EQ(end.weights_sha256, expected) << in_update << stops;
    }
  }
}

}  // namespace
}  // namespace nibble
