// SPDX-License-Identifier: Apache-2.0
#include "client/lib/job_yaml.h"

#include <gtest/gtest.h>

#include "base/files.h"
#include "base/strings.h"
#include "client/lib/proto_json.h"

namespace nibble {
namespace {

std::string Problem(const std::string& yaml) {
  const auto parsed = ParseJobYaml(yaml, "job.yaml");
  EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument) << yaml;
  return parsed.status().message();
}

v1::JobSpec Parsed(const std::string& yaml) {
  const auto parsed = ParseJobYaml(yaml, "job.yaml");
  EXPECT_TRUE(parsed.ok()) << parsed.status().ToString();
  return parsed.ok() ? parsed->spec : v1::JobSpec();
}

TEST(JobYaml, FullFileFillsEveryKindOfField) {
  const v1::JobSpec spec = Parsed(R"(
apiVersion: nibble/v1
kind: TrainJob
metadata: {name: "007", labels: {arm: fp4, size: 60}}
priority: -5
resources: {nodes: 1, requires: [e2m1, avx2], memoryBytes: 4GiB}
timeLimit: 1h30m
startTimeout: 0-00:10:00
retry: {user: 0}
env: {A: "x y", B: 7}
model: {layers: 4, tiedEmbeddings: true, ropeTheta: 1e4}
schedule: {steps: 2e3, tokens: 20e9}
checkpoint:
seed: 4294967295
)");
  EXPECT_EQ(spec.metadata().name(), "007");
  EXPECT_EQ(spec.metadata().labels().at("size"), "60");
  EXPECT_EQ(spec.priority(), -5);
  EXPECT_EQ(spec.resources().required_features_size(), 2);
  EXPECT_EQ(spec.resources().required_features(1), "avx2");
  EXPECT_EQ(spec.resources().memory_bytes(), int64_t{4} << 30);
  EXPECT_EQ(spec.time_limit().seconds(), 5400);
  EXPECT_EQ(spec.start_timeout().seconds(), 600);
  EXPECT_TRUE(spec.retry().has_user());
  EXPECT_FALSE(spec.retry().has_infra());
  EXPECT_EQ(spec.env().at("B"), "7");
  EXPECT_TRUE(spec.model().tied_embeddings());
  EXPECT_EQ(spec.schedule().steps(), 2000);
  EXPECT_EQ(spec.schedule().tokens(), 20e9);
  EXPECT_FALSE(spec.has_checkpoint());
  EXPECT_EQ(spec.seed(), 4294967295u);
}

TEST(JobYaml, ARecipeWrittenOutAsASectionBecomesRecipeJson) {
  const v1::JobSpec spec = Parsed(R"(
precision:
  recipe:
    name: mine
    linear: nvfp4_te
    bf16_blocks: {first: 1, last_share: .25}
)");
  EXPECT_EQ(spec.precision().recipe(), "");
  EXPECT_EQ(spec.precision().recipe_json(),
            R"({"name":"mine","linear":"nvfp4_te","bf16_blocks":{"first":1,"last_share":0.25}})");
  EXPECT_EQ(Parsed("precision: {recipe: bf16}").precision().recipe(), "bf16");
  EXPECT_NE(Problem("precision: {recipe: {name: a, name: b}}").find("given twice"),
            std::string::npos);
}

struct BadCase {
  const char* yaml;
  const char* expected;  // part of the message
};

TEST(JobYaml, MistakesNameLinePathAndFix) {
  const BadCase cases[] = {
      {"kind: TrainJob\nmodle: {}\n", "job.yaml:2: unknown key 'modle'; did you mean 'model'?"},
      {"model:\n  seq_len: 3\n", "job.yaml:2: model: unknown key 'seq_len'; known here: preset"},
      {"model: {hidden_size: 3}\n", "did you mean 'hiddenSize'?"},
      {"model: 7\n", "job.yaml:1: model: expects a section of keys, got a single value"},
      {"model: [1]\n", "model: expects a section of keys, got a list"},
      {"model:\n  layers: four\n", "job.yaml:2: model.layers: expects a whole number, got 'four'"},
      {"model: {layers: 1.5}\n", "model.layers: expects a whole number, got '1.5'"},
      {"model: {layers: 3e9}\n", "model.layers: 3e9 is outside -2147483648..2147483647"},
      {"schedule: {steps: 1e30}\n", "schedule.steps: 1e30 is outside the 64-bit range"},
      {"model: {layers: \"4\"}\n", "expects a whole number, got '4' in quotes"},
      {"model: {layers: [4]}\n", "model.layers: expects a whole number, got a list"},
      {"model: {tiedEmbeddings: yes}\n", "expects true or false, got 'yes'"},
      {"model: {ropeTheta: .nan}\n", "model.ropeTheta: expects a number, got '.nan'"},
      {"model: {ropeTheta: inf}\n", "'inf' is not finite"},
      {"seed: -1\n", "seed: -1 is outside 0..4294967295"},
      {"timeLimit: soon\n", "timeLimit: expects a duration such as 90s, 90m"},
      {"timeLimit: {seconds: 3}\n", "timeLimit: expects a duration"},
      {"resources: {memoryBytes: 4 GB of RAM}\n", "expects a size such as 4GiB"},
      {"data: {train: a.bin}\n", "data.train: expects a list, got a single value; write [a, b]"},
      {"data: {train: [[a]]}\n", "data.train[0]: expects a text, got a list"},
      {"env: [A]\n", "env: expects a section of name: value pairs, got a list"},
      {"env: {A: {B: c}}\n", "env.A: expects a text, got a section of keys"},
      {"env: {A: 1, A: 2}\n", "key 'env.A' is given twice; keep one"},
      {"seed: 1\nkind: a\nseed: 2\n", "job.yaml:3: key 'seed' is given twice; keep one"},
      {"[a, b]\n", "expects a section of keys, got a list"},
      {"? {a: b}\n: c\n", "keys are plain names"},
      {"", "the file is empty"},
      {"# nothing\n", "the file is empty"},
      {"seed: 1\n---\nseed: 2\n", "holds one document"},
  };
  for (const BadCase& bad : cases) {
    const std::string message = Problem(bad.yaml);
    EXPECT_NE(message.find(bad.expected), std::string::npos) << bad.yaml << "gave: " << message;
  }
}

TEST(JobYaml, BrokenYamlNamesLineAndColumn) {
  EXPECT_TRUE(Problem("model: {layers: 4\nkind: x\n").starts_with("job.yaml:2:"));
  EXPECT_NE(Problem("a: {b: c]\n").find("not valid YAML"), std::string::npos);
  EXPECT_NE(Problem("\tmodel: 1\n").find("not valid YAML"), std::string::npos);
  EXPECT_NE(Problem(std::string(100'000, '[')).find("job.yaml:1:"), std::string::npos);
}

TEST(JobYaml, AllMistakesAreListedUpToTheLimit) {
  const std::string message = Problem("a1: 1\nmodel: {layers: x, heads: y}\nseed: z\n");
  EXPECT_EQ(StrSplit(message, '\n').size(), 4u) << message;
  std::string many;
  for (int i = 0; i < kMaxSpecProblems + 7; ++i) many += StrFormat("zz%d: 1\n", i);
  EXPECT_NE(Problem(many).find("and 7 more"), std::string::npos);
}

TEST(JobYaml, TooLargeFileIsRefused) {
  const std::string big = "env: {A: " + std::string(kMaxJobFileBytes, 'x') + "}\n";
  EXPECT_NE(Problem(big).find("more than a job file may have"), std::string::npos);
  const auto folder = MakeTempDirectory("job-yaml");
  ASSERT_TRUE(folder.ok());
  const std::string path = JoinPath(*folder, "big.yaml");
  ASSERT_TRUE(AtomicWriteFile(path, big).ok());
  EXPECT_EQ(ReadJobFile(path).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadJobFile(JoinPath(*folder, "none")).status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(RemoveTree(*folder).ok());
}

TEST(JobYaml, AliasesExpandOnlyAsFarAsTheSchema) {
  const v1::JobSpec spec = Parsed("env: &e {A: b}\nmetadata: {name: n, labels: *e}\n");
  EXPECT_EQ(spec.metadata().labels().at("A"), "b");
}

TEST(JobYaml, SettingsReplaceValuesWithTheSameRules) {
  v1::JobSpec spec = Parsed(
      "model: {layers: 4}\nmetadata: {name: n, labels: {arm: bf16}}\n"
      "data: {train: [x, y, z]}\n");
  for (const char* setting :
       {"model.layers=12", "metadata.labels.arm=fp4", "metadata.labels.example.com/team=a=b",
        "data.train=[a.bin, b.bin]", "data.path=/d: #1", "timeLimit=90m", "metadata.name=12",
        "resources.requires=[e2m1]", "env.X=", "schedule.tokens=1e9"}) {
    const Status status = ApplySetting(setting, &spec);
    EXPECT_TRUE(status.ok()) << setting << ": " << status.ToString();
  }
  EXPECT_EQ(spec.model().layers(), 12);
  EXPECT_EQ(spec.metadata().labels().at("arm"), "fp4");
  EXPECT_EQ(spec.metadata().labels().size(), 2u);
  EXPECT_EQ(spec.metadata().labels().at("example.com/team"), "a=b");
  EXPECT_EQ(spec.data().train_size(), 2);
  EXPECT_EQ(spec.data().path(), "/d: #1");
  EXPECT_EQ(spec.time_limit().seconds(), 5400);
  EXPECT_EQ(spec.metadata().name(), "12");
  EXPECT_EQ(spec.env().at("X"), "");
}

TEST(JobYaml, BadSettingsAreRefusedWithTheirText) {
  const BadCase cases[] = {
      {"model.layers", "write path=value"},
      {"=4", "write path=value"},
      {"model.layrs=4", "did you mean 'layers'?"},
      {"model=4", "'model' is a section; name a key in it"},
      {"model.layers.x=4", "'layers' is a value, it has no key 'x'"},
      {"env=4", "name the entry, e.g. env.key=value"},
      {"model.layers=x", "expects a whole number, got 'x'"},
      {"data.train=a", "expects a list"},
      {"data.train=[a", "not a YAML list"},
  };
  for (const BadCase& bad : cases) {
    v1::JobSpec spec;
    const Status status = ApplySetting(bad.yaml, &spec);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad.yaml;
    EXPECT_NE(status.message().find(bad.expected), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(bad.yaml), std::string::npos) << status.message();
  }
}

TEST(JobYaml, ServerViolationsGetTheLineOfTheirKeyOrItsParent) {
  const auto parsed = ParseJobYaml("kind: TrainJob\nmodel:\n  heads: 5\n", "job.yaml");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(LocatedMessage(*parsed, "job.yaml", "model.heads", "bad"),
            "job.yaml:3: model.heads: bad");
  EXPECT_EQ(LocatedMessage(*parsed, "job.yaml", "model.layers", "missing"),
            "job.yaml:2: model.layers: missing");
  EXPECT_EQ(LocatedMessage(*parsed, "job.yaml", "queue", "bad"), "job.yaml: queue: bad");
}

TEST(JobYaml, PrintedSpecReadsBackEqual) {
  const v1::JobSpec spec = Parsed(
      "metadata: {name: 'true', annotations: {note: 'a: b # c', empty: ''}}\n"
      "timeLimit: 1d2h3m4s\nseed: 7\nmodel: {layers: 4, normEps: 1e-6}\n"
      "data: {train: ['*.bin', '- x', '12', ' y ']}\nretry: {user: 0}\n");
  const std::string yaml = JsonToYaml(MessageToJson(spec));
  EXPECT_EQ(MessageToJson(Parsed(yaml)).Dump(), MessageToJson(spec).Dump()) << yaml;
  // JSON is YAML, too.
  const std::string json = MessageToJson(spec).Dump(2);
  EXPECT_EQ(MessageToJson(Parsed(json)).Dump(), MessageToJson(spec).Dump()) << json;
}

TEST(JobYaml, ExamplesParse) {
  const std::string folder = JoinPath(NIBBLE_SOURCE_DIR, "examples");
  int files = 0;
  for (const std::string& name : ListDirectory(folder).value()) {
    if (!name.ends_with(".yaml")) continue;
    const auto parsed = ReadJobFile(JoinPath(folder, name));
    EXPECT_TRUE(parsed.ok()) << parsed.status().ToString();
    ++files;
  }
  EXPECT_GE(files, 3);
}

}  // namespace
}  // namespace nibble
