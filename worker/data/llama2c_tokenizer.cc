// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <optional>
#include <unordered_map>

#include "base/json.h"
#include "base/strings.h"
#include "worker/data/bpe_merge.h"
#include "worker/data/tokenizer_formats.h"
#include "worker/data/unicode.h"

namespace nibble {
namespace {

constexpr int32_t kBosId = 1;
constexpr int32_t kEosId = 2;
constexpr int32_t kFirstByteId = 3;
constexpr int32_t kFirstPieceId = kFirstByteId + 256;
constexpr int32_t kMaxPieceBytes = 1 << 16;

struct Piece {
  std::string bytes;
  float score = 0;
};

// The pieces, or nothing when the bytes do not have the layout from first to last.
std::optional<std::vector<Piece>> ParsePieces(std::string_view content) {
  size_t pos = 0;
  const auto take = [&](void* out) {
    if (content.size() - pos < 4) return false;
    std::memcpy(out, content.data() + pos, 4);
    pos += 4;
    return true;
  };
  int32_t longest = 0;
  if (!take(&longest) || longest < 1 || longest > kMaxPieceBytes) return std::nullopt;
  std::vector<Piece> pieces;
  while (pos < content.size()) {
    float score;
    int32_t length;
    if (!take(&score) || !take(&length) || !std::isfinite(score) || length < 0 ||
        length > longest || content.size() - pos < static_cast<size_t>(length)) {
      return std::nullopt;
    }
    pieces.push_back({std::string(content.substr(pos, static_cast<size_t>(length))), score});
    pos += static_cast<size_t>(length);
  }
  if (pieces.empty()) return std::nullopt;
  return pieces;
}

class Llama2cTokenizer : public Tokenizer {
 public:
  Status Load(const std::string& path, std::vector<Piece> pieces) {
    if (pieces.size() < static_cast<size_t>(kFirstPieceId)) {
      return InvalidArgumentError(StrFormat(
          "%s: a llama2.c vocabulary of %zu pieces; it needs at least %d (3 special, 256 bytes)",
          path.c_str(), pieces.size(), kFirstPieceId));
    }
    for (int byte = 0; byte < 256; ++byte) {
      const auto id = static_cast<size_t>(kFirstByteId + byte);
      if (pieces[id].bytes != StrFormat("<0x%02X>", byte)) {
        return InvalidArgumentError(StrFormat("%s: piece %zu is %s, expected <0x%02X>",
                                              path.c_str(), id, JsonQuote(pieces[id].bytes).c_str(),
                                              byte));
      }
      pieces[id].bytes = std::string(1, static_cast<char>(byte));
    }
    pieces_ = std::move(pieces);
    // Only ordinary pieces can be found in text, the first of equals.
    for (size_t id = kFirstPieceId; id < pieces_.size(); ++id) {
      ids_of_.try_emplace(pieces_[id].bytes, static_cast<int32_t>(id));
    }
    return OkStatus();
  }

  Result<std::vector<int32_t>> Encode(std::string_view text) const override {
    if (text.empty()) return std::vector<int32_t>{};
    std::vector<int32_t> symbols;
    const auto space = ids_of_.find(" ");
    if (space != ids_of_.end()) symbols.push_back(space->second);
    return EncodeAfter(std::move(symbols), text);
  }

  Result<std::vector<int32_t>> EncodeContinuation(std::string_view text) const override {
    return EncodeAfter({}, text);
  }

  Result<std::string> Decode(std::span<const int32_t> ids) const override {
    RETURN_IF_ERROR(CheckIds(ids, vocab_size()));
    std::string text;
    bool first = true;
    for (const int32_t id : ids) {
      if (id == kBosId || id == kEosId) continue;
      std::string_view bytes = pieces_[static_cast<size_t>(id)].bytes;
      if (first && id >= kFirstPieceId && bytes.starts_with(' ')) bytes.remove_prefix(1);
      first = false;
      text += bytes;
    }
    return text;
  }

  int32_t vocab_size() const override { return static_cast<int32_t>(pieces_.size()); }
  int32_t bos_id() const override { return kBosId; }
  int32_t eos_id() const override { return kEosId; }
  std::string_view name() const override { return "llama2.c"; }

 private:
  Result<std::vector<int32_t>> EncodeAfter(std::vector<int32_t> symbols,
                                           std::string_view text) const {
    RETURN_IF_ERROR(CheckEncodeSize(text));
    for (size_t pos = 0; pos < text.size();) {
      const size_t length = DecodeUtf8(text, pos).length;
      const auto found = ids_of_.find(std::string(text.substr(pos, length)));
      if (found != ids_of_.end()) {
        symbols.push_back(found->second);
      } else {
        for (const char c : text.substr(pos, length)) {
          symbols.push_back(kFirstByteId + static_cast<unsigned char>(c));
        }
      }
      pos += length;
    }
    const auto rule = [this](int32_t left, int32_t right) -> std::optional<BpeMerge> {
      if (left < kFirstPieceId || right < kFirstPieceId) return std::nullopt;  // lone bytes
      const auto found = ids_of_.find(pieces_[static_cast<size_t>(left)].bytes +
                                      pieces_[static_cast<size_t>(right)].bytes);
      if (found == ids_of_.end()) return std::nullopt;
      return BpeMerge{-pieces_[static_cast<size_t>(found->second)].score, found->second};
    };
    return MergeBpe(std::move(symbols), rule);
  }

  std::vector<Piece> pieces_;
  std::unordered_map<std::string, int32_t> ids_of_;
};

}  // namespace

bool LooksLikeLlama2c(std::string_view content) { return ParsePieces(content).has_value(); }

Result<std::unique_ptr<Tokenizer>> MakeLlama2cTokenizer(const std::string& path,
                                                        std::string_view content) {
  std::optional<std::vector<Piece>> pieces = ParsePieces(content);
  if (!pieces) return InvalidArgumentError(path + " is not a llama2.c vocabulary");
  auto tokenizer = std::make_unique<Llama2cTokenizer>();
  RETURN_IF_ERROR(tokenizer->Load(path, std::move(*pieces)));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace nibble
