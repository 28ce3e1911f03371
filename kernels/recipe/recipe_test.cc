// SPDX-License-Identifier: Apache-2.0
#include "kernels/recipe/recipe.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace nibble {
namespace {

constexpr const char* kWeight = R"j({"elem":"e2m1","block":"och","scale":"f32(6)"})j";
constexpr const char* kGradient = R"j({"elem":"e5m2","scale":"p2"})j";
constexpr const char* kReuse = R"j({"source":"reuse"})j";

// A valid recipe with slots replaced; `extra` follows the six slots inside linear, `around` follows
// linear.
struct Text {
  std::string xf = R"j({"elem":"e2m1","block":"tok","scale":"f32(6)"})j";
  std::string wf = kWeight, gd = kGradient, wd = kReuse, gw = kReuse, xw = kReuse;
  std::string extra = {}, around = {};

  std::string Join() const {
    return R"j({"name":"mine","linear":{"Xf":)j" + xf + R"j(,"Wf":)j" + wf + R"j(,"Gd":)j" + gd +
           R"j(,"Wd":)j" + wd + R"j(,"Gw":)j" + gw + R"j(,"Xw":)j" + xw + extra + "}" + around +
           "}";
  }
};

std::string WithXf(const std::string& xf) {
  Text text;
  text.xf = xf;
  return text.Join();
}

Result<Recipe> Parsed(const Text& text) { return ParseRecipeText(text.Join()); }

void ExpectRefused(const std::string& text, const std::string& part) {
  const Status status = ParseRecipeText(text).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << text << "\n" << status.ToString();
  EXPECT_NE(status.message().find(part), std::string::npos) << text << "\n" << status.ToString();
}

void ExpectRoundTrip(const Recipe& recipe) {
  const Result<Recipe> again = ParseRecipe(RecipeToJson(recipe));
  ASSERT_TRUE(again.ok()) << again.status().ToString() << "\n" << RecipeToJson(recipe).Dump();
  EXPECT_EQ(*again, recipe) << RecipeToJson(recipe).Dump();
}

TEST(Recipe, BuiltInRowsParseAndSurviveARoundTrip) {
  const std::vector<std::string> names = BuiltInRecipeNames();
  EXPECT_EQ(names.size(), 35u);
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size());
  for (const std::string& name : names) {
    const Result<Recipe> recipe = FindRecipe(name);
    ASSERT_TRUE(recipe.ok()) << name << ": " << recipe.status().ToString();
    EXPECT_EQ(recipe->name, name);
    EXPECT_FALSE(recipe->summary.empty()) << name;
    EXPECT_LE(recipe->summary.size(), 90u) << name;
    ExpectRoundTrip(*recipe);
    EXPECT_GE(DescribeRecipe(*recipe).size(), 8u) << name;
  }
}

TEST(Recipe, PaperRowSaysWhatThePaperSays) {
  const Recipe recipe = *FindRecipe("fp4_ms_paper");
  const Quant& xf = recipe.linear.slot(Slot::kXf);
  EXPECT_EQ(xf.elem, Elem::kE2M1);
  EXPECT_EQ(xf.block, Block::kToken);
  EXPECT_EQ(xf.scale, ScaleRule::kF32);
  EXPECT_EQ(xf.scale_max, 6.0f);
  EXPECT_TRUE(xf.pre.enabled);
  EXPECT_EQ(xf.pre.alpha, 0.99);
  EXPECT_EQ(xf.pre.comp, OccComp::kE4M3);
  EXPECT_EQ(recipe.linear.Resolved(Slot::kWd).block, Block::kOutputChannel);
  EXPECT_EQ(recipe.linear.Resolved(Slot::kGw).elem, Elem::kE5M2);
  EXPECT_EQ(recipe.linear.Resolved(Slot::kGw).scale_max, 57344.0f);
  EXPECT_TRUE(recipe.linear.weight_estimator.dge());
  EXPECT_TRUE(recipe.rounds_to_bf16());
  EXPECT_FALSE(FindRecipe("fp32")->rounds_to_bf16());
}

TEST(Recipe, FoldedRowsFoldIntoQuantizedGradients) {
  const struct {
    const char* name;
    Elem elem;
    float max;
    Round round;
    OccComp comp = OccComp::kWide;
  } rows[] = {{"fp4_fold4", Elem::kE2M1, 6, Round::kSr24},
              {"fp4_fold8", Elem::kE4M3, 448, Round::kEven},
              {"fp4_fold8_e4m3", Elem::kE4M3, 448, Round::kEven, OccComp::kWideE4M3},
              {"fp4_foldi8", Elem::kInt8, 127, Round::kSr24}};
  for (const auto& row : rows) {
    const LinearRecipe linear = FindRecipe(row.name)->linear;
    const Quant& gd = linear.slot(Slot::kGd);
    const Quant& gw = linear.slot(Slot::kGw);
    EXPECT_TRUE(gd.fold && gw.fold) << row.name;
    EXPECT_TRUE(gd.block == Block::kToken && gw.block == Block::kOutputChannel) << row.name;
    EXPECT_EQ(gd.elem, row.elem);
    EXPECT_EQ(gw.scale_max, row.max);
    EXPECT_EQ(gw.round, row.round);
    EXPECT_EQ(linear.slot(Slot::kXf).pre.comp, row.comp);
    EXPECT_TRUE(linear.SharesCodes(Slot::kWd) && linear.SharesCodes(Slot::kXw));
  }
}

// The cells of the published tables that are easiest to get wrong.
TEST(Recipe, RowsFollowTheirTables) {
  const auto slot = [](const char* name, Slot s) { return FindRecipe(name)->linear.slot(s); };
  EXPECT_EQ(slot("nvfp4_te", Slot::kGw).rotation, (Rotation{16, Signs::kFixed}));
  EXPECT_EQ(slot("nvfp4_te", Slot::kGd).rotation.size, 0);
  EXPECT_EQ(slot("nvfp4_te", Slot::kGw).round, Round::kTe8);
  EXPECT_EQ(slot("nvfp4_te", Slot::kWf).block, Block::kTile);
  EXPECT_EQ(slot("nvfp4_te", Slot::kXf).scale_max, 448.0f);
  EXPECT_EQ(slot("quartet", Slot::kXf).rotation, (Rotation{32, Signs::kNone}));
  EXPECT_EQ(slot("quartet", Slot::kGd).rotation, (Rotation{32, Signs::kFresh}));
  EXPECT_EQ(slot("quartet", Slot::kWd).source, Source::kRequant);
  EXPECT_EQ(slot("quartet", Slot::kGd).round, Round::kEven);
  EXPECT_EQ(slot("quartet_v1", Slot::kXw).round, Round::kSr24);
  EXPECT_EQ(slot("quartet", Slot::kWf).mask, Mask::kBelow6);
  EXPECT_EQ(slot("quest", Slot::kWf).mask, Mask::kTrust);
  EXPECT_FLOAT_EQ(slot("quest", Slot::kXf).scale_factor, 2.51393058f);
  EXPECT_EQ(slot("quartet2", Slot::kGd).correction_group, 16);
  EXPECT_EQ(slot("quartet2", Slot::kGd).scale_factor, 0.988125f);
  EXPECT_EQ(slot("quartet2", Slot::kGd).scale_round, ScaleRound::kStochastic);
  EXPECT_EQ(slot("quartet2", Slot::kXf).alternatives.maxima[1], 4.0f);
  EXPECT_EQ(slot("quartet2_sim", Slot::kGd).correction_group, 128);
  EXPECT_EQ(slot("quartet2_sim", Slot::kGd).scale_max, 255.99f);
  EXPECT_EQ(slot("quartet2_sim", Slot::kXf).round, Round::kAway);
  EXPECT_EQ(slot("tetrajet2", Slot::kXf).outer, Outer::k128);
  EXPECT_EQ(slot("tetrajet2_mix", Slot::kXf).split_share, 0.1f);
  EXPECT_EQ(slot("graphcore_best", Slot::kXf).rotation, (Rotation{16, Signs::kFresh}));
  EXPECT_EQ(slot("te_fp8_delayed", Slot::kXf).window, 1024);
  EXPECT_EQ(slot("fp8_lm", Slot::kGd).window, 16);
  EXPECT_EQ(slot("fp8_lm", Slot::kWf).window, 1);
  EXPECT_EQ(slot("fp4_ms_code", Slot::kWf).block, Block::kInputChannel);
  EXPECT_EQ(slot("fp4_ms_code", Slot::kXf).round, Round::kHalfUp);
  EXPECT_TRUE(slot("fp4_ms_code", Slot::kXf).recast_e4m3);
  EXPECT_TRUE(FindRecipe("fp4_ms_code")->linear.weight_estimator.extrapolate);
  EXPECT_EQ(slot("mxfp4_amd", Slot::kGw).rotation, (Rotation{32, Signs::kNone}));
  EXPECT_EQ(FindRecipe("fp8_lm")->state.v, StateElem::kF16);
  EXPECT_EQ(FindRecipe("fp8_lm")->communication, Communication::kE4M3);
  EXPECT_TRUE(FindRecipe("oscireset")->weight_rule.enabled);
  EXPECT_EQ(FindRecipe("oscireset")->linear, FindRecipe("tetrajet2")->linear);
  EXPECT_NEAR(FindRecipe("fp4_allway")->stages[0].noise_multiple, 1.7320508, 1e-6);
}

TEST(Recipe, UnknownNameListsTheKnownOnes) {
  const Status status = FindRecipe("fp4_ms_papr").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_NE(status.message().find("te_fp8_current"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("did you mean 'fp4_ms_paper'"), std::string::npos);
  EXPECT_EQ(RecipeFromField(Json(3)).status().code(), StatusCode::kInvalidArgument);
}

TEST(Recipe, UnknownKeysAndValuesNameTheField) {
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scal":"f32(6)"})j"), "'scal'");
  ExpectRefused(WithXf(R"j({"elem":"e2m2","scale":"f32(6)"})j"), "linear.Xf.elem");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f33(6)"})j"), "linear.Xf.scale");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32(6"})j"), "f32(F)");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"p2(6,p2)"})j"), "cur(F,p2)");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32(0)"})j"), "f32(F)");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32(x)"})j"), "f32(F)");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","block":"1x32","scale":"e8f(6)"})j"), "e8f, e8u(F)");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","block":"1x16","scale":"eden(16,256)"})j"), "eden(GROUP");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":7})j"), "linear.Xf.scale is 7");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","block":"2x4","scale":"f32"})j"), "1xB, BxB");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","block":"1x1","scale":"f32"})j"), "1xB, BxB");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32","xform":"R24"})j"), "power of two");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32","xform":"Rb"})j"), "Rb needs");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32","xform":"H32(fixed)"})j"), "xform");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32","alternatives":"4under6"})j"),
                "4over6(mse)");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32","alternatives":"4over6(sum)"})j"), "mae");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32","window":0})j"), "linear.Xf.window");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32","fold":"sx"})j"), "linear.Xf.fold");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32","split":{"channels":{}}})j"), "share");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32","fallback_error":2})j"), "from 0 to 1");
  ExpectRefused(WithXf(R"j({"scale":"f32(6)"})j"), "elem is missing");
  ExpectRefused(WithXf(R"j({"source":"reuse","elem":"bf16"})j"), "remove its other fields");
  ExpectRefused(WithXf(R"j([])j"), "expected an object");
  ExpectRefused(R"j({"name":"x","linear":{},"colour":1})j", "'colour'");
  ExpectRefused(R"j({"name":"x","linear":{}})j", "linear.Xf is missing");
  ExpectRefused(R"j({"name":"x"})j", "linear is missing");
  ExpectRefused(R"j({"name":"a b","linear":{}})j", "name is \"a b\"");
  ExpectRefused(R"j({"linear":{}})j", "name is null");
  ExpectRefused("{", "");
  const auto around = [](const char* fields) {
    Text text;
    text.around = fields;
    return text.Join();
  };
  ExpectRefused(around(R"j(,"state":{"m":"fp8"})j"), "state.m");
  ExpectRefused(around(R"j(,"comm":"e4m3")j"), "e4m3_presum");
  ExpectRefused(around(R"j(,"bf16_blocks":{"first":1.5})j"), "whole number");
  ExpectRefused(around(R"j(,"overrides":{})j"), "expected a list");
  ExpectRefused(around(R"j(,"overrides":[{"kinds":[],"linear":"bf16"}])j"), "kinds");
  ExpectRefused(around(R"j(,"overrides":[{"kinds":["head"],"linear":"bf16"}])j"), "'head'");
  ExpectRefused(around(R"j(,"overrides":[{"kinds":["q"],"blocks":[1],"linear":"bf16"}])j"),
                "[first, last]");
  ExpectRefused(around(R"j(,"stages":[{"from_share":2,"linear":"bf16"}])j"), "from 0 to 1");
  ExpectRefused(around(R"j(,"weight_rule":{"oscireset":{"every":3}})j"), "'every'");
  Text estimator;
  estimator.extra = R"j(,"estW":{"dge":{"outside":1}})j";
  ExpectRefused(estimator.Join(), "extrapolate");
  estimator.extra = R"j(,"estW":{"dge":{},"power":{}})j";
  ExpectRefused(estimator.Join(), "one of");
  estimator.extra = R"j(,"estMax":"absmax(2)")j";
  ExpectRefused(estimator.Join(), "softmax(TEMPERATURE)");
  Text fold;
  fold.gd = R"j({"elem":"e4m3","block":"tok","scale":"f32","fold":"sx"})j";
  ExpectRefused(fold.Join(), "into Gd");
}

struct BadRecipe {
  const char* rule;
  Text text;
};

template <typename Set>
Text Changed(Set set) {
  Text text;
  set(text);
  return text;
}

const std::string kNvGroup = R"j("elem":"e2m1","block":"1x16","scale":"nv")j";

std::vector<BadRecipe> ScaleCases() {
  return {
      {"reuse-source", Changed([](Text& t) { t.gd = kReuse; })},
      {"reuse-source",
       Changed([](Text& t) { t.xf = "{" + kNvGroup + R"j(,"source":"requant"})j"; })},
      {"unscaled", Changed([](Text& t) { t.xf = R"j({"elem":"bf16","scale":"f32(4)"})j"; })},
      {"unscaled", Changed([](Text& t) { t.xf = R"j({"elem":"fp32","xform":"H32"})j"; })},
      {"scale-needed", Changed([](Text& t) { t.xf = R"j({"elem":"e2m1"})j"; })},
      {"scale-range", Changed([](Text& t) { t.xf = R"j({"elem":"e2m1","scale":"f32(7)"})j"; })},
      {"scale-range",
       Changed([](Text& t) { t.xf = R"j({"elem":"e2m1","block":"1x16","scale":"nv(449)"})j"; })},
      {"scale-range",
       Changed([](Text& t) { t.xf = R"j({"elem":"e2m1","block":"1x16","scale":"u53(61441)"})j"; })},
      {"scale-element",
       Changed([](Text& t) { t.xf = R"j({"elem":"e4m3","block":"1x16","scale":"nv"})j"; })},
      {"scale-element", Changed([](Text& t) { t.xf = R"j({"elem":"int4c","scale":"quest"})j"; })},
      {"group-scale",
       Changed([](Text& t) { t.xf = R"j({"elem":"e2m1","block":"tok","scale":"e8f"})j"; })},
      {"scale-round",
       Changed([](Text& t) { t.xf = R"j({"elem":"e2m1","scale":"f32","scale_round":"sr"})j"; })},
      {"outer", Changed([](Text& t) {
         t.xf = R"j({"elem":"e2m1","block":"1x32","scale":"e8f","outer":"1x128"})j";
       })},
      {"outer", Changed([](Text& t) {
         t.xf = R"j({"elem":"e2m1","block":"1x48","scale":"nv","outer":"1x128"})j";
       })},
      {"history",
       Changed([](Text& t) { t.xf = R"j({"elem":"e4m3","block":"tok","scale":"dly"})j"; })},
      {"history", Changed([](Text& t) {
         t.xf = R"j({"elem":"e4m3","block":"tok","scale":"p2","window":16})j";
       })},
      {"correction", Changed([](Text& t) {
         t.xf = R"j({"elem":"e2m1","block":"1x16","scale":"eden(24,256,1)"})j";
       })},
      {"rounding",
       Changed([](Text& t) { t.xf = R"j({"elem":"e4m3","scale":"cur","round":"te8"})j"; })},
      {"axis", Changed([](Text& t) { t.xf = R"j({"elem":"e4m3","scale":"cur","block":"och"})j"; })},
      {"axis", Changed([](Text& t) { t.wf = R"j({"elem":"e2m1","scale":"f32","block":"tok"})j"; })},
      {"axis", Changed([](Text& t) { t.gd = R"j({"elem":"e5m2","scale":"p2","block":"ich"})j"; })}};
}

std::vector<BadRecipe> OutlierCases() {
  return {
      {"alternatives",
       Changed([](Text& t) { t.xf = "{" + kNvGroup + R"j(,"alternatives":"4over6(mse)"})j"; })},
      {"alternatives", Changed([](Text& t) {
         t.xf = R"j({"elem":"e2m1","block":"1x16","scale":"nv(256)","round":"sr24",
                     "alternatives":"4over6(mse)"})j";
       })},
      {"alternatives", Changed([](Text& t) {
         t.xf = R"j({"elem":"e2m1","block":"1x16","scale":"nv(256)",
                     "alternatives":"6over4(mse)"})j";
       })},
      {"clamp", Changed([](Text& t) {
         t.wf = R"j({"elem":"e2m1","block":"och","scale":"f32","pre":{"occ":{}}})j";
       })},
      {"wide", Changed([](Text& t) {
         t.xf = R"j({"elem":"e4m3","block":"tok","scale":"f32","pre":{"occ":{"comp":"wide"}}})j";
       })},
      {"mask", Changed([](Text& t) { t.gd = R"j({"elem":"e2m1","scale":"f32","mask":"lt6"})j"; })},
      {"mask",
       Changed([](Text& t) { t.xf = R"j({"elem":"e2m1","scale":"f32","mask":"trust"})j"; })},
      {"mask", Changed([](Text& t) {
         t.xf = R"j({"elem":"e2m1","block":"1x32","scale":"qst","xform":"H32","mask":"lt6"})j";
         t.wf = R"j({"elem":"e2m1","block":"1x32","scale":"qst","xform":"H32"})j";
         t.wd = R"j({"elem":"e5m2","scale":"p2"})j";
       })}};
}

std::vector<BadRecipe> FoldCases() {
  return {{"split", Changed([](Text& t) {
             t.wf = R"j({"elem":"e2m1","block":"och","scale":"f32","split":{"mean":{}}})j";
           })},
          {"split", Changed([](Text& t) {
             t.xf = R"j({"elem":"e2m1","scale":"f32","split":{"channels":{"share":0.1}}})j";
           })},
          {"fold", Changed([](Text& t) {
             t.gd = R"j({"elem":"e4m3","block":"tok","scale":"f32","fold":"sw"})j";
             t.wd = R"j({"elem":"e4m3","scale":"p2"})j";
           })},
          {"fold", Changed([](Text& t) {
             t.gd = R"j({"elem":"e4m3","block":"och","scale":"f32","fold":"sw"})j";
           })},
          {"fold", Changed([](Text& t) {
             t.xf =
                 R"j({"elem":"e2m1","block":"tok","scale":"f32","pre":{"occ":{"comp":"e4m3"}}})j";
             t.gw = R"j({"elem":"e4m3","block":"och","scale":"f32","fold":"sx"})j";
           })}};
}

std::vector<BadRecipe> PairCases() {
  return {
      {"shared-rotation", Changed([](Text& t) { t.xf = "{" + kNvGroup + R"j(,"xform":"H32"})j"; })},
      {"shared-rotation", Changed([](Text& t) {
         t.gw = "{" + kNvGroup + R"j(,"xform":"R16"})j";
         t.xw = "{" + kNvGroup + R"j(,"xform":"R16(fresh)"})j";
       })},
      {"shared-group", Changed([](Text& t) {
         t.xf = "{" + kNvGroup + "}";
         t.wf = R"j({"elem":"e2m1","block":"1x32","scale":"e8f"})j";
       })},
      {"rotated-reuse", Changed([](Text& t) {
         t.gd = "{" + kNvGroup + R"j(,"xform":"R16"})j";
         t.wd = "{" + kNvGroup + R"j(,"xform":"R16"})j";
       })},
      {"estimator", Changed([](Text& t) {
         t.wf = R"j({"elem":"e4m3","scale":"p2"})j";
         t.extra = R"j(,"estW":{"dge":{}})j";
       })},
      {"estimator", Changed([](Text& t) {
         t.wf = R"j({"elem":"bf16"})j";
         t.extra = R"j(,"estMax":"absmax")j";
       })},
      {"overrides", Changed([](Text& t) {
         t.around = R"j(,"overrides":[{"kinds":["q"],"blocks":[3,1],"linear":"bf16"}])j";
       })},
      {"stages", Changed([](Text& t) { t.around = R"j(,"stages":[{"linear":"bf16"}])j"; })},
      {"stages", Changed([](Text& t) {
         t.around = R"j(,"stages":[{"from_share":0.5,"linear":"bf16"},
                                   {"from_share":0.4,"linear":"fp32"}])j";
       })},
      {"stages", Changed([](Text& t) {
         t.gd = R"j({"elem":"bf16"})j";
         t.around = R"j(,"stages":[{"noise_multiple":1.7,"linear":"bf16"}])j";
       })},
      {"weight-rule", Changed([](Text& t) {
         t.around = R"j(,"weight_rule":{"oscireset":{"period":10,"window":20}})j";
       })},
      {"weight-rule", Changed([](Text& t) {
         t.around = R"j(,"weight_rule":{"oscireset":{}},
                        "stages":[{"from_share":0.5,"linear":"graphcore_best"}])j";
       })}};
}

// One bad recipe for each rule; `divisible` is a matter of sizes and has its own test.
TEST(Recipe, EveryRuleRefusesAndIsNamed) {
  std::set<std::string> seen = {"divisible", "reuse-whole"};
  for (const auto& cases : {ScaleCases(), OutlierCases(), FoldCases(), PairCases()}) {
    for (const BadRecipe& bad : cases) {
      ExpectRefused(bad.text.Join(), std::string("breaks the rule '") + bad.rule + "'");
      seen.insert(bad.rule);
    }
  }
  // The parser already refuses other fields beside reuse; a struct can still hold them.
  Recipe recipe = *FindRecipe("fp4_direct");
  recipe.linear.slots[static_cast<size_t>(Slot::kWd)].round = Round::kSr24;
  EXPECT_NE(ValidateRecipe(recipe).message().find("'reuse-whole'"), std::string::npos);
  for (const RecipeRule& rule : RecipeRules()) {
    EXPECT_TRUE(seen.contains(rule.name)) << "no bad recipe for " << rule.name;
  }
}

TEST(Recipe, SizesThatDoNotDivideAreRefusedByName) {
  const LinearRecipe nv = FindRecipe("nvfp4_te")->linear;
  EXPECT_TRUE(CheckRecipeShape(nv, 64, 32, 48).ok());
  const struct {
    int64_t tokens, in, out;
    const char* part;
  } cases[] = {{64, 40, 48, "in (K) = 40 is not a multiple of 16"},
               {64, 32, 40, "out (N) = 40"},
               {40, 32, 48, "tokens (T) = 40"}};
  for (const auto& c : cases) {
    const Status status = CheckRecipeShape(nv, c.tokens, c.in, c.out);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(c.part), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("'divisible'"), std::string::npos) << status.message();
  }
  EXPECT_TRUE(CheckRecipeShape(nv, 0, 32, 48).ok()) << "unknown tokens are not checked";
  EXPECT_FALSE(CheckRecipeShape(FindRecipe("quartet2")->linear, 64, 32, 128).ok()) << "R128";
  EXPECT_FALSE(CheckRecipeShape(FindRecipe("tetrajet2")->linear, 128, 64, 128).ok()) << "outer";
  EXPECT_TRUE(CheckRecipeShape(FindRecipe("fp4_ms_paper")->linear, 7, 11, 13).ok());
}

TEST(Recipe, WordsOfEveryAxisSurviveARoundTrip) {
  const char* slots[] = {
      R"j({"elem":"e1m2","block":"tok","scale":"f32(3.5)","round":"sr24"})j",
      R"j({"elem":"e3m0","block":"1x32","scale":"e8u(16)"})j",
      R"j({"elem":"int4","block":"ich","scale":"cur(7,p2)"})j",
      R"j({"elem":"int8","block":"tok","scale":"f32(127)","round":"sr24"})j",
      R"j({"elem":"int4c","block":"tok","scale":"quest(2.5)"})j",
      R"j({"elem":"e4m3","scale":"dly(448)","window":16})j",
      R"j({"elem":"e2m1","block":"1x16","scale":"nv(256)","alternatives":"5over6(max)"})j",
      R"j({"elem":"e2m1","block":"1x16","scale":"u53(448)","scale_round":"up","outer":"1x128"})j",
      R"j({"elem":"e2m1","block":"1x16","scale":"eden(16,256,.988125)","scale_round":"even"})j",
      R"j({"elem":"e2m1","block":"tok","scale":"f32","split":{"mean":{"elem":"bf16"}}})j",
      R"j({"elem":"e4m3","scale":"cur","fallback_error":0.05})j",
      R"j({"elem":"e2m1","block":"1x32","scale":"e8f","round":"zero","post":"e4m3_p2"})j"};
  for (const char* slot : slots) {
    Text text;
    text.xf = slot;
    const Result<Recipe> recipe = Parsed(text);
    ASSERT_TRUE(recipe.ok()) << slot << ": " << recipe.status().ToString();
    ExpectRoundTrip(*recipe);
    EXPECT_EQ(recipe->linear.slot(Slot::kXf).scale_round == ScaleRound::kUp,
              std::string(slot).find("\"up\"") != std::string::npos);
  }
  for (const char* xform : {"H4", "H32", "R16", "R16(fresh)", "R32", "R32(fixed)", "R128", "Rb"}) {
    Text text;
    text.xf = text.wf =
        std::string(R"j({"elem":"e2m1","block":"1x16","scale":"nv","xform":")j") + xform + "\"}";
    const Result<Recipe> recipe = Parsed(text);
    ASSERT_TRUE(recipe.ok()) << xform << ": " << recipe.status().ToString();
    ExpectRoundTrip(*recipe);
    const std::string word = RotationName(recipe->linear.slot(Slot::kXf).rotation);
    EXPECT_EQ(word, std::string(xform) == "Rb" ? "R16(fresh)" : xform);
  }
  for (const char* estimator :
       {R"j("ste")j", R"j({"dge":{"k":3,"clip":2,"outside":"extrapolate"}})j", R"j("power")j",
        R"j({"power":{"k":4}})j", R"j("spline")j", R"j({"sigmoid":{"temperature":0.25}})j"}) {
    Text text;
    text.extra = std::string(R"j(,"estMax":"softmax_backward(80)","estW":)j") + estimator;
    const Result<Recipe> recipe = Parsed(text);
    ASSERT_TRUE(recipe.ok()) << estimator << ": " << recipe.status().ToString();
    EXPECT_EQ(recipe->linear.weight_estimator.max_gradient, MaxGradient::kSoftmaxBackward);
    EXPECT_EQ(recipe->linear.weight_estimator.max_temperature, 80);
    ExpectRoundTrip(*recipe);
  }
}

TEST(Recipe, WhatStandsAroundTheLayersSurvivesARoundTrip) {
  Text text;
  text.around = R"j(,"overrides":[{"kinds":["q","down"],"blocks":[-4,-1],"linear":"te_mxfp8"}],
    "stages":[{"from_share":0.25,"linear":"fp4_direct"},
              {"from_share":0.9,"noise_multiple":1.5,"linear":"bf16"}],
    "weight_rule":{"oscireset":{"ratio":4}},"bf16_blocks":{"first":1,"last_share":0.15},
    "state":{"m":"e4m3","v":"fp16","master":"bf16"},"comm":"bf16")j";
  const Result<Recipe> recipe = Parsed(text);
  ASSERT_TRUE(recipe.ok()) << recipe.status().ToString();
  EXPECT_EQ(recipe->overrides[0].kinds, 0b1000001u);
  EXPECT_EQ(recipe->overrides[0].linear, FindRecipe("te_mxfp8")->linear);
  EXPECT_EQ(recipe->stages[1].noise_multiple, 1.5);
  EXPECT_EQ(recipe->weight_rule.ratio, 4);
  EXPECT_EQ(recipe->weight_rule.period, 200);
  EXPECT_EQ(recipe->state.master, StateElem::kBf16);
  EXPECT_EQ(recipe->communication, Communication::kBf16);
  ExpectRoundTrip(*recipe);
  const Result<Recipe> named = ParseRecipeText(
      R"j({"name":"mine","linear":"nvfp4_te","state":{"m":"e4m3"},"comm":"e4m3_presum"})j");
  ASSERT_TRUE(named.ok()) << named.status().ToString();
  EXPECT_EQ(named->linear, FindRecipe("nvfp4_te")->linear);
  EXPECT_EQ(named->bf16_share_last, 0) << "only the linear part is taken";
}

TEST(Recipe, OmittedFieldsTakeTheDefaults) {
  const Result<Recipe> recipe = ParseRecipeText(WithXf(R"j({"elem":"e4m3","scale":"cur"})j"));
  ASSERT_TRUE(recipe.ok()) << recipe.status().ToString();
  const Quant& xf = recipe->linear.slot(Slot::kXf);
  EXPECT_EQ(xf.block, Block::kTensor);
  EXPECT_EQ(xf.round, Round::kEven);
  EXPECT_EQ(xf.scale_max, 448.0f);
  EXPECT_FALSE(recipe->linear.weight_estimator.dge());
}

TEST(Recipe, LayersTakeTheirOwnPart) {
  Recipe recipe = *FindRecipe("fp4_ms_paper");
  const LinearRecipe& paper = recipe.linear;
  const LinearRecipe fp8 = FindRecipe("te_fp8_current")->linear;
  const LinearRecipe direct = FindRecipe("fp4_direct")->linear;
  recipe.bf16_blocks_first = 1;
  recipe.bf16_blocks_last = 2;
  recipe.overrides.push_back({1u << static_cast<int>(LinearKind::kDown), -4, -1, fp8});
  recipe.stages.push_back({0.5, 0, direct});
  using K = LinearKind;
  EXPECT_EQ(recipe.LinearFor(K::kQuery, 0, 8), LinearRecipe{});
  EXPECT_EQ(recipe.LinearFor(K::kQuery, 1, 8), paper);
  EXPECT_EQ(recipe.LinearFor(K::kDown, 3, 8), paper);
  EXPECT_EQ(recipe.LinearFor(K::kDown, 4, 8), fp8);
  EXPECT_EQ(recipe.LinearFor(K::kUp, 4, 8), paper);
  EXPECT_EQ(recipe.LinearFor(K::kDown, 6, 8), LinearRecipe{});
  EXPECT_EQ(recipe.LinearFor(K::kDown, 1, 3), LinearRecipe{}) << "excluded before overridden";
  EXPECT_EQ(recipe.LinearFor(K::kDown, 4, 8, 0), direct);
  EXPECT_EQ(recipe.LinearFor(K::kDown, 7, 8, 0), LinearRecipe{});
  recipe.bf16_blocks_first = recipe.bf16_blocks_last = 0;
  EXPECT_EQ(recipe.LinearFor(K::kDown, 0, 2), fp8) << "-4 is before the first of two blocks";
  recipe.bf16_share_last = 0.15;
  EXPECT_FALSE(recipe.KeepsBf16(2, 4));
  EXPECT_TRUE(recipe.KeepsBf16(3, 4));
  EXPECT_FALSE(recipe.KeepsBf16(52, 62));
  EXPECT_TRUE(recipe.KeepsBf16(53, 62));
}

TEST(Recipe, CodesAreSharedOnlyWhereTheContractionDoesNotMatter) {
  EXPECT_TRUE(FindRecipe("te_fp8_current")->linear.SharesCodes(Slot::kXw));
  EXPECT_FALSE(FindRecipe("mxfp4_plain")->linear.SharesCodes(Slot::kXw)) << "other groups";
  EXPECT_FALSE(FindRecipe("fp4_foldi8")->linear.SharesCodes(Slot::kGw));
  Recipe recipe = *FindRecipe("te_fp8_block");
  EXPECT_TRUE(recipe.linear.SharesCodes(Slot::kWd));
  recipe.linear.slots[static_cast<size_t>(Slot::kWd)] = recipe.linear.slot(Slot::kWf);
  EXPECT_TRUE(recipe.linear.SharesCodes(Slot::kWd)) << "tiles are the same both ways";
}

TEST(Recipe, PrecisionOfEachGemmIsHonest) {
  using P = PrecisionClass;
  const struct {
    const char* name;
    P fprop, dgrad, wgrad;
    bool native[3];
  } rows[] = {
      {"fp4_ms_paper", P::kFp4, P::kFp8, P::kFp8, {true, false, false}},
      {"fp4_fold4", P::kFp8, P::kFp4, P::kFp8, {false, true, false}},
      {"fp4_ms_code", P::kFp8, P::kFp8, P::kFp8, {false, false, false}},
      {"mxfp4_plain", P::kFp4, P::kFp4, P::kFp4, {true, true, true}},
      {"mxfp4_tseng", P::kBf16, P::kFp4, P::kFp4, {false, true, true}},
      {"nvfp4_te", P::kFp4, P::kFp4, P::kFp4, {true, true, true}},
      {"quest", P::kFp4, P::kBf16, P::kBf16, {true, false, false}},
      {"w4a8", P::kFp8, P::kFp8, P::kFp8, {false, false, false}},
      {"bf16", P::kBf16, P::kBf16, P::kBf16, {false, false, false}},
  };
  for (const auto& row : rows) {
    const RecipePrecision p = PrecisionOf(FindRecipe(row.name)->linear);
    EXPECT_EQ(p.fprop.result, row.fprop) << row.name;
    EXPECT_EQ(p.dgrad.result, row.dgrad) << row.name;
    EXPECT_EQ(p.wgrad.result, row.wgrad) << row.name;
    const GemmPrecision* gemms[] = {&p.fprop, &p.dgrad, &p.wgrad};
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(gemms[i]->native_fp4, row.native[i]) << row.name << " " << i;
      EXPECT_EQ(gemms[i]->reason.empty(), row.native[i]) << row.name << " " << i;
    }
  }
  // Groups along the input used along the output: decoded.
  Recipe reused = *FindRecipe("mxfp4_plain");
  reused.linear.slots[static_cast<size_t>(Slot::kWd)] = Quant{};
  reused.linear.slots[static_cast<size_t>(Slot::kWd)].source = Source::kReuse;
  EXPECT_TRUE(ValidateRecipe(reused).ok());
  EXPECT_FALSE(PrecisionOf(reused.linear).dgrad.native_fp4);
}

TEST(Recipe, SavedBitsCountScalesMasksAndResidual) {
  const auto input = [](const char* name) {
    return SavedInputBits(FindRecipe(name)->linear, 1024);
  };
  EXPECT_DOUBLE_EQ(input("fp4_direct"), 4 + 32.0 / 1024);
  EXPECT_DOUBLE_EQ(input("mxfp4_plain"), 2 * (4 + 8.0 / 32));
  EXPECT_DOUBLE_EQ(input("quartet"), 4 + 8.0 / 32 + 8);
  EXPECT_DOUBLE_EQ(input("tetrajet2"), 4 + 8.0 / 16 + 32.0 / 128);
  EXPECT_DOUBLE_EQ(input("fp4_ms_code"), 8 + 32.0 / 1024);
  EXPECT_DOUBLE_EQ(SavedWeightBits(FindRecipe("nvfp4_te")->linear, 1024), 4 + 8.0 / 256);
}

TEST(Recipe, WarnsOfWhatIsKnownToGoWrong) {
  Recipe recipe = *FindRecipe("fp4_ms_paper");
  EXPECT_TRUE(RecipeWarnings(recipe, 2048, 256).empty());
  recipe.linear.slots[0].pre.scope = OccScope::kToken;
  EXPECT_EQ(RecipeWarnings(recipe, 2048, 64).size(), 1u) << "clamps nothing";
  EXPECT_TRUE(RecipeWarnings(recipe, 2048, 256).empty());
  recipe.linear.slots[0].round = Round::kSr24;
  EXPECT_EQ(RecipeWarnings(recipe, 2048, 256).size(), 1u);
  recipe.state.v = recipe.state.master = StateElem::kE4M3;
  EXPECT_EQ(RecipeWarnings(recipe, 2048, 256).size(), 3u);
  Recipe eden = *FindRecipe("quartet2");
  EXPECT_TRUE(RecipeWarnings(eden, 2048, 256).empty());
  for (Quant& quant : eden.linear.slots) quant.rotation = {};
  EXPECT_EQ(RecipeWarnings(eden, 2048, 256).size(), 4u);
}

}  // namespace
}  // namespace nibble
