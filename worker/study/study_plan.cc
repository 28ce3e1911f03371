// SPDX-License-Identifier: Apache-2.0
#include "worker/study/study_plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/sha256.h"
#include "base/strings.h"
#include "kernels/recipe/recipe.h"
#include "worker/study/json_patch.h"

namespace nibble {
namespace {

// Raised when the trainer changes in a way that makes old results incomparable.
constexpr int kRunFormat = 1;

Result<std::string> PatchedRecipe(const StudyArm& arm) {
  ASSIGN_OR_RETURN(const Recipe base, FindRecipe(arm.recipe));
  Json json = RecipeToJson(base);
  for (const Json::Member& change : arm.patch.members()) {
    RETURN_IF_ERROR(SetPath(&json, change.first, change.second));
  }
  json.Set("name", arm.name);
  ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(json));
  return RecipeToJson(recipe).Dump();
}

// The base run as a job document on the study's data, before arm, rate and seed.
Json JobJson(const StudyDefinition& definition, const StudyData& data) {
  Json job = definition.run;
  Json shards = job["data"];
  shards.Set("path", data.train_folder);
  shards.Set("validation", Json::Array({data.validation_glob}));
  return job.Set("data", std::move(shards));
}

RunConfig BaseConfig(const StudyPlan& plan) {
  std::vector<FieldError> errors;  // checked by MakePlan
  return ParseRunConfig(JobJson(plan.definition, plan.data), errors);
}

// Runs on the first seed, in the order of the arm's rates.
std::vector<RunKey> RateRuns(const StudyPlan& plan, int arm) {
  std::vector<RunKey> keys;
  for (const double rate : plan.arms[static_cast<size_t>(arm)].arm.learning_rates) {
    keys.push_back({arm, rate, plan.definition.seeds.front()});
  }
  return keys;
}

// Hash and result of a run; the config is parsed once per plan.
class Lookup {
 public:
  Lookup(const StudyPlan& plan, const ResultLookup& results) : plan_(plan), results_(results) {}
  std::string Hash(const RunKey& key) const {
    return RunHash(ConfigOf(plan_, key), plan_.data.fingerprint);
  }
  const RunRecord* Result(const RunKey& key) const { return results_(Hash(key)); }

 private:
  const StudyPlan& plan_;
  const ResultLookup& results_;
};

bool Finished(const RunRecord* record) {
  return record != nullptr &&
         (record->state == RunState::kCompleted || record->state == RunState::kDiverged);
}

std::vector<int> ArmOrder(const StudyPlan& plan) {
  std::vector<int> order = {plan.definition.baseline_index()};
  for (int i = 0; i < static_cast<int>(plan.arms.size()); ++i) {
    if (i != order.front()) order.push_back(i);
  }
  return order;
}

}  // namespace

Result<StudyPlan> MakePlan(StudyDefinition definition, StudyData data) {
  StudyPlan plan;
  const Result<RunConfig> base = RunConfigFromJson(JobJson(definition, data));
  if (!base.ok()) return base.status().WithContext("study " + definition.name + ": run");
  for (const StudyArm& arm : definition.arms) {
    ArmPlan planned{arm, "", ""};
    Result<std::string> recipe = PatchedRecipe(arm);
    if (recipe.ok()) {
      planned.recipe_json = *std::move(recipe);
    } else {
      planned.not_run = recipe.status().message();
    }
    plan.arms.push_back(std::move(planned));
  }
  plan.definition = std::move(definition);
  plan.data = std::move(data);
  return plan;
}

RunConfig ConfigOf(const StudyPlan& plan, const RunKey& key) {
  const ArmPlan& arm = plan.arms[static_cast<size_t>(key.arm)];
  RunConfig config = BaseConfig(plan);
  config.name = StrFormat("%s-%s-lr%g-seed%lld", plan.definition.id().c_str(), arm.arm.name.c_str(),
                          key.learning_rate, static_cast<long long>(key.seed));
  config.optimizer.peak_lr = key.learning_rate;
  config.seed = static_cast<uint32_t>(key.seed);
  config.recipe = arm.arm.name;
  config.recipe_json = arm.recipe_json;
  return config;
}

std::string RunHash(const RunConfig& config, const std::string& data_fingerprint) {
  const Json spec = RunConfigToJson(config);
  Json recipe = Json::Parse(config.recipe_json).value_or(Json::Object());
  recipe = MergePatch(recipe, Json::Object({{"name", Json()}, {"summary", Json()}}));
  const Json content = Json::Object({{"format", kRunFormat},
                                     {"seed", spec["seed"]},
                                     {"model", spec["model"]},
                                     {"seqLen", spec["data"]["seqLen"]},
                                     {"optimizer", spec["optimizer"]},
                                     {"schedule", spec["schedule"]},
                                     {"recipe", std::move(recipe)},
                                     {"data", data_fingerprint}});
  return Sha256Hex(content.Dump());
}

std::optional<double> ChosenRate(const StudyPlan& plan, int arm, const ResultLookup& results) {
  if (!plan.arms[static_cast<size_t>(arm)].not_run.empty()) return std::nullopt;
  const Lookup lookup(plan, results);
  const RunRecord* best = nullptr;
  double rate = 0;
  for (const RunKey& key : RateRuns(plan, arm)) {
    const RunRecord* record = lookup.Result(key);
    if (!Finished(record)) return std::nullopt;
    if (record->state != RunState::kCompleted) continue;
    if (best == nullptr || record->final_validation_loss < best->final_validation_loss) {
      best = record;
      rate = key.learning_rate;
    }
  }
  if (best == nullptr) return std::nullopt;
  return rate;
}

std::vector<RunKey> WantedRuns(const StudyPlan& plan, const ResultLookup& results) {
  const Lookup lookup(plan, results);
  std::vector<RunKey> wanted;
  std::set<std::string> seen;
  const auto want = [&](const RunKey& key) {
    const std::string hash = lookup.Hash(key);
    if (!Finished(results(hash)) && seen.insert(hash).second) wanted.push_back(key);
  };
  const auto refused = [&](const RunKey& key) {
    const RunRecord* record = lookup.Result(key);
    return record != nullptr && record->state == RunState::kNotRun;
  };
  std::vector<int> runnable;
  for (const int arm : ArmOrder(plan)) {
    if (!plan.arms[static_cast<size_t>(arm)].not_run.empty()) continue;
    const std::vector<RunKey> keys = RateRuns(plan, arm);
    if (std::any_of(keys.begin(), keys.end(), refused)) continue;
    runnable.push_back(arm);
    for (const RunKey& key : keys) want(key);
  }
  for (size_t s = 1; s < plan.definition.seeds.size(); ++s) {
    for (const int arm : runnable) {
      const std::optional<double> rate = ChosenRate(plan, arm, results);
      if (!rate) continue;
      const RunKey key{arm, *rate, plan.definition.seeds[s]};
      if (!refused(key)) want(key);
    }
  }
  return wanted;
}

PlanProgress ProgressOf(const StudyPlan& plan, const ResultLookup& results) {
  const Lookup lookup(plan, results);
  PlanProgress progress;
  std::set<std::string> seen;
  const auto count = [&](const RunKey& key) {
    const std::string hash = lookup.Hash(key);
    if (!seen.insert(hash).second) return;
    const RunRecord* record = results(hash);
    progress.total += record != nullptr && record->state == RunState::kNotRun ? 0 : 1;
    progress.finished += Finished(record) ? 1 : 0;
  };
  for (int arm = 0; arm < static_cast<int>(plan.arms.size()); ++arm) {
    if (!plan.arms[static_cast<size_t>(arm)].not_run.empty()) continue;
    const std::vector<RunKey> keys = RateRuns(plan, arm);
    for (const RunKey& key : keys) count(key);
    const bool pending = std::any_of(keys.begin(), keys.end(), [&](const RunKey& key) {
      const RunRecord* record = lookup.Result(key);
      return record == nullptr || record->state == RunState::kUnfinished;
    });
    const std::optional<double> rate = ChosenRate(plan, arm, results);
    for (size_t s = 1; s < plan.definition.seeds.size(); ++s) {
      if (rate) count({arm, *rate, plan.definition.seeds[s]});
      if (!rate && pending) ++progress.total;
    }
  }
  return progress;
}

PlanCost CostOf(const std::vector<StudyPlan>& plans) {
  PlanCost cost;
  std::set<std::string> runs;
  for (const StudyPlan& plan : plans) {
    const auto count = [&](const RunKey& key) {
      const StudyArm& arm = plan.arms[static_cast<size_t>(key.arm)].arm;
      const bool built = plan.arms[static_cast<size_t>(key.arm)].not_run.empty();
      // Without a recipe there is no hash; the arm's own words stand in for it.
      const std::string name = built ? "" : arm.recipe + arm.patch.Dump();
      const std::string hash = RunHash(ConfigOf(plan, key), plan.data.fingerprint);
      if (!runs.insert(hash + name).second) return;
      ++cost.runs;
      cost.tokens += TokensPerRun(plan);
    };
    for (int arm = 0; arm < static_cast<int>(plan.arms.size()); ++arm) {
      const std::vector<RunKey> keys = RateRuns(plan, arm);
      for (const RunKey& key : keys) count(key);
      for (size_t s = 1; s < plan.definition.seeds.size(); ++s) {
        count({arm, keys.front().learning_rate, plan.definition.seeds[s]});
      }
    }
  }
  return cost;
}

int64_t TokensPerRun(const StudyPlan& plan) {
  const RunConfig config = BaseConfig(plan);
  return config.schedule.steps * config.tokens_per_step();
}

}  // namespace nibble
