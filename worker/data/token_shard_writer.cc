// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/files.h"
#include "base/sha256.h"
#include "base/strings.h"
#include "worker/data/token_shard.h"

namespace nibble {
namespace {

constexpr size_t kWriteBufferBytes = size_t{1} << 20;

Status WriteAt(int fd, const std::string& path, const void* data, size_t size_bytes,
               int64_t offset) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  while (size_bytes > 0) {
    const ssize_t put = ::pwrite(fd, bytes, size_bytes, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return ErrnoError(errno, "cannot write " + path);
    bytes += put;
    offset += put;
    size_bytes -= static_cast<size_t>(put);
  }
  return OkStatus();
}

}  // namespace

Result<TokenShardWriter> TokenShardWriter::Create(Options options) {
  if (options.shard_tokens < 1 || options.shard_tokens > kMaxShardTokens) {
    return InvalidArgumentError(StrFormat("shard size of %lld tokens: it must be 1 to %lld",
                                          static_cast<long long>(options.shard_tokens),
                                          static_cast<long long>(kMaxShardTokens)));
  }
  const int64_t widest = options.width == TokenWidth::k16 ? 65536 : int64_t{INT32_MAX} + 1;
  if (options.vocab_size < 1 || options.vocab_size > widest) {
    return InvalidArgumentError(StrFormat("vocabulary of %lld: tokens of %d bytes hold 1 to %lld",
                                          static_cast<long long>(options.vocab_size),
                                          static_cast<int>(options.width),
                                          static_cast<long long>(widest)));
  }
  return TokenShardWriter(std::move(options));
}

TokenShardWriter::TokenShardWriter(TokenShardWriter&& other) noexcept
    : options_(std::move(other.options_)),
      fd_(std::exchange(other.fd_, -1)),
      temp_path_(std::exchange(other.temp_path_, "")),
      buffer_(std::move(other.buffer_)),
      shard_tokens_written_(other.shard_tokens_written_),
      tokens_written_(other.tokens_written_),
      files_(std::move(other.files_)) {}

TokenShardWriter::~TokenShardWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temp_path_.c_str());
}

std::string TokenShardWriter::FinalPath() const {
  return JoinPath(options_.folder,
                  StrFormat("%s-%06zu.bin", options_.prefix.c_str(), files_.size()));
}

Status TokenShardWriter::OpenShard() {
  temp_path_ = StrFormat("%s.tmp.%d", FinalPath().c_str(), static_cast<int>(::getpid()));
  fd_ = ::open(temp_path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) return ErrnoError(errno, "cannot create " + temp_path_);
  shard_tokens_written_ = 0;
  return OkStatus();
}

Status TokenShardWriter::FlushBuffer() {
  const int64_t buffered = static_cast<int64_t>(buffer_.size()) / static_cast<int>(options_.width);
  const int64_t offset =
      kShardHeaderBytes + (shard_tokens_written_ - buffered) * static_cast<int>(options_.width);
  RETURN_IF_ERROR(WriteAt(fd_, temp_path_, buffer_.data(), buffer_.size(), offset));
  buffer_.clear();
  return OkStatus();
}

Status TokenShardWriter::Append(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= options_.vocab_size) {
      return InvalidArgumentError(StrFormat("token id %d for %s: the vocabulary has %lld", token,
                                            FinalPath().c_str(),
                                            static_cast<long long>(options_.vocab_size)));
    }
    if (fd_ < 0) RETURN_IF_ERROR(OpenShard());
    uint8_t bytes[4];
    std::memcpy(bytes, &token, sizeof(bytes));
    buffer_.insert(buffer_.end(), bytes, bytes + static_cast<int>(options_.width));
    ++shard_tokens_written_;
    ++tokens_written_;
    if (buffer_.size() >= kWriteBufferBytes) RETURN_IF_ERROR(FlushBuffer());
    if (shard_tokens_written_ == options_.shard_tokens) RETURN_IF_ERROR(CloseShard());
  }
  return OkStatus();
}

Status TokenShardWriter::CloseShard() {
  RETURN_IF_ERROR(FlushBuffer());
  ASSIGN_OR_RETURN(const std::string header,
                   ShardHeaderBytes(options_.width, shard_tokens_written_));
  RETURN_IF_ERROR(WriteAt(fd_, temp_path_, header.data(), header.size(), 0));
  const std::string path = FinalPath();
  if (::fsync(fd_) != 0) return ErrnoError(errno, "cannot sync " + temp_path_);
  ASSIGN_OR_RETURN(const std::string hash, FileSha256(temp_path_));
  RETURN_IF_ERROR(RenamePath(temp_path_, path));
  ::close(std::exchange(fd_, -1));
  files_.push_back({BaseName(path), shard_tokens_written_,
                    kShardHeaderBytes + shard_tokens_written_ * static_cast<int>(options_.width),
                    hash});
  return OkStatus();
}

Result<std::vector<ShardFile>> TokenShardWriter::Finish() {
  if (fd_ >= 0) RETURN_IF_ERROR(CloseShard());
  RETURN_IF_ERROR(SyncDirectory(options_.folder));
  return std::move(files_);
}

Result<std::string> FileSha256(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return ErrnoError(errno, "cannot open " + path);
  Sha256 hash;
  std::vector<char> block(kWriteBufferBytes);
  size_t got;
  while ((got = std::fread(block.data(), 1, block.size(), file)) > 0)
    hash.Update(block.data(), got);
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) return DataLossError("cannot read " + path);
  return hash.HexDigest();
}

}  // namespace nibble
