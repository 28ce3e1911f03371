// SPDX-License-Identifier: Apache-2.0
#include "worker/study/study_definition.h"

#include <gtest/gtest.h>

#include <set>

#include "base/files.h"
#include "base/strings.h"
#include "worker/study/json_patch.h"
#include "worker/study/study_test_support.h"

namespace nibble {
namespace {

std::string StudiesFolder() { return JoinPath(NIBBLE_SOURCE_DIR, "examples/studies"); }

Json Parsed(const std::string& text) { return Json::Parse(text).value(); }

TEST(MergePatch, FollowsTheExamplesOfRfc7396) {
  const char* rows[][3] = {
      {R"({"a":"b"})", R"({"a":"c"})", R"({"a":"c"})"},
      {R"({"a":"b"})", R"({"b":"c"})", R"({"a":"b","b":"c"})"},
      {R"({"a":"b","b":"c"})", R"({"a":null})", R"({"b":"c"})"},
      {R"({"a":["b"]})", R"({"a":"c"})", R"({"a":"c"})"},
      {R"({"a":{"b":"c"}})", R"({"a":{"b":"d","c":null}})", R"({"a":{"b":"d"}})"},
      {R"({"a":[1,2]})", R"({"a":[3]})", R"({"a":[3]})"},
      {R"(["a"])", R"({"b":1})", R"({"b":1})"}};
  for (const auto& row : rows) {
    EXPECT_EQ(MergePatch(Parsed(row[0]), Parsed(row[1])).Dump(), row[2]);
  }
}

TEST(SetPath, SetsMakesAndRemovesFields) {
  Json json = Parsed(R"({"a":{"b":1,"c":2}})");
  ASSERT_TRUE(SetPath(&json, "a.b", "x").ok());
  ASSERT_TRUE(SetPath(&json, "d.e", 3).ok());
  ASSERT_TRUE(SetPath(&json, "a.c", Json()).ok());
  EXPECT_EQ(json.Dump(), R"({"a":{"b":"x"},"d":{"e":3}})");
  EXPECT_EQ(SetPath(&json, "a.b.c", 1).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(SetPath(&json, "a..c", 1).code(), StatusCode::kInvalidArgument);
}

TEST(StudyDefinition, ReadsArmsWithTheirOwnRatesAndPatches) {
  const auto study =
      ParseStudy("s", Parsed(R"j({"learning_rates":[2e-3,1e-3,2e-3],"seeds":[1,2],"arms":["bf16",
        {"recipe":"fp4_direct","name":"x","learning_rates":[5e-3],
         "patch":{"linear.Xf.round":"away"}}]})j"),
                 kFullScale);
  ASSERT_TRUE(study.ok()) << study.status().ToString();
  ASSERT_EQ(study->arms.size(), 2u);
  EXPECT_EQ(study->arms[0].learning_rates, (std::vector<double>{1e-3, 2e-3}));
  EXPECT_EQ(study->arms[1].learning_rates, (std::vector<double>{5e-3}));
  EXPECT_EQ(study->arms[1].label, "x");
  EXPECT_EQ(study->baseline_index(), 0);
}

TEST(StudyDefinition, EveryMistakeIsReportedWithItsField) {
  const auto study =
      ParseStudy("s", Parsed(R"j({"learning_rates":[],"seeds":[1,1],"baseline":"none","colour":1,
        "arms":["bf16","bf16",{"name":"Bad Name","recipe":"bf16"},{"name":"empty"}]})j"),
                 kFullScale);
  ASSERT_FALSE(study.ok());
  const std::string message = study.status().message();
  for (const char* part : {"learning_rates", "seeds", "comes twice", "Bad Name", "arms[3].recipe",
                           "baseline", "colour"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
}

TEST(StudyDefinition, AScaleIsAPatchAndAnUnknownOneListsTheKnown) {
  const Json json = Parsed(
      R"j({"run":{"schedule":{"steps":100,"microBatch":4}},"learning_rates":[1e-3],"seeds":[1,2,3],
        "arms":["bf16"],"scales":{"quick":{"run":{"schedule":{"steps":5}},"seeds":[1]}}})j");
  const auto quick = ParseStudy("s", json, "quick");
  ASSERT_TRUE(quick.ok());
  EXPECT_EQ(quick->run["schedule"].Dump(), R"({"steps":5,"microBatch":4})");
  EXPECT_EQ(quick->seeds.size(), 1u);
  EXPECT_EQ(quick->id(), "s.quick");
  const auto unknown = ParseStudy("s", json, "quik");
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.status().message().find("did you mean 'quick'"), std::string::npos)
      << unknown.status().message();
}

TEST(StudyDefinition, AnUnknownStudyListsTheKnown) {
  const auto study = LoadStudy(StudiesFolder(), "fig6", kFullScale);
  ASSERT_EQ(study.status().code(), StatusCode::kNotFound);
  EXPECT_NE(study.status().message().find("fig6a"), std::string::npos);
}

// What ships must be readable at every scale, and its runs and patches must be well-formed: a
// recipe may be missing from this release, a path may not be wrong.
TEST(ShippedStudies, AllParseAndPlanAtEveryScale) {
  const auto listed = ListStudies(StudiesFolder());
  ASSERT_TRUE(listed.ok());
  const std::set<std::string> expected = {"axes",    "default",  "fig6a",  "fig6b",
                                          "fig6c",   "fig6d",    "folded", "long",
                                          "recipes", "rotation", "smoke"};
  std::set<std::string> names;
  for (const StudyListing& study : *listed) {
    names.insert(study.name);
    for (const char* scale : {kFullScale, "quick", "test"}) {
      const auto definition = LoadStudy(StudiesFolder(), study.name, scale);
      ASSERT_TRUE(definition.ok()) << definition.status().ToString();
      EXPECT_FALSE(definition->title.empty()) << study.name;
      EXPECT_FALSE(definition->question.empty()) << study.name;
      const auto plan = MakePlan(*definition, {"tokens", "tokens/val", "f", "text", 1, 1});
      ASSERT_TRUE(plan.ok()) << plan.status().ToString();
      const int baseline = definition->baseline_index();
      EXPECT_EQ(plan->arms[static_cast<size_t>(baseline)].not_run, "");
    }
  }
  EXPECT_EQ(names, expected);
}

// The full studies share one base run, or their runs could not be shared.
TEST(ShippedStudies, ThoseAgainstBf16ShareItsRuns) {
  std::set<std::string> hashes;
  for (const char* name : {"fig6a", "fig6b", "fig6c", "fig6d", "folded", "recipes", "rotation"}) {
    const auto definition = LoadStudy(StudiesFolder(), name, kFullScale).value();
    const auto plan = MakePlan(definition, {"tokens", "tokens/val", "f", "text", 1, 1}).value();
    const RunKey key{definition.baseline_index(), 4e-3, definition.seeds.front()};
    hashes.insert(RunHash(ConfigOf(plan, key), "f"));
  }
  EXPECT_EQ(hashes.size(), 1u);
}

}  // namespace
}  // namespace nibble
