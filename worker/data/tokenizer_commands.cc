// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <limits>

#include "base/files.h"
#include "base/strings.h"
#include "worker/data/data_commands.h"
#include "worker/data/tokenizer.h"
#include "worker/data/train_tokenizer.h"

namespace nibble {
namespace {

constexpr size_t kMaxStdinBytes = size_t{1} << 30;

int RunTrainTokenizer(const CliArgs& args) {
  const auto vocab_size = args.GetInt("--vocab-size", kMinVocabulary, kMaxVocabulary);
  if (!vocab_size.ok()) return FailUsage(vocab_size.status());
  const auto seed = args.GetInt("--seed", 0, std::numeric_limits<int64_t>::max());
  if (!seed.ok()) return FailUsage(seed.status());
  const auto model_type = args.GetChoice("--model-type", {"bpe", "unigram"});
  if (!model_type.ok()) return FailUsage(model_type.status());
  TrainTokenizerOptions options;
  options.input = args.Get("--input");
  options.out = args.Get("--out");
  options.vocab_size = *vocab_size;
  options.model_type = *model_type;
  options.seed = static_cast<uint64_t>(*seed);
  const Result<Json> summary = TrainTokenizer(options);
  if (!summary.ok()) return FailCommand(summary.status());
  const int64_t made = (*summary)["vocab_size"].AsInt();
  std::string text =
      StrFormat("%s: %lld pieces learned from %s of text", options.out.c_str(),
                static_cast<long long>(made), FormatBytes((*summary)["bytes"].AsDouble()).c_str());
  if (made != options.vocab_size) {
    text += StrFormat("; the text does not support the %lld asked for",
                      static_cast<long long>(options.vocab_size));
  }
  return PrintSummary(args, *summary, text);
}

// The operands joined by spaces, else the file of --file, else stdin.
Result<std::string> InputText(const CliArgs& args) {
  if (!args.operands().empty()) return StrJoin(args.operands(), " ");
  if (args.Has("--file")) return ReadFile(args.Get("--file"));
  std::string text;
  char block[65536];
  size_t got;
  while ((got = std::fread(block, 1, sizeof(block), stdin)) > 0) {
    text.append(block, got);
    if (text.size() > kMaxStdinBytes) {
      return ResourceExhaustedError(StrFormat("stdin has more than %zu bytes", kMaxStdinBytes));
    }
  }
  return text;
}

int RunEncode(const CliArgs& args) {
  const auto tokenizer = LoadTokenizer(args.Get("--tokenizer"));
  if (!tokenizer.ok()) return FailCommand(tokenizer.status());
  const auto text = InputText(args);
  if (!text.ok()) return FailCommand(text.status());
  auto ids = EncodeDocument(**tokenizer, *text);
  if (!ids.ok()) return FailCommand(ids.status());
  if (args.Has("--bos") && (*tokenizer)->bos_id() != kNoToken) {
    ids->insert(ids->begin(), (*tokenizer)->bos_id());
  }
  if (args.Has("--eos") && (*tokenizer)->eos_id() != kNoToken) {
    ids->push_back((*tokenizer)->eos_id());
  }
  Json array = Json::Array();
  std::string line;
  for (const int32_t id : *ids) {
    if (!line.empty()) line += ' ';
    line += std::to_string(id);
    array.Append(id);
  }
  if (!args.json()) return PrintData(line + "\n");
  return PrintData(Json::Object({{"tokenizer", (*tokenizer)->name()},
                                 {"tokens", static_cast<int64_t>(ids->size())},
                                 {"ids", std::move(array)}})
                       .Dump() +
                   "\n");
}

int RunDecode(const CliArgs& args) {
  const auto tokenizer = LoadTokenizer(args.Get("--tokenizer"));
  if (!tokenizer.ok()) return FailCommand(tokenizer.status());
  const auto text = InputText(args);
  if (!text.ok()) return FailCommand(text.status());
  std::vector<int32_t> ids;
  std::string_view rest = *text;
  while (true) {
    rest.remove_prefix(std::min(rest.find_first_not_of(" \t\r\n,"), rest.size()));
    if (rest.empty()) break;
    const std::string_view word = rest.substr(0, rest.find_first_of(" \t\r\n,"));
    const auto id = ParseInt(word);
    if (!id.ok() || *id < 0 || *id >= (*tokenizer)->vocab_size()) {
      return FailCommand(InvalidArgumentError(
          StrFormat("'%s' is no token id: ids are the integers 0 to %d", std::string(word).c_str(),
                    (*tokenizer)->vocab_size() - 1)));
    }
    ids.push_back(static_cast<int32_t>(*id));
    rest.remove_prefix(word.size());
  }
  const auto decoded = (*tokenizer)->Decode(ids);
  if (!decoded.ok()) return FailCommand(decoded.status());
  if (!args.json()) return PrintData(*decoded + "\n");
  return PrintData(Json::Object({{"tokenizer", (*tokenizer)->name()},
                                 {"tokens", static_cast<int64_t>(ids.size())},
                                 {"text", *decoded}})
                       .Dump() +
                   "\n");
}

}  // namespace

std::vector<DataCommand> TokenizerCommands() {
  const CliFlag tokenizer{"--tokenizer", "MODEL",
                          "SentencePiece model, GPT-2 files, llama2.c tokenizer.bin, or a folder",
                          "", true};
  const CliFlag file{"--file", "FILE", "read from this file; without operands default is stdin",
                     ""};
  return {
      {{"train-tokenizer",
        "Trains a SentencePiece model on a text corpus; the same input gives the same model.",
        "",
        false,
        {{"--input", "FILE", "the corpus, as 'nibble-data corpus' makes it", "", true},
         {"--out", "MODEL", "the model file to write", "", true},
         {"--vocab-size", "N", "number of pieces", "", true},
         {"--model-type", "TYPE", "bpe or unigram", "bpe"},
         {"--seed", "N", "chooses the sample of a corpus too long to use as a whole", "0"}},
        "nibble-data train-tokenizer --input corpus.txt --vocab-size 4096 --out tokenizer.model"},
       RunTrainTokenizer},
      {{"encode",
        "Prints the token ids of a text.",
        "[TEXT...]",
        false,
        {tokenizer,
         file,
         {"--bos", "", "put the begin token first", ""},
         {"--eos", "", "put the end token last", ""}},
        "nibble-data encode --tokenizer tokenizer.model 'Hello world'"},
       RunEncode},
      {{"decode",
        "Prints the text of token ids.",
        "[ID...]",
        false,
        {tokenizer, file},
        "nibble-data decode --tokenizer tokenizer.model 1 15043 3186"},
       RunDecode},
  };
}

}  // namespace nibble
