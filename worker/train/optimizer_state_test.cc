// SPDX-License-Identifier: Apache-2.0
//
// AdamW's state: stochastic BF16 and moments in host memory.
#include <cmath>
#include <cstring>

#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"
#include "worker/spec/estimate.h"
#include "worker/train/memory_report.h"
#include "worker/train/optimizer.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

constexpr char kStochastic[] =
    R"({"name":"stochastic","linear":"bf16",
        "state":{"m":"bf16_sr","v":"bf16_sr","master":"bf16_sr"}})";

TEST(StochasticBf16, TakesOneOfTheNeighboursAndIsRightOnAverage) {
  constexpr int kDraws = 1 << 14;
  for (const float x : {1.001f, -3.14159f, 1e-30f, 1e-40f, 3.0f, 0.0f, -0.0f}) {
    const float below = formats::FromBf16(formats::StochasticBf16(x, 0));
    const float above = formats::FromBf16(formats::StochasticBf16(x, 0xFFFFu));
    double sum = 0;
    for (int i = 0; i < kDraws; ++i) {
      const uint32_t word = formats::RandomWord(5, 1, 2, static_cast<uint64_t>(i));
      const float y = formats::FromBf16(formats::StochasticBf16(x, word));
      ASSERT_TRUE(y == below || y == above) << x;
      sum += y;
    }
    EXPECT_EQ(std::signbit(below), std::signbit(x));
    EXPECT_LE(std::fabs(below), std::fabs(x));
    EXPECT_GE(std::fabs(above), std::fabs(x));
    // Four standard deviations of a mean of two-valued draws.
    EXPECT_NEAR(sum / kDraws, x, 4 * 0.5 * std::fabs(above - below) / std::sqrt(kDraws)) << x;
  }
  EXPECT_EQ(formats::StochasticBf16(3.4e38f, 0xFFFFu), 0x7F7Fu) << "finite values stay finite";
  EXPECT_EQ(formats::StochasticBf16(-INFINITY, 0xFFFFu), 0xFF80u);
  EXPECT_TRUE(std::isnan(formats::FromBf16(formats::StochasticBf16(NAN, 0xFFFFu))));
}

// A second moment that only decays, by 0.1 % a step: nearest rounding never moves it.
TEST(RoundedState, SmallStepsSurviveStochasticRoundingOnly) {
  constexpr int64_t kSize = 1 << 12;
  constexpr int kSteps = 200;
  const auto backend = TestBackend(2);
  const auto mean_after = [&](StateElem elem) {
    std::vector<float> gradient(kSize, 0.0f), m(kSize, 0.0f), p(kSize, 0.0f);
    std::vector<uint16_t> v(kSize, formats::ToBf16(1.0f));
    StateScales scales;
    AdamWParams params;
    params.beta2 = 0.999f;
    params.seed = 3;
    for (params.step = 1; params.step <= kSteps; ++params.step) {
      EXPECT_TRUE(backend
                      ->RoundedAdamW(params, {StateElem::kF32, elem, StateElem::kF32},
                                     {gradient.data(), 1, kSize}, {m.data(), 1, kSize},
                                     {v.data(), 1, kSize, DType::kBF16}, {p.data(), 1, kSize},
                                     &scales)
                      .ok());
    }
    double sum = 0;
    for (const uint16_t word : v) sum += formats::FromBf16(word);
    return sum / kSize;
  };
  EXPECT_EQ(mean_after(StateElem::kBf16), 1.0);
  EXPECT_NEAR(mean_after(StateElem::kBf16Sr), std::pow(0.999, kSteps), 0.01);
}

class OptimizerStateTest : public RunTest {};

TEST_F(OptimizerStateTest, StochasticStateResumesBitIdentically) {
  RunConfig config = Config("whole", "stochastic");
  config.recipe_json = kStochastic;
  const EndRecord whole = Run(config);
  ASSERT_EQ(whole.reason, kEndCompleted) << whole.message;
  config.run.dir = Path("parts");
  for (const int64_t steps : {3, 5}) {
    int64_t asked = 0;
    RunEnvironment environment;
    environment.stop_requested = [&] { return asked++ >= steps; };
    ASSERT_EQ(Run(config, environment).reason, kEndPreempted);
  }
  EXPECT_EQ(Run(config).weights_sha256, whole.weights_sha256);
  config.run.dir = Path("threads");
  config.run.threads = 3;
  EXPECT_EQ(Run(config).weights_sha256, whole.weights_sha256);
  config.run.dir = Path("seed");
  config.seed += 1;
  EXPECT_NE(Run(config).weights_sha256, whole.weights_sha256);
}

TEST_F(OptimizerStateTest, OffloadedMomentsGiveTheSameWeightsAndLeaveTheDevice) {
  ModelConfig model = TinyModel();
  for (const std::string name : {"bf16", "fp8_lm", "stochastic"}) {
    RunConfig config;
    config.model = model;
    config.data.seq_len = 10;
    config.schedule.micro_batch = config.schedule.global_batch = 2;
    config.memory.offload_optimizer = true;
    config.run.backend = kBackendCuda;
    const Recipe recipe =
        name == "stochastic" ? ParseRecipeText(kStochastic).value() : FindRecipe(name).value();
    const MemoryBytes estimate = EstimateRun(config, recipe).value().memory;
    std::vector<float> kept;
    for (const bool offload : {false, true}) {
      const auto backend = TestBackend(), host = TestBackend();
      auto parameters = Parameters::Create(backend.get(), model, true, recipe.state,
                                           offload ? host.get() : nullptr)
                            .value();
      ASSERT_TRUE(parameters.Initialise(model, 3).ok());
      for (int64_t step = 1; step <= 3; ++step) {
        ASSERT_TRUE(
            backend->Fill(parameters.all_gradients(), 0.01f / static_cast<float>(step)).ok());
        ASSERT_TRUE(ApplyAdamW(*backend, {}, step, 1e-3, 1.0, &parameters, 9).ok());
      }
      const TensorView weights = parameters.all_weights();
      const std::vector<float> got(weights.f32(), weights.f32() + weights.size());
      if (!offload) {
        kept = got;
        EXPECT_EQ(parameters.host_bytes(), 0);
        continue;
      }
      EXPECT_EQ(std::memcmp(got.data(), kept.data(), got.size() * sizeof(float)), 0) << name;
      EXPECT_EQ(parameters.optimizer_bytes(), estimate.optimizer) << name;
      EXPECT_EQ(parameters.host_bytes(), estimate.host) << name;
      EXPECT_EQ(host->allocated_bytes(), estimate.host) << name;
      EXPECT_EQ(backend->allocated_bytes(),
                estimate.weights + estimate.gradients + estimate.optimizer)
          << name;
      EXPECT_LT(estimate.optimizer, estimate.host);
    }
  }
}

TEST_F(OptimizerStateTest, OnACpuOffloadingIsSaidToChangeNothing) {
  RunConfig config = Config("cpu", "bf16", 2);
  config.run.journal = true;
  config.memory.offload_optimizer = true;
  ASSERT_EQ(Run(config).reason, kEndCompleted);
  bool said = false;
  for (const LogRecord& log : Only<LogRecord>(Journal("cpu"))) {
    said |= log.text.find("memory.offloadOptimizer changes nothing") != std::string::npos;
  }
  EXPECT_TRUE(said);
  EXPECT_EQ(Only<MemoryRecord>(Journal("cpu")).front().bytes.count("host"), 0u);
}

}  // namespace
}  // namespace nibble
