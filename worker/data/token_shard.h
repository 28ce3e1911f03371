// SPDX-License-Identifier: Apache-2.0
//
// Token shards: llm.c's `.bin` files and their 32-bit variant, written whole and read with checks.
//
// A shard is 256 little-endian int32 of header (magic, version, token count, zeros) followed by the
// tokens; docs/reference/file-formats-tokens.md specifies it. Tokens of 16 bits have magic 20240520
// version 1, tokens of 32 bits magic 20240801 version 7, as in llm.c's dev/data.
// Thread-safety: a TokenShard is immutable after Open and may be shared by threads; a
// TokenShardWriter belongs to one thread. Ownership: both own their descriptors.
// Invariant: a file under its final name is whole (temporary file, fsync, rename).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace nibble {

inline constexpr int kShardHeaderInts = 256;
inline constexpr int64_t kShardHeaderBytes = kShardHeaderInts * 4;
// The count in the header is an int32.
inline constexpr int64_t kMaxShardTokens = 2147483647;
// llm.c's own shard size.
inline constexpr int64_t kDefaultShardTokens = 100'000'000;

// Bytes of a token on disk; the value is the number of bytes.
enum class TokenWidth { k16 = 2, k32 = 4 };

// The narrowest width that holds every id below `vocab_size`.
TokenWidth TokenWidthFor(int64_t vocab_size);

// The header of a shard; INVALID_ARGUMENT for a count outside 1..kMaxShardTokens.
Result<std::string> ShardHeaderBytes(TokenWidth width, int64_t token_count);

// 64 hex digits over a file's content, read in blocks.
Result<std::string> FileSha256(const std::string& path);

class TokenShard {
 public:
  TokenShard() = default;
  ~TokenShard();
  TokenShard(TokenShard&& other) noexcept;
  TokenShard& operator=(TokenShard&& other) noexcept;

  // Opens and checks header and size; reads no tokens.
  // NOT_FOUND: no such file. INVALID_ARGUMENT: not a token shard (magic, version), or it holds no
  // token. DATA_LOSS: the size differs from what the header promises. RESOURCE_EXHAUSTED: no free
  // descriptor (one per shard is held).
  static Result<TokenShard> Open(const std::string& path);

  const std::string& path() const { return path_; }
  TokenWidth width() const { return width_; }
  int32_t magic() const { return magic_; }
  int32_t version() const { return version_; }
  int64_t token_count() const { return token_count_; }

  // Fills `out` with the tokens [begin, begin + out.size()). Every id must be below `vocab_size`:
  // INVALID_ARGUMENT names file, position, id and limit. OUT_OF_RANGE past the end; DATA_LOSS when
  // the file became shorter since Open.
  Status Read(int64_t begin, int64_t vocab_size, std::span<int32_t> out) const;

  struct Range {
    int32_t min = 0;
    int32_t max = 0;
  };
  // Smallest and largest id of the whole shard, read in blocks. Errors as Read; ids that do not fit
  // an int32 are refused.
  Result<Range> Scan() const;

 private:
  Status ReadBytes(int64_t offset, void* out, size_t size_bytes) const;

  std::string path_;
  int fd_ = -1;
  TokenWidth width_ = TokenWidth::k16;
  int32_t magic_ = 0;
  int32_t version_ = 0;
  int64_t token_count_ = 0;
};

struct ShardFile {
  std::string name;  // without folder
  int64_t tokens = 0;
  int64_t size_bytes = 0;
  std::string sha256;
};

// Writes a stream of tokens as `<folder>/<prefix>-000000.bin`, `-000001.bin`, ... of
// `shard_tokens` tokens each (the last one may be shorter). No file appears for no tokens.
class TokenShardWriter {
 public:
  struct Options {
    std::string folder;  // must exist
    std::string prefix;  // "train" or "val"
    TokenWidth width = TokenWidth::k16;
    int64_t vocab_size = 0;  // ids outside [0, vocab_size) are refused
    int64_t shard_tokens = kDefaultShardTokens;
  };

  // INVALID_ARGUMENT for shard_tokens outside 1..kMaxShardTokens or a vocabulary too large for the
  // width.
  static Result<TokenShardWriter> Create(Options options);
  // Removes the unfinished temporary file, if any.
  ~TokenShardWriter();
  TokenShardWriter(TokenShardWriter&& other) noexcept;
  TokenShardWriter& operator=(TokenShardWriter&&) = delete;

  // INVALID_ARGUMENT for an id outside the vocabulary; RESOURCE_EXHAUSTED when the disk is full.
  Status Append(std::span<const int32_t> tokens);
  // Completes the last shard and returns all of them in order. Call once, last.
  Result<std::vector<ShardFile>> Finish();

  int64_t tokens_written() const { return tokens_written_; }

 private:
  explicit TokenShardWriter(Options options) : options_(std::move(options)) {}
  Status OpenShard();
  Status FlushBuffer();
  Status CloseShard();
  std::string FinalPath() const;

  Options options_;
  int fd_ = -1;
  std::string temp_path_;
  std::vector<uint8_t> buffer_;
  int64_t shard_tokens_written_ = 0;
  int64_t tokens_written_ = 0;
  std::vector<ShardFile> files_;
};

}  // namespace nibble
