// SPDX-License-Identifier: Apache-2.0
//
// Recomputation changes memory, not numbers: whole runs under every recipe against `none`.
#include "worker/spec/recompute.h"

#include <cstring>

#include "worker/train/health.h"
#include "worker/train/optimizer.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

constexpr const char* kChoices[] = {"swiglu", "norm", "ffn", "attention", "block"};
constexpr const char* kCombinations[] = {"norm+swiglu", "ffn+attention", "block"};

// What is left of a few updates: everything that later steps depend on, and what was reported.
struct Trace {
  std::vector<double> losses;
  std::vector<float> weights;
  RecipeTensors histories;
  std::vector<HealthRecord> health;
  int64_t activation_bytes = 0;
  int64_t peak_bytes = 0;
};

class RecomputeTest : public testing::Test {
 protected:
  // Two updates of two micro-batches, a validation pass between and after them, each stage of the
  // recipe in turn.
  static Trace Train(const Recipe& recipe, const std::string& recompute,
                     Activations activations = Activations::kFp32) {
    Trace trace;
    const bool tiny = CheckRecipeFits(TinyModel(), recipe, 2 * 10).ok();
    ModelConfig config = tiny ? TinyModel() : WideModel();
    config.init_std = 0.1;
    config.layers = 3;
    const int64_t seq_len = tiny ? 10 : 64;
    const auto backend = TestBackend();
    auto parameters = Parameters::Create(backend.get(), config, true, recipe.state).value();
    EXPECT_TRUE(parameters.Initialise(config, 11).ok());
    auto model =
        Model::Create(backend.get(), &parameters,
                      {config, recipe, 2, seq_len, ParseRecompute(recompute).value(), activations})
            .value();
    const auto tokens = TestTokens(2 * seq_len + 1, 48, 5);
    const std::span<const int32_t> all(tokens);
    const Batch batch = {all.first(all.size() - 1), all.last(all.size() - 1)};
    for (int stage = -1; stage < static_cast<int>(recipe.stages.size()); ++stage) {
      model->SetStage(stage);
      for (int64_t update = 0; update < 2; ++update) {
        EXPECT_TRUE(backend->Fill(parameters.all_gradients(), 0.0f).ok());
        LinearStep step;
        step.seed = 7;
        step.completed = update;
        for (uint32_t micro = 0; micro < 2; ++micro) {
          step.step = static_cast<uint32_t>(update) * 2 + micro;
          step.measure_health = micro == 1;
          trace.losses.push_back(Value(model->ForwardBackward(step, batch, 0.02f)));
        }
        const std::vector<HealthRecord> records = CollectHealth(*model, update);
        trace.health.insert(trace.health.end(), records.begin(), records.end());
        EXPECT_TRUE(ApplyAdamW(*backend, {}, update + 1, 1e-2, 1.0, &parameters).ok());
        model->WeightsChanged();
        step.measure_health = false;
        step.completed = update + 1;
        step.step = static_cast<uint32_t>(update + 1) * 2;
        trace.losses.push_back(Value(model->Forward(step, batch)));
      }
    }
    const TensorView weights = parameters.all_weights();
    trace.weights.assign(weights.f32(), weights.f32() + weights.size());
    trace.histories = model->SaveHistories();
    trace.activation_bytes = model->activation_bytes();
    trace.peak_bytes = backend->peak_allocated_bytes();
    return trace;
  }

  static double Value(const Result<double>& loss) {
    EXPECT_TRUE(loss.ok()) << loss.status().ToString();
    return loss.ok() ? *loss : 0;
  }

  static void ExpectSame(const Trace& got, const Trace& expected, const std::string& what) {
    EXPECT_EQ(got.losses, expected.losses) << what;
    ASSERT_EQ(got.weights.size(), expected.weights.size()) << what;
    EXPECT_EQ(std::memcmp(got.weights.data(), expected.weights.data(),
                          got.weights.size() * sizeof(float)),
              0)
        << what;
    EXPECT_EQ(got.histories, expected.histories) << what;
    ASSERT_EQ(got.health.size(), expected.health.size()) << what;
    for (size_t i = 0; i < got.health.size(); ++i) {
      EXPECT_EQ(got.health[i].tensor_class, expected.health[i].tensor_class) << what;
      EXPECT_EQ(got.health[i].snr_db, expected.health[i].snr_db) << what;
      EXPECT_EQ(got.health[i].grad_noise_ratio, expected.health[i].grad_noise_ratio) << what;
    }
  }
};

TEST_F(RecomputeTest, EveryRecipeTrainsToTheSameBitsWhateverIsRecomputed) {
  for (const std::string& name : BuiltInRecipeNames()) {
    const Recipe recipe = FindRecipe(name).value();
    const Trace kept = Train(recipe, "none");
    for (const char* const choice : kCombinations) {
      const Trace again = Train(recipe, choice);
      ExpectSame(again, kept, name + ", " + choice);
      EXPECT_LT(again.peak_bytes, kept.peak_bytes) << name << ", " << choice;
    }
  }
}

TEST_F(RecomputeTest, EveryChoiceAloneKeepsTheBits) {
  for (const char* const name :
       {"bf16", "fp4_ms_paper", "fp4_foldi8", "te_fp8_delayed", "nvfp4_te", "tetrajet2_mix"}) {
    const Recipe recipe = FindRecipe(name).value();
    const Trace kept = Train(recipe, "none");
    for (const char* const choice : kChoices) {
      ExpectSame(Train(recipe, choice), kept, std::string(name) + ", " + choice);
    }
  }
}

TEST_F(RecomputeTest, RoundedActivationsAreFormedAgainAsTheyWere) {
  for (const char* const name : {"fp32", "bf16", "fp4_foldi8", "te_fp8_delayed", "nvfp4_te"}) {
    const Recipe recipe = FindRecipe(name).value();
    const Trace kept = Train(recipe, "none", Activations::kBf16);
    EXPECT_NE(kept.losses, Train(recipe, "none").losses) << name;
    for (const char* const choice : kChoices) {
      ExpectSame(Train(recipe, choice, Activations::kBf16), kept,
                 std::string(name) + ", " + choice);
    }
  }
}

TEST_F(RecomputeTest, BlocksOfDifferentRecipesShareTheirMemory) {
  // FP8 in the first block, BF16 in the last, and one layer whose input is quantized twice.
  Recipe recipe = FindRecipe("te_fp8_delayed").value();
  recipe.bf16_blocks_last = 1;
  recipe.overrides.push_back(
      {1u << static_cast<int>(LinearKind::kKey), 1, 1, FindRecipe("fp4_ms_paper").value().linear});
  const Trace kept = Train(recipe, "none");
  ASSERT_FALSE(kept.histories.empty());
  for (const char* const choice : kChoices) ExpectSame(Train(recipe, choice), kept, choice);
}

TEST_F(RecomputeTest, DropsTheTensorsItNames) {
  const ModelConfig model = TinyModel();
  const Recipe recipe = FindRecipe("bf16").value();
  // swiglu keeps one (T, F) of three; block keeps the stream alone.
  const auto bytes = [&](const char* choice) {
    return PlanBuffers(model, recipe, 2, 10, ParseRecompute(choice).value()).arena_bytes;
  };
  const int64_t hidden = (2 * 10 * model.intermediate_size * 4 + 63) / 64 * 64;
  EXPECT_EQ(bytes("none") - bytes("swiglu"), 2 * hidden);
  EXPECT_LT(bytes("block"), bytes("ffn+attention"));
  EXPECT_EQ(Train(recipe, "block").activation_bytes, bytes("block"));
}

class RecomputeRunTest : public RunTest {};

TEST_F(RecomputeRunTest, TheSpecDecides) {
  RunConfig config = Config("kept", "te_fp8_delayed", 8);
  config.run.journal = true;
  const EndRecord kept = Run(config);
  config.run.dir = Path("again");
  config.memory.recompute = ParseRecompute("ffn+attention").value();
  const EndRecord again = Run(config);
  ASSERT_EQ(kept.reason, kEndCompleted) << kept.message;
  ASSERT_EQ(again.reason, kEndCompleted) << again.message;
  const auto steps = [&](const char* run) { return Only<StepRecord>(Journal(run)); };
  const auto memory = [&](const char* run) { return Only<MemoryRecord>(Journal(run)).front(); };
  ASSERT_EQ(steps("again").size(), steps("kept").size());
  for (size_t i = 0; i < steps("kept").size(); ++i) {
    EXPECT_EQ(steps("again")[i].loss, steps("kept")[i].loss);
    EXPECT_EQ(steps("again")[i].grad_norm, steps("kept")[i].grad_norm);
  }
  EXPECT_LT(memory("again").bytes.at("activations"), memory("kept").bytes.at("activations"));
}

}  // namespace
}  // namespace nibble
