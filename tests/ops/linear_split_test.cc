// SPDX-License-Identifier: Apache-2.0
//
// Operands of which a part goes to another format, and what training gathers for them over steps.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"
#include "kernels/linear.h"

namespace nibble {
namespace {

using Values = std::vector<float>;

Values Random(uint32_t stream, int64_t size, float scale) {
  Values x(static_cast<size_t>(size));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = formats::RandomWord(3, 0, stream, i);
    x[i] = (static_cast<float>(word >> 8) * 0x1p-23f - 1.0f) * scale;
  }
  return x;
}

std::unique_ptr<Backend> MakeCpu() { return MakeBackend("cpu", {2, 0}).value(); }

// A layer of 128 tokens, 256 -> 128.
struct Data {
  Values x = Random(1, 128 * 256, 1), w = Random(2, 128 * 256, 0.1f), dy = Random(3, 128 * 128, 1);
  Values y = Values(128 * 128), dx = Values(128 * 256), dw = Values(128 * 256);
};

LinearStep After(int64_t completed) {
  LinearStep step;
  step.seed = 4;
  step.completed = completed;
  return step;
}

void RunOn(LinearInput& input, QuantizedLinear& linear, const LinearStep& step, Data* d) {
  ASSERT_TRUE(input.Set(step, {d->x.data(), 128, 256}).ok());
  Status status = linear.Forward(step, input, {d->w.data(), 128, 256}, 1, {d->y.data(), 128, 128});
  ASSERT_TRUE(status.ok()) << status.ToString();
  status = linear.Backward(step, {d->dy.data(), 128, 128}, input, {d->w.data(), 128, 256}, 1,
                           {d->dx.data(), 128, 256}, false, {d->dw.data(), 128, 256});
  ASSERT_TRUE(status.ok()) << status.ToString();
}

void RunLayer(Backend& backend, const LinearRecipe& recipe, Data* d) {
  LinearWorkspace workspace(&backend);
  LinearInput input(&workspace, recipe, 5);
  QuantizedLinear linear(&workspace, recipe, 5);
  RunOn(input, linear, After(-1), d);
}

double RelativeError(const Values& got, const Values& exact) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    error += std::pow(static_cast<double>(got[i] - exact[i]), 2);
    norm += std::pow(static_cast<double>(exact[i]), 2);
  }
  return std::sqrt(error / norm);
}

// The widest columns in E4M3: their error falls, and the weights follow the columns X chose.
TEST(LinearSplit, ChannelsOffKeepsTheWidestColumns) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const LinearRecipe mixed = FindRecipe("tetrajet2_mix")->linear;
  const LinearRecipe plain = FindRecipe("tetrajet2")->linear;
  Data exact, with, without;
  for (Data* d : {&exact, &with, &without}) {
    for (int64_t i = 0; i < 128 * 256; ++i) {
      if (i % 256 % 3 == 0) d->x[static_cast<size_t>(i)] *= 30.0f;
    }
  }
  RunLayer(*backend, FindRecipe("fp32")->linear, &exact);
  RunLayer(*backend, mixed, &with);
  RunLayer(*backend, plain, &without);
  EXPECT_LT(RelativeError(with.y, exact.y), 0.5 * RelativeError(without.y, exact.y));
  EXPECT_LT(RelativeError(with.dw, exact.dw), RelativeError(without.dw, exact.dw));
}

// In training the columns come from the norms of several steps; before, nothing is split off. State
// carried to another layer gives the same result.
TEST(LinearSplit, ChannelsAreGatheredOverSteps) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  LinearRecipe mixed = FindRecipe("tetrajet2_mix")->linear;
  for (const Slot slot : {Slot::kXf, Slot::kWf, Slot::kXw}) {
    mixed.slots[static_cast<size_t>(slot)].split_from = 2;
    mixed.slots[static_cast<size_t>(slot)].split_window = 3;
  }
  const LinearRecipe plain = FindRecipe("tetrajet2")->linear;
  LinearWorkspace workspace(backend.get());
  LinearInput input(&workspace, mixed, 5);
  QuantizedLinear linear(&workspace, mixed, 5);
  std::vector<double> norms(256, 0.0);
  for (int64_t completed = 0; completed < 7; ++completed) {
    Data d, other;
    // Even columns are the wide ones while norms are gathered, odd ones afterwards.
    for (size_t i = 0; i < d.x.size(); ++i) {
      if (i % 2 == (completed < 5 ? 0u : 1u)) d.x[i] *= 8.0f;
    }
    other.x = d.x;
    const LinearStep step = After(completed);
    RunOn(input, linear, step, &d);
    for (size_t i = 0; completed >= 2 && completed < 5 && i < norms.size(); ++i) {
      double squares = 0;
      for (size_t at = i; at < d.x.size(); at += norms.size()) {
        squares += static_cast<double>(d.x[at]) * static_cast<double>(d.x[at]);
      }
      norms[i] += std::sqrt(squares);
    }
    const AmaxHistory& gathered = *input.histories()[2];
    EXPECT_EQ(gathered.seen, std::clamp<int64_t>(completed - 1, 0, 3));
    for (size_t i = 0; i < gathered.amax.size(); ++i) {
      EXPECT_NEAR(gathered.amax[i], norms[i], 1e-5 * norms[i]);
    }
    LinearInput alone(&workspace, completed < 5 ? plain : mixed, 5);
    QuantizedLinear fresh(&workspace, completed < 5 ? plain : mixed, 5);
    *alone.histories()[2] = gathered;
    RunOn(alone, fresh, step, &other);
    // Unsplit products run on codes in the plain layer, decoded in the other.
    EXPECT_LT(RelativeError(d.y, other.y), 1e-6) << completed;
    EXPECT_LT(RelativeError(d.dw, other.dw), 1e-6) << completed;
  }
}

// What training chose: the even columns go to E4M3, whatever this X looks like.
TEST(LinearSplit, GatheredChannelsStay) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const LinearRecipe mixed = FindRecipe("tetrajet2_mix")->linear;
  LinearWorkspace workspace(backend.get());
  for (const size_t wide : {0u, 1u}) {
    LinearInput input(&workspace, mixed, 5);
    QuantizedLinear linear(&workspace, mixed, 5);
    AmaxHistory& gathered = *input.histories()[2];
    for (size_t i = 0; i < 256; ++i) gathered.amax.push_back(i % 2 == wide ? 2.0f : 1.0f);
    gathered.seen = 50;
    Data exact, d;
    for (Data* each : {&exact, &d}) {
      for (size_t i = 0; i < each->x.size(); ++i) each->x[i] *= i % 2 == 0 ? 1.0f : 0.0f;
    }
    RunLayer(*backend, FindRecipe("fp32")->linear, &exact);
    RunOn(input, linear, After(600), &d);
    // E4M3 errs by some percent, E2M1 by more than ten.
    const double error = RelativeError(d.y, exact.y);
    EXPECT_TRUE(wide == 0 ? error < 0.05 : error > 0.08) << error;
  }
}

// Formats of a split-off part, by their error: the mean of a biased X.
TEST(LinearSplit, TheSplitOffMeanTakesEveryFormat) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  double previous = -1;
  for (const char* elem : {"fp32", "bf16", "e4m3", "e5m2", "e2m1"}) {
    const Result<Recipe> recipe =
        ParseRecipeText(std::string(R"json({"name":"mean","linear":{
            "Xf":{"elem":"e2m1","block":"tok","scale":"f32","split":{"mean":{"elem":")json") +
                        elem + R"json("}}},"Wf":{"elem":"bf16"},"Gd":{"elem":"fp32"},
            "Wd":{"elem":"fp32"},"Gw":{"elem":"fp32"},"Xw":{"elem":"fp32"}}})json");
    ASSERT_TRUE(recipe.ok()) << recipe.status().ToString();
    // Rows are one and the same: all of X is its mean.
    Data d, exact;
    for (Data* each : {&d, &exact}) {
      for (size_t i = 0; i < each->x.size(); ++i) {
        each->x[i] = formats::RoundBf16(each->x[i % 256]);
      }
    }
    RunLayer(*backend, recipe->linear, &d);
    RunLayer(*backend, FindRecipe("fp32")->linear, &exact);
    const double error = RelativeError(d.y, exact.y);
    EXPECT_GE(error, previous) << elem;
    EXPECT_LT(error, 0.2) << elem;
    previous = error;
  }
}

// An amax measured at one update serves until `hold` updates later.
TEST(LinearSplit, AHeldAmaxServesManyUpdates) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  Quant quant = FindRecipe("ue5m3")->linear.slot(Slot::kXf);
  ASSERT_EQ(quant.hold, 50);
  const Values x = Random(1, 4 * 64, 1);
  AmaxHistory history;
  const auto amax_for = [&](int64_t completed, float factor) {
    Values scaled = x;
    for (float& value : scaled) value *= factor;
    QuantizeContext context;
    context.completed = completed;
    context.history = &history;
    QuantizedTensor out;
    EXPECT_TRUE(backend->Quantize(quant, context, {scaled.data(), 4, 64}, &out, {}).ok());
    return static_cast<const float*>(out.outer_scale.data())[0] / out.outer_divisor;  // g / (6 T)
  };
  const float first = amax_for(3, 1);
  EXPECT_EQ(amax_for(3, 5), first);
  EXPECT_EQ(amax_for(52, 0.5f), first);
  EXPECT_EQ(amax_for(53, 2), 2 * first);
  EXPECT_EQ(amax_for(102, 1), 2 * first);
  EXPECT_FLOAT_EQ(amax_for(103, 0), 1.0f / 6) << "of zeros: T/g = 1, and not held";
  EXPECT_EQ(amax_for(104, 4), 4 * first);
  // Outside training each call measures.
  EXPECT_EQ(amax_for(-1, 1), first);
}

}  // namespace
}  // namespace nibble
