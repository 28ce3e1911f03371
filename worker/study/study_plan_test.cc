// SPDX-License-Identifier: Apache-2.0
#include "worker/study/study_plan.h"

#include <gtest/gtest.h>

#include <set>

#include "kernels/recipe/recipe.h"
#include "worker/study/study_summary.h"
#include "worker/study/study_test_support.h"

namespace nibble {
namespace {

// Arms of kTestStudy.
constexpr int kDirect = 0;
constexpr int kBaseline = 1;
constexpr int kAway = 2;

TEST(RunHash, FollowsTheNumbersAndNothingElse) {
  const StudyPlan plan = TestPlan();
  const RunConfig config = ConfigOf(plan, {kDirect, 1e-3, 7});
  const std::string hash = RunHash(config, "f");
  RunConfig same = config;
  same.name = same.recipe = "other";
  same.run.dir = "elsewhere";
  same.run.threads = 5;
  same.data.path = "moved";
  same.checkpoint.every_steps = 3;
  EXPECT_EQ(RunHash(same, "f"), hash);
  std::vector<RunConfig> others(6, config);
  others[0].seed = 8;
  others[1].optimizer.peak_lr = 2e-3;
  others[2].schedule.steps = 11;
  others[3].model.layers = 3;
  others[4].data.seq_len = 32;
  others[5].recipe_json = plan.arms[kAway].recipe_json;
  for (const RunConfig& other : others) EXPECT_NE(RunHash(other, "f"), hash);
  EXPECT_NE(RunHash(config, "g"), hash);
}

TEST(StudyPlan, APatchThatChangesNothingIsTheSameRun) {
  const StudyPlan plan = TestPlan(R"j({"run":{"model":{"hiddenSize":32,"intermediateSize":64,
    "layers":1,"heads":2},"schedule":{"steps":4}},"learning_rates":[1e-3],"seeds":[1],
    "arms":["bf16","fp4_direct",{"recipe":"fp4_direct","name":"same",
     "patch":{"linear.estW":"ste"}}]})j");
  EXPECT_EQ(RunHash(ConfigOf(plan, {1, 1e-3, 1}), "f"), RunHash(ConfigOf(plan, {2, 1e-3, 1}), "f"));
  EXPECT_EQ(CostOf({plan}).runs, 2);
  EXPECT_EQ(CostOf({plan, plan}).runs, 2);
}

TEST(StudyPlan, ARecipeThatCannotBeBuiltKeepsItsReason) {
  const StudyPlan plan = TestPlan(R"j({"run":{"model":{"hiddenSize":32,"intermediateSize":64,
    "layers":1,"heads":2},"schedule":{"steps":4}},"learning_rates":[1e-3],"seeds":[1],
    "arms":["bf16","no_such_recipe",{"recipe":"bf16","name":"bad",
     "patch":{"linear.Xf.round":"up"}}]})j");
  EXPECT_EQ(plan.arms[0].not_run, "");
  EXPECT_NE(plan.arms[1].not_run.find("no_such_recipe"), std::string::npos);
  EXPECT_NE(plan.arms[2].not_run, "");
  EXPECT_EQ(WantedRuns(plan, TestResults(plan).Find()).size(), 1u);
  EXPECT_EQ(CostOf({plan}).runs, 3) << "the plan counts them, in case they get built";
}

TEST(StudyPlan, EveryBuiltInRowRuns) {
  Json json = Json::Parse(kTestStudy).value();
  json.Set("also_built_in", true);
  const StudyPlan plan = TestPlan(json.Dump());
  int checked = 0;
  for (const ArmPlan& arm : plan.arms) {
    if (arm.arm.name == "away") continue;
    EXPECT_EQ(arm.not_run, "") << arm.arm.name;
    ++checked;
  }
  EXPECT_EQ(checked, static_cast<int>(BuiltInRecipeNames().size()));
}

TEST(WantedRuns, BeginWithEveryRateOnTheFirstSeedBaselineFirst) {
  const StudyPlan plan = TestPlan();
  const std::vector<RunKey> wanted = WantedRuns(plan, TestResults(plan).Find());
  ASSERT_EQ(wanted.size(), 9u);
  EXPECT_EQ(wanted[0], (RunKey{kBaseline, 1e-3, 7}));
  EXPECT_EQ(wanted[3], (RunKey{kDirect, 1e-3, 7}));
  for (const RunKey& key : wanted) EXPECT_EQ(key.seed, 7);
}

TEST(WantedRuns, TheBestRateGoesToTheOtherSeeds) {
  const StudyPlan plan = TestPlan();
  TestResults results(plan);
  results.Set({kDirect, 1e-3, 7}, RunState::kCompleted, 4.0);
  results.Set({kDirect, 2e-3, 7}, RunState::kCompleted, 3.5);
  EXPECT_FALSE(ChosenRate(plan, kDirect, results.Find()).has_value()) << "one rate is missing";
  results.Set({kDirect, 4e-3, 7}, RunState::kDiverged);
  EXPECT_EQ(ChosenRate(plan, kDirect, results.Find()), 2e-3);
  const std::vector<RunKey> wanted = WantedRuns(plan, results.Find());
  ASSERT_EQ(wanted.size(), 8u);
  EXPECT_EQ(wanted[6], (RunKey{kDirect, 2e-3, 8}));
  EXPECT_EQ(wanted[7], (RunKey{kDirect, 2e-3, 9}));
}

TEST(WantedRuns, AnArmThatDivergesEverywhereOrIsRefusedIsLeft) {
  const StudyPlan plan = TestPlan();
  TestResults results(plan);
  for (const double rate : {1e-3, 2e-3, 4e-3}) {
    results.Set({kDirect, rate, 7}, RunState::kDiverged);
    results.Set({kBaseline, rate, 7}, RunState::kCompleted, 3.0);
  }
  results.Set({kAway, 1e-3, 7}, RunState::kNotRun).message = "no kernel";
  for (const RunKey& key : WantedRuns(plan, results.Find())) EXPECT_EQ(key.arm, kBaseline);
  const PlanProgress progress = ProgressOf(plan, results.Find());
  EXPECT_EQ(progress.finished, 6);
  const StudySummary summary = Summarise(plan, results.Find());
  EXPECT_EQ(summary.arms[kDirect].diverged, 3);
  EXPECT_EQ(summary.arms[kAway].not_run, "no kernel");
}

TEST(StudySummary, ComparesSeedBySeedWithTheBaseline) {
  const StudyPlan plan = TestPlan();
  TestResults results(plan);
  const double baseline[] = {4.0, 5.0, 6.0};
  const double direct[] = {4.1, 5.1, 6.1};
  for (const double rate : {1e-3, 2e-3, 4e-3}) {
    results.Set({kBaseline, rate, 7}, RunState::kCompleted, rate == 2e-3 ? baseline[0] : 9);
    results.Set({kDirect, rate, 7}, RunState::kCompleted, rate == 4e-3 ? direct[0] : 9);
  }
  for (int s = 1; s < 3; ++s) {
    results.Set({kBaseline, 2e-3, 7 + s}, RunState::kCompleted, baseline[s]);
    results.Set({kDirect, 4e-3, 7 + s}, RunState::kCompleted, direct[s]);
  }
  const StudySummary summary = Summarise(plan, results.Find());
  const ArmSummary& arm = summary.arms[kDirect];
  EXPECT_EQ(arm.rate, 4e-3);
  EXPECT_TRUE(arm.rate_at_edge);
  EXPECT_FALSE(summary.arms[kBaseline].rate_at_edge);
  EXPECT_TRUE(arm.complete());
  EXPECT_NEAR(arm.difference.mean, 0.1, 1e-12);
  EXPECT_NEAR(arm.difference.half_width, 0, 1e-9);
  EXPECT_NEAR(arm.gap_percent, 2.0, 1e-9);
  ASSERT_EQ(arm.curve.size(), 3u);
  EXPECT_DOUBLE_EQ(arm.curve[2].tokens, 10 * 4 * 16);
  EXPECT_NEAR(arm.curve[2].mean, 5.1, 1e-12);
  EXPECT_DOUBLE_EQ(arm.curve[2].low, 4.1);
  // Gaps seed by seed: 0.1 of 4, 5 and 6 in percent.
  ASSERT_EQ(arm.gap_curve.size(), 3u);
  EXPECT_NEAR(arm.gap_curve[2].mean, (0.1 / 4 + 0.1 / 5 + 0.1 / 6) * 100 / 3, 1e-9);
  EXPECT_NEAR(arm.gap_curve[2].high, 2.5, 1e-9);
  EXPECT_NEAR(summary.arms[kBaseline].gap_curve[2].high, 0, 1e-12);
  EXPECT_EQ(summary.revisions, std::vector<std::string>{"r1"});
  EXPECT_NEAR(summary.train_hours, 10, 1e-9) << "six rate runs, four seed runs, an hour each";
  EXPECT_EQ(summary.arms[kAway].loss.count, 0);
}

}  // namespace
}  // namespace nibble
