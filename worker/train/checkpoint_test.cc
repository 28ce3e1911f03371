// SPDX-License-Identifier: Apache-2.0
#include "worker/train/checkpoint.h"

#include <sys/resource.h>

#include <csignal>

#include "worker/train/checkpoint_store.h"
#include "worker/train/safetensors.h"
#include "worker/train/test_support.h"

namespace nibble {
namespace {

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = MakeTempDirectory("nibble-checkpoint").value();
    backend_ = TestBackend();
    parameters_.emplace(Parameters::Create(backend_.get(), TinyModel()).value());
    ASSERT_TRUE(parameters_->Initialise(TinyModel(), 1).ok());
    ASSERT_TRUE(backend_->Fill(parameters_->first_moment(3), 0.25f).ok());
    ASSERT_TRUE(backend_->Fill(parameters_->second_moment(4), 0.5f).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  CheckpointStore Store(int64_t epoch = 1, int64_t keep_last = 2, int64_t keep_best = 1) {
    CheckpointConfig config;
    config.keep_last = keep_last;
    config.keep_best = keep_best;
    config.resume_from = resume_from_;
    auto store = CheckpointStore::Open(folder_, epoch, config,
                                       [this](const std::string& w) { warnings_.push_back(w); });
    EXPECT_TRUE(store.ok()) << store.status().ToString();
    return *std::move(store);
  }

  CheckpointContent Content(int64_t step, std::optional<double> validation = std::nullopt) {
    CheckpointContent content;
    content.state.step = step;
    content.state.tokens = step * 64;
    content.state.cursor = {2, step};
    content.state.validation_loss = validation;
    content.state.recipe = "fp4_ms_paper";
    content.model = TinyModel();
    content.seq_len = 16;
    return content;
  }
  Result<SavedCheckpoint> Save(CheckpointStore& store, int64_t step,
                               std::optional<double> validation = std::nullopt) {
    // Each step has weights of its own.
    EXPECT_TRUE(backend_->Fill(parameters_->weight(0), static_cast<float>(step)).ok());
    return store.Save(*backend_, *parameters_, Content(step, validation));
  }
  void Damage(const std::string& path) {
    std::string bytes = ReadFile(path).value();
    bytes[bytes.size() / 2] ^= 1;
    ASSERT_TRUE(AtomicWriteFile(path, bytes).ok());
  }
  std::string Warnings() const {
    std::string all;
    for (const std::string& warning : warnings_) all += warning + "\n";
    return all;
  }

  std::string folder_, resume_from_;
  std::unique_ptr<Backend> backend_;
  std::optional<Parameters> parameters_;
  std::vector<std::string> warnings_;
};

TEST_F(CheckpointTest, LoadsBackEveryTensorAndTheState) {
  CheckpointStore store = Store();
  const auto saved = Save(store, 10, 2.5);
  ASSERT_TRUE(saved.ok()) << saved.status().ToString();
  EXPECT_EQ(BaseName(saved->path), "step-00000010");
  EXPECT_TRUE(saved->best);
  const std::string fingerprint = parameters_->Fingerprint().value();

  auto other = Parameters::Create(backend_.get(), TinyModel()).value();
  const auto state = store.LoadNewest(*backend_, &other);
  ASSERT_TRUE(state.ok() && state->has_value()) << state.status().ToString();
  EXPECT_EQ((*state)->step, 10);
  EXPECT_EQ((*state)->cursor, (DataCursor{2, 10}));
  EXPECT_EQ((*state)->validation_loss, 2.5);
  EXPECT_EQ(other.Fingerprint().value(), fingerprint);
  EXPECT_EQ(other.first_moment(3).f32()[0], 0.25f);
  EXPECT_EQ(other.second_moment(4).f32()[0], 0.5f);
}

TEST_F(CheckpointTest, HoldsWhatOtherProgramsNeed) {
  CheckpointStore store = Store();
  const std::string path = Save(store, 1)->path;
  const auto config = ReadModelConfig(path);
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->max_positions, 16);
  const auto weights = SafetensorsReader::Open(JoinPath(path, kWeightsFileName));
  ASSERT_TRUE(weights.ok());
  EXPECT_EQ(weights->metadata().at("format"), "pt");
  EXPECT_EQ(weights->entries().size(), parameters_->list().size());
  ASSERT_NE(weights->Find("model.layers.1.self_attn.k_proj.weight"), nullptr);
  EXPECT_EQ(weights->Find("model.layers.1.self_attn.k_proj.weight")->shape,
            (std::vector<int64_t>{16, 32}));
  const auto manifest = VerifyCheckpoint(path);
  ASSERT_TRUE(manifest.ok()) << manifest.status().ToString();
  EXPECT_EQ(manifest->size(), 4u);
}

TEST_F(CheckpointTest, KeepsTheLastAndTheBest) {
  CheckpointStore store = Store(1, 2, 1);
  ASSERT_TRUE(Save(store, 1, 3.0)->best);
  ASSERT_TRUE(Save(store, 2, 2.0)->best);
  EXPECT_FALSE(Save(store, 3, 2.5)->best);
  EXPECT_FALSE(Save(store, 4, 2.6)->best);
  EXPECT_FALSE(Save(store, 5)->best);
  EXPECT_EQ(store.Steps().value(), (std::vector<int64_t>{5, 4, 2}));
  EXPECT_EQ(warnings_.size(), 0u);
}

TEST_F(CheckpointTest, SavingAStepAgainReplacesIt) {
  CheckpointStore store = Store();
  ASSERT_TRUE(Save(store, 3, 2.0).ok());
  ASSERT_TRUE(Save(store, 3, 1.0).ok());
  EXPECT_EQ(ReadTrainingState(store.PathOf(3))->validation_loss, 1.0);
  Store();  // removes what was set aside
  EXPECT_EQ(ListDirectory(JoinPath(folder_, "checkpoints"))->size(), 2u);  // and the epoch
}

TEST_F(CheckpointTest, DamagedOnesAreSkippedLoudlyForThePreviousOne) {
  CheckpointStore store = Store(1, 5);
  for (const int64_t step : {1, 2, 3, 4, 5}) ASSERT_TRUE(Save(store, step).ok());
  Damage(JoinPath(store.PathOf(5), kWeightsFileName));
  ASSERT_TRUE(RemoveTree(JoinPath(store.PathOf(4), kManifestFileName)).ok());
  const std::string optimizer = JoinPath(store.PathOf(3), kOptimizerFileName);
  ASSERT_TRUE(AtomicWriteFile(optimizer, ReadFile(optimizer)->substr(0, 100)).ok());
  ASSERT_TRUE(RemoveTree(JoinPath(store.PathOf(2), kStateFileName)).ok());
  const auto state = store.LoadNewest(*backend_, &*parameters_);
  ASSERT_TRUE(state.ok() && state->has_value()) << state.status().ToString();
  EXPECT_EQ((*state)->step, 1);
  EXPECT_EQ(parameters_->weight(0).f32()[0], 1.0f);
  ASSERT_EQ(warnings_.size(), 4u);
  EXPECT_NE(warnings_[0].find("SHA-256"), std::string::npos) << Warnings();
  EXPECT_NE(warnings_[1].find("manifest"), std::string::npos) << Warnings();
  EXPECT_NE(warnings_[2].find("has 100 bytes"), std::string::npos) << Warnings();
  EXPECT_NE(warnings_[3].find("state.json"), std::string::npos) << Warnings();
  // The damaged ones no longer count as checkpoints, so they cannot push out the good one.
  EXPECT_EQ(store.Steps().value(), (std::vector<int64_t>{1}));
  EXPECT_TRUE(PathExists(JoinPath(folder_, "checkpoints/damaged-step-00000005")));
}

TEST_F(CheckpointTest, NoIntactOneLeftIsDataLoss) {
  CheckpointStore store = Store();
  ASSERT_TRUE(Save(store, 1).ok());
  Damage(JoinPath(store.PathOf(1), kConfigFileName));
  EXPECT_EQ(store.LoadNewest(*backend_, &*parameters_).status().code(), StatusCode::kDataLoss);
}

TEST_F(CheckpointTest, NothingToResumeIsNoError) {
  CheckpointStore store = Store();
  const auto state = store.LoadNewest(*backend_, &*parameters_);
  ASSERT_TRUE(state.ok());
  EXPECT_FALSE(state->has_value());
}

TEST_F(CheckpointTest, ResumeFromIsUsedUntilTheRunHasItsOwn) {
  CheckpointStore first = Store();
  ASSERT_TRUE(Save(first, 7).ok());
  const std::string other = JoinPath(folder_, "other");
  resume_from_ = folder_;  // a run folder stands for its newest checkpoint
  CheckpointConfig config;
  config.resume_from = folder_;
  auto store = CheckpointStore::Open(other, 1, config, [](const std::string&) {}).value();
  EXPECT_EQ(store.LoadNewest(*backend_, &*parameters_).value()->step, 7);
  ASSERT_TRUE(Save(store, 9).ok());
  EXPECT_EQ(store.LoadNewest(*backend_, &*parameters_).value()->step, 9);
  config.resume_from = JoinPath(folder_, "none");
  auto lost = CheckpointStore::Open(JoinPath(folder_, "x"), 1, config, [](const std::string&) {});
  EXPECT_EQ(lost->LoadNewest(*backend_, &*parameters_).status().code(), StatusCode::kDataLoss);
}

TEST_F(CheckpointTest, AnotherModelIsRefusedAndNotCalledDamaged) {
  CheckpointStore store = Store();
  ASSERT_TRUE(Save(store, 1).ok());
  ModelConfig wider = TinyModel();
  wider.intermediate_size = 64;
  auto other = Parameters::Create(backend_.get(), wider).value();
  const Status status = store.LoadNewest(*backend_, &other).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("(48, 32), the model needs (64, 32)"), std::string::npos)
      << status.message();
  EXPECT_EQ(store.Steps()->size(), 1u);
}

TEST_F(CheckpointTest, StaleEpochWritesNothing) {
  CheckpointStore old = Store(3);
  ASSERT_TRUE(Save(old, 1).ok());
  CheckpointStore owner = Store(4);
  const Status status = Save(old, 2).status();
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_NE(status.message().find("epoch 4"), std::string::npos);
  EXPECT_EQ(owner.Steps().value(), (std::vector<int64_t>{1}));
  EXPECT_EQ(CheckpointStore::Open(folder_, 3, {}, nullptr).status().code(), StatusCode::kAborted);
  EXPECT_TRUE(Save(owner, 2).ok());
}

TEST_F(CheckpointTest, FullDiskLeavesTheOldOnesAndNothingOfTheNew) {
  CheckpointStore store = Store();
  ASSERT_TRUE(Save(store, 1).ok());
  const auto before = ListDirectory(JoinPath(folder_, "checkpoints")).value();
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  getrlimit(RLIMIT_FSIZE, &old_limit);
  for (const rlim_t limit : {100, 70'000, 150'000}) {
    const rlimit small = {limit, old_limit.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    const Status status = Save(store, 2).status();
    setrlimit(RLIMIT_FSIZE, &old_limit);
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.ToString();
    EXPECT_EQ(ListDirectory(JoinPath(folder_, "checkpoints")).value(), before);
  }
  EXPECT_TRUE(VerifyCheckpoint(store.PathOf(1)).ok());
  EXPECT_TRUE(Save(store, 2).ok());
}

TEST_F(CheckpointTest, WhatAKilledProcessLeftIsRemoved) {
  Store();
  const std::string left = JoinPath(folder_, "checkpoints/.writing-step-00000009");
  ASSERT_TRUE(MakeDirectories(left).ok());
  ASSERT_TRUE(AtomicWriteFile(JoinPath(left, kWeightsFileName), "half").ok());
  CheckpointStore store = Store();
  EXPECT_FALSE(PathExists(left));
  EXPECT_TRUE(store.Steps()->empty());
}

TEST_F(CheckpointTest, ManifestEntriesCannotPointElsewhere) {
  CheckpointStore store = Store();
  ASSERT_TRUE(Save(store, 1).ok());
  const std::string path = JoinPath(store.PathOf(1), kManifestFileName);
  std::string text = ReadFile(path).value();
  text.replace(text.find(kConfigFileName), std::string(kConfigFileName).size(), "../epoch");
  ASSERT_TRUE(AtomicWriteFile(path, text).ok());
  EXPECT_EQ(VerifyCheckpoint(store.PathOf(1)).status().code(), StatusCode::kDataLoss);
}

TEST_F(CheckpointTest, HalfPrecisionWeightsLoad) {
  const std::string folder = JoinPath(folder_, "half");
  ASSERT_TRUE(MakeDirectories(folder).ok());
  std::vector<SafetensorsEntry> entries;
  int64_t elements = 0;
  for (const ParameterInfo& info : parameters_->list()) {
    entries.push_back({info.name, info.is_norm ? "F16" : "BF16", info.shape()});
    elements += info.size();
  }
  auto writer = SafetensorsWriter::Create(JoinPath(folder, kWeightsFileName), entries, {});
  ASSERT_TRUE(writer.ok());
  for (const ParameterInfo& info : parameters_->list()) {
    // 1.5 in BF16 is 0x3fc0; -0.25 in F16 is 0xb400.
    const std::vector<uint16_t> words(static_cast<size_t>(info.size()),
                                      info.is_norm ? 0xb400 : 0x3fc0);
    ASSERT_TRUE(writer->Append(words.data(), words.size() * 2).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
  ASSERT_TRUE(LoadTensors(folder, *backend_, false, &*parameters_).ok());
  EXPECT_EQ(parameters_->weight(0).f32()[7], 1.5f);
  EXPECT_EQ(parameters_->weight(parameters_->final_norm()).f32()[7], -0.25f);
}

}  // namespace
}  // namespace nibble
