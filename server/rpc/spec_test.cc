// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/spec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "server/rpc/estimates.h"
#include "server/rpc/test_support.h"

namespace nibble::rpc {
namespace {

std::vector<FieldError> ErrorsOf(const v1::JobSpec& spec) {
  std::vector<FieldError> errors;
  ResolveSpec(spec, errors);
  return errors;
}

// One mistake, the field it must be reported at, and a word its description must hold.
struct Mistake {
  const char* field;
  const char* word;
  std::function<void(v1::JobSpec&)> make;
};

TEST(Spec, EveryMistakeNamesItsFieldAndTheFix) {
  const std::vector<Mistake> mistakes = {
      {"apiVersion", "nibble/v1", [](auto& s) { s.set_api_version("nibble/v9"); }},
      {"kind", "TrainJob", [](auto& s) { s.set_kind("Sweep"); }},
      {"metadata.name", "missing", [](auto& s) { s.mutable_metadata()->clear_name(); }},
      {"metadata.name", "a-z", [](auto& s) { s.mutable_metadata()->set_name("Not OK"); }},
      {"metadata.project", "a-z", [](auto& s) { s.mutable_metadata()->set_project("_x"); }},
      {"metadata.labels.a=b", "label",
       [](auto& s) { (*s.mutable_metadata()->mutable_labels())["a=b"] = "c"; }},
      {"queue", "a-z", [](auto& s) { s.set_queue("Main Queue"); }},
      {"priority", "-1000", [](auto& s) { s.set_priority(1001); }},
      {"priorityClass", "urgent", [](auto& s) { s.set_priority_class("urgnt"); }},
      {"priorityClass", "one of the two",
       [](auto& s) {
         s.set_priority_class("high");
         s.set_priority(5);
       }},
      {"resources.nodes", "communicator", [](auto& s) { s.mutable_resources()->set_nodes(2); }},
      {"resources.slotsPerNode", "one device",
       [](auto& s) { s.mutable_resources()->set_slots_per_node(8); }},
      {"resources.device", "cuda", [](auto& s) { s.mutable_resources()->set_device("gpu"); }},
      {"resources.memoryBytes", "negative",
       [](auto& s) { s.mutable_resources()->set_memory_bytes(-1); }},
      {"resources.threads", "out of range",
       [](auto& s) { s.mutable_resources()->set_threads(-2); }},
      {"placement.required", "excluded",
       [](auto& s) {
         s.mutable_placement()->add_exclude("w-1");
         s.mutable_placement()->set_required("w-1");
       }},
      {"timeLimit", "out of range", [](auto& s) { s.mutable_time_limit()->set_seconds(-5); }},
      {"retry.user", "1000", [](auto& s) { s.mutable_retry()->set_user(1001); }},
      {"env.RANK", "worker itself", [](auto& s) { (*s.mutable_env())["RANK"] = "1"; }},
      {"env.NIBBLE_JOB_ID", "worker itself",
       [](auto& s) { (*s.mutable_env())["NIBBLE_JOB_ID"] = "1"; }},
      {"env.1X", "variable name", [](auto& s) { (*s.mutable_env())["1X"] = "1"; }},
      {"model.heads", "divi", [](auto& s) { s.mutable_model()->set_heads(5); }},
      {"model.preset", "llama2-60m", [](auto& s) { s.mutable_model()->set_preset("llama2-60"); }},
      {"model.hiddenSize", "missing", [](auto& s) { s.mutable_model()->set_hidden_size(0); }},
      {"data.path", "tokenize", [](auto& s) { s.mutable_data()->clear_path(); }},
      {"schedule.steps", "missing", [](auto& s) { s.mutable_schedule()->clear_steps(); }},
      {"schedule.steps", "both", [](auto& s) { s.mutable_schedule()->set_tokens(1e6); }},
      {"schedule.globalBatch", "multiple",
       [](auto& s) { s.mutable_schedule()->set_global_batch(9); }},
      {"precision.recipe", "fp4_ms_paper",
       [](auto& s) { s.mutable_precision()->set_recipe("fp4_ms"); }},
      {"precision.recipeJson", "",
       [](auto& s) { s.mutable_precision()->set_recipe_json("{broken"); }},
      {"precision.recipe", "is not a multiple of 128",
       [](auto& s) { s.mutable_precision()->set_recipe("quartet2"); }},
  };
  for (const Mistake& mistake : mistakes) {
    v1::JobSpec spec = SmallSpec("ok");
    mistake.make(spec);
    const std::vector<FieldError> errors = ErrorsOf(spec);
    const bool found =
        std::any_of(errors.begin(), errors.end(), [&mistake](const FieldError& error) {
          return error.field == mistake.field &&
                 error.description.find(mistake.word) != std::string::npos;
        });
    std::string got;
    for (const FieldError& error : errors) got += error.field + ": " + error.description + "\n";
    EXPECT_TRUE(found) << "expected " << mistake.field << " with '" << mistake.word << "', got:\n"
                       << got;
  }
}

TEST(Spec, AllMistakesAreReportedAtOnce) {
  v1::JobSpec spec = SmallSpec("BAD NAME");
  spec.mutable_model()->set_heads(5);
  spec.mutable_precision()->set_recipe("nope");
  spec.set_priority(9999);
  EXPECT_GE(ErrorsOf(spec).size(), 4u);
}

TEST(Spec, FieldOfANewerClientIsRefusedNotForgotten) {
  v1::JobSpec spec = SmallSpec("newer");
  spec.mutable_model()
      ->GetReflection()
      ->MutableUnknownFields(spec.mutable_model())
      ->AddVarint(900, 1);
  const std::vector<FieldError> errors = ErrorsOf(spec);
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_EQ(errors[0].field, "model");
  EXPECT_NE(errors[0].description.find("900"), std::string::npos);
}

TEST(Spec, ResolvingFillsDefaultsAndIsIdempotent) {
  std::vector<FieldError> errors;
  v1::JobSpec spec = SmallSpec("plain");
  spec.set_priority_class("high");
  const ResolvedSpec once = ResolveSpec(spec, errors);
  ASSERT_TRUE(errors.empty()) << errors[0].field << errors[0].description;
  EXPECT_EQ(once.proto.queue(), "main");
  EXPECT_EQ(once.proto.priority(), 100);
  EXPECT_EQ(once.proto.metadata().project(), "default");
  EXPECT_EQ(once.proto.start_timeout().seconds(), 600);
  EXPECT_EQ(once.proto.stall_timeout().seconds(), 900);
  EXPECT_EQ(once.proto.retry().infra(), 20);
  EXPECT_EQ(once.proto.precision().recipe(), "fp4_foldi8");
  EXPECT_EQ(once.proto.optimizer().weight_decay(), 0.1);
  EXPECT_EQ(once.proto.seed(), 1234u);
  const ResolvedSpec twice = ResolveSpec(once.proto, errors);
  ASSERT_TRUE(errors.empty());
  EXPECT_EQ(once.json, twice.json);
  const Result<v1::JobSpec> back = SpecFromJson(once.json);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(CanonicalJson(*back).value(), once.json);
}

TEST(Spec, CanonicalJsonHasSortedKeysAndPlainIntegers) {
  v1::JobSpec spec = SmallSpec("sorted");
  (*spec.mutable_env())["B"] = "2";
  (*spec.mutable_env())["A"] = "1";
  spec.mutable_resources()->set_memory_bytes(int64_t{1} << 40);
  const std::string json = CanonicalJson(spec).value();
  EXPECT_NE(json.find("\"memoryBytes\":1099511627776"), std::string::npos) << json;
  EXPECT_NE(json.find("\"steps\":100"), std::string::npos) << json;
  EXPECT_LT(json.find("\"A\""), json.find("\"B\""));
  EXPECT_LT(json.find("\"apiVersion\""), json.find("\"kind\""));
}

TEST(Spec, TooLargeSpecIsRefusedWithTheLimit) {
  v1::JobSpec spec = SmallSpec("large");
  (*spec.mutable_metadata()->mutable_annotations())["a"] = std::string(2 << 20, 'x');
  const std::vector<FieldError> errors = ErrorsOf(spec);
  ASSERT_FALSE(errors.empty());
  EXPECT_NE(errors[0].description.find("1048576"), std::string::npos);
}

TEST(Spec, RequiredWorkerBecomesAFeatureOnlyItProves) {
  std::vector<FieldError> errors;
  v1::JobSpec spec = SmallSpec("pinned");
  spec.mutable_placement()->set_required("w-7");
  spec.mutable_resources()->add_required_features("e2m1");
  const core::JobSpec out = ToCoreSpec(ResolveSpec(spec, errors), "me", 123);
  ASSERT_TRUE(errors.empty());
  EXPECT_EQ(out.resources.required_features,
            (std::vector<std::string>{"e2m1", "recipe:fp4_foldi8", "worker:w-7"}));
  EXPECT_EQ(out.resources.memory_bytes_per_device, 123);
  EXPECT_TRUE(out.Validate().ok()) << out.Validate().ToString();
}

TEST(Estimate, StepTimeScalesWithRateAndThreads) {
  std::vector<FieldError> errors;
  const ResolvedSpec resolved = ResolveSpec(SmallSpec("cost"), errors);
  ASSERT_TRUE(errors.empty());
  Result<JobEstimate> job = EstimateJob(resolved);
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  EXPECT_GT(job->run.parameters, 0);
  EXPECT_EQ(job->run.steps, 100);
  const double slow = StepSeconds(*job, 10, 4);
  EXPECT_GT(slow, 0);
  EXPECT_DOUBLE_EQ(StepSeconds(*job, 20, 4), slow / 2);
  EXPECT_EQ(StepSeconds(*job, 0, 4), 0);
  job->threads = 1;
  EXPECT_DOUBLE_EQ(StepSeconds(*job, 10, 4), slow * 4);
  const v1::Estimate out = ToProto(*job);
  EXPECT_EQ(out.tokens_total(), 100 * 8 * 32);
  EXPECT_EQ(out.memory_bytes().at("total"), job->run.memory.total());
}

TEST(Estimate, VocabularyComesFromTheIndexOfTheData) {
  TempDirectory data;
  ASSERT_TRUE(
      AtomicWriteFile(JoinPath(data.path(), "index.json"), R"({"tokenizer": {"vocab_size": 640}})")
          .ok());
  std::vector<FieldError> errors;
  v1::JobSpec spec = SmallSpec("vocab");
  const int64_t given = EstimateJob(ResolveSpec(spec, errors))->run.parameters;
  spec.mutable_model()->clear_vocab_size();
  spec.mutable_data()->set_path(data.path());
  const Result<JobEstimate> job = EstimateJob(ResolveSpec(spec, errors));
  ASSERT_TRUE(job.ok() && errors.empty());
  EXPECT_TRUE(job->warnings.empty()) << job->warnings[0];
  EXPECT_EQ(job->run.parameters, given + 2 * 64 * (640 - 512));
}

TEST(Estimate, UnknownVocabularyIsAssumedAndSaid) {
  std::vector<FieldError> errors;
  v1::JobSpec spec = SmallSpec("vocab");
  spec.mutable_model()->clear_vocab_size();
  const ResolvedSpec resolved = ResolveSpec(spec, errors);
  ASSERT_TRUE(errors.empty());
  const Result<JobEstimate> job = EstimateJob(resolved);
  ASSERT_TRUE(job.ok());
  ASSERT_FALSE(job->warnings.empty());
  EXPECT_NE(job->warnings[0].find("32000"), std::string::npos);
}

}  // namespace
}  // namespace nibble::rpc
