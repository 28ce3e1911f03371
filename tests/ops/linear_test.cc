// SPDX-License-Identifier: Apache-2.0
//
// Quantized linear layers: values, sharing, caching, threads, bytes and refusals.
#include "kernels/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "kernels/formats/bf16.h"
#include "kernels/formats/philox.h"

namespace nibble {
namespace {

using Values = std::vector<float>;
constexpr int64_t kTokens = 37, kIn = 129, kOut = 67;

Values Random(uint32_t stream, int64_t size, float scale = 1.0f) {
  Values x(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t word = formats::RandomWord(3, 0, stream, static_cast<uint64_t>(i));
    x[static_cast<size_t>(i)] =
        (static_cast<float>(word >> 8) * 0x1p-23f - 1.0f) * scale * (i % 59 == 7 ? 12.0f : 1.0f);
  }
  return x;
}

std::unique_ptr<Backend> MakeCpu(int threads = 2) {
  BackendOptions options;
  options.threads = threads;
  Result<std::unique_ptr<Backend>> made = MakeBackend("cpu", options);
  EXPECT_TRUE(made.ok()) << made.status().ToString();
  return std::move(*made);
}

// A recipe whose gradients fold the scales of the forward codes; outliers are wide codes.
Recipe Folded(const char* name, Elem elem, float max, Round round) {
  Recipe recipe = *FindRecipe("fp4_ms_paper");
  recipe.name = name;
  const auto slot = [&](Slot s) -> Quant& { return recipe.linear.slots[static_cast<size_t>(s)]; };
  slot(Slot::kXf).pre.comp = OccComp::kWide;
  Quant gradient;
  gradient.elem = elem;
  gradient.scale = ScaleRule::kF32;
  gradient.scale_max = max;
  gradient.round = round;
  gradient.fold = true;
  gradient.block = Block::kToken;
  slot(Slot::kGd) = gradient;
  gradient.block = Block::kOutputChannel;
  slot(Slot::kGw) = gradient;
  return recipe;
}

// Recipes beyond the built-in rows: every axis that is built, stochastic slots included.
std::vector<Recipe> ManyRecipes() {
  std::vector<Recipe> recipes;
  for (const std::string& name : BuiltInRecipeNames()) recipes.push_back(*FindRecipe(name));
  const Result<Recipe> mixed = ParseRecipeText(R"json({"name":"mixed","linear":{
    "Xf":{"elem":"e2m1","block":"tok","scale":"f32","pre":{"occ":{"alpha":0.9,"scope":"token",
          "comp":"bf16"}}},
    "Wf":{"elem":"e2m1","block":"och","scale":"p2"},
    "Gd":{"elem":"e2m1","block":"tok","scale":"f32(6)","round":"sr24"},
    "Wd":{"elem":"e4m3","scale":"p2"},
    "Gw":{"elem":"e2m1","block":"tok","scale":"f32(6)","round":"te8"},
    "Xw":{"elem":"e4m3","scale":"cur(448,p2)"},"estW":{"dge":{"k":3,"clip":2.0}}}})json");
  EXPECT_TRUE(mixed.ok()) << mixed.status().ToString();
  recipes.push_back(*mixed);
  const Result<Recipe> w8a4 = ParseRecipeText(R"json({"name":"w8a4","linear":{
    "Xf":{"elem":"e2m1","block":"tok","scale":"f32"},"Wf":{"elem":"e4m3","scale":"p2"},
    "Gd":{"elem":"bf16"},"Wd":{"source":"reuse"},"Gw":{"elem":"fp32"},
    "Xw":{"elem":"bf16"}}})json");
  EXPECT_TRUE(w8a4.ok()) << w8a4.status().ToString();
  recipes.push_back(*w8a4);
  recipes.push_back(Folded("fold4", Elem::kE2M1, 6, Round::kSr24));
  recipes.push_back(Folded("foldi8", Elem::kInt8, 127, Round::kSr24));
  recipes.push_back(Folded("fold8", Elem::kE4M3, 448, Round::kEven));
  return recipes;
}

// Odd sizes, or, where a slot rotates groups, the smallest that fit.
struct Data {
  Data() = default;
  explicit Data(const LinearRecipe& recipe) {
    bool rotates = false;
    for (const Quant& quant : recipe.slots) rotates |= quant.rotation.size > 0;
    if (!rotates) return;
    tokens = 128;
    in = 256;
    out = 128;
    Fill();
  }
  void Fill() {
    x = Random(1, tokens * in);
    w = Random(2, out * in, 0.1f);
    dy = Random(3, tokens * out, 1e-3f);
    y.assign(static_cast<size_t>(tokens * out), 0.0f);
    dx.assign(static_cast<size_t>(tokens * in), 0.0f);
    dw.assign(static_cast<size_t>(out * in), 0.0f);
  }

  int64_t tokens = kTokens, in = kIn, out = kOut;
  Values x = Random(1, kTokens*kIn), w = Random(2, kOut*kIn, 0.1f);
  Values dy = Random(3, kTokens* kOut, 1e-3f);
  Values y = Values(kTokens * kOut), dx = Values(kTokens * kIn), dw = Values(kOut * kIn);

  ConstTensorView X() const { return {x.data(), tokens, in}; }
  ConstTensorView W() const { return {w.data(), out, in}; }
  ConstTensorView DY() const { return {dy.data(), tokens, out}; }
  TensorView Y() { return {y.data(), tokens, out}; }
  TensorView DX() { return {dx.data(), tokens, in}; }
  TensorView DW() { return {dw.data(), out, in}; }
};

void RunLayer(Backend& backend, const LinearRecipe& recipe, const LinearStep& step, Data* d,
              Support path = Support::kFast) {
  LinearWorkspace workspace(&backend, path);
  LinearInput input(&workspace, recipe, 5);
  QuantizedLinear linear(&workspace, recipe, 5);
  ASSERT_TRUE(input.Set(step, d->X()).ok());
  Status status = linear.Forward(step, input, d->W(), 1, d->Y());
  ASSERT_TRUE(status.ok()) << status.ToString();
  status = linear.Backward(step, d->DY(), input, d->W(), 1, d->DX(), false, d->DW());
  ASSERT_TRUE(status.ok()) << status.ToString();
}

bool SameBits(const Values& a, const Values& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

double RelativeError(const Values& a, const Values& exact) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(exact[i]), 2);
    norm += std::pow(static_cast<double>(exact[i]), 2);
  }
  return std::sqrt(difference / norm);
}

TEST(Linear, EveryRecipeStaysNearFp32) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  for (const Recipe& recipe : ManyRecipes()) {
    Data d(recipe.linear), exact(recipe.linear);
    RunLayer(*backend, FindRecipe("fp32")->linear, {}, &exact);
    RunLayer(*backend, recipe.linear, {}, &d);
    double limit = recipe.name == "fp32" ? 0 : recipe.name == "bf16" ? 0.01 : 0.4;
    if (recipe.name == "fp4_ms_code") limit = 0.9;  // drops its outliers
    EXPECT_LE(RelativeError(d.y, exact.y), limit) << recipe.name;
    EXPECT_LE(RelativeError(d.dx, exact.dx), limit) << recipe.name;
    if (recipe.linear.weight_estimator.kind == Estimator::kSte) {
      EXPECT_LE(RelativeError(d.dw, exact.dw), limit) << recipe.name;
    }
  }
}

TEST(Linear, BitsDependOnSeedAndStepOnly) {
  for (const Recipe& recipe : ManyRecipes()) {
    Data one(recipe.linear), again(recipe.linear), other(recipe.linear);
    LinearStep step;
    step.seed = 77;
    step.step = 3;
    RunLayer(*MakeCpu(1), recipe.linear, step, &one);
    for (const int threads : {2, 3}) {
      again = Data(recipe.linear);
      RunLayer(*MakeCpu(threads), recipe.linear, step, &again);
      EXPECT_TRUE(SameBits(one.y, again.y) && SameBits(one.dx, again.dx) &&
                  SameBits(one.dw, again.dw))
          << recipe.name << " with " << threads << " threads";
    }
    step.step = 4;
    RunLayer(*MakeCpu(1), recipe.linear, step, &other);
    const auto drawn = [&](Slot a, Slot b) {
      return recipe.linear.Resolved(a).stochastic() || recipe.linear.Resolved(b).stochastic();
    };
    EXPECT_EQ(SameBits(one.y, other.y), !drawn(Slot::kXf, Slot::kWf)) << recipe.name;
    EXPECT_EQ(SameBits(one.dx, other.dx), !drawn(Slot::kGd, Slot::kWd)) << recipe.name;
    EXPECT_EQ(SameBits(one.dw, other.dw), !drawn(Slot::kGw, Slot::kXw)) << recipe.name;
  }
}

// Poisoned, empty and extreme operands go through every recipe without a crash, and what was not
// finite is counted.
TEST(Linear, OddValuesPassEveryRecipe) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  for (const Recipe& recipe : ManyRecipes()) {
    Data zeros(recipe.linear);
    for (Values* values : {&zeros.x, &zeros.w, &zeros.dy}) {
      std::fill(values->begin(), values->end(), 0.0f);
    }
    RunLayer(*backend, recipe.linear, {}, &zeros);
    for (const float value : zeros.y) ASSERT_LE(std::fabs(value), 1e-12f) << recipe.name;
    for (const float value : zeros.dw) ASSERT_LE(std::fabs(value), 1e-12f) << recipe.name;
    for (const float scale : {1e-39f, 1e15f}) {
      Data d(recipe.linear);
      for (Values* values : {&d.x, &d.w, &d.dy}) {
        for (float& value : *values) value *= scale;
      }
      RunLayer(*backend, recipe.linear, {}, &d);
      for (const float value : d.y) ASSERT_TRUE(std::isfinite(value)) << recipe.name << scale;
      for (const float value : d.dx) ASSERT_TRUE(std::isfinite(value)) << recipe.name << scale;
      for (const float value : d.dw) ASSERT_TRUE(std::isfinite(value)) << recipe.name << scale;
    }
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      Data d(recipe.linear);
      d.x[3] = bad;
      LinearWorkspace workspace(backend.get());
      LinearInput input(&workspace, recipe.linear, 0);
      ASSERT_TRUE(input.Set({}, d.X()).ok());
      if (recipe.linear.slot(Slot::kXf).has_scale()) {
        EXPECT_GE(input.nonfinite_amax(), 1) << recipe.name;
      }
    }
  }
}

TEST(Linear, SharedInputsAndInterleavedLayersGiveTheSameBits) {
  for (const Recipe& recipe : ManyRecipes()) {
    const std::unique_ptr<Backend> backend = MakeCpu();
    Data alone(recipe.linear), first(recipe.linear), second(recipe.linear), between(recipe.linear);
    RunLayer(*backend, recipe.linear, {}, &alone);
    between.x = Random(8, between.tokens * between.in);
    LinearWorkspace workspace(backend.get());
    LinearInput input(&workspace, recipe.linear, 5), other(&workspace, recipe.linear, 5);
    QuantizedLinear a(&workspace, recipe.linear, 5), b(&workspace, recipe.linear, 5);
    ASSERT_TRUE(input.Set({}, first.X()).ok());
    ASSERT_TRUE(a.Forward({}, input, first.W(), 1, first.Y()).ok());
    ASSERT_TRUE(b.Forward({}, input, second.W(), 1, second.Y()).ok());
    ASSERT_TRUE(other.Set({}, between.X()).ok());
    ASSERT_TRUE(a.Forward({}, other, between.W(), 1, between.Y()).ok());
    ASSERT_TRUE(
        b.Backward({}, second.DY(), input, second.W(), 1, second.DX(), false, second.DW()).ok());
    ASSERT_TRUE(
        a.Backward({}, first.DY(), input, first.W(), 1, first.DX(), false, first.DW()).ok());
    EXPECT_TRUE(SameBits(first.y, alone.y) && SameBits(second.y, alone.y)) << recipe.name;
    EXPECT_TRUE(SameBits(first.dx, alone.dx) && SameBits(second.dx, alone.dx)) << recipe.name;
    EXPECT_TRUE(SameBits(first.dw, alone.dw) && SameBits(second.dw, alone.dw)) << recipe.name;
  }
}

// A large common offset of all tokens ruins 4-bit codes; split off, it does not.
TEST(Linear, SplittingTheMeanOffKeepsAnOffsetOfAllTokens) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  LinearRecipe plain = FindRecipe("mxfp4_plain")->linear;
  for (const Slot slot : {Slot::kWf, Slot::kGd, Slot::kWd, Slot::kGw}) {
    plain.slots[static_cast<size_t>(slot)] = Quant();
    plain.slots[static_cast<size_t>(slot)].elem = Elem::kF32;
  }
  LinearRecipe split = plain;
  for (const Slot slot : {Slot::kXf, Slot::kXw}) {
    split.slots[static_cast<size_t>(slot)].split = Split::kMean;
  }
  Data exact, with, without;
  for (Data* d : {&exact, &with, &without}) {
    for (size_t i = 0; i < d->x.size(); ++i) d->x[i] += i % kIn % 2 == 0 ? 20.0f : -12.0f;
  }
  RunLayer(*backend, FindRecipe("fp32")->linear, {}, &exact);
  RunLayer(*backend, split, {}, &with);
  RunLayer(*backend, plain, {}, &without);
  EXPECT_LT(RelativeError(with.y, exact.y), 0.2 * RelativeError(without.y, exact.y));
  EXPECT_LT(RelativeError(with.dw, exact.dw), 0.2 * RelativeError(without.dw, exact.dw));
}

TEST(Linear, GradientsAccumulateWhenAsked) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const LinearRecipe recipe = FindRecipe("fp4_ms_paper")->linear;
  Data d;
  RunLayer(*backend, recipe, {}, &d);
  Data twice;
  twice.dx = d.dx;
  twice.dw = d.dw;
  LinearWorkspace workspace(backend.get());
  LinearInput input(&workspace, recipe, 5);
  QuantizedLinear linear(&workspace, recipe, 5);
  ASSERT_TRUE(input.Set({}, twice.X()).ok());
  ASSERT_TRUE(
      linear.Backward({}, twice.DY(), input, twice.W(), 1, twice.DX(), true, twice.DW()).ok());
  for (size_t i = 0; i < d.dx.size(); ++i) {
    EXPECT_NEAR(twice.dx[i], 2 * d.dx[i], 1e-5 * std::fabs(d.dx[i]) + 1e-7);
  }
  for (size_t i = 0; i < d.dw.size(); ++i) EXPECT_EQ(twice.dw[i], 2 * d.dw[i]);
  const Values before = twice.dx;
  ASSERT_TRUE(linear.Backward({}, twice.DY(), input, twice.W(), 1, {}, false, twice.DW()).ok());
  EXPECT_TRUE(SameBits(before, twice.dx));
}

TEST(Linear, WeightCopyIsCachedUntilTheVersionChanges) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const LinearRecipe recipe = FindRecipe("fp4_ms_paper")->linear;
  Data d;
  LinearWorkspace workspace(backend.get());
  LinearInput input(&workspace, recipe, 0);
  QuantizedLinear linear(&workspace, recipe, 0);
  EXPECT_EQ(linear.quantized_weight_bytes(), 0);
  ASSERT_TRUE(input.Set({}, d.X()).ok());
  ASSERT_TRUE(linear.Forward({}, input, d.W(), 1, d.Y()).ok());
  const Values first = d.y;
  EXPECT_EQ(linear.quantized_weight_bytes(), kOut * ((kIn + 1) / 2) + kOut * 4);
  for (float& v : d.w) v *= -1;
  ASSERT_TRUE(linear.Forward({}, input, d.W(), 1, d.Y()).ok());
  EXPECT_TRUE(SameBits(first, d.y));
  ASSERT_TRUE(linear.Forward({}, input, d.W(), 2, d.Y()).ok());
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(d.y[i], -first[i]);
}

TEST(Linear, SavesCodesInsteadOfTheInput) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  Data d;
  LinearWorkspace workspace(backend.get());
  LinearInput paper(&workspace, FindRecipe("fp4_ms_paper")->linear, 0);
  ASSERT_TRUE(paper.Set({}, d.X()).ok());
  EXPECT_FALSE(paper.borrows_source());
  EXPECT_LT(paper.saved_bytes(), kTokens * kIn);
  EXPECT_GT(paper.saved_bytes(), kTokens * kIn / 2);
  LinearInput bf16(&workspace, FindRecipe("bf16")->linear, 0);
  ASSERT_TRUE(bf16.Set({}, d.X()).ok());
  EXPECT_TRUE(bf16.borrows_source());
  EXPECT_EQ(bf16.saved_bytes(), 0);
}

TEST(Linear, AllocatesNothingAfterWarmUp) {
  for (const Recipe& recipe : ManyRecipes()) {
    const std::unique_ptr<Backend> backend = MakeCpu();
    Data d(recipe.linear);
    LinearWorkspace workspace(backend.get());
    LinearInput input(&workspace, recipe.linear, 0);
    QuantizedLinear linear(&workspace, recipe.linear, 0);
    int64_t warm = 0;
    for (uint64_t round = 1; round <= 4; ++round) {
      ASSERT_TRUE(input.Set({}, d.X()).ok());
      ASSERT_TRUE(linear.Forward({}, input, d.W(), round, d.Y()).ok());
      ASSERT_TRUE(linear.Backward({}, d.DY(), input, d.W(), round, d.DX(), false, d.DW()).ok());
      if (round == 1) warm = backend->peak_allocated_bytes();
    }
    EXPECT_EQ(backend->peak_allocated_bytes(), warm) << recipe.name;
  }
}

TEST(Linear, MeasuresHealthOnSampledStepsOnly) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const LinearRecipe recipe = FindRecipe("fp4_ms_paper")->linear;
  Data d, plain;
  LinearWorkspace workspace(backend.get());
  LinearInput input(&workspace, recipe, 5);
  QuantizedLinear linear(&workspace, recipe, 5);
  LinearStep step;
  step.measure_health = true;
  ASSERT_TRUE(input.Set(step, d.X()).ok());
  ASSERT_TRUE(linear.Forward(step, input, d.W(), 1, d.Y()).ok());
  ASSERT_TRUE(linear.Backward(step, d.DY(), input, d.W(), 1, d.DX(), false, d.DW()).ok());
  EXPECT_EQ(input.health().elements, kTokens * kIn);
  EXPECT_GT(input.health().snr_db, 10);
  EXPECT_GT(input.health().cosine, 0.97);
  EXPECT_EQ(linear.health().weight.elements, kOut * kIn);
  EXPECT_EQ(linear.health().gradient.elements, kTokens * kOut);
  EXPECT_GT(linear.health().gradient_to_noise, 5);
  EXPECT_GT(input.health().size_bytes, 0);
  RunLayer(*backend, recipe, {}, &plain);
  EXPECT_TRUE(SameBits(plain.y, d.y) && SameBits(plain.dw, d.dw));  // measuring changes nothing
}

TEST(Linear, PoisonIsCountedNotHidden) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const LinearRecipe recipe = FindRecipe("fp4_ms_paper")->linear;
  Data d;
  d.dy[5] = std::nanf("");
  d.x[3] = std::nanf("");
  LinearWorkspace workspace(backend.get());
  LinearInput input(&workspace, recipe, 0);
  QuantizedLinear linear(&workspace, recipe, 0);
  ASSERT_TRUE(input.Set({}, d.X()).ok());
  EXPECT_GE(input.nonfinite_amax(), 1);
  ASSERT_TRUE(linear.Forward({}, input, d.W(), 1, d.Y()).ok());
  EXPECT_EQ(linear.nonfinite_amax(), 0);
  ASSERT_TRUE(linear.Backward({}, d.DY(), input, d.W(), 1, d.DX(), false, d.DW()).ok());
  EXPECT_EQ(linear.nonfinite_amax(), 1);
  EXPECT_TRUE(std::isnan(d.dx[0]));  // E5M2 keeps the NaN
}

TEST(Linear, WrongShapesAreRefusedWithBothShapes) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const LinearRecipe recipe = FindRecipe("fp32")->linear;
  Data d;
  LinearWorkspace workspace(backend.get());
  LinearInput input(&workspace, recipe, 0);
  QuantizedLinear linear(&workspace, recipe, 0);
  EXPECT_EQ(input.Set({}, ConstTensorView()).code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(input.Set({}, d.X()).ok());
  const Status status = linear.Forward({}, input, {d.w.data(), kOut, kIn - 1}, 1, d.Y());
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("(37, 129), weight (67, 128)"), std::string::npos)
      << status.message();
  EXPECT_EQ(
      linear.Backward({}, d.DY(), input, d.W(), 1, d.DX(), false, {d.dw.data(), kIn, kOut}).code(),
      StatusCode::kInvalidArgument);
}

// A layer by the backend's kernels and by the same sums in FP32 GEMMs.
TEST(Linear, FastAndReferencePathsGiveTheSameBits) {
  for (const Recipe& recipe : ManyRecipes()) {
    const std::unique_ptr<Backend> backend = MakeCpu();
    Data fast(recipe.linear), reference(recipe.linear);
    RunLayer(*backend, recipe.linear, {}, &fast);
    RunLayer(*backend, recipe.linear, {}, &reference, Support::kReference);
    EXPECT_TRUE(SameBits(fast.y, reference.y)) << recipe.name;
    EXPECT_TRUE(SameBits(fast.dx, reference.dx)) << recipe.name;
    EXPECT_TRUE(SameBits(fast.dw, reference.dw)) << recipe.name;
  }
}

TEST(Linear, FoldedRecipesMultiplyCodesInAllThreeProducts) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  for (const Elem elem : {Elem::kE2M1, Elem::kInt8}) {
    const Recipe recipe = Folded("f", elem, elem == Elem::kInt8 ? 127 : 6, Round::kSr24);
    const Result<LinearPaths> paths = PathsOf(*backend, recipe.linear, 64, 32, 16);
    ASSERT_TRUE(paths.ok());
    for (const ProductForm& form : {paths->fprop, paths->dgrad, paths->wgrad}) {
      EXPECT_TRUE(form.on_codes) << form.reason;
      EXPECT_STREQ(SupportName(form.support), "fast");
    }
  }
  const Recipe fold8 = Folded("fold8", Elem::kE4M3, 448, Round::kEven);
  const Result<LinearPaths> paths = PathsOf(*backend, fold8.linear, 64, 32, 16);
  ASSERT_TRUE(paths.ok());
  EXPECT_TRUE(paths->fprop.on_codes);
  EXPECT_FALSE(paths->dgrad.on_codes);
  EXPECT_STREQ(paths->wgrad.reason, "the backend has no kernel for these formats");
}

// One operand of `recipe`, from the matrix its slot stands for. `fold`: the other operand.
void MakeOperand(LinearWorkspace& workspace, const LinearRecipe& recipe, Slot slot, const Data& d,
                 const SlotOperand* fold, SlotOperand* out) {
  const Slot holder = recipe.SharesCodes(slot) ? ReuseTarget(slot) : slot;
  const ConstTensorView source = ReuseTarget(slot) == Slot::kXf   ? d.X()
                                 : ReuseTarget(slot) == Slot::kWf ? d.W()
                                                                  : d.DY();
  const Status status = out->Make(workspace, recipe, holder, 1, {}, fold, {}, source);
  ASSERT_TRUE(status.ok()) << status.ToString();
}

// The same operands as codes and decoded: nothing but FP32 rounding lies between the products.
TEST(Linear, ProductsOnCodesEqualDecodedOnes) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  int grouped = 0;
  for (const Recipe& recipe : ManyRecipes()) {
    Data d(recipe.linear);
    const struct {
      const LinearProduct& product;
      int64_t rows, cols, depth;
    } products[] = {{kFprop, d.tokens, d.out, d.in},
                    {kDgrad, d.tokens, d.in, d.out},
                    {kWgrad, d.out, d.in, d.tokens}};
    for (const auto& [product, rows, cols, depth] : products) {
      ProductForm form = FormOf(*backend, recipe.linear, product, rows, cols, depth);
      if (!form.on_codes) continue;
      grouped += recipe.linear.Resolved(product.left).block == Block::kGroup ? 1 : 0;
      LinearWorkspace workspace(backend.get());
      SlotOperand left, right;
      MakeOperand(workspace, recipe.linear, product.right, d, nullptr, &right);
      MakeOperand(workspace, recipe.linear, product.left, d, &right, &left);
      Values codes(static_cast<size_t>(rows * cols)), decoded = codes;
      const auto multiply = [&](Values& out) {
        const TensorView y{out.data(), rows, cols};
        return Multiply(workspace, recipe.linear, product, form, left, right, false, y);
      };
      ASSERT_TRUE(multiply(codes).ok()) << recipe.name << product.name;
      if (recipe.linear.Resolved(product.left).fold) continue;  // decoded, its fold stays inside
      form.on_codes = false;
      ASSERT_TRUE(multiply(decoded).ok()) << recipe.name << product.name;
      EXPECT_LT(RelativeError(codes, decoded), 2e-6) << recipe.name << " " << product.name;
    }
  }
  EXPECT_GE(grouped, 6);
}

TEST(Linear, GroupsAlongTheSumRunOnCodes) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  LinearRecipe recipe = FindRecipe("mxfp4_plain")->linear;
  const auto form = [&](const LinearProduct& product) {
    return FormOf(*backend, recipe, product, 64, 64, 64);
  };
  const auto slot = [&](Slot s) -> Quant& { return recipe.slots[static_cast<size_t>(s)]; };
  for (const LinearProduct& product : {kFprop, kDgrad, kWgrad}) {
    EXPECT_TRUE(form(product).on_codes) << product.name << ": " << form(product).reason;
  }
  slot(Slot::kWd).source = Source::kReuse;
  EXPECT_STREQ(form(kDgrad).reason, "a scale varies along the sum") << "groups along K";
  EXPECT_TRUE(form(kFprop).on_codes);
  slot(Slot::kXf).group = 64;
  EXPECT_STREQ(form(kFprop).reason, "the operands' groups differ in size");
  slot(Slot::kWf).group = 64;
  EXPECT_TRUE(form(kFprop).on_codes);
  slot(Slot::kXf).group = slot(Slot::kWf).group = 256;
  EXPECT_STREQ(form(kFprop).reason, "groups on codes are multiples of 8 up to 128");
  slot(Slot::kWf).block = Block::kOutputChannel;
  slot(Slot::kXf).group = 32;
  EXPECT_TRUE(form(kFprop).on_codes) << "one operand alone has groups";
}

// A scale per output channel of dY is one of its columns in dgrad as in wgrad.
TEST(Linear, OutputChannelsOfTheGradientAreColumnsInBothProducts) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  LinearRecipe recipe = FindRecipe("fp32")->linear;
  Quant quant = FindRecipe("fp4_ms_paper")->linear.slot(Slot::kWf);
  quant.block = Block::kOutputChannel;
  for (const Slot slot : {Slot::kGd, Slot::kGw}) recipe.slots[static_cast<size_t>(slot)] = quant;
  EXPECT_TRUE(recipe.SharesCodes(Slot::kGw));
  Data d, exact, shared;
  for (Data* data : {&d, &exact, &shared}) {
    for (size_t i = 0; i < data->dy.size(); ++i) data->dy[i] *= i % kOut % 2 == 0 ? 1e-4f : 1.0f;
    for (size_t i = 0; i < data->w.size(); ++i) data->w[i] *= i / kIn % 2 == 0 ? 1.0f : 0.0f;
  }
  RunLayer(*backend, FindRecipe("fp32")->linear, {}, &exact);
  RunLayer(*backend, recipe, {}, &shared);
  recipe.slots[static_cast<size_t>(Slot::kGd)].round = Round::kSr24;  // no longer shared
  RunLayer(*backend, recipe, {}, &d);
  EXPECT_LT(RelativeError(shared.dx, exact.dx), 0.3) << "small columns have their own scales";
  EXPECT_LT(RelativeError(d.dx, exact.dx), 0.4);
  EXPECT_TRUE(SameBits(shared.dw, d.dw));
}

// Whether a scale leaves the sum decides, and an outlier residual that cannot be folded.
TEST(Linear, DecodedProductsSayWhy) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  Recipe recipe = Folded("f", Elem::kE2M1, 6, Round::kSr24);
  const auto form = [&](const LinearProduct& product) {
    return FormOf(*backend, recipe.linear, product, 8, 8, 8);
  };
  recipe.linear.slots[static_cast<size_t>(Slot::kXf)].pre.comp = OccComp::kE4M3;
  EXPECT_TRUE(form(kFprop).on_codes);
  EXPECT_STREQ(form(kWgrad).reason, "an outlier residual has a scale that cannot be folded");
  recipe.linear.slots[static_cast<size_t>(Slot::kGd)].fold = false;
  EXPECT_STREQ(form(kDgrad).reason, "a scale varies along the sum");
  Quant& wgrad = recipe.linear.slots[static_cast<size_t>(Slot::kXw)];
  wgrad = recipe.linear.slot(Slot::kXf);
  wgrad.block = Block::kInputChannel;
  recipe.linear.slots[static_cast<size_t>(Slot::kGw)].fold = false;
  EXPECT_STREQ(form(kWgrad).reason, "an outlier residual belongs to the right operand");
  recipe = *FindRecipe("bf16");
  EXPECT_STREQ(form(kFprop).reason, "no operand is quantized");
  EXPECT_EQ(form(kFprop).support, Support::kFast);
}

// Health of both copies of dY; a shared copy is measured once.
TEST(Linear, FoldedGradientsReportTheirUnderflow) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  const LinearRecipe recipe = Folded("f", Elem::kE2M1, 6, Round::kSr24).linear;
  Data d, plain;
  LinearWorkspace workspace(backend.get());
  LinearInput input(&workspace, recipe, 5);
  QuantizedLinear linear(&workspace, recipe, 5);
  LinearStep step;
  step.measure_health = true;
  ASSERT_TRUE(input.Set(step, d.X()).ok());
  ASSERT_TRUE(linear.Forward(step, input, d.W(), 1, d.Y()).ok());
  ASSERT_TRUE(linear.Backward(step, d.DY(), input, d.W(), 1, d.DX(), false, d.DW()).ok());
  EXPECT_EQ(linear.health().gradient.elements, kTokens * kOut);
  EXPECT_EQ(linear.health().gradient_wgrad.elements, kTokens * kOut);
  EXPECT_GT(linear.health().gradient.underflow_share, 0);
  EXPECT_GT(linear.health().gradient_wgrad.underflow_share, 0);
  EXPECT_GT(linear.health().gradient_wgrad.snr_db, 3);
  RunLayer(*backend, recipe, {}, &plain);
  EXPECT_TRUE(SameBits(plain.dx, d.dx) && SameBits(plain.dw, d.dw));
}

TEST(Linear, PathsNameWhatRuns) {
  const std::unique_ptr<Backend> backend = MakeCpu();
  Result<LinearPaths> paths = PathsOf(*backend, FindRecipe("fp4_ms_paper")->linear, 64, 32, 16);
  ASSERT_TRUE(paths.ok());
  EXPECT_STREQ(SupportName(paths->fprop.support), "fast");
  paths = PathsOf(*backend, FindRecipe("fp32")->linear, 64, 32, 16);
  ASSERT_TRUE(paths.ok());
  EXPECT_STREQ(SupportName(paths->wgrad.support), "fast");
}

}  // namespace
}  // namespace nibble
