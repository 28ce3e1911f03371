// SPDX-License-Identifier: Apache-2.0
#include "worker/data/token_dataset.h"

#include <algorithm>

#include "base/files.h"
#include "base/sha256.h"
#include "base/strings.h"
#include "worker/data/window_order.h"

namespace nibble {
namespace {

constexpr int64_t kMaxSeqLen = 1 << 24;
constexpr int kMaxWorldSize = 1 << 20;

Status CheckOptions(const TokenDataset::Options& options) {
  if (options.shards.empty()) {
    return InvalidArgumentError("no token shards given; make some with 'nibble tokenize'");
  }
  if (options.seq_len < 1 || options.seq_len > kMaxSeqLen) {
    return InvalidArgumentError(StrFormat("seq_len %lld: it must be 1 to %lld",
                                          static_cast<long long>(options.seq_len),
                                          static_cast<long long>(kMaxSeqLen)));
  }
  if (options.vocab_size < 1) {
    return InvalidArgumentError(StrFormat("vocab_size %lld: it must be at least 1",
                                          static_cast<long long>(options.vocab_size)));
  }
  if (options.world_size < 1 || options.world_size > kMaxWorldSize || options.rank < 0 ||
      options.rank >= options.world_size) {
    return InvalidArgumentError(StrFormat("rank %d of world size %d: ranks are 0 to world size - 1",
                                          options.rank, options.world_size));
  }
  return OkStatus();
}

}  // namespace

Json DataCursor::ToJson() const { return Json::Object({{"epoch", epoch}, {"index", index}}); }

Result<DataCursor> DataCursor::FromJson(const Json& json) {
  if (!json["epoch"].is_int() || !json["index"].is_int()) {
    return InvalidArgumentError("data cursor " + json.Dump() +
                                ": expected {\"epoch\": integer, \"index\": integer}");
  }
  return DataCursor{json["epoch"].AsInt(), json["index"].AsInt()};
}

Result<TokenDataset> TokenDataset::Open(Options options) {
  RETURN_IF_ERROR(CheckOptions(options));
  TokenDataset dataset;
  dataset.options_ = std::move(options);
  const Options& used = dataset.options_;
  int64_t longest = 0;
  for (const std::string& path : used.shards) {
    ASSIGN_OR_RETURN(TokenShard shard, TokenShard::Open(path));
    const int64_t tokens = shard.token_count();
    if (used.scan_all_tokens) {
      ASSIGN_OR_RETURN(const TokenShard::Range range, shard.Scan());
      if (range.max >= used.vocab_size) {
        return InvalidArgumentError(
            StrFormat("%s holds token id %d, but the vocabulary has %lld; the shard was made with "
                      "another tokenizer",
                      path.c_str(), range.max, static_cast<long long>(used.vocab_size)));
      }
    }
    longest = std::max(longest, tokens);
    dataset.names_.emplace_back(BaseName(path), tokens);
    dataset.token_count_ += tokens;
    const int64_t windows = (tokens - 1) / used.seq_len;
    if (windows == 0) continue;
    dataset.shards_.push_back({std::move(shard), dataset.window_count_});
    dataset.window_count_ += windows;
  }
  if (dataset.window_count_ == 0) {
    return InvalidArgumentError(
        StrFormat("no token shard is long enough: a window needs seq_len + 1 = %lld tokens, the "
                  "longest shard (of %zu, e.g. %s) has %lld; use a shorter seq_len or more text",
                  static_cast<long long>(used.seq_len + 1), used.shards.size(),
                  used.shards.front().c_str(), static_cast<long long>(longest)));
  }
  return dataset;
}

std::string TokenDataset::Fingerprint() const {
  Json shards = Json::Array();
  for (const auto& [name, tokens] : names_) shards.Append(Json::Array({name, tokens}));
  const Json all = Json::Object({{"seq_len", options_.seq_len},
                                 {"order", static_cast<int>(options_.order)},
                                 {"seed", std::to_string(options_.seed)},
                                 {"shards", std::move(shards)}});
  return Sha256Hex(all.Dump());
}

int64_t TokenDataset::WindowAt(int64_t epoch, int64_t index) const {
  if (options_.order == DataOrder::kSequential) return index;
  const uint64_t key = MixBits(MixBits(options_.seed) ^ static_cast<uint64_t>(epoch));
  return static_cast<int64_t>(
      PermuteIndex(key, static_cast<uint64_t>(window_count_), static_cast<uint64_t>(index)));
}

Status TokenDataset::ReadWindow(int64_t window, std::span<int32_t> inputs,
                                std::span<int32_t> targets) const {
  const auto seq_len = static_cast<size_t>(options_.seq_len);
  if (window < 0 || window >= window_count_) {
    return OutOfRangeError(StrFormat("window %lld of %lld", static_cast<long long>(window),
                                     static_cast<long long>(window_count_)));
  }
  if (inputs.size() != seq_len || targets.size() != seq_len) {
    return InvalidArgumentError(StrFormat("window buffers of %zu and %zu tokens, seq_len is %zu",
                                          inputs.size(), targets.size(), seq_len));
  }
  const auto after = std::upper_bound(
      shards_.begin(), shards_.end(), window,
      [](int64_t value, const ShardWindows& entry) { return value < entry.first_window; });
  const ShardWindows& entry = *std::prev(after);
  const int64_t begin = (window - entry.first_window) * options_.seq_len;
  RETURN_IF_ERROR(entry.shard.Read(begin + 1, options_.vocab_size, targets));
  RETURN_IF_ERROR(entry.shard.Read(begin, options_.vocab_size, inputs.first(1)));
  std::copy(targets.begin(), targets.end() - 1, inputs.begin() + 1);
  return OkStatus();
}

Status TokenDataset::NextBatch(int64_t batch, std::span<int32_t> inputs,
                               std::span<int32_t> targets) {
  const int64_t seq_len = options_.seq_len;
  if (batch < 1 || batch > INT64_MAX / seq_len / options_.world_size / 4 ||
      static_cast<int64_t>(inputs.size()) != batch * seq_len || targets.size() != inputs.size()) {
    return InvalidArgumentError(
        StrFormat("batch of %lld windows with buffers of %zu and %zu tokens; expected batch x "
                  "seq_len (%lld) in both",
                  static_cast<long long>(batch), inputs.size(), targets.size(),
                  static_cast<long long>(seq_len)));
  }
  const auto position_at = [&](int64_t steps) {
    const int64_t index = cursor_.index + steps;
    return DataCursor{cursor_.epoch + index / window_count_, index % window_count_};
  };
  for (int64_t i = 0; i < batch; ++i) {
    const DataCursor at = position_at(options_.rank * batch + i);
    const auto offset = static_cast<size_t>(i * seq_len);
    RETURN_IF_ERROR(ReadWindow(WindowAt(at.epoch, at.index),
                               inputs.subspan(offset, static_cast<size_t>(seq_len)),
                               targets.subspan(offset, static_cast<size_t>(seq_len))));
  }
  cursor_ = position_at(batch * options_.world_size);
  return OkStatus();
}

Status TokenDataset::SetCursor(const DataCursor& cursor) {
  if (cursor.epoch < 0 || cursor.index < 0 || cursor.index >= window_count_) {
    return OutOfRangeError(
        StrFormat("data cursor epoch %lld index %lld: the data set has %lld windows an epoch; it "
                  "belongs to other data or another seq_len",
                  static_cast<long long>(cursor.epoch), static_cast<long long>(cursor.index),
                  static_cast<long long>(window_count_)));
  }
  cursor_ = cursor;
  return OkStatus();
}

}  // namespace nibble
