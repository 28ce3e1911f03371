// SPDX-License-Identifier: Apache-2.0
//
// The program nibble-trainer: signals, kill -9, exit codes and what it prints.
#include <sys/wait.h>

#include <chrono>
#include <csignal>

#include "base/process.h"
#include "base/strings.h"
#include "worker/train/checkpoint.h"
#include "worker/train/safetensors.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

constexpr auto kLongest = std::chrono::seconds(60);

class TrainerProgramTest : public RunTest {
 protected:
  static std::string Program() { return JoinPath(NIBBLE_BINARY_DIR, "bin/nibble-trainer"); }

  CommandOutput Call(std::vector<std::string> args, bool merge_stderr = true) {
    args.insert(args.begin(), Program());
    return RunCommand(args, merge_stderr).value();
  }

  std::string WriteConfig(const std::string& name, const RunConfig& config) {
    const std::string path = Path(name);
    EXPECT_TRUE(AtomicWriteFile(path, RunConfigToJson(config).Dump()).ok());
    return path;
  }

  Process StartRun(const std::string& config) {
    ProcessOptions options;
    options.argv = {Program(), "--config", config};
    options.stderr_path = options.stdout_path = Path("log");
    return Process::Start(options).value();
  }

  // Waits until the run's journal tells of `steps` steps in this process.
  bool WaitForStep(const std::string& run, int64_t step) {
    const auto deadline = std::chrono::steady_clock::now() + kLongest;
    const std::string needle = "\"type\":\"step\",\"step\":" + std::to_string(step) + ",";
    while (std::chrono::steady_clock::now() < deadline) {
      const auto text = ReadFile(JoinPath(Path(run), kJournalFileName));
      if (text.ok() && text->find(needle) != std::string::npos) return true;
      ::usleep(1000);
    }
    return false;
  }

  // A model slow enough to be caught in the middle.
  RunConfig SlowConfig(const std::string& run) const {
    RunConfig config = Config(run, "fp4_ms_paper", 60);
    config.model.hidden_size = 64;
    config.schedule.micro_batch = 4;
    config.schedule.global_batch = 16;
    config.checkpoint.every_steps = 7;
    return config;
  }
};

TEST_F(TrainerProgramTest, TheSelfTestOffersNoGpuThatIsHidden) {
  const auto hidden =
      RunCommand({"env", "CUDA_VISIBLE_DEVICES=", Program(), "self-test", "--json"}).value();
  ASSERT_TRUE(hidden.status.success()) << hidden.output;
  EXPECT_NE(hidden.output.find("CUDA_VISIBLE_DEVICES is empty"), std::string::npos)
      << hidden.output;
  EXPECT_NE(hidden.output.find("\"kind\":\"cpu\""), std::string::npos) << hidden.output;
}

TEST_F(TrainerProgramTest, KilledAtAnyMomentItGoesOnToTheSameWeights) {
  const auto whole = Call({"--config", WriteConfig("whole.json", SlowConfig("whole"))});
  ASSERT_TRUE(whole.status.success()) << whole.output;
  const std::string config = WriteConfig("parts.json", SlowConfig("parts"));
  for (const int64_t step : {3, 16, 38}) {
    Process process = StartRun(config);
    ASSERT_TRUE(WaitForStep("parts", step));
    ASSERT_TRUE(process.Signal(SIGKILL).ok());
    EXPECT_EQ(process.Wait()->signal, SIGKILL);
  }
  const auto last = Call({"--config", config});
  ASSERT_TRUE(last.status.success()) << last.output;
  const auto expected = Only<EndRecord>(Journal("whole"));
  const auto records = Journal("parts");
  const auto ends = Only<EndRecord>(records);
  ASSERT_EQ(expected.size(), 1u);
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_EQ(ends[0].weights_sha256, expected[0].weights_sha256);
  EXPECT_EQ(ends[0].final_validation_loss, expected[0].final_validation_loss);
  const auto starts = Only<StartRecord>(records);
  ASSERT_EQ(starts.size(), 4u);
  EXPECT_EQ(starts[1].resumed_from_step, 0);
  EXPECT_GE(starts[2].resumed_from_step, 7);
  EXPECT_GE(starts[3].resumed_from_step, 28);
}

TEST_F(TrainerProgramTest, SigtermSavesAndExitsWithZero) {
  const std::string config = WriteConfig("run.json", SlowConfig("run"));
  Process process = StartRun(config);
  ASSERT_TRUE(WaitForStep("run", 4));
  ASSERT_TRUE(process.Signal(SIGTERM).ok());
  const auto status = process.WaitFor(kLongest);
  ASSERT_TRUE(status.ok() && status->has_value());
  EXPECT_TRUE((*status)->success()) << (*status)->ToString();
  const auto records = Journal("run");
  const auto ends = Only<EndRecord>(records);
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_EQ(ends[0].reason, kEndPreempted);
  const auto checkpoints = Only<CheckpointRecord>(records);
  ASSERT_FALSE(checkpoints.empty());
  EXPECT_EQ(checkpoints.back().step, ends[0].step);
  EXPECT_TRUE(VerifyCheckpoint(checkpoints.back().path).ok());
}

TEST_F(TrainerProgramTest, ExitCodesFollowTheEndReason) {
  RunConfig diverges = Config("diverges", "fp4_ms_paper", 40);
  diverges.optimizer.peak_lr = 1e6;
  diverges.optimizer.clip_norm = 0;
  CommandOutput out = Call({"--config", WriteConfig("d.json", diverges)});
  EXPECT_EQ(out.status.exit_code, 10) << out.output;
  EXPECT_NE(out.output.find("Diverged"), std::string::npos) << out.output;

  RunConfig no_data = Config("data");
  no_data.data.path = Path("nowhere");
  out = Call({"--config", WriteConfig("n.json", no_data), "--dir", Path("n")});
  EXPECT_EQ(out.status.exit_code, 11) << out.output;
  EXPECT_NE(out.output.find("nowhere"), std::string::npos) << out.output;

  RunConfig no_checkpoint = Config("c");
  no_checkpoint.checkpoint.resume_from = Path("nothing");
  out = Call({"--config", WriteConfig("c.json", no_checkpoint)});
  EXPECT_EQ(out.status.exit_code, 12) << out.output;

  RunConfig recipe = Config("r", "fp5");
  out = Call({"--config", WriteConfig("r.json", recipe)});
  EXPECT_EQ(out.status.exit_code, 2) << out.output;
  EXPECT_NE(out.output.find("fp4_ms_paper"), std::string::npos) << out.output;
}

TEST_F(TrainerProgramTest, WrongUsageExitsWithTwoAndSaysWhatIsWrong) {
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{}, "usage"},
      {{"--confg", "x"}, "did you mean 'config'"},
      {{"--config"}, "needs a value"},
      {{"trane"}, "did you mean 'train'"},
      {{"generate"}, "--checkpoint is missing"},
      {{"generate", "--checkpoint", "x", "--top-k", "-1"}, "--top-k is '-1'"},
      {{"generate", "--checkpoint", "x", "--temperature", "hot"}, "--temperature is 'hot'"},
      {{"inspect", "--all"}, "unknown flag 'all'"},
      {{"estimate"}, "--config is missing"}};
  for (const auto& [args, words] : cases) {
    const CommandOutput out = Call(args);
    EXPECT_EQ(out.status.exit_code, 2) << out.output;
    EXPECT_NE(out.output.find(words), std::string::npos) << out.output;
  }
  ASSERT_TRUE(AtomicWriteFile(Path("bad.json"), R"({"model":{"heads":5},"modle":1})").ok());
  const CommandOutput out = Call({"--config", Path("bad.json"), "--dir", Path("x")});
  EXPECT_EQ(out.status.exit_code, 2);
  EXPECT_NE(out.output.find("modle"), std::string::npos) << out.output;
  EXPECT_FALSE(PathExists(Path("x")));
}

TEST_F(TrainerProgramTest, HelpHasExamples) {
  for (const std::vector<std::string>& args :
       std::vector<std::vector<std::string>>{{"--help"},
                                             {"train", "--help"},
                                             {"generate", "-h"},
                                             {"inspect", "--help"},
                                             {"estimate", "--help"}}) {
    const CommandOutput out = Call(args, false);
    EXPECT_TRUE(out.status.success());
    EXPECT_NE(out.output.find("example:"), std::string::npos) << args[0];
  }
}

TEST_F(TrainerProgramTest, InspectVerifiesAndEstimateAddsUp) {
  const std::string config = WriteConfig("run.json", Config("run", "fp32", 4));
  ASSERT_TRUE(Call({"--config", config}).status.success());
  const auto inspected = Call({"inspect", "--checkpoint", Path("run"), "--json"}, false);
  ASSERT_TRUE(inspected.status.success());
  const Json json = Json::Parse(inspected.output).value();
  EXPECT_EQ(json["step"].AsInt(), 4);
  EXPECT_TRUE(json["intact"].AsBool());
  EXPECT_EQ(json["weights_sha256"].AsString(), Only<EndRecord>(Journal("run"))[0].weights_sha256);
  EXPECT_EQ(Call({"inspect", "--checkpoint", Path("nothing")}).status.exit_code, 1);
  const std::string weights = JoinPath(json["checkpoint"].AsString(), "model.safetensors");
  std::string bytes = ReadFile(weights).value();
  bytes.back() ^= 1;
  ASSERT_TRUE(AtomicWriteFile(weights, bytes).ok());
  const auto damaged = Call({"inspect", "--checkpoint", Path("run")});
  EXPECT_EQ(damaged.status.exit_code, 1);
  EXPECT_NE(damaged.output.find("model.safetensors is damaged"), std::string::npos);

  const auto estimated = Call({"estimate", "--config", config, "--json"}, false);
  ASSERT_TRUE(estimated.status.success());
  const Json estimate = Json::Parse(estimated.output).value();
  const Json& memory = estimate["memory_bytes"];
  int64_t sum = 0;
  for (const char* part : {"weights", "gradients", "optimizer", "activations", "quantized"}) {
    sum += memory[part].AsInt();
  }
  EXPECT_EQ(memory["total"].AsInt(), sum);
  EXPECT_EQ(estimate["parameters"].AsInt(), json["parameters"].AsInt());
}

TEST_F(TrainerProgramTest, GenerateIsDeterministicAndUsesTheCheckpointsTokenizer) {
  ASSERT_TRUE(AtomicWriteFile(Path("tokenizer.bin"), ByteTokenizer()).ok());
  RunConfig config = Config("run", "fp4_ms_paper", 4);
  config.model.vocab_size = 0;
  config.data.tokenizer = Path("tokenizer.bin");
  config.data.seq_len = 32;
  const auto trained = Call({"--config", WriteConfig("run.json", config)});
  ASSERT_TRUE(trained.status.success()) << trained.output;
  ASSERT_TRUE(RemoveTree(Path("tokenizer.bin")).ok());

  const auto generate = [&](std::vector<std::string> extra) {
    std::vector<std::string> args = {"generate", "--checkpoint", Path("run"), "--json",
                                     "--prompt", "ab",           "--tokens",  "12"};
    args.insert(args.end(), extra.begin(), extra.end());
    const CommandOutput out = Call(args, false);
    EXPECT_TRUE(out.status.success());
    return out.output;
  };
  const std::string greedy = generate({"--temperature", "0"});
  EXPECT_EQ(greedy, generate({"--temperature", "0", "--seed", "5", "--threads", "1"}));
  const std::string sampled = generate({"--seed", "7"});
  EXPECT_EQ(sampled, generate({"--seed", "7"}));
  EXPECT_NE(sampled, generate({"--seed", "8"}));
  const Json json = Json::Parse(sampled).value();
  EXPECT_EQ(static_cast<int64_t>(json["ids"].size()), json["tokens"].AsInt());
  EXPECT_LE(json["tokens"].AsInt(), 12);
  const auto too_long =
      Call({"generate", "--checkpoint", Path("run"), "--prompt", "ab", "--tokens", "40"});
  EXPECT_EQ(too_long.status.exit_code, 1);
  EXPECT_NE(too_long.output.find("ask for at most"), std::string::npos) << too_long.output;
}

}  // namespace
}  // namespace nibble
