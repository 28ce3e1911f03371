// SPDX-License-Identifier: Apache-2.0
#include "worker/data/tokenize.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/files.h"
#include "base/sha256.h"
#include "base/strings.h"
#include "worker/data/split_writer.h"
#include "worker/data/token_dataset.h"
#include "worker/data/tokenizer.h"
#include "worker/data/train_tokenizer.h"
#include "worker/data/window_order.h"

namespace nibble {
namespace {

// A llama2.c vocabulary of the fixed pieces, the space and the letters.
std::string LetterVocabulary() {
  std::string out("\x14\0\0\0", 4);
  const auto put = [&](const std::string& bytes) {
    const auto length = static_cast<int32_t>(bytes.size());
    out += std::string(4, '\0');
    out.append(reinterpret_cast<const char*>(&length), 4);
    out += bytes;
  };
  for (const char* special : {"<unk>", "\n<s>\n", "\n</s>\n"}) put(special);
  for (int byte = 0; byte < 256; ++byte) put(StrFormat("<0x%02X>", byte));
  put(" ");
  for (char c = 'a'; c <= 'z'; ++c) put(std::string(1, c));
  return out;
}

class TokenizeTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = MakeTempDirectory("nibble-tokenize").value();
    options_.tokenizer = Put("letters.bin", LetterVocabulary());
    options_.out = JoinPath(folder_, "out");
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  std::string Put(const std::string& name, std::string_view content) {
    const std::string path = JoinPath(folder_, name);
    EXPECT_TRUE(AtomicWriteFile(path, content).ok());
    return path;
  }
  std::vector<int32_t> Tokens(const std::string& split) {
    std::vector<int32_t> all;
    const auto shards = ResolveShards({options_.out}, split);
    if (!shards.ok()) return all;
    for (const std::string& path : *shards) {
      const auto shard = TokenShard::Open(path);
      EXPECT_TRUE(shard.ok()) << shard.status().ToString();
      std::vector<int32_t> part(static_cast<size_t>(shard->token_count()));
      EXPECT_TRUE(shard->Read(0, 286, part).ok());
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  // 300 documents of 3 to 200 words.
  std::string ManyDocuments() {
    std::string text;
    for (int d = 0; d < 300; ++d) {
      if (d > 0) text += "<|endoftext|>\n";
      for (int w = 0; w < 3 + d * 37 % 198; ++w) {
        text += std::string(1 + static_cast<size_t>(w * d % 7), static_cast<char>('a' + w % 26));
        text += w % 11 == 10 ? '\n' : ' ';
      }
      text += '\n';
    }
    return text;
  }
  std::string folder_;
  TokenizeOptions options_;
};

TEST_F(TokenizeTest, DocumentsStandBetweenBosAndEos) {
  options_.inputs = {Put("t.txt", "ab\n<|endoftext|>\nc\n")};
  options_.val_fraction = 0;
  const auto index = TokenizeFiles(options_);
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_EQ(Tokens("train"), (std::vector<int32_t>{1, 259, 260, 261, 2, 1, 259, 262, 2}));
  EXPECT_EQ((*index)["splits"]["train"]["documents"].AsInt(), 2);
  EXPECT_EQ((*index)["splits"]["val"]["tokens"].AsInt(), 0);
  EXPECT_EQ((*index)["tokenizer"]["sha256"].AsString(), Sha256Hex(LetterVocabulary()));
  EXPECT_EQ(Json::Parse(*ReadFile(JoinPath(options_.out, "index.json")))->Dump(), index->Dump());
  const Json& file = (*index)["splits"]["train"]["files"].At(0);
  EXPECT_EQ(file["sha256"].AsString(),
            Sha256Hex(*ReadFile(JoinPath(options_.out, file["name"].AsString()))));
  EXPECT_FALSE(PathExists(options_.out + ".partial"));
  EXPECT_EQ(*ListDirectory(options_.out),
            (std::vector<std::string>{"index.json", "tokenizer.bin", "train-000000.bin"}));
}

TEST_F(TokenizeTest, TheOutputCarriesItsTokenizerUnderItsUsualName) {
  options_.inputs = {Put("t.txt", "ab c\n")};
  options_.val_fraction = 0;
  const auto index = TokenizeFiles(options_);
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  const Json& tokenizer = (*index)["tokenizer"];
  EXPECT_EQ(tokenizer["file"].AsString(), "tokenizer.bin");  // given as letters.bin
  const std::string copy = JoinPath(options_.out, tokenizer["file"].AsString());
  EXPECT_EQ(*ReadFile(copy), LetterVocabulary());
  EXPECT_EQ(*TokenizerHash(options_.out), tokenizer["sha256"].AsString());
  ASSERT_EQ(tokenizer["files"].size(), 1u);
  const Json& file = tokenizer["files"].At(0);
  EXPECT_EQ(file["name"].AsString(), "tokenizer.bin");
  EXPECT_EQ(file["bytes"].AsInt(), static_cast<int64_t>(LetterVocabulary().size()));
  EXPECT_EQ(file["sha256"].AsString(), Sha256Hex(LetterVocabulary()));
  const auto loaded = LoadTokenizer(options_.out);
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(*(*loaded)->Decode(Tokens("train")), "ab c");
  // An output can be made again with the tokenizer inside it.
  ASSERT_TRUE(RemoveTree(options_.tokenizer).ok());
  options_.tokenizer = copy;
  options_.overwrite = true;
  const auto again = TokenizeFiles(options_);
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_EQ(again->Dump(), index->Dump());
  EXPECT_TRUE(PathExists(copy));
}

TEST_F(TokenizeTest, AnUnreadableTokenizerLeavesNoFolder) {
  options_.inputs = {Put("t.txt", "ab c\n")};
  options_.tokenizer = Put("odd.bin", "not a vocabulary");
  EXPECT_EQ(TokenizeFiles(options_).status().code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(PathExists(options_.out));
  EXPECT_FALSE(PathExists(options_.out + ".partial"));
}

TEST_F(TokenizeTest, NothingIsLostBetweenTheSplits) {
  const std::string text = ManyDocuments();
  options_.inputs = {Put("t.txt", text)};
  options_.val_fraction = 0.1;
  options_.shard_tokens = 10007;
  const auto index = TokenizeFiles(options_);
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  const double train = (*index)["splits"]["train"]["tokens"].AsDouble();
  const double val = (*index)["splits"]["val"]["tokens"].AsDouble();
  EXPECT_NEAR(val / (train + val), 0.1, 0.03);
  // Letters of both splits together are the letters of the text.
  const auto count_letters = [](const std::vector<int32_t>& ids) {
    return std::count_if(ids.begin(), ids.end(), [](int32_t id) { return id > 259; });
  };
  EXPECT_EQ(count_letters(Tokens("train")) + count_letters(Tokens("val")),
            std::count_if(text.begin(), text.end(), [](char c) { return c >= 'a' && c <= 'z'; }) -
                299 * static_cast<int64_t>(std::string("endoftext").size()));
  EXPECT_GT((*index)["splits"]["train"]["files"].size(), 1u);
}

TEST_F(TokenizeTest, ThreadsAndRepetitionGiveTheSameBytes) {
  options_.inputs = {Put("t.txt", ManyDocuments())};
  options_.val_fraction = 0.05;
  options_.threads = 1;
  const auto first = TokenizeFiles(options_);
  ASSERT_TRUE(first.ok());
  for (const int threads : {2, 7}) {
    options_.threads = threads;
    options_.overwrite = true;
    const auto again = TokenizeFiles(options_);
    ASSERT_TRUE(again.ok()) << again.status().ToString();
    EXPECT_EQ(again->Dump(), first->Dump());
  }
}

TEST_F(TokenizeTest, OneLongDocumentGivesBothSplitsAndReadsBack) {
  std::string text;
  for (int i = 0; i < 20000; ++i) text += "some words here\n";
  options_.inputs = {Put("t.txt", text)};
  const auto index = TokenizeFiles(options_);
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  EXPECT_NEAR((*index)["splits"]["val"]["tokens"].AsDouble() / 320000, 0.01, 0.005);
  options_.val_fraction = 0;
  options_.overwrite = true;
  ASSERT_TRUE(TokenizeFiles(options_).ok());
  const auto tokenizer = LoadTokenizer(options_.tokenizer);
  EXPECT_EQ(*(*tokenizer)->Decode(Tokens("train")) + "\n", text);
}

TEST_F(TokenizeTest, ExistingOutputIsKeptUnlessOverwritten) {
  options_.inputs = {Put("t.txt", "abc")};
  options_.val_fraction = 0;
  ASSERT_TRUE(TokenizeFiles(options_).ok());
  EXPECT_EQ(TokenizeFiles(options_).status().code(), StatusCode::kAlreadyExists);
  options_.overwrite = true;
  EXPECT_TRUE(TokenizeFiles(options_).ok());
  EXPECT_FALSE(PathExists(options_.out + ".old"));
  // A folder of something else is never replaced.
  options_.out = JoinPath(folder_, "mine");
  ASSERT_TRUE(MakeDirectories(options_.out).ok());
  ASSERT_TRUE(AtomicWriteFile(JoinPath(options_.out, "precious"), "x").ok());
  EXPECT_EQ(TokenizeFiles(options_).status().code(), StatusCode::kAlreadyExists);
  EXPECT_TRUE(PathExists(JoinPath(options_.out, "precious")));
}

TEST_F(TokenizeTest, LeftoversOfAKilledRunAreRemovedAndALiveRunIsRespected) {
  const std::string partial = options_.out + ".partial";
  ASSERT_TRUE(MakeDirectories(partial).ok());
  ASSERT_TRUE(AtomicWriteFile(JoinPath(partial, "train-000099.bin"), "half").ok());
  options_.inputs = {Put("t.txt", "abc")};
  options_.val_fraction = 0;
  ASSERT_TRUE(TokenizeFiles(options_).ok());
  EXPECT_FALSE(PathExists(JoinPath(options_.out, "train-000099.bin")));
}

TEST_F(TokenizeTest, FailureLeavesNothingBehind) {
  options_.inputs = {Put("t.jsonl", "{\"text\": \"abc\"}\n{broken\n")};
  const Status status = TokenizeFiles(options_).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("t.jsonl:2"), std::string::npos);
  EXPECT_FALSE(PathExists(options_.out));
  EXPECT_FALSE(PathExists(options_.out + ".partial"));
}

TEST_F(TokenizeTest, EmptyAndTooSmallCorporaAreRefused) {
  options_.inputs = {Put("t.txt", "\n\n")};
  EXPECT_NE(TokenizeFiles(options_).status().message().find("empty corpus"), std::string::npos);
  options_.inputs = {Put("t.txt", "abc")};
  EXPECT_NE(TokenizeFiles(options_).status().message().find("--val-fraction 0"), std::string::npos);
  options_.inputs = {};
  EXPECT_FALSE(TokenizeFiles(options_).ok());
  options_.inputs = {JoinPath(folder_, "none")};
  EXPECT_EQ(TokenizeFiles(options_).status().code(), StatusCode::kNotFound);
  options_.inputs = {Put("t.txt", "abc")};
  for (const double fraction : {-0.1, 0.6}) {
    options_.val_fraction = fraction;
    EXPECT_EQ(TokenizeFiles(options_).status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(SplitChooser, SharesAreExactAndBlindToTheSizeOfThePart) {
  SplitChooser chooser(0.2, 100);
  double long_bytes = 0;
  double chosen_long = 0;
  double short_bytes = 0;
  double chosen_short = 0;
  for (int i = 0; i < 20000; ++i) {
    const bool is_long = MixBits(static_cast<uint64_t>(i)) % 13 < 6;
    const int64_t bytes = is_long ? 100 : 10;
    const bool chosen = chooser.NextIsValidation(bytes);
    (is_long ? long_bytes : short_bytes) += static_cast<double>(bytes);
    if (chosen) (is_long ? chosen_long : chosen_short) += static_cast<double>(bytes);
  }
  EXPECT_NEAR((chosen_long + chosen_short) / (long_bytes + short_bytes), 0.2, 0.001);
  EXPECT_NEAR(chosen_long / long_bytes, 0.2, 0.02);
  EXPECT_NEAR(chosen_short / short_bytes, 0.2, 0.02);
}

#if NIBBLE_SENTENCEPIECE

TEST_F(TokenizeTest, TrainedTokenizerIsLosslessAndRepeatable) {
  std::string text;
  for (int i = 0; i < 400; ++i)
    text += StrFormat("the %d quick  brown foxes jump\n\tover %d\n", i, i);
  TrainTokenizerOptions train;
  train.input = Put("corpus.txt", text);
  train.out = JoinPath(folder_, "a.model");
  train.vocab_size = 300;
  const auto first = TrainTokenizer(train);
  ASSERT_TRUE(first.ok()) << first.status().ToString();
  EXPECT_EQ((*first)["vocab_size"].AsInt(), 300);
  train.out = JoinPath(folder_, "b.model");
  const auto second = TrainTokenizer(train);
  EXPECT_EQ((*first)["sha256"].AsString(), (*second)["sha256"].AsString());
  const auto t = LoadTokenizer(train.out);
  ASSERT_TRUE(t.ok());
  EXPECT_EQ((*t)->bos_id(), 1);
  EXPECT_EQ((*t)->eos_id(), 2);
  const std::string sample = "  the quick\n\n\tbrown 123 é日🙂  ";
  const auto ids = EncodeDocument(**t, sample);
  EXPECT_EQ(*(*t)->Decode(*ids), sample);
}

TEST_F(TokenizeTest, TrainerSamplesByItsSeedOnly) {
  std::string text;
  for (int i = 0; i < 4000; ++i) text += StrFormat("line %d of words %d\n", i, i * 7919);
  TrainTokenizerOptions train;
  train.input = Put("corpus.txt", text);
  train.out = JoinPath(folder_, "m.model");
  train.vocab_size = 320;
  train.max_train_bytes = 20000;
  const auto a = TrainTokenizer(train);
  const auto b = TrainTokenizer(train);
  train.seed = 9;
  const auto c = TrainTokenizer(train);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  EXPECT_TRUE((*a)["sampled"].AsBool());
  EXPECT_NEAR((*a)["bytes"].AsDouble(), 20000, 2000);
  EXPECT_EQ((*a)["sha256"].AsString(), (*b)["sha256"].AsString());
  EXPECT_NE((*a)["bytes"].AsInt(), (*c)["bytes"].AsInt());
}

TEST_F(TokenizeTest, SmallTextGivesASmallerVocabularyAndSaysSo) {
  TrainTokenizerOptions train;
  train.input = Put("corpus.txt", "ab abc abcd\n");
  train.out = JoinPath(folder_, "m.model");
  train.vocab_size = 4000;
  const auto summary = TrainTokenizer(train);
  ASSERT_TRUE(summary.ok()) << summary.status().ToString();
  EXPECT_LT((*summary)["vocab_size"].AsInt(), 300);
  EXPECT_EQ((*summary)["requested_vocab_size"].AsInt(), 4000);
}

TEST_F(TokenizeTest, TrainerRefusesEmptyTextAndBadOptions) {
  TrainTokenizerOptions train;
  train.input = Put("corpus.txt", "\n \n");
  train.out = JoinPath(folder_, "m.model");
  train.vocab_size = 300;
  EXPECT_EQ(TrainTokenizer(train).status().code(), StatusCode::kInvalidArgument);
  train.input = Put("corpus.txt", "text");
  train.vocab_size = 100;
  EXPECT_EQ(TrainTokenizer(train).status().code(), StatusCode::kInvalidArgument);
  train.vocab_size = 300;
  train.model_type = "unigrm";
  EXPECT_NE(TrainTokenizer(train).status().message().find("did you mean 'unigram'"),
            std::string::npos);
  EXPECT_FALSE(PathExists(train.out));
}

#endif

}  // namespace
}  // namespace nibble
