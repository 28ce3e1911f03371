// SPDX-License-Identifier: Apache-2.0
#include "client/cli/quickstart_data.h"

#include <csignal>
#include <optional>

#include "base/files.h"
#include "base/process.h"
#include "base/sha256.h"
#include "base/strings.h"

namespace nibble::cli {
namespace {

constexpr std::chrono::milliseconds kPoll{100};
constexpr int64_t kMinPerlDocBytes = 5'000'000;
constexpr char kValidationShare[] = "0.02";
constexpr int64_t kMaxTextFileBytes = int64_t{4} << 30;
constexpr size_t kLogTailBytes = 1500;

// Identity of the inputs: what they are and everything that shapes the output.
Result<std::string> InputHash(const QuickstartData& data) {
  Sha256 hash;
  hash.Update(StrFormat("quickstart-2 vocab=%d val=%s\n", data.vocab_size, kValidationShare));
  if (data.text.empty()) hash.Update("perl-doc\n");
  for (const std::string& path : data.text) {
    ASSIGN_OR_RETURN(const std::string content, ReadFile(path, kMaxTextFileBytes));
    hash.Update(Sha256Hex(content) + "\n");
  }
  return hash.HexDigest();
}

}  // namespace

std::string QuickstartData::corpus_path() const { return JoinPath(folder, "corpus.txt"); }
std::string QuickstartData::tokenizer_path() const { return JoinPath(folder, "tokenizer.model"); }
std::string QuickstartData::tokens_path() const { return JoinPath(folder, "tokens"); }

Result<Json> RunJsonTool(const std::vector<std::string>& argv, const std::string& log_path,
                         Interrupt& interrupt) {
  const std::string out_path = log_path + ".out";
  RETURN_IF_ERROR(RemoveTree(out_path));
  RETURN_IF_ERROR(RemoveTree(log_path));
  ProcessOptions options;
  options.argv = argv;
  options.argv.emplace_back("--json");
  options.stdout_path = out_path;
  options.stderr_path = log_path;
  options.parent_death_signal = SIGTERM;
  ASSIGN_OR_RETURN(Process process, Process::Start(options));
  std::optional<ExitStatus> ended;
  while (!ended.has_value()) {
    if (interrupt.requested()) {
      RETURN_IF_ERROR(process.Signal(SIGTERM));
      RETURN_IF_ERROR(process.Wait().status());
      return CancelledError("interrupted");
    }
    ASSIGN_OR_RETURN(ended, process.WaitFor(kPoll));
  }
  if (!ended->success()) {
    std::string log = ReadFile(log_path).value_or("");
    if (log.size() > kLogTailBytes) log = log.substr(log.size() - kLogTailBytes);
    return InternalError(BaseName(argv[0]) + " ended with " + ended->ToString() + ": " +
                         std::string(StrTrim(log)));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(out_path));
  RETURN_IF_ERROR(RemoveTree(out_path));
  const auto json = Json::Parse(text);
  if (!json.ok()) return json.status().WithContext("output of " + BaseName(argv[0]));
  return *json;
}

Status PrepareQuickstartData(const QuickstartData& data, Interrupt& interrupt) {
  RETURN_IF_ERROR(MakeDirectories(data.folder));
  ASSIGN_OR_RETURN(const std::string hash, InputHash(data));
  const std::string stamp = JoinPath(data.folder, "inputs.sha256");
  if (ReadFile(stamp, 4096).value_or("") == hash &&
      PathExists(JoinPath(data.tokens_path(), "index.json"))) {
    data.note("using the data in " + data.folder);
    return OkStatus();
  }
  RETURN_IF_ERROR(RemoveTree(stamp));
  const std::string tool = JoinPath(data.bin_dir, "nibble-data");
  const std::string log = JoinPath(data.folder, "nibble-data.log");

  std::vector<std::string> corpus = {tool, "corpus"};
  if (data.text.empty()) {
    corpus.insert(corpus.end(), {"perl-doc", "--out", data.corpus_path(), "--min-bytes",
                                 std::to_string(kMinPerlDocBytes)});
    data.note("making a corpus from Perl's documentation");
  } else {
    corpus.insert(corpus.end(), {"files", "--out", data.corpus_path(), "--"});
    corpus.insert(corpus.end(), data.text.begin(), data.text.end());
    data.note(StrFormat("making a corpus from %zu files", data.text.size()));
  }
  ASSIGN_OR_RETURN(Json summary, RunJsonTool(corpus, log, interrupt));
  data.note("  " + FormatBytes(summary["bytes"].AsDouble()) + " of text in " +
            std::to_string(summary["documents"].AsInt()) + " documents");

  data.note(StrFormat("training a SentencePiece tokenizer of %d pieces", data.vocab_size));
  ASSIGN_OR_RETURN(
      summary, RunJsonTool({tool, "train-tokenizer", "--input", data.corpus_path(), "--vocab-size",
                            std::to_string(data.vocab_size), "--out", data.tokenizer_path()},
                           log, interrupt));

  data.note("writing token shards");
  ASSIGN_OR_RETURN(summary, RunJsonTool({tool, "tokenize", "--tokenizer", data.tokenizer_path(),
                                         "--out", data.tokens_path(), "--val-fraction",
                                         kValidationShare, "--overwrite", data.corpus_path()},
                                        log, interrupt));
  const Json& splits = summary["splits"];
  data.note("  " + FormatCount(splits["train"]["tokens"].AsDouble()) + " tokens to train on, " +
            FormatCount(splits["val"]["tokens"].AsDouble()) + " to validate");
  return AtomicWriteFile(stamp, hash);
}

}  // namespace nibble::cli
