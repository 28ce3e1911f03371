// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <unordered_map>

#include "base/json.h"
#include "base/strings.h"
#include "worker/data/bpe_merge.h"
#include "worker/data/gpt2_pretokenizer.h"
#include "worker/data/tokenizer_formats.h"
#include "worker/data/unicode.h"

namespace nibble {
namespace {

constexpr std::string_view kEndOfText = "<|endoftext|>";
constexpr int64_t kMaxVocabulary = 1 << 24;

// GPT-2 writes each byte as one printable character: bytes that are printable in Latin-1 as
// themselves, the others, in order, as U+0100, U+0101, ...
std::array<char32_t, 256> ByteCharacters() {
  std::array<char32_t, 256> characters{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    characters[byte] = printable ? byte : next++;
  }
  return characters;
}

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

class Gpt2Tokenizer : public Tokenizer {
 public:
  Status Load(const std::string& path, std::string_view vocabulary, std::string_view merges);

  Result<std::vector<int32_t>> Encode(std::string_view text) const override {
    RETURN_IF_ERROR(CheckEncodeSize(text));
    const auto rule = [this](int32_t left, int32_t right) -> std::optional<BpeMerge> {
      const auto found = merges_.find(PairKey(left, right));
      if (found == merges_.end()) return std::nullopt;
      return found->second;
    };
    std::vector<int32_t> ids;
    std::vector<int32_t> word;
    for (size_t pos = 0; pos < text.size();) {
      const size_t length = Gpt2WordLength(text, pos);
      word.clear();
      for (const char c : text.substr(pos, length)) {
        word.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      }
      const std::vector<int32_t> merged = MergeBpe(word, rule);
      ids.insert(ids.end(), merged.begin(), merged.end());
      pos += length;
    }
    return ids;
  }

  Result<std::vector<int32_t>> EncodeContinuation(std::string_view text) const override {
    return Encode(text);
  }

  Result<std::string> Decode(std::span<const int32_t> ids) const override {
    RETURN_IF_ERROR(CheckIds(ids, vocab_size()));
    std::string text;
    for (const int32_t id : ids) {
      if (id != end_of_text_) text += pieces_[static_cast<size_t>(id)];
    }
    return text;
  }

  int32_t vocab_size() const override { return static_cast<int32_t>(pieces_.size()); }
  int32_t bos_id() const override { return end_of_text_; }
  int32_t eos_id() const override { return end_of_text_; }
  std::string_view name() const override { return "gpt2"; }

 private:
  Status LoadVocabulary(const std::string& path, std::string_view vocabulary);
  Status LoadMerges(const std::string& path, std::string_view merges);

  std::unordered_map<std::string, int32_t> ids_of_;  // by GPT-2's printable form; load time only
  std::vector<std::string> pieces_;                  // bytes by id
  std::array<int32_t, 256> byte_ids_{};
  std::unordered_map<uint64_t, BpeMerge> merges_;
  int32_t end_of_text_ = kNoToken;
};

Status Gpt2Tokenizer::LoadVocabulary(const std::string& path, std::string_view vocabulary) {
  Result<Json> json = Json::Parse(vocabulary);
  if (!json.ok()) return json.status().WithContext(path);
  const std::array<char32_t, 256> characters = ByteCharacters();
  std::unordered_map<char32_t, char> byte_of;
  for (size_t byte = 0; byte < 256; ++byte) byte_of[characters[byte]] = static_cast<char>(byte);

  const auto count = static_cast<int64_t>(json->size());
  if (!json->is_object() || count == 0 || count > kMaxVocabulary) {
    return InvalidArgumentError(path + ": expected a JSON object of pieces to ids, 1 to " +
                                std::to_string(kMaxVocabulary) + " of them");
  }
  pieces_.resize(static_cast<size_t>(count));
  std::vector<bool> seen(pieces_.size());
  for (const auto& [piece, value] : json->members()) {
    const int64_t id = value.AsInt(-1);
    if (!value.is_int() || id < 0 || id >= count || seen[static_cast<size_t>(id)]) {
      return InvalidArgumentError(StrFormat(
          "%s: piece %s has id %s; ids must be the integers 0 to %lld, each once", path.c_str(),
          JsonQuote(piece).c_str(), value.is_int() ? value.Dump().c_str() : "(none)",
          static_cast<long long>(count - 1)));
    }
    seen[static_cast<size_t>(id)] = true;
    std::string& bytes = pieces_[static_cast<size_t>(id)];
    for (size_t pos = 0; pos < piece.size();) {
      const Utf8Char c = DecodeUtf8(piece, pos);
      const auto found = byte_of.find(c.code_point);
      if (found == byte_of.end()) {
        return InvalidArgumentError(path + ": piece " + JsonQuote(piece) +
                                    " has a character that stands for no byte");
      }
      bytes += found->second;
      pos += c.length;
    }
    ids_of_[piece] = static_cast<int32_t>(id);
    if (piece == kEndOfText) end_of_text_ = static_cast<int32_t>(id);
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    std::string piece;
    AppendUtf8(characters[byte], piece);
    const auto found = ids_of_.find(piece);
    if (found == ids_of_.end()) {
      return InvalidArgumentError(StrFormat("%s: no piece for byte 0x%02zX", path.c_str(), byte));
    }
    byte_ids_[byte] = found->second;
  }
  return OkStatus();
}

Status Gpt2Tokenizer::LoadMerges(const std::string& path, std::string_view merges) {
  int line_number = 0;
  double rank = 0;
  while (!merges.empty()) {
    const size_t end = merges.find('\n');
    std::string_view line = merges.substr(0, end);
    merges.remove_prefix(end == std::string_view::npos ? merges.size() : end + 1);
    ++line_number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    const size_t space = line.find(' ');
    const auto id_of = [&](std::string_view piece) {
      const auto found = ids_of_.find(std::string(piece));
      return found == ids_of_.end() ? kNoToken : found->second;
    };
    if (space == std::string_view::npos) {
      return InvalidArgumentError(
          StrFormat("%s: line %d of the merges is not 'left right'", path.c_str(), line_number));
    }
    const std::string left(line.substr(0, space));
    const std::string right(line.substr(space + 1));
    const int32_t merged = id_of(left + right);
    if (id_of(left) == kNoToken || id_of(right) == kNoToken || merged == kNoToken) {
      return InvalidArgumentError(StrFormat(
          "%s: line %d of the merges names a piece that the vocabulary lacks; the two files do "
          "not belong together",
          path.c_str(), line_number));
    }
    merges_.try_emplace(PairKey(id_of(left), id_of(right)), BpeMerge{rank, merged});
    rank += 1;
  }
  return OkStatus();
}

Status Gpt2Tokenizer::Load(const std::string& path, std::string_view vocabulary,
                           std::string_view merges) {
  RETURN_IF_ERROR(LoadVocabulary(path, vocabulary));
  RETURN_IF_ERROR(LoadMerges(path, merges));
  ids_of_ = {};
  return OkStatus();
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> MakeGpt2Tokenizer(const std::string& path,
                                                     std::string_view vocabulary,
                                                     std::string_view merges) {
  auto tokenizer = std::make_unique<Gpt2Tokenizer>();
  RETURN_IF_ERROR(tokenizer->Load(path, vocabulary, merges));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace nibble
