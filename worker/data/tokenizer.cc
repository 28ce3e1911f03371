// SPDX-License-Identifier: Apache-2.0
#include "worker/data/tokenizer.h"

#include <filesystem>

#include "base/files.h"
#include "base/sha256.h"
#include "base/strings.h"
#include "worker/data/tokenizer_formats.h"

namespace nibble {
namespace {

// The largest vocabulary file read; the largest known to us, a 256k SentencePiece model, has 5 MB.
constexpr int64_t kMaxTokenizerFileBytes = int64_t{256} << 20;

enum class Format { kSentencePiece, kGpt2, kLlama2c };

struct Source {
  Format format;
  std::vector<std::string> paths;  // GPT-2: vocabulary, merges
  std::vector<std::string> contents;
};

// Field 1 (pieces), length-delimited, holding a message that begins with its field 1 (piece).
bool LooksLikeSentencePiece(std::string_view content) {
  return content.size() > 4 && content[0] == 0x0A && content[1] != 0 && content[2] == 0x0A;
}

Result<std::string> FirstExisting(const std::string& folder,
                                  const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (PathExists(JoinPath(folder, name))) return JoinPath(folder, name);
  }
  return NotFoundError("no " + StrJoin(names, " or ") + " in " + folder);
}

// The file in `folder` that Identify can start from.
Result<std::string> EntryFile(const std::string& folder) {
  const Result<std::string> found =
      FirstExisting(folder, {"tokenizer.model", "tokenizer.bin", "encoder.json", "vocab.json"});
  if (found.ok()) return found;
  return found.status().WithContext("folder " + folder + " holds no tokenizer");
}

Result<Source> Identify(const std::string& given) {
  std::error_code error;
  std::string path = given;
  if (std::filesystem::is_directory(given, error)) {
    ASSIGN_OR_RETURN(path, EntryFile(given));
  } else if (!PathExists(given)) {
    return NotFoundError("tokenizer " + given + " does not exist");
  }
  ASSIGN_OR_RETURN(std::string content, ReadFile(path, kMaxTokenizerFileBytes));
  const std::string folder = DirName(path);
  if (LooksLikeLlama2c(content)) {
    return Source{Format::kLlama2c, {path}, {std::move(content)}};
  }
  if (LooksLikeSentencePiece(content)) {
    return Source{Format::kSentencePiece, {path}, {std::move(content)}};
  }
  if (StrTrim(content).starts_with('{')) {
    ASSIGN_OR_RETURN(const std::string merges, FirstExisting(folder, {"vocab.bpe", "merges.txt"}));
    ASSIGN_OR_RETURN(std::string merges_content, ReadFile(merges, kMaxTokenizerFileBytes));
    return Source{Format::kGpt2, {path, merges}, {std::move(content), std::move(merges_content)}};
  }
  if (content.starts_with("#version")) {
    ASSIGN_OR_RETURN(const std::string vocabulary,
                     FirstExisting(folder, {"encoder.json", "vocab.json"}));
    ASSIGN_OR_RETURN(std::string vocabulary_content, ReadFile(vocabulary, kMaxTokenizerFileBytes));
    return Source{
        Format::kGpt2, {vocabulary, path}, {std::move(vocabulary_content), std::move(content)}};
  }
  return InvalidArgumentError(
      path + (content.empty() ? " is empty" : " is no tokenizer known here") +
      "; accepted: a SentencePiece model, GPT-2's encoder.json with vocab.bpe (or vocab.json with "
      "merges.txt), llama2.c's tokenizer.bin, or a folder with one of them");
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path) {
  ASSIGN_OR_RETURN(const Source source, Identify(path));
  switch (source.format) {
    case Format::kSentencePiece:
      return MakeSentencePieceTokenizer(source.paths[0], source.contents[0]);
    case Format::kLlama2c:
      return MakeLlama2cTokenizer(source.paths[0], source.contents[0]);
    case Format::kGpt2:
      return MakeGpt2Tokenizer(source.paths[0], source.contents[0], source.contents[1]);
  }
  return InternalError("unknown tokenizer format");
}

Result<std::vector<std::string>> TokenizerFiles(const std::string& path) {
  ASSIGN_OR_RETURN(Source source, Identify(path));
  return std::move(source.paths);
}

Result<std::vector<NamedContent>> ReadTokenizerFiles(const std::string& path) {
  ASSIGN_OR_RETURN(Source source, Identify(path));
  switch (source.format) {
    case Format::kSentencePiece:
      return std::vector<NamedContent>{{"tokenizer.model", std::move(source.contents[0])}};
    case Format::kLlama2c:
      return std::vector<NamedContent>{{"tokenizer.bin", std::move(source.contents[0])}};
    case Format::kGpt2:
      return std::vector<NamedContent>{{"vocab.json", std::move(source.contents[0])},
                                       {"merges.txt", std::move(source.contents[1])}};
  }
  return InternalError("unknown tokenizer format");
}

Result<std::string> TokenizerHash(const std::string& path) {
  ASSIGN_OR_RETURN(const Source source, Identify(path));
  if (source.contents.size() == 1) return Sha256Hex(source.contents[0]);
  std::string digests;
  for (const std::string& content : source.contents) digests += Sha256Hex(content) + "\n";
  return Sha256Hex(digests);
}

Status CheckEncodeSize(std::string_view text) {
  if (static_cast<int64_t>(text.size()) <= kMaxEncodeBytes) return OkStatus();
  return InvalidArgumentError(StrFormat("text of %zu bytes in one piece: the limit is %lld",
                                        text.size(), static_cast<long long>(kMaxEncodeBytes)));
}

Status CheckIds(std::span<const int32_t> ids, int32_t vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return InvalidArgumentError(
        StrFormat("token id %d at position %zu: the vocabulary has %d", ids[i], i, vocab_size));
  }
  return OkStatus();
}

size_t CutText(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text.size();
  const auto is_word_byte = [](char c) { return c > ' ' && c < 0x7F; };
  for (const char separator : {'\n', ' '}) {
    for (size_t cut = limit; cut > limit / 2; --cut) {
      if (text[cut] == separator && is_word_byte(text[cut - 1])) return cut;
    }
  }
  size_t cut = limit;
  while (cut > 1 && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;
  return cut;
}

Result<std::vector<int32_t>> EncodeDocument(const Tokenizer& tokenizer, std::string_view text,
                                            bool continuation) {
  std::vector<int32_t> all;
  while (!text.empty()) {
    const std::string_view run = text.substr(0, CutText(text, kEncodeRunBytes));
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                     continuation ? tokenizer.EncodeContinuation(run) : tokenizer.Encode(run));
    all.insert(all.end(), ids.begin(), ids.end());
    continuation = true;
    text.remove_prefix(run.size());
  }
  return all;
}

}  // namespace nibble
