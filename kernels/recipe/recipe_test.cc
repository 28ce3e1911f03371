// SPDX-License-Identifier: Apache-2.0
#include "kernels/recipe/recipe.h"

#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

// A valid recipe text with one slot replaced.
std::string WithXf(const std::string& xf) {
  return R"j({"name":"mine","linear":{"Xf":)j" + xf +
         R"j(,"Wf":{"elem":"e2m1","block":"och",
    "scale":"f32(6)"},
    "Gd" : {"elem" : "e5m2", "scale" : "p2"},
           "Wd" : {"source" : "reuse"},
                  "Gw" : {"source" : "reuse"},
                         "Xw" : {
  "source" : "reuse"
}
}
})j";
}

Status StatusOf(const std::string& text) { return ParseRecipeText(text).status(); }

void ExpectRefused(const std::string& text, StatusCode code, const std::string& part) {
  const Status status = StatusOf(text);
  EXPECT_EQ(status.code(), code) << text << "\n" << status.ToString();
  EXPECT_NE(status.message().find(part), std::string::npos) << status.ToString();
}

TEST(Recipe, BuiltInRowsParseAndSurviveARoundTrip) {
  ASSERT_EQ(BuiltInRecipeNames().size(), 5u);
  for (const std::string& name : BuiltInRecipeNames()) {
    const Result<Recipe> recipe = FindRecipe(name);
    ASSERT_TRUE(recipe.ok()) << recipe.status().ToString();
    EXPECT_EQ(recipe->name, name);
    EXPECT_FALSE(recipe->summary.empty());
    const Result<Recipe> again = ParseRecipe(RecipeToJson(*recipe));
    ASSERT_TRUE(again.ok()) << again.status().ToString();
    EXPECT_EQ(*again, *recipe);
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

TEST(Recipe, UnknownNameListsTheKnownOnes) {
  const Status status = FindRecipe("fp4_ms_papr").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_NE(status.message().find("te_fp8_current"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("did you mean 'fp4_ms_paper'"), std::string::npos);
  EXPECT_EQ(RecipeFromField(Json(3)).status().code(), StatusCode::kInvalidArgument);
}

TEST(Recipe, UnknownKeysAndValuesNameTheField) {
  const StatusCode invalid = StatusCode::kInvalidArgument;
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scal":"f32(6)"
})j"),
                invalid, "'scal'");
  ExpectRefused(WithXf(R"j({"elem":"e2m2","scale":"f32(6)"
})j"),
                invalid, "linear.Xf.elem");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f33(6)"
})j"),
                invalid, "linear.Xf.scale");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32(6"})j"), invalid, "f32(F)");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"p2(6,p2)"
  })j"),
                invalid, "cur(F,p2)");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32(0)"
  })j"),
                invalid, "F > 0");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":7})j"), invalid, "linear.Xf.scale is 7");
  ExpectRefused(WithXf(R"j({"scale":"f32(6)"
  })j"),
                invalid, "elem is missing");
  ExpectRefused(WithXf(R"j([])j"), invalid, "expected an object");
  ExpectRefused(R"j({"name":"x","linear":{},"colour":1})j", invalid, "'colour'");
  ExpectRefused(R"j({"name":"x","linear":{}})j", invalid, "linear.Xf is missing");
  ExpectRefused(R"j({"name":"a b","linear":{}})j", invalid, "name is \"a b\"");
  ExpectRefused(R"j({"linear":{}})j", invalid, "name is null");
  ExpectRefused("{", invalid, "");
}

TEST(Recipe, MethodsThatAreNotBuiltSayWhatIs) {
  const StatusCode absent = StatusCode::kUnimplemented;
  ExpectRefused(WithXf(R"j({"elem":"int4c","scale":"f32(6)"
  })j"),
                absent, "built: fp32, bf16");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","block":"1x16","scale":"f32(6)"
  })j"),
                absent, "'1x16'");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"nv"})j"), absent, "'nv'");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"a34"})j"), absent, "f32, p2, cur");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32(6)","xform":"H32"
  })j"),
                absent, "'H32'");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32(6)","mask":"lt6"
  })j"),
                absent, "'lt6'");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32(6)","post":"e4m3_p2"
  })j"),
                absent, "post");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32(6)","window":16
  })j"),
                absent, "window");
  ExpectRefused(WithXf(R"j({"source":"requant"})j"), absent, "'requant'");
}

TEST(Recipe, RulesBetweenFieldsAreHeld) {
  const StatusCode invalid = StatusCode::kInvalidArgument;
  ExpectRefused(WithXf(R"j({"elem":"e2m1"})j"), invalid, "scale is missing");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32(7)"
  })j"),
                invalid, "at most 6");
  ExpectRefused(WithXf(R"j({"elem":"e4m3","scale":"cur","round":"sr24"})j"), invalid, "e2m1 only");
  ExpectRefused(WithXf(R"j({"elem":"e4m3","scale":"cur","block":"och"})j"), invalid, "row of W");
  ExpectRefused(WithXf(R"j({"elem":"bf16","scale":"cur(4)"
  })j"),
                invalid, "takes none");
  ExpectRefused(WithXf(R"j({"source":"reuse"})j"), invalid, "no earlier slot");
  ExpectRefused(WithXf(R"j({"source":"reuse","elem":"bf16"})j"), invalid,
                "remove its other fields");
  ExpectRefused(WithXf(R"j({"elem":"e2m1","scale":"f32","pre":{"occ":{"alpha":0.2}}})j"), invalid,
                "alpha");
  Recipe recipe = *FindRecipe("te_fp8_current");
  recipe.linear.weight_estimator.kind = Estimator::kDge;
  EXPECT_EQ(ValidateRecipe(recipe).code(), invalid);
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

TEST(Recipe, ExcludedBlocksAreBf16) {
  Recipe recipe = *FindRecipe("fp4_ms_paper");
  recipe.bf16_blocks_first = 1;
  recipe.bf16_blocks_last = 2;
  EXPECT_EQ(recipe.LinearForBlock(0, 6), LinearRecipe{});
  EXPECT_EQ(recipe.LinearForBlock(1, 6), recipe.linear);
  EXPECT_EQ(recipe.LinearForBlock(3, 6), recipe.linear);
  EXPECT_EQ(recipe.LinearForBlock(4, 6), LinearRecipe{});
}

TEST(Recipe, PrecisionOfEachGemmIsHonest) {
  const RecipePrecision paper = PrecisionOf(FindRecipe("fp4_ms_paper")->linear);
  EXPECT_TRUE(paper.fprop.native_fp4);
  EXPECT_EQ(paper.fprop.result, PrecisionClass::kFp4);
  EXPECT_FALSE(paper.dgrad.native_fp4);
  EXPECT_EQ(paper.dgrad.result, PrecisionClass::kFp8);
  EXPECT_EQ(paper.wgrad.result, PrecisionClass::kFp8);
  EXPECT_EQ(PrecisionOf(FindRecipe("bf16")->linear).wgrad.result, PrecisionClass::kBf16);
}

TEST(Recipe, WarnsOfClampingThatClampsNothing) {
  Recipe recipe = *FindRecipe("fp4_ms_paper");
  EXPECT_TRUE(RecipeWarnings(recipe, 2048, 256).empty());
  recipe.linear.slots[0].pre.scope = OccScope::kToken;
  EXPECT_EQ(RecipeWarnings(recipe, 2048, 64).size(), 1u);
  EXPECT_TRUE(RecipeWarnings(recipe, 2048, 256).empty());
}

TEST(Recipe, DescriptionHasOneLinePerSlot) {
  const std::vector<std::string> lines = DescribeRecipe(*FindRecipe("fp4_ms_paper"));
  ASSERT_GE(lines.size(), 8u);
  EXPECT_EQ(lines[0],
            "Xf: E2M1 (4 bit), scale 6/amax per token, clamped at quantile 0.99 of the tensor, "
            "outliers kept in E4M3");
  EXPECT_EQ(lines[3], "Wd: the codes of Wf, E2M1 (4 bit)");
}

}  // namespace
}  // namespace nibble
