// SPDX-License-Identifier: Apache-2.0
//
// Whole runs in this process: learning, resuming, stopping, and every way of ending.
#include "worker/train/training_run.h"

#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <set>

#include "worker/train/test_support.h"

namespace nibble {
namespace {

using TrainingRunTest = RunTest;

TEST_F(TrainingRunTest, EveryBuiltInRecipeLearns) {
  for (const std::string& recipe : BuiltInRecipeNames()) {
    RunConfig config = Config(recipe, recipe, 30);
    config.optimizer.peak_lr = 1e-2;
    if (!CheckRecipeFits(config.model, *FindRecipe(recipe), 32).ok()) {
      config.model = WideModel();
      config.data.seq_len = 64;
    }
    const EndRecord end = Run(config);
    ASSERT_EQ(end.reason, kEndCompleted) << recipe << ": " << end.message;
    const auto records = Journal(recipe);
    const auto validations = Only<ValidationRecord>(records);
    ASSERT_GE(validations.size(), 2u);
    EXPECT_NEAR(validations.front().loss, std::log(48.0), 0.2) << recipe;
    EXPECT_LT(validations.back().loss, validations.front().loss - 0.5) << recipe;
    EXPECT_EQ(end.final_validation_loss, validations.back().loss);
    EXPECT_EQ(end.weights_sha256.size(), 64u);
  }
}

TEST_F(TrainingRunTest, JournalTellsTheWholeStory) {
  ASSERT_EQ(Run(Config("a")).reason, kEndCompleted);
  const auto records = Journal("a");
  const auto starts = Only<StartRecord>(records);
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_EQ(starts[0].steps_total, 12);
  EXPECT_EQ(starts[0].tokens_per_step, 64);
  EXPECT_EQ(starts[0].paths.at("fprop"), "fast");
  EXPECT_EQ(starts[0].paths.at("dgrad"), "reference");
  EXPECT_EQ(starts[0].paths.at("head"), "bf16");
  const auto steps = Only<StepRecord>(records);
  ASSERT_EQ(steps.size(), 12u);
  EXPECT_EQ(steps.back().step, 12);
  EXPECT_EQ(steps.back().tokens, 12 * 64);
  EXPECT_GT(steps.back().tokens_per_second, 0);
  std::vector<int64_t> validated;
  for (const auto& v : Only<ValidationRecord>(records)) validated.push_back(v.step);
  EXPECT_EQ(validated, (std::vector<int64_t>{0, 5, 10, 12}));
  // Steps 1, 6 and 12; three tensor kinds of attention and MLP of three blocks.
  const auto health = Only<HealthRecord>(records);
  EXPECT_EQ(health.size(), 3 * kHealthClasses);
  std::set<std::string> classes;
  for (const HealthRecord& h : health) {
    classes.insert(h.tensor_class);
    EXPECT_GT(h.scale_min, 0) << h.tensor_class;
    EXPECT_GE(h.scale_max, h.scale_min) << h.tensor_class;
    EXPECT_EQ(h.grad_noise_ratio > 0, h.tensor_class.starts_with("gradient_")) << h.tensor_class;
    EXPECT_EQ(h.nonfinite_amax, 0) << h.tensor_class;
  }
  EXPECT_EQ(classes.size(), kHealthClasses);
  const auto memory = Only<MemoryRecord>(records);
  ASSERT_EQ(memory.size(), 2u);
  for (const char* name :
       {"weights", "gradients", "optimizer", "activations", "quantized", "workspace", "peak_rss"}) {
    EXPECT_GT(memory[1].bytes.at(name), 0) << name;
  }
  const auto checkpoints = Only<CheckpointRecord>(records);
  ASSERT_EQ(checkpoints.size(), 3u);
  EXPECT_TRUE(checkpoints.back().best);
  EXPECT_TRUE(PathExists(checkpoints.back().path));
  EXPECT_TRUE(std::holds_alternative<EndRecord>(records.back().event));
}

TEST_F(TrainingRunTest, SameSeedSameBitsWhateverTheThreads) {
  std::string expected;
  for (const int64_t threads : {1, 2, 3}) {
    RunConfig config = Config("t" + std::to_string(threads));
    config.run.threads = threads;
    const EndRecord end = Run(config);
    ASSERT_EQ(end.reason, kEndCompleted) << end.message;
    if (threads == 1) expected = end.weights_sha256;
    EXPECT_EQ(end.weights_sha256, expected) << threads << " threads";
  }
  RunConfig other = Config("seed");
  other.seed = 99;
  EXPECT_NE(Run(other).weights_sha256, expected);
}

TEST_F(TrainingRunTest, ResumedRunIsBitIdenticalToAnUninterruptedOne) {
  for (const std::string recipe : {"fp4_ms_paper", "te_fp8_current", "fp32"}) {
    const EndRecord whole = Run(Config("whole-" + recipe, recipe));
    ASSERT_EQ(whole.reason, kEndCompleted) << whole.message;
    // Stopped after 5 and after 9 steps: not where checkpoints or validations lie anyway.
    const std::string run = "parts-" + recipe;
    for (const int64_t stop : {5, 9}) {
      int64_t asked = 0;
      RunEnvironment environment;
      const int64_t done = stop == 5 ? 0 : 5;
      environment.stop_requested = [&] { return asked++ + done >= stop; };
      const EndRecord end = Run(Config(run, recipe), environment);
      ASSERT_EQ(end.reason, kEndPreempted) << end.message;
      EXPECT_EQ(end.step, stop);
    }
    const EndRecord end = Run(Config(run, recipe));
    ASSERT_EQ(end.reason, kEndCompleted) << end.message;
    EXPECT_EQ(end.weights_sha256, whole.weights_sha256) << recipe;
    EXPECT_EQ(end.final_loss, whole.final_loss);
    EXPECT_EQ(end.final_validation_loss, whole.final_validation_loss);
    const auto starts = Only<StartRecord>(Journal(run));
    ASSERT_EQ(starts.size(), 3u);
    EXPECT_EQ(starts[2].resumed_from_step, 9);
  }
}

TEST_F(TrainingRunTest, StochasticRoundingResumesBitIdenticallyToo) {
  const std::string recipe = R"json({"name": "sr", "linear": {
      "Xf": {"elem": "e2m1", "block": "tok", "scale": "f32(6)"},
      "Wf": {"elem": "e2m1", "block": "och", "scale": "f32(6)", "round": "sr24"},
      "Gd": {"elem": "e2m1", "block": "tok", "scale": "f32(6)", "round": "sr24"},
      "Wd": {"source": "reuse"}, "Gw": {"source": "reuse"}, "Xw": {"source": "reuse"}}})json";
  RunConfig config = Config("whole");
  config.recipe_json = recipe;
  const EndRecord whole = Run(config);
  ASSERT_EQ(whole.reason, kEndCompleted) << whole.message;
  config.run.dir = Path("parts");
  int64_t asked = 0;
  RunEnvironment environment;
  environment.stop_requested = [&] { return asked++ >= 5; };
  ASSERT_EQ(Run(config, environment).reason, kEndPreempted);
  EXPECT_EQ(Run(config).weights_sha256, whole.weights_sha256);
}

// Windows of past maxima reach over the interruption; validations in between leave them alone.
TEST_F(TrainingRunTest, AmaxHistoriesResumeBitIdentically) {
  const char* const windowed = R"json({"name": "windowed", "linear": {
      "Xf": {"elem": "e4m3", "block": "tensor", "scale": "p2(448)", "window": 4},
      "Wf": {"elem": "e4m3", "block": "tensor", "scale": "f32(448)", "window": 2},
      "Gd": {"elem": "e5m2", "block": "tensor", "scale": "p2(57344)", "window": 3},
      "Wd": {"source": "reuse"}, "Gw": {"source": "reuse"}, "Xw": {"source": "reuse"}}})json";
  for (const std::string recipe : {"te_fp8_delayed", "fp8_lm", "windowed"}) {
    RunConfig config = Config("whole-" + recipe, recipe);
    if (recipe == "windowed") config.recipe_json = windowed;
    const EndRecord whole = Run(config);
    ASSERT_EQ(whole.reason, kEndCompleted) << whole.message;
    RunConfig other = config;
    other.run.dir = Path("validated-" + recipe);
    other.schedule.validate_every = 1;
    EXPECT_EQ(Run(other).weights_sha256, whole.weights_sha256) << recipe;

    config.run.dir = Path("parts-" + recipe);
    for (const int64_t steps : {0, 5, 4}) {
      int64_t asked = 0;
      RunEnvironment environment;
      environment.stop_requested = [&] { return asked++ >= steps; };
      ASSERT_EQ(Run(config, environment).reason, kEndPreempted) << recipe;
    }
    EXPECT_EQ(Run(config).weights_sha256, whole.weights_sha256) << recipe;
  }
}

// A held amax and the norms that channels are chosen by reach over the interruption, too.
TEST_F(TrainingRunTest, HeldAmaxAndGatheredChannelsResumeBitIdentically) {
  const auto run_in_parts = [&](const std::string& name, RunConfig config) {
    const EndRecord whole = Run(config);
    ASSERT_EQ(whole.reason, kEndCompleted) << whole.message;
    config.run.dir = Path("parts-" + name);
    for (const int64_t steps : {2, 5, 3}) {  // after 2, 7 and 10
      int64_t asked = 0;
      RunEnvironment environment;
      environment.stop_requested = [&] { return asked++ >= steps; };
      ASSERT_EQ(Run(config, environment).reason, kEndPreempted) << name;
    }
    EXPECT_EQ(Run(config).weights_sha256, whole.weights_sha256) << name;
    config.run.dir = Path("validated-" + name);
    config.schedule.validate_every = 1;
    EXPECT_EQ(Run(config).weights_sha256, whole.weights_sha256) << name;
  };
  RunConfig held = Config("whole-held", "held");
  held.recipe_json = R"json({"name": "held", "linear": {
      "Xf": {"elem": "e2m1", "block": "1x16", "scale": "u53", "hold": 4},
      "Wf": {"elem": "e2m1", "block": "16x16", "scale": "nv", "hold": 3},
      "Gd": {"elem": "e2m1", "block": "1x16", "scale": "u53", "round": "sr24", "hold": 5},
      "Wd": {"source": "reuse"},
      "Gw": {"elem": "e2m1", "block": "1x16", "scale": "u53", "round": "sr24", "hold": 5},
      "Xw": {"elem": "e2m1", "block": "1x16", "scale": "u53", "hold": 4}}})json";
  run_in_parts("held", held);
  RunConfig mixed = Config("whole-mixed", "mixed");
  mixed.model = WideModel();
  mixed.model.hidden_size = 256;
  mixed.data.seq_len = 64;
  mixed.recipe_json = R"json({"name": "mixed", "linear": {
      "Xf": {"elem": "e2m1", "block": "1x16", "scale": "nv",
             "split": {"channels": {"share": 0.1, "elem": "e4m3", "from_step": 2, "window": 4}}},
      "Wf": {"elem": "e2m1", "block": "1x16", "scale": "nv",
             "split": {"channels": {"share": 0.1, "elem": "e4m3", "from_step": 2, "window": 4}}},
      "Gd": {"elem": "bf16"}, "Wd": {"elem": "bf16"}, "Gw": {"elem": "bf16"},
      "Xw": {"elem": "bf16"}},
      "weight_rule": {"oscireset":
        {"from_share": 0.3, "period": 5, "window": 4, "ratio": 3}}})json";
  run_in_parts("mixed", mixed);
}

// The first stage at half of the steps, the second at the next sampled step (12 of 16).
TEST_F(TrainingRunTest, StagesSwitchAndResumeBitIdentically) {
  const std::string recipe = R"json({"name": "staged", "linear": "fp4_ms_paper", "stages": [
      {"from_share": 0.5, "linear": "te_fp8_delayed"},
      {"noise_multiple": 1e6, "linear": "bf16"}]})json";
  const auto switches = [&](const std::string& run) {
    std::vector<std::string> texts;
    for (const auto& log : Only<LogRecord>(Journal(run))) {
      if (log.text.find("of recipe staged begins") != std::string::npos) texts.push_back(log.text);
    }
    return texts;
  };
  RunConfig config = Config("whole", "staged", 16);
  config.recipe_json = recipe;
  const EndRecord whole = Run(config);
  ASSERT_EQ(whole.reason, kEndCompleted) << whole.message;
  const std::vector<std::string> texts = switches("whole");
  ASSERT_EQ(texts.size(), 2u);
  EXPECT_TRUE(texts[0].starts_with("after step 8: stage 1")) << texts[0];
  EXPECT_TRUE(texts[1].starts_with("after step 12: stage 2")) << texts[1];

  config.run.dir = Path("parts");
  for (const int64_t steps : {8, 2, 3}) {  // stopped after 8, 10 and 13
    int64_t asked = 0;
    RunEnvironment environment;
    environment.stop_requested = [&] { return asked++ >= steps; };
    ASSERT_EQ(Run(config, environment).reason, kEndPreempted);
  }
  const EndRecord end = Run(config);
  EXPECT_EQ(end.weights_sha256, whole.weights_sha256);
  EXPECT_EQ(end.final_validation_loss, whole.final_validation_loss);
  EXPECT_EQ(switches("parts"), texts);

  // The stages are what makes the difference.
  RunConfig plain = Config("plain", "fp4_ms_paper", 16);
  EXPECT_NE(Run(plain).weights_sha256, whole.weights_sha256);
}

TEST_F(TrainingRunTest, FinishedRunStartedAgainEndsTheSame) {
  const EndRecord first = Run(Config("a"));
  const EndRecord again = Run(Config("a"));
  EXPECT_EQ(again.reason, kEndCompleted);
  EXPECT_EQ(again.weights_sha256, first.weights_sha256);
  EXPECT_EQ(again.final_loss, first.final_loss);
  EXPECT_EQ(again.final_validation_loss, first.final_validation_loss);
}

TEST_F(TrainingRunTest, AccumulationOfMicroBatchesFollowsTheBigBatch) {
  RunConfig big = Config("big", "fp32", 4);
  big.schedule.micro_batch = 4;
  const double expected = Run(big).final_loss;
  const double got = Run(Config("small", "fp32", 4)).final_loss;
  EXPECT_NEAR(got, expected, 1e-4 * expected);
}

TEST_F(TrainingRunTest, HugeLearningRateEndsDivergedAndSavesNoPoisonedWeights) {
  RunConfig config = Config("a", "fp32");
  config.optimizer.peak_lr = 1e6;
  config.optimizer.clip_norm = 0;
  config.checkpoint.every_steps = 1;
  const EndRecord end = Run(config);
  EXPECT_EQ(end.reason, kEndDiverged);
  EXPECT_EQ(TrainerExitCode(end.reason), 10);
  EXPECT_NE(end.message.find("step "), std::string::npos) << end.message;
  const bool names_class = end.message.find("weight_") != std::string::npos ||
                           end.message.find("activation_") != std::string::npos ||
                           end.message.find("gradient_") != std::string::npos ||
                           end.message.find("loss") != std::string::npos;
  EXPECT_TRUE(names_class) << end.message;
  for (const auto& checkpoint : Only<CheckpointRecord>(Journal("a"))) {
    EXPECT_LT(checkpoint.step, end.step + 1);
  }
}

TEST_F(TrainingRunTest, PoisonedWeightIsNamed) {
  const std::string run = "a";
  ASSERT_EQ(Run(Config(run, "bf16", 8)).reason, kEndCompleted);
  // Poison one weight of the newest checkpoint and make its manifest agree.
  const std::string folder = JoinPath(Path(run), "checkpoints/step-00000008");
  const auto backend = TestBackend();
  auto parameters = Parameters::Create(backend.get(), TinyModel()).value();
  ASSERT_TRUE(LoadTensors(folder, *backend, true, &parameters).ok());
  const size_t index = parameters.IndexOf(1, BlockParameter::kDown);
  parameters.weight(index).f32()[3] = NAN;
  CheckpointContent content;
  content.state = ReadTrainingState(folder).value();
  content.model = TinyModel();
  content.seq_len = 16;
  ASSERT_TRUE(RemoveTree(folder).ok());
  ASSERT_TRUE(MakeDirectories(folder).ok());
  ASSERT_TRUE(WriteCheckpoint(folder, *backend, parameters, content).ok());
  const EndRecord end = Run(Config(run, "bf16", 12));
  EXPECT_EQ(end.reason, kEndDiverged);
  EXPECT_NE(end.message.find("weight_middle: model.layers.1.mlp.down_proj.weight"),
            std::string::npos)
      << end.message;
  EXPECT_NE(end.message.find("step 9"), std::string::npos) << end.message;
}

TEST_F(TrainingRunTest, DataProblemsEndDataUnreadableNamingTheFile) {
  const std::string shard = JoinPath(Path("data"), "train-000000.bin");
  const std::string whole = ReadFile(shard).value();
  const auto expect = [&](const std::string& run, const std::string& word) {
    const EndRecord end = Run(Config(run));
    EXPECT_EQ(end.reason, kEndDataUnreadable) << end.message;
    EXPECT_NE(end.message.find(word), std::string::npos) << end.message;
  };
  ASSERT_TRUE(AtomicWriteFile(shard, whole.substr(0, whole.size() - 10)).ok());
  expect("cut", shard);
  ASSERT_TRUE(AtomicWriteFile(shard, "X" + whole.substr(1)).ok());
  expect("magic", shard);
  std::string bad_id = whole;
  for (size_t i = 1024 + 200; i < bad_id.size(); i += 2) bad_id[i + 1] = 0x7f;
  ASSERT_TRUE(AtomicWriteFile(shard, bad_id).ok());
  expect("id", shard);
  ASSERT_TRUE(RemoveTree(shard).ok());
  expect("missing", Path("data"));
}

TEST_F(TrainingRunTest, ShardsOfAnotherTokenizerAreRefused) {
  const std::string tokenizer = JoinPath(Path("data"), "tokenizer.bin");
  ASSERT_TRUE(AtomicWriteFile(tokenizer, ByteTokenizer()).ok());
  const std::string index = JoinPath(Path("data"), "index.json");
  ASSERT_TRUE(
      AtomicWriteFile(index, R"({"tokenizer":{"sha256":")" + std::string(64, '0') + "\"}}").ok());
  const EndRecord end = Run(Config("a"));
  EXPECT_EQ(end.reason, kEndDataUnreadable) << end.message;
  EXPECT_NE(end.message.find("index.json says"), std::string::npos) << end.message;

  ASSERT_TRUE(AtomicWriteFile(tokenizer, "no tokenizer").ok());
  EXPECT_EQ(Run(Config("b")).reason, kEndDataUnreadable);
}

TEST_F(TrainingRunTest, WrongSpecsEndInvalidSpec) {
  RunConfig recipe = Config("r", "fp4_ms_papr");
  EndRecord end = Run(recipe);
  EXPECT_EQ(end.reason, kEndInvalidSpec);
  EXPECT_NE(end.message.find("fp4_ms_paper"), std::string::npos) << end.message;
  RunConfig vocab = Config("v");
  vocab.model.vocab_size = 0;
  end = Run(vocab);
  EXPECT_EQ(end.reason, kEndInvalidSpec);
  EXPECT_NE(end.message.find("model.vocabSize"), std::string::npos) << end.message;
  RunConfig world = Config("w");
  world.run.world_size = 2;
  world.schedule.global_batch = 4;
  end = Run(world);
  EXPECT_EQ(end.reason, kEndInvalidSpec);
  EXPECT_NE(end.message.find("2 ranks"), std::string::npos) << end.message;
}

TEST_F(TrainingRunTest, MissingDeviceEndsTheRunAndSaysWhatToDo) {
  if (MakeBackend("cuda", {}).ok()) GTEST_SKIP() << "a device is present";
  RunConfig config = Config("a");
  config.run.backend = kBackendCuda;
  const EndRecord end = Run(config);
  EXPECT_EQ(end.reason, kEndUserError);
  EXPECT_NE(end.message.find("use backend cpu"), std::string::npos) << end.message;
  EXPECT_EQ(TrainerExitCode(end.reason), 1);
}

TEST_F(TrainingRunTest, DeviceWithoutMemoryEndsWithItsOwnReason) {
  RunEnvironment environment;
  environment.make_backend = [](std::string_view, const BackendOptions& options) {
    return MakeBackend("cpu", {options.threads, 1 << 16});
  };
  RunConfig config = Config("a");
  config.run.backend = kBackendCuda;
  const EndRecord end = Run(config, environment);
  EXPECT_EQ(end.reason, kEndOutOfMemoryGpu) << end.message;
  EXPECT_EQ(TrainerExitCode(end.reason), 14);
}

TEST_F(TrainingRunTest, RunThatCannotFitTheHostIsRefusedBeforeItAllocates) {
  RunConfig config = Config("a");
  config.model = ModelPreset("llama2-13b").value();
  config.schedule.micro_batch = config.schedule.global_batch = 1 << 16;
  const EndRecord end = Run(config);
  EXPECT_EQ(end.reason, kEndOutOfMemoryHost);
  EXPECT_NE(end.message.find("schedule.microBatch"), std::string::npos) << end.message;
  EXPECT_EQ(TrainerExitCode(end.reason), 13);
}

TEST_F(TrainingRunTest, DamagedCheckpointFallsBackAndTheJournalSaysSo) {
  const EndRecord whole = Run(Config("a"));
  const std::string newest = JoinPath(Path("a"), "checkpoints/step-00000012/model.safetensors");
  std::string bytes = ReadFile(newest).value();
  bytes.resize(bytes.size() - 1);
  ASSERT_TRUE(AtomicWriteFile(newest, bytes).ok());
  const EndRecord end = Run(Config("a"));
  EXPECT_EQ(end.reason, kEndCompleted) << end.message;
  EXPECT_EQ(end.weights_sha256, whole.weights_sha256);
  const auto records = Journal("a");
  EXPECT_EQ(Only<StartRecord>(records).back().resumed_from_step, 8);
  bool warned = false;
  for (const auto& log : Only<LogRecord>(records)) {
    warned |= log.level == "warning" && log.text.find("step-00000012") != std::string::npos;
  }
  EXPECT_TRUE(warned);

  for (const char* step : {"step-00000008", "step-00000012"}) {
    ASSERT_TRUE(AtomicWriteFile(Path("a") + "/checkpoints/" + step + "/manifest.json", "{}").ok());
  }
  EXPECT_EQ(Run(Config("a")).reason, kEndCheckpointUnreadable);
}

TEST_F(TrainingRunTest, CheckpointOfAnotherModelIsAnInvalidSpec) {
  ASSERT_EQ(Run(Config("a", "fp32", 4)).reason, kEndCompleted);
  RunConfig other = Config("b", "fp32", 8);
  other.model.layers = 4;
  other.checkpoint.resume_from = Path("a");
  const EndRecord end = Run(other);
  EXPECT_EQ(end.reason, kEndInvalidSpec);
  EXPECT_NE(end.message.find("model.layers.3"), std::string::npos) << end.message;
}

TEST_F(TrainingRunTest, FullDiskInBetweenDoesNotStopTheRunButLosesNothingAtTheEnd) {
  RunConfig config = Config("a", "fp4_ms_paper", 8);
  config.checkpoint.every_steps = 3;
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit small = {64 * 1024, old_limit.rlim_max};  // the weights have 100 KiB
  setrlimit(RLIMIT_FSIZE, &small);
  int64_t asked = 0;
  RunEnvironment environment;
  environment.stop_requested = [&] {
    if (++asked == 6) setrlimit(RLIMIT_FSIZE, &old_limit);  // room again before step 6
    return false;
  };
  const EndRecord end = Run(config, environment);
  setrlimit(RLIMIT_FSIZE, &old_limit);
  EXPECT_EQ(end.reason, kEndCompleted) << end.message;
  const auto records = Journal("a");
  std::vector<int64_t> saved;
  for (const auto& checkpoint : Only<CheckpointRecord>(records)) saved.push_back(checkpoint.step);
  EXPECT_EQ(saved, (std::vector<int64_t>{6, 8}));
  bool warned = false;
  for (const auto& log : Only<LogRecord>(records)) {
    warned |= log.text.find("checkpoint of step 3 was not saved") != std::string::npos;
  }
  EXPECT_TRUE(warned);

  config.run.dir = Path("b");
  setrlimit(RLIMIT_FSIZE, &small);
  const EndRecord failed = Run(config);
  setrlimit(RLIMIT_FSIZE, &old_limit);
  EXPECT_EQ(failed.reason, kEndUserError);
  EXPECT_NE(failed.message.find("step 8 was not saved"), std::string::npos) << failed.message;
}

TEST_F(TrainingRunTest, StaleEpochEndsTheRun) {
  RunConfig config = Config("a");
  config.run.epoch = 4;
  RunEnvironment environment;
  int64_t asked = 0;
  environment.stop_requested = [&] {
    if (++asked == 3) {
      EXPECT_TRUE(AtomicWriteFile(Path("a") + "/checkpoints/epoch", "5\n").ok());
    }
    return false;
  };
  const EndRecord end = Run(config, environment);
  EXPECT_EQ(end.reason, kEndUserError);
  EXPECT_NE(end.message.find("ABORTED"), std::string::npos) << end.message;
  EXPECT_EQ(end.step, 4);
}

TEST_F(TrainingRunTest, TwoTrainersCannotShareAFolder) {
  ASSERT_TRUE(MakeDirectories(Path("a")).ok());
  const FileLock lock = FileLock::Acquire(JoinPath(Path("a"), "trainer.lock")).value();
  const EndRecord end = Run(Config("a"));
  EXPECT_EQ(end.reason, kEndUserError);
  EXPECT_NE(end.message.find("another trainer"), std::string::npos) << end.message;
}

TEST_F(TrainingRunTest, RunsWithoutValidationShards) {
  ASSERT_TRUE(RemoveTree(JoinPath(Path("data"), "val-000000.bin")).ok());
  EXPECT_EQ(Run(Config("a")).reason, kEndCompleted);
  EXPECT_TRUE(Only<ValidationRecord>(Journal("a")).empty());
}

}  // namespace
}  // namespace nibble
