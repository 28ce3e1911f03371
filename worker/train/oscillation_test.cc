// SPDX-License-Identifier: Apache-2.0
//
// The periodic weight rule against its definition, and its place in a run.
#include "worker/train/oscillation.h"

#include <cmath>

#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

using Values = std::vector<float>;

std::string RecipeText(const std::string& xform, const std::string& rule) {
  const std::string forward =
      R"j("elem": "e2m1", "scale": "f32(6)", "xform": ")j" + xform + R"j(")j";
  return R"j({"name": "osc", "linear": {"Xf": {"block": "tok", )j" + forward +
         R"j(}, "Wf": {"block": "och", )j" + forward +
         R"j(}, "Gd": {"elem": "bf16"}, "Wd": {"elem": "bf16"}, "Gw": {"elem": "bf16"},
             "Xw": {"elem": "bf16"}}, "weight_rule": {"oscireset": )j" +
         rule + "}}";
}

// A model whose weights the test moves by hand.
struct Moved {
  explicit Moved(const std::string& recipe, int64_t steps) {
    const ModelConfig config = TinyModel();
    parameters =
        std::make_unique<Parameters>(Parameters::Create(backend.get(), config, true, {}).value());
    EXPECT_TRUE(parameters->Initialise(config, 5).ok());
    model = Model::Create(backend.get(), parameters.get(),
                          {config, ParseRecipeText(recipe).value(), 2, 16})
                .value();
    rule = OscillationReset::Create(backend.get(), parameters.get(), model.get(), steps).value();
  }
  Values Read(size_t t) const {
    Values values(static_cast<size_t>(parameters->list()[t].size()));
    EXPECT_TRUE(
        backend
            ->CopyOut(values.data(), parameters->weight(t).data, parameters->weight(t).size_bytes())
            .ok());
    return values;
  }
  void Write(size_t t, const Values& values) {
    EXPECT_TRUE(
        backend
            ->CopyIn(parameters->weight(t).data, values.data(), parameters->weight(t).size_bytes())
            .ok());
    model->WeightsChanged();
  }

  std::unique_ptr<Backend> backend = TestBackend();
  std::unique_ptr<Parameters> parameters;
  std::unique_ptr<Model> model;
  std::unique_ptr<OscillationReset> rule;
};

// E2M1 by output channel under 6/amax: the nearest grid value, ties to the even code.
Values Quantized(const Values& w, int64_t rows, int64_t cols) {
  constexpr float kGrid[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  Values out(w.size());
  for (int64_t r = 0; r < rows; ++r) {
    float amax = 0;
    const auto at = [&](int64_t c) { return static_cast<size_t>(r * cols + c); };
    for (int64_t c = 0; c < cols; ++c) {
      amax = std::fmax(amax, std::fabs(formats::RoundBf16(w[at(c)])));
    }
    const float enc = 6.0f / amax;
    for (int64_t c = 0; c < cols; ++c) {
      const float y = std::fabs(formats::RoundBf16(w[at(c)]) * enc);
      int best = 0;
      for (int code = 1; code < 8; ++code) {
        const float to_best = std::fabs(y - kGrid[best]), to_code = std::fabs(y - kGrid[code]);
        if (to_code < to_best || (to_code == to_best && code % 2 == 0)) best = code;
      }
      out[at(c)] = std::copysign(kGrid[best] / enc, w[at(c)]);
    }
  }
  return out;
}

// The weights after update `step`: a third trembles, a third drifts, a third rests.
void Move(int64_t step, Values* w) {
  for (size_t i = 0; i < w->size(); ++i) {
    const float unit =
        static_cast<float>(formats::RandomWord(3, static_cast<uint32_t>(step), 1, i) >> 8) *
        0x1p-24f;
    if (i % 3 == 0) (*w)[i] += (step % 2 == 0 ? 1e-4f : -1e-4f) * (1.0f + unit);
    if (i % 3 == 1) (*w)[i] += 2e-3f * unit;
  }
}

TEST(OscillationReset, FollowsItsDefinitionAndGoesOnFromACheckpoint) {
  // Windows of 4 updates after updates 10, 16, 22, ...
  const std::string recipe =
      RecipeText("none", R"({"from_share": 0.1, "period": 6, "window": 4, "ratio": 8})");
  Moved run(recipe, 100);
  const size_t watched = run.parameters->IndexOf(1, BlockParameter::kDown);
  const ParameterInfo info = run.parameters->list()[watched];
  Values path, quantized_path, before, quantized_before;
  ASSERT_TRUE(run.rule->Start(0, {}, {}).ok());
  int64_t windows = 0, changed = 0;
  for (int64_t step = 1; step <= 30; ++step) {
    Values w = run.Read(watched);
    Move(step, &w);
    run.Write(watched, w);
    const int64_t since = step - 10;
    Values expected = w;
    const Values q = Quantized(w, info.rows, info.cols);
    const bool in_window = since >= 1 && (since - 1) % 6 < 4;
    int64_t count = 0;
    for (size_t i = 0; in_window && i < w.size(); ++i) {
      path[i] += std::fabs(w[i] - before[i]);
      quantized_path[i] += std::fabs(q[i] - quantized_before[i]);
      const bool ends = (since - 1) % 6 == 3;
      if (ends && quantized_path[i] > 0 && quantized_path[i] >= 8 * path[i]) {
        expected[i] = q[i];
        ++count;
      }
    }
    if (step == 19) {  // inside a window: another process goes on with what was saved
      RecipeTensors tensors;
      ASSERT_TRUE(run.rule->Save(18, &tensors).ok());
      EXPECT_EQ(tensors.size(), 2u * 3 * kLinearKinds);
      auto fresh =
          OscillationReset::Create(run.backend.get(), run.parameters.get(), run.model.get(), 100);
      ASSERT_TRUE(fresh.ok());
      run.Write(watched, before);
      ASSERT_TRUE((*fresh)->Start(18, {}, tensors).ok());
      run.Write(watched, w);
      run.rule = *std::move(fresh);
    }
    const Result<int64_t> reset = run.rule->AfterUpdate(step, {}, false);
    ASSERT_TRUE(reset.ok()) << reset.status().ToString();
    EXPECT_EQ(*reset, in_window && (since - 1) % 6 == 3 ? count : -1) << step;
    EXPECT_EQ(run.Read(watched), expected) << step;
    if (*reset >= 0) {
      ++windows;
      changed += *reset;
    }
    before = expected;
    quantized_before = Quantized(expected, info.rows, info.cols);
    if (since >= 0 && since % 6 == 0) {
      path.assign(w.size(), 0.0f);
      quantized_path.assign(w.size(), 0.0f);
    }
  }
  EXPECT_EQ(windows, 3);
  EXPECT_GT(changed, 0);
  EXPECT_LT(changed, windows * info.size());
}

TEST(OscillationReset, AStageEndsTheOpenWindow) {
  Moved run(RecipeText("none", R"({"from_share": 0, "period": 4, "window": 4, "ratio": 1})"), 100);
  ASSERT_TRUE(run.rule->Start(0, {}, {}).ok());
  EXPECT_EQ(run.rule->AfterUpdate(1, {}, false).value(), -1);
  EXPECT_EQ(run.rule->AfterUpdate(2, {}, true).value(), -1);
  RecipeTensors tensors;
  ASSERT_TRUE(run.rule->Save(2, &tensors).ok());
  EXPECT_TRUE(tensors.empty());
  EXPECT_EQ(run.rule->AfterUpdate(3, {}, false).value(), -1);
  EXPECT_EQ(run.rule->AfterUpdate(4, {}, false).value(), -1);  // given up; the next one begins
  for (const int64_t step : {5, 6, 7})
    EXPECT_EQ(run.rule->AfterUpdate(step, {}, false).value(), -1);
  EXPECT_EQ(run.rule->AfterUpdate(8, {}, false).value(), 0);  // nothing has moved
}

// A rotated weight's quantized value is turned back before it is compared and stored.
TEST(OscillationReset, RotatedWeightsKeepTheirAxes) {
  Moved run(RecipeText("H16", "{}"), 10);
  const size_t t = run.parameters->IndexOf(0, BlockParameter::kGate);
  const Values w = run.Read(t);
  Values decoded(w.size());
  ASSERT_TRUE(run.model
                  ->DecodeWeight({}, 0, LinearKind::kGate,
                                 {decoded.data(), run.parameters->list()[t].rows,
                                  run.parameters->list()[t].cols})
                  .ok());
  double noise = 0, signal = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    noise += std::pow(static_cast<double>(decoded[i] - w[i]), 2);
    signal += std::pow(static_cast<double>(w[i]), 2);
  }
  EXPECT_GT(noise, 0);
  EXPECT_LT(noise, 0.05 * signal);
}

using OscillationRun = RunTest;

TEST_F(OscillationRun, ResetsResumeBitIdentically) {
  for (const std::string xform : {"none", "H16"}) {
    RunConfig config = Config("whole-" + xform, "osc", 16);
    config.recipe_json =
        RecipeText(xform, R"({"from_share": 0.2, "period": 6, "window": 4, "ratio": 3})");
    config.optimizer.peak_lr = 1e-2;
    const EndRecord whole = Run(config);
    ASSERT_EQ(whole.reason, kEndCompleted) << whole.message;
    // Windows of 4 after updates 4 and 10.
    std::vector<std::string> texts;
    for (const auto& log : Only<LogRecord>(Journal("whole-" + xform))) {
      if (log.text.find("oscillating") != std::string::npos) texts.push_back(log.text);
    }
    ASSERT_EQ(texts.size(), 2u);
    EXPECT_TRUE(texts[0].starts_with("after step 8: ")) << texts[0];
    EXPECT_TRUE(texts[1].starts_with("after step 14: ")) << texts[1];
    EXPECT_FALSE(texts[1].starts_with("after step 14: 0 ")) << texts[1];

    config.run.dir = Path("parts-" + xform);
    for (const int64_t steps : {4, 2, 4, 3}) {  // after 4, 6, 10 and 13
      int64_t asked = 0;
      RunEnvironment environment;
      environment.stop_requested = [&] { return asked++ >= steps; };
      ASSERT_EQ(Run(config, environment).reason, kEndPreempted);
    }
    const EndRecord end = Run(config);
    EXPECT_EQ(end.weights_sha256, whole.weights_sha256) << xform;
    EXPECT_EQ(end.final_validation_loss, whole.final_validation_loss);

    // The rule is what makes the difference, whatever the threads.
    RunConfig other = config;
    other.run.dir = Path("threads-" + xform);
    other.run.threads = 3;
    EXPECT_EQ(Run(other).weights_sha256, whole.weights_sha256);
    other.run.dir = Path("none-" + xform);
    other.recipe_json =
        RecipeText(xform, R"({"from_share": 0.2, "period": 6, "window": 4, "ratio": 1e6})");
    EXPECT_NE(Run(other).weights_sha256, whole.weights_sha256);
  }
}

}  // namespace
}  // namespace nibble
