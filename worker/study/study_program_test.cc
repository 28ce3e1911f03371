// SPDX-License-Identifier: Apache-2.0
//
// The program nibble-study as a user runs it: a whole small study, an interruption, exit codes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>

#include "base/files.h"
#include "base/process.h"
#include "base/strings.h"
#include "worker/data/train_tokenizer.h"
#include "worker/study/run_record.h"
#include "worker/study/study_test_support.h"

namespace nibble {
namespace {

constexpr auto kLongest = std::chrono::seconds(100);

class StudyProgramTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = MakeTempDirectory("nibble-study").value();
    ASSERT_TRUE(MakeDirectories(Path("docs")).ok());
    std::string text;
    for (int i = 0; i < 4000; ++i) {
      text += StrFormat("The %d%s of %d fields lies between hill %d and the old mill.\n", i % 97,
                        i % 3 == 0 ? "th barn" : "th house", i % 11, i % 53);
    }
    ASSERT_TRUE(AtomicWriteFile(Path("text.txt"), text).ok());
    TrainTokenizerOptions options;
    options.input = Path("text.txt");
    options.out = Path("tokenizer.model");
    options.vocab_size = 320;
    const Status trained = TrainTokenizer(options).status();
    if (trained.code() == StatusCode::kUnimplemented) GTEST_SKIP() << trained.message();
    ASSERT_TRUE(trained.ok()) << trained.ToString();
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  std::string Path(const std::string& name) const { return JoinPath(folder_, name); }

  std::vector<std::string> Words(const std::vector<std::string>& words) const {
    std::vector<std::string> argv = {JoinPath(NIBBLE_BINARY_DIR, "bin/nibble-study")};
    argv.insert(argv.end(), words.begin(), words.end());
    return argv;
  }
  std::vector<std::string> WithFolders(std::vector<std::string> words,
                                       const std::string& definitions) const {
    words.insert(words.end(), {"--definitions", definitions, "--folder", Path("study"), "--docs",
                               Path("docs"), "--text", Path("text.txt")});
    return Words(words);
  }
  static std::string Shipped() { return JoinPath(NIBBLE_SOURCE_DIR, "examples/studies"); }

  // A study of one slow arm and two that cannot be run.
  void WriteStudy(int steps) {
    ASSERT_TRUE(MakeDirectories(Path("defs")).ok());
    const std::string json = StrFormat(
        R"j({"title":"Slow","run":{"model":{"hiddenSize":64,"intermediateSize":128,"layers":2,
        "heads":2},"data":{"seqLen":32},"schedule":{"steps":%d,"microBatch":8,"validateEvery":20,
        "validationBatches":1}, "checkpoint":{"everySteps":4}},
        "corpus":{"vocab_size":320,"val_fraction":0.05},"learning_rates":[1e-3],"seeds":[1],
        "arms":["bf16","no_such_recipe",{"recipe":"bf16","name":"wrong",
        "patch":{"linear.Xf.elem":"e9m9"}}]})j",
        steps);
    ASSERT_TRUE(AtomicWriteFile(Path("defs/slow.json"), json).ok());
  }

  std::string OnlyRun() const {
    const auto runs = ListDirectory(Path("study/runs"));
    EXPECT_TRUE(runs.ok() && runs->size() == 1);
    return runs.ok() && !runs->empty() ? JoinPath(Path("study/runs"), runs->front()) : "";
  }

  std::string folder_;
};

TEST_F(StudyProgramTest, TheSmokeStudyRunsReportsAndIsNotRepeated) {
  const auto first =
      RunCommand(WithFolders({"run", "smoke", "--scale", "test"}, Shipped())).value();
  ASSERT_TRUE(first.status.success()) << first.output;
  EXPECT_NE(first.output.find("| bf16 |"), std::string::npos) << first.output;
  EXPECT_NE(first.output.find("| fp4_ms_paper |"), std::string::npos) << first.output;
  const std::string report = Path("docs/data/study-smoke.test.json");
  const Json json = Json::Parse(ReadFile(report).value()).value();
  ASSERT_EQ(json["arms"].size(), 3u);
  for (const Json& arm : json["arms"].items()) {
    EXPECT_EQ(arm["loss"]["count"].AsInt(), 2) << arm.Dump();
    // A uniform guess over 400 pieces costs 5.99; a model that learns is below.
    EXPECT_LT(arm["loss"]["mean"].AsDouble(), 5.9) << arm["name"].AsString();
    EXPECT_GT(arm["loss"]["mean"].AsDouble(), 1.0) << arm["name"].AsString();
  }
  EXPECT_EQ(XmlFault(ReadFile(Path("docs/figures/study-smoke.test-curves.svg")).value()), "");
  const auto runs = ListDirectory(Path("study/runs"));
  ASSERT_TRUE(runs.ok());
  EXPECT_EQ(runs->size(), 9u) << "three arms, two rates, and the best on a second seed";

  const auto again =
      RunCommand(WithFolders({"run", "smoke", "--scale", "test"}, Shipped())).value();
  ASSERT_TRUE(again.status.success()) << again.output;
  EXPECT_EQ(again.output.find("tokens/s\n"), std::string::npos) << "nothing runs: " << again.output;
  EXPECT_EQ(Json::Parse(ReadFile(report).value()).value().Dump(), json.Dump());
}

TEST_F(StudyProgramTest, InterruptedItGoesOnToTheSameWeights) {
  WriteStudy(120);
  ProcessOptions options;
  options.argv = WithFolders({"run", "slow"}, Path("defs"));
  options.stdout_path = options.stderr_path = Path("log");
  Process process = Process::Start(options).value();
  const auto deadline = std::chrono::steady_clock::now() + kLongest;
  bool stepped = false;
  while (!stepped && std::chrono::steady_clock::now() < deadline) {
    ::usleep(5000);
    const auto runs = ListDirectory(Path("study/runs"));
    if (!runs.ok() || runs->empty()) continue;
    const auto record =
        ReadRunJournal(JoinPath(JoinPath(Path("study/runs"), runs->front()), kJournalFileName));
    stepped = record.ok() && record->steps >= 6;
  }
  ASSERT_TRUE(stepped) << ReadFile(Path("log")).value_or("");
  ASSERT_TRUE(process.Signal(SIGTERM).ok());
  const auto stopped = process.WaitFor(kLongest);
  ASSERT_TRUE(stopped.ok() && stopped->has_value());
  EXPECT_EQ((*stopped)->exit_code, 3) << ReadFile(Path("log")).value_or("");
  EXPECT_FALSE(PathExists(JoinPath(OnlyRun(), "result.json")));

  const auto resumed = RunCommand(WithFolders({"run", "slow"}, Path("defs"))).value();
  ASSERT_TRUE(resumed.status.success()) << resumed.output;
  const auto record =
      RunRecordFromJson(Json::Parse(ReadFile(JoinPath(OnlyRun(), "result.json")).value()).value());
  ASSERT_TRUE(record.ok());
  EXPECT_EQ(record->state, RunState::kCompleted);
  EXPECT_EQ(record->curve.size(), 120u);
  const std::string journal = ReadFile(JoinPath(OnlyRun(), kJournalFileName)).value();
  EXPECT_NE(journal.find("Preempted"), std::string::npos) << "the first trainer saved and stopped";

  ASSERT_TRUE(RemoveTree(Path("study/runs")).ok());
  const auto whole =
      RunCommand(WithFolders({"run", "slow", "--threads", "2"}, Path("defs"))).value();
  ASSERT_TRUE(whole.status.success()) << whole.output;
  const auto same =
      RunRecordFromJson(Json::Parse(ReadFile(JoinPath(OnlyRun(), "result.json")).value()).value());
  EXPECT_EQ(same->weights_sha256, record->weights_sha256);
  EXPECT_EQ(same->final_validation_loss, record->final_validation_loss);
}

TEST_F(StudyProgramTest, ArmsThatCannotBeRunAreReportedWithTheirReason) {
  WriteStudy(2);
  const auto out = RunCommand(WithFolders({"run", "slow"}, Path("defs"))).value();
  ASSERT_TRUE(out.status.success()) << out.output;
  EXPECT_NE(out.output.find("- no_such_recipe: not run: unknown recipe 'no_such_recipe'"),
            std::string::npos)
      << out.output;
  EXPECT_NE(out.output.find("- wrong: not run: "), std::string::npos) << out.output;
  EXPECT_NE(out.output.find("e9m9"), std::string::npos) << out.output;
}

TEST_F(StudyProgramTest, ASpentBudgetEndsWithThree) {
  WriteStudy(100000);
  const auto out =
      RunCommand(WithFolders({"run", "slow", "--budget", "0.01"}, Path("defs"))).value();
  EXPECT_EQ(out.status.exit_code, 3) << out.output;
  EXPECT_NE(out.output.find("the budget is spent"), std::string::npos) << out.output;
  EXPECT_FALSE(PathExists(JoinPath(OnlyRun(), "result.json")));
}

TEST_F(StudyProgramTest, WrongUseIsNamed) {
  const struct {
    std::vector<std::string> words;
    const char* message;
  } rows[] = {{{"rum", "smoke"}, "did you mean 'run'"},
              {{"run", "smok"}, "did you mean 'smoke'"},
              {{"run", "smoke", "--scale", "tiny"}, "unknown scale 'tiny'"},
              {{"run", "smoke", "--jobs", "-1"}, "--jobs"},
              {{"run"}, "NAME"}};
  for (const auto& row : rows) {
    std::vector<std::string> words = row.words;
    if (words[0] == "run" && words.size() > 1) {
      words.insert(words.end(), {"--definitions", Shipped(), "--folder", Path("study")});
    }
    const auto out = RunCommand(Words(words)).value();
    EXPECT_EQ(out.status.exit_code, 2) << out.output;
    EXPECT_NE(out.output.find(row.message), std::string::npos) << out.output;
  }
}

}  // namespace
}  // namespace nibble
