// SPDX-License-Identifier: Apache-2.0
//
// nibble recipes, which needs no controller.
#include <gtest/gtest.h>

#include <sstream>

#include "base/files.h"
#include "base/json.h"
#include "client/cli/command_line.h"
#include "kernels/recipe/yaml/yaml_json.h"

namespace nibble::cli {
namespace {

struct Outcome {
  int code = -1;
  std::string out, err;
};

class Recipes : public ::testing::Test {
 protected:
  Outcome Run(std::vector<std::string> arguments) {
    std::ostringstream out, err;
    Terminal terminal;
    CliContext context(out, err, interrupt_, terminal);
    arguments.insert(arguments.begin(), "recipes");
    Outcome outcome;
    outcome.code = RunCommandLine(arguments, context);
    outcome.out = out.str();
    outcome.err = err.str();
    return outcome;
  }
  std::string Write(const std::string& text) {
    if (folder_.empty()) folder_ = MakeTempDirectory("recipes").value();
    const std::string path = JoinPath(folder_, "mine.yaml");
    EXPECT_TRUE(AtomicWriteFile(path, text).ok());
    return path;
  }
  void TearDown() override {
    if (folder_.empty()) return;
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  Interrupt interrupt_;
  std::string folder_;
};

constexpr char kMine[] = R"(
name: mine
linear:
  Xf: {elem: e2m1, block: 1x16, scale: nv(256), alternatives: 4over6(mae)}
  Wf: {elem: e2m1, block: 16x16, scale: nv}
  Gd: {elem: e2m1, block: 1x16, scale: nv, round: sr24}
  Wd: {source: reuse}
  Gw: {elem: bf16}
  Xw: {elem: bf16}
  estW: ste
bf16_blocks: {first: 1, last_share: .25}
)";

TEST_F(Recipes, ListsEveryRow) {
  const Outcome table = Run({"list"});
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_NE(table.out.find("nvfp4_te"), std::string::npos);
  EXPECT_EQ(Run({"list", "-o", "name"}).out.substr(0, 10), "fp32\nbf16\n");
  const Result<Json> rows = Json::Parse(Run({"list", "--json"}).out);
  ASSERT_TRUE(rows.ok());
  ASSERT_EQ(rows->size(), BuiltInRecipeNames().size());
  EXPECT_EQ(rows->At(0)["name"].AsString(), "fp32");
  EXPECT_EQ(rows->At(0)["dgrad"].AsString(), "fp32");
}

TEST_F(Recipes, ShowsWhatARowDoes) {
  const Outcome text = Run({"show", "fp4_ms_paper"});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find("Xf: E2M1 (4 bit), scale 6/amax per token"), std::string::npos);
  EXPECT_NE(text.out.find("not native FP4"), std::string::npos);
  const Result<Json> json = Json::Parse(Run({"show", "nvfp4_te", "-o", "json"}).out);
  ASSERT_TRUE(json.ok());
  EXPECT_EQ((*json)["linear"]["Gw"]["xform"].AsString(), "R16");
}

TEST_F(Recipes, YamlOfEveryRowIsAValidFile) {
  for (const std::string& name : BuiltInRecipeNames()) {
    const Outcome yaml = Run({"show", name, "-o", "yaml"});
    ASSERT_EQ(yaml.code, 0) << name;
    const std::string path = Write(yaml.out);
    const Result<Recipe> read = ReadRecipeFile(path);
    ASSERT_TRUE(read.ok()) << read.status().ToString() << "\n" << yaml.out;
    EXPECT_EQ(*read, FindRecipe(name).value()) << name;
    EXPECT_EQ(Run({"validate", path}).code, 0) << name;
  }
}

TEST_F(Recipes, ValidatesAFileOfOnesOwn) {
  const std::string path = Write(kMine);
  const Outcome text = Run({"validate", path});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find("recipe 'mine' is valid"), std::string::npos);
  const Recipe recipe = ReadRecipeFile(path).value();
  EXPECT_EQ(recipe.bf16_share_last, 0.25);
  EXPECT_EQ(recipe.linear.slot(Slot::kXf).alternatives.metric, ErrorMetric::kMae);
  const Result<Json> json = Json::Parse(Run({"validate", path, "--json"}).out);
  ASSERT_TRUE(json.ok());
  EXPECT_EQ((*json)["recipe"]["name"].AsString(), "mine");
  const Result<Json> shown = Json::Parse(Run({"show", path, "--json"}).out);
  ASSERT_TRUE(shown.ok());
  EXPECT_EQ(*ParseRecipe(*shown), recipe);
  EXPECT_TRUE((*json)["gemms"]["fprop"]["nativeFp4"].AsBool());
  EXPECT_FALSE((*json)["gemms"]["wgrad"]["nativeFp4"].AsBool());
  EXPECT_GE((*json)["meaning"].size(), 8u);
}

TEST_F(Recipes, RefusalsNameTheRuleAndHaveTheirExitCodes) {
  std::string bad = kMine;
  bad.replace(bad.find("nv(256)"), 7, "nv(448)");
  const Outcome rule = Run({"validate", Write(bad)});
  EXPECT_EQ(rule.code, 6);
  EXPECT_NE(rule.err.find("breaks the rule 'alternatives'"), std::string::npos) << rule.err;
  EXPECT_TRUE(rule.out.empty());
  EXPECT_EQ(Run({"validate", Write("name: [")}).code, 6);
  EXPECT_EQ(Run({"validate", Write("name: a\nname: b\n")}).code, 6);
  EXPECT_EQ(Run({"validate", "/nonexistent.yaml"}).code, 3);
  const Outcome unknown = Run({"show", "nvfp4_tee"});
  EXPECT_EQ(unknown.code, 3);
  EXPECT_NE(unknown.err.find("did you mean 'nvfp4_te'"), std::string::npos) << unknown.err;
  EXPECT_EQ(Run({"show"}).code, 2);
  EXPECT_EQ(Run({"list", "fp32"}).code, 2);
  EXPECT_EQ(Run({"explain"}).code, 2);
}

TEST_F(Recipes, AliasesOfAliasesDoNotGrowWithoutEnd) {
  std::string text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 9; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    text += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int j = 0; j < 10; ++j) text += (j > 0 ? ", " : "") + before;
    text += "]\n";
  }
  const Status status = YamlToJson(text, "bomb.yaml").status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("more than"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace nibble::cli
