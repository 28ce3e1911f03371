// SPDX-License-Identifier: Apache-2.0
#include "base/strings.h"
#include "worker/data/data_commands.h"
#include "worker/data/token_shard.h"
#include "worker/data/tokenize.h"

namespace nibble {
namespace {

constexpr int64_t kMaxHeadTokens = 1'000'000;

Result<TokenizeOptions> OptionsFrom(const CliArgs& args) {
  TokenizeOptions options;
  options.tokenizer = args.Get("--tokenizer");
  options.out = args.Get("--out");
  options.inputs = args.operands();
  ASSIGN_OR_RETURN(const std::string format,
                   args.GetChoice("--format", {"auto", "text", "jsonl", "jsonl.zst"}));
  options.reader.format = format == "auto"   ? InputFormat::kAuto
                          : format == "text" ? InputFormat::kText
                                             : InputFormat::kJsonl;
  ASSIGN_OR_RETURN(const std::string documents,
                   args.GetChoice("--documents", {"separator", "blank-lines", "file"}));
  options.reader.documents = documents == "separator"     ? TextDocuments::kSeparator
                             : documents == "blank-lines" ? TextDocuments::kBlankLines
                                                          : TextDocuments::kFile;
  options.reader.field = args.Get("--field");
  options.reader.lossy = args.Has("--lossy");
  ASSIGN_OR_RETURN(options.val_fraction, args.GetDouble("--val-fraction", 0, 0.5));
  ASSIGN_OR_RETURN(options.shard_tokens, args.GetInt("--shard-tokens", 1, kMaxShardTokens));
  ASSIGN_OR_RETURN(const int64_t threads, args.GetInt("--threads", 0, kMaxTokenizeThreads));
  options.threads = static_cast<int>(threads);
  options.overwrite = args.Has("--overwrite");
  return options;
}

int RunTokenize(const CliArgs& args) {
  const auto options = OptionsFrom(args);
  if (!options.ok()) return FailUsage(options.status());
  Result<Json> index = TokenizeFiles(*options);
  if (!index.ok()) return FailCommand(index.status());
  const Json& splits = (*index)["splits"];
  const std::string text = StrFormat(
      "%s: %lld documents, %s of text; train %lld tokens in %zu files, validation %lld "
      "tokens in %zu files",
      options->out.c_str(), static_cast<long long>((*index)["documents"].AsInt()),
      FormatBytes((*index)["text_bytes"].AsDouble()).c_str(),
      static_cast<long long>(splits["train"]["tokens"].AsInt()), splits["train"]["files"].size(),
      static_cast<long long>(splits["val"]["tokens"].AsInt()), splits["val"]["files"].size());
  Json summary = *index;
  summary.Set("out", options->out);
  return PrintSummary(args, summary, text);
}

Result<Json> Inspect(const std::string& path, int64_t vocab_size, int64_t head) {
  ASSIGN_OR_RETURN(const TokenShard shard, TokenShard::Open(path));
  ASSIGN_OR_RETURN(const TokenShard::Range range, shard.Scan());
  if (vocab_size > 0 && range.max >= vocab_size) {
    return InvalidArgumentError(StrFormat("%s holds token id %d, but the vocabulary has %lld",
                                          path.c_str(), range.max,
                                          static_cast<long long>(vocab_size)));
  }
  std::vector<int32_t> first(static_cast<size_t>(std::min(head, shard.token_count())));
  RETURN_IF_ERROR(shard.Read(0, int64_t{range.max} + 1, first));
  Json ids = Json::Array();
  for (const int32_t id : first) ids.Append(id);
  ASSIGN_OR_RETURN(const std::string hash, FileSha256(path));
  return Json::Object({{"file", path},
                       {"magic", shard.magic()},
                       {"version", shard.version()},
                       {"token_bytes", static_cast<int>(shard.width())},
                       {"tokens", shard.token_count()},
                       {"min_token", range.min},
                       {"max_token", range.max},
                       {"sha256", hash},
                       {"head", std::move(ids)}});
}

int RunInspect(const CliArgs& args) {
  const auto vocab_size = args.GetInt("--vocab-size", 0, int64_t{1} << 31);
  if (!vocab_size.ok()) return FailUsage(vocab_size.status());
  const auto head = args.GetInt("--head", 0, kMaxHeadTokens);
  if (!head.ok()) return FailUsage(head.status());
  int exit_code = kExitOk;
  for (const std::string& path : args.operands()) {
    const Result<Json> json = Inspect(path, *vocab_size, *head);
    if (!json.ok()) {
      exit_code = FailCommand(json.status());
      continue;
    }
    std::string text = json->Dump() + "\n";
    if (!args.json()) {
      text.clear();
      for (const auto& [key, value] : json->members()) {
        text += StrFormat("%-12s %s\n", key.c_str(),
                          (value.is_string() ? value.AsString() : value.Dump()).c_str());
      }
    }
    if (PrintData(text) != kExitOk) return kExitFailed;
  }
  return exit_code;
}

}  // namespace

std::vector<DataCommand> TokenCommands() {
  return {
      {{"tokenize",
        "Writes token shards (train-*.bin, val-*.bin), index.json and the tokenizer from text or "
        "JSONL.",
        "INPUT...",
        true,
        {{"--tokenizer", "MODEL", "see 'nibble-data encode --help'", "", true},
         {"--out", "DIR", "the folder to make", "", true},
         {"--format", "FORMAT", "auto (by name), text, jsonl or jsonl.zst; zstd is detected",
          "auto"},
         {"--documents", "RULE",
          "what ends a text document: separator (a line <|endoftext|>), "
          "blank-lines, file",
          "separator"},
         {"--field", "NAME", "the JSONL field that holds the text", "text"},
         {"--val-fraction", "F", "share of the text for validation, 0 to 0.5", "0.01"},
         {"--shard-tokens", "N", "tokens in a shard", std::to_string(kDefaultShardTokens)},
         {"--threads", "N", "0: all; the result is the same for any number", "0"},
         {"--lossy", "", "replace invalid UTF-8 by U+FFFD instead of refusing it", ""},
         {"--overwrite", "", "replace an existing output of this command", ""}},
        "nibble-data tokenize --tokenizer tokenizer.model --out tokens corpus.txt"},
       RunTokenize},
      {{"inspect",
        "Prints header, counts and the range of ids of token shards, after checking them.",
        "SHARD...",
        true,
        {{"--vocab-size", "N", "fail when an id is not below it (0: any)", "0"},
         {"--head", "N", "also print the first N ids", "0"}},
        "nibble-data inspect tokens/train-000000.bin"},
       RunInspect},
  };
}

}  // namespace nibble
