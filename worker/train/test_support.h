// SPDX-License-Identifier: Apache-2.0
//
// Test support: tiny models, token shards and configs. Include from tests only.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "kernels/backend.h"
#include "worker/data/token_shard.h"
#include "worker/spec/journal.h"
#include "worker/spec/recipe_fit.h"
#include "worker/spec/run_config.h"
#include "worker/train/journal_writer.h"
#include "worker/train/model.h"
#include "worker/train/parameters.h"
#include "worker/train/training_run.h"

namespace nibble {

inline std::unique_ptr<Backend> TestBackend(int threads = 1) {
  BackendOptions options;
  options.threads = threads;
  return MakeBackend("cpu", options).value();
}

inline ModelConfig TinyModel() {
  ModelConfig model;
  model.vocab_size = 48;
  model.hidden_size = 32;
  model.intermediate_size = 48;
  model.layers = 3;
  model.heads = 4;
  model.kv_heads = 2;
  return model;
}

// Every size a multiple of 128, for recipes with large blocks; micro-batches of 128 tokens fit,
// too.
inline ModelConfig WideModel() {
  ModelConfig model = TinyModel();
  model.hidden_size = model.intermediate_size = 128;
  model.layers = 2;
  model.kv_heads = 4;
  return model;
}

// A text with structure a model can learn: each token mostly follows from the one before.
inline std::vector<int32_t> TestTokens(int64_t count, int32_t vocab, uint32_t seed) {
  std::vector<int32_t> tokens;
  uint32_t state = seed * 2654435761u + 1;
  int32_t previous = 0;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const bool jump = (state >> 24) < 48;
    previous = jump ? static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(vocab))
                    : (previous * 5 + 3) % vocab;
    tokens.push_back(previous);
  }
  return tokens;
}

inline void WriteShard(const std::string& folder, const std::string& prefix,
                       const std::vector<int32_t>& tokens, int64_t vocab) {
  TokenShardWriter::Options options;
  options.folder = folder;
  options.prefix = prefix;
  options.vocab_size = vocab;
  auto writer = TokenShardWriter::Create(options);
  ASSERT_TRUE(writer.ok()) << writer.status().ToString();
  ASSERT_TRUE(writer->Append(tokens).ok());
  ASSERT_TRUE(writer->Finish().ok());
}

// llama2.c's tokenizer.bin with control and byte pieces only: 259 ids.
inline std::string ByteTokenizer() {
  std::string bytes;
  const auto number = [&](auto value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  number(int32_t{6});
  const auto piece = [&](const std::string& text) {
    number(0.0f);
    number(static_cast<int32_t>(text.size()));
    bytes += text;
  };
  for (const char* control : {"<unk>", "\n<s>\n", "\n</s>\n"}) piece(control);
  for (int i = 0; i < 256; ++i) piece(StrFormat("<0x%02X>", static_cast<unsigned>(i)));
  return bytes;
}

// A folder with data below it and configs that train on it.
class RunTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = MakeTempDirectory("nibble-train").value();
    const std::string data = Path("data");
    ASSERT_TRUE(MakeDirectories(data).ok());
    const ModelConfig model = TinyModel();
    WriteShard(data, "train", TestTokens(6000, 48, 1), model.vocab_size);
    WriteShard(data, "val", TestTokens(1200, 48, 2), model.vocab_size);
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  std::string Path(const std::string& name) const { return JoinPath(folder_, name); }

  RunConfig Config(const std::string& run, const std::string& recipe = "fp4_ms_paper",
                   int64_t steps = 12) const {
    RunConfig config;
    config.model = TinyModel();
    config.data.path = Path("data");
    config.data.seq_len = 16;
    config.schedule.steps = steps;
    config.schedule.micro_batch = 2;
    config.schedule.global_batch = 4;
    config.schedule.validate_every = 5;
    config.schedule.validation_batches = 3;
    config.checkpoint.every_steps = 4;
    config.metrics.health_every = 6;
    config.optimizer.peak_lr = 3e-3;
    config.recipe = recipe;
    config.run.dir = Path(run);
    config.run.threads = 1;
    return config;
  }

  static EndRecord Run(const RunConfig& config, RunEnvironment environment = {}) {
    return TrainingRun(config, std::move(environment)).Execute();
  }

  // All records of a run's journal; every line must be readable and numbered without a gap.
  std::vector<JournalRecord> Journal(const std::string& run) const {
    std::vector<JournalRecord> records;
    const std::string text = ReadFile(JoinPath(Path(run), kJournalFileName)).value();
    size_t begin = 0;
    while (begin < text.size()) {
      const size_t end = text.find('\n', begin);
      EXPECT_NE(end, std::string::npos) << "torn line";
      auto record = DecodeJournalLine(text.substr(begin, end - begin));
      EXPECT_TRUE(record.ok()) << record.status().ToString();
      if (!record.ok() || end == std::string::npos) break;
      EXPECT_EQ(record->seq, static_cast<int64_t>(records.size()) + 1);
      records.push_back(*std::move(record));
      begin = end + 1;
    }
    return records;
  }

  template <typename T>
  static std::vector<T> Only(const std::vector<JournalRecord>& records) {
    std::vector<T> out;
    for (const JournalRecord& record : records) {
      if (const T* event = std::get_if<T>(&record.event)) out.push_back(*event);
    }
    return out;
  }

  std::string folder_;
};

}  // namespace nibble
