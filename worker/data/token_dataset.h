// SPDX-License-Identifier: Apache-2.0
//
// TokenDataset: training windows over a set of token shards, in an order that is a pure function.
//
// A window is seq_len + 1 consecutive tokens of one shard: seq_len inputs and the same shifted by
// one as targets. Windows of a shard start every seq_len tokens, so each token is a target at most
// once per epoch; a tail shorter than a window is left out. Windows are numbered 0..W-1 through the
// shards in order. In epoch e the i-th window visited is
//   sequential: i;   shuffled: the image of i under a keyed permutation of 0..W-1 (a Feistel
// network with cycle walking, key = (seed, e)), so no shuffled list is kept in memory.
//
// Data parallel: the cursor is global and the same on every rank. A batch of B windows per rank
// takes the B * world_size windows after the cursor; rank r gets the r-th run of B of them. So the
// union over ranks equals what one rank with B * world_size windows would get, and a job may resume
// with another world size. Batches run across the end of an epoch into the next: none is dropped.
//
// Thread-safety: thread-compatible; const methods may run in parallel. Ownership: owns its shards.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "worker/data/token_shard.h"

namespace nibble {

// A position in the order: `index` windows of epoch `epoch` are consumed. 0 <= index < W.
struct DataCursor {
  int64_t epoch = 0;
  int64_t index = 0;
  friend bool operator==(const DataCursor&, const DataCursor&) = default;

  Json ToJson() const;  // {"epoch": e, "index": i}
  static Result<DataCursor> FromJson(const Json& json);
};

enum class DataOrder { kShuffled, kSequential };

// The shard files that `paths` mean, in order. Each is a file, a folder (its `<split>-*.bin`, or
// all `*.bin` when `split` is empty), or a pattern with * ? [] (sorted); "file://" may precede it.
// NOT_FOUND names the path that gives no shard and what was looked for; INVALID_ARGUMENT when a
// shard comes twice or `paths` is empty.
Result<std::vector<std::string>> ResolveShards(const std::vector<std::string>& paths,
                                               const std::string& split = "");

class TokenDataset {
 public:
  struct Options {
    std::vector<std::string> shards;  // explicit files; see ResolveShards
    int64_t seq_len = 0;              // >= 1
    int64_t vocab_size = 0;           // ids at or above it are refused when read
    uint64_t seed = 0;
    DataOrder order = DataOrder::kShuffled;
    int rank = 0;
    int world_size = 1;
    bool scan_all_tokens = false;  // read every token once in Open to find bad ids early
  };

  // Errors of TokenShard::Open, and INVALID_ARGUMENT when no shard is long enough for one window
  // or an option is out of range.
  static Result<TokenDataset> Open(Options options);

  int64_t window_count() const { return window_count_; }  // W: windows of one epoch
  int64_t token_count() const { return token_count_; }    // all tokens of all shards
  const Options& options() const { return options_; }

  // 64 hex digits over seq_len, order, seed and each shard's name and token count: equal
  // fingerprints mean that a cursor of one dataset is valid in the other. The paths' folders, rank
  // and world size do not take part.
  std::string Fingerprint() const;

  // Which window is the `index`-th of `epoch`. Precondition: 0 <= index < window_count().
  int64_t WindowAt(int64_t epoch, int64_t index) const;

  // The first seq_len tokens of `window` into `inputs`, the last seq_len into `targets`; both spans
  // have seq_len elements. Errors as TokenShard::Read.
  Status ReadWindow(int64_t window, std::span<int32_t> inputs, std::span<int32_t> targets) const;

  // Fills `batch` windows of this rank: inputs and targets are (batch, seq_len) int32, row-major,
  // and advances the cursor by batch * world_size windows. After an error the cursor stands where
  // it was. Allocates nothing after the first call.
  Status NextBatch(int64_t batch, std::span<int32_t> inputs, std::span<int32_t> targets);

  const DataCursor& cursor() const { return cursor_; }
  // OUT_OF_RANGE when the index is not below window_count() or something is negative.
  Status SetCursor(const DataCursor& cursor);

 private:
  struct ShardWindows {
    TokenShard shard;
    int64_t first_window = 0;
  };

  Options options_;
  std::vector<ShardWindows> shards_;                    // those with at least one window
  std::vector<std::pair<std::string, int64_t>> names_;  // all shards: name, tokens
  int64_t window_count_ = 0;
  int64_t token_count_ = 0;
  DataCursor cursor_;
};

}  // namespace nibble
