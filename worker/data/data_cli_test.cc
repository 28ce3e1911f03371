// SPDX-License-Identifier: Apache-2.0
//
// The program nibble-data as a user runs it: exit codes, streams, and a kill in the middle.
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "base/files.h"
#include "base/json.h"
#include "base/process.h"
#include "base/strings.h"

namespace nibble {
namespace {

class DataCliTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = MakeTempDirectory("nibble-data-cli").value(); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  CommandOutput Run(std::vector<std::string> words, bool merge_stderr = true) {
    words.insert(words.begin(), NIBBLE_DATA_PROGRAM);
    return RunCommand(words, merge_stderr).value();
  }
  std::string Put(const std::string& name, std::string_view content) {
    const std::string path = JoinPath(folder_, name);
    EXPECT_TRUE(AtomicWriteFile(path, content).ok());
    return path;
  }
  // GPT-2's byte alphabet without merges: ids are a renumbering of the bytes.
  std::string ByteTokenizer() {
    std::string json = "{";
    for (int byte = 0, extra = 0x100, id = 0; byte < 256; ++byte, ++id) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      json += StrFormat("%s\"\\u%04x\": %d", id > 0 ? ", " : "", printable ? byte : extra++, id);
    }
    Put("vocab.bpe", "#version: 0.2\n");
    return Put("encoder.json", json + ", \"<|endoftext|>\": 256}");
  }
  std::string folder_;
};

TEST_F(DataCliTest, EveryCommandHasHelpWithAnExample) {
  for (const std::string name : {"corpus perl-doc", "corpus files", "train-tokenizer", "tokenize",
                                 "encode", "decode", "inspect"}) {
    std::vector<std::string> words = StrSplit(name, ' ');
    words.push_back("--help");
    const CommandOutput help = Run(words, /*merge_stderr=*/false);
    EXPECT_EQ(help.status.exit_code, 0) << name;
    EXPECT_NE(help.output.find("Example:\n  nibble-data " + name), std::string::npos) << name;
  }
  EXPECT_NE(Run({"--help"}).output.find("inspect"), std::string::npos);
}

TEST_F(DataCliTest, TheReferencePageHasEveryCommandAndFlag) {
  const std::string page =
      ReadFile(JoinPath(NIBBLE_SOURCE_DIR, "docs/reference/cli.md")).value_or("");
  const size_t start = page.find("\n### nibble-data\n");
  ASSERT_NE(start, std::string::npos);
  const std::string section = page.substr(start);
  for (const std::string name : {"corpus perl-doc", "corpus files", "train-tokenizer", "encode",
                                 "decode", "tokenize", "inspect"}) {
    // The command's row and the rows without a name below it.
    const size_t row = section.find("\n| `" + name);
    ASSERT_NE(row, std::string::npos) << name;
    const std::string rows = section.substr(row, section.find("\n| `", row + 1) - row);
    std::vector<std::string> words = StrSplit(name, ' ');
    words.push_back("--help");
    int flags = 0;
    for (const std::string& line : StrSplit(Run(words).output, '\n')) {
      if (!line.starts_with("  --")) continue;
      const std::string flag = line.substr(2, line.find(' ', 2) - 2);
      if (flag == "--help" || flag == "--json") continue;  // of all commands
      ++flags;
      EXPECT_NE(rows.find("`" + flag + "`"), std::string::npos) << name << " " << flag;
    }
    EXPECT_GT(flags, 0) << name;
  }
}

TEST_F(DataCliTest, WrongUsageExitsWithTwoAndNamesTheFix) {
  EXPECT_EQ(Run({}).status.exit_code, 2);
  const CommandOutput command = Run({"tokenise"});
  EXPECT_EQ(command.status.exit_code, 2);
  EXPECT_NE(command.output.find("did you mean 'tokenize'"), std::string::npos);
  const CommandOutput flag = Run({"inspect", "--heat", "3", "x"});
  EXPECT_EQ(flag.status.exit_code, 2);
  EXPECT_NE(flag.output.find("did you mean '--head'"), std::string::npos);
  EXPECT_EQ(Run({"inspect"}).status.exit_code, 2);
  EXPECT_EQ(Run({"tokenize", "--out", "x", "y"}).status.exit_code, 2);
  EXPECT_EQ(
      Run({"train-tokenizer", "--input", "x", "--out", "y", "--vocab-size", "9"}).status.exit_code,
      2);
  EXPECT_EQ(Run({"decode", "--tokenizer"}).status.exit_code, 2);
  EXPECT_EQ(Run({"corpus", "files", "--out", "x", "--out", "y", "z"}).status.exit_code, 2);
  EXPECT_EQ(Run({"corpus", "files", "--lossy=1", "--out", "y", "z"}).status.exit_code, 2);
}

TEST_F(DataCliTest, CorpusTokenizeInspectEncodeDecode) {
  const std::string tokenizer = ByteTokenizer();
  const std::string corpus = JoinPath(folder_, "corpus.txt");
  const std::string out = JoinPath(folder_, "tokens");
  ASSERT_EQ(Run({"corpus", "files", "--out", corpus, Put("a.txt", "hello\n")}).status.exit_code, 0);
  const CommandOutput tokenized = Run(
      {"tokenize", "--json", "--tokenizer", tokenizer, "--out", out, "--val-fraction=0", corpus},
      /*merge_stderr=*/false);
  ASSERT_EQ(tokenized.status.exit_code, 0) << tokenized.output;
  const auto summary = Json::Parse(tokenized.output);
  ASSERT_TRUE(summary.ok()) << tokenized.output;
  EXPECT_EQ((*summary)["splits"]["train"]["tokens"].AsInt(), 6);  // <|endoftext|> and five letters
  const CommandOutput inspected =
      Run({"inspect", "--json", "--head", "2", JoinPath(out, "train-000000.bin")}, false);
  const auto shard = Json::Parse(inspected.output);
  ASSERT_TRUE(shard.ok()) << inspected.output;
  EXPECT_EQ((*shard)["magic"].AsInt(), 20240520);
  EXPECT_EQ((*shard)["tokens"].AsInt(), 6);
  EXPECT_EQ((*shard)["max_token"].AsInt(), 256);
  EXPECT_EQ((*shard)["head"].At(0).AsInt(), 256);
  const CommandOutput ids = Run({"encode", "--tokenizer", tokenizer, "--", "--odd text"}, false);
  std::vector<std::string> decode = {"decode", "--tokenizer", tokenizer};
  for (const std::string& id : StrSplit(StrTrim(ids.output), ' ')) decode.push_back(id);
  EXPECT_EQ(Run(decode, false).output, "--odd text\n");
  EXPECT_EQ(Run({"decode", "--tokenizer", tokenizer, "257"}).status.exit_code, 1);
  EXPECT_EQ(Run({"inspect", corpus}).status.exit_code, 1);
  EXPECT_EQ(
      Run({"inspect", "--vocab-size", "256", JoinPath(out, "train-000000.bin")}).status.exit_code,
      1);
}

TEST_F(DataCliTest, KilledTokenizeLeavesNoOutputAndTheNextRunSucceeds) {
  const std::string tokenizer = ByteTokenizer();
  std::string text;
  for (int i = 0; i < 400000; ++i) text += "one more line of the corpus\n";
  const std::string corpus = Put("big.txt", text);
  const std::string out = JoinPath(folder_, "tokens");
  ProcessOptions options;
  options.argv = {NIBBLE_DATA_PROGRAM, "tokenize", "--tokenizer", tokenizer, "--out", out,
                  "--shard-tokens",    "100000",   corpus};
  auto process = Process::Start(options);
  ASSERT_TRUE(process.ok());
  // As soon as a shard is there the run is in the middle of its work.
  const std::string first = JoinPath(out + ".partial", "train-000000.bin");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!PathExists(first) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  ASSERT_TRUE(process->Signal(SIGKILL).ok());
  EXPECT_EQ(process->Wait()->signal, SIGKILL);
  EXPECT_FALSE(PathExists(out));
  EXPECT_TRUE(PathExists(first));
  const std::string small = Put("small.txt", "small\n");
  const CommandOutput next =
      Run({"tokenize", "--tokenizer", tokenizer, "--out", out, "--val-fraction", "0", small});
  EXPECT_EQ(next.status.exit_code, 0) << next.output;
  EXPECT_EQ(*ListDirectory(out), (std::vector<std::string>{"index.json", "merges.txt",
                                                           "train-000000.bin", "vocab.json"}));
  EXPECT_FALSE(PathExists(out + ".partial"));
}

}  // namespace
}  // namespace nibble
