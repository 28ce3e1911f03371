// SPDX-License-Identifier: Apache-2.0
#include "worker/data/token_shard.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/files.h"
#include "base/strings.h"

namespace nibble {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are little-endian");

constexpr int32_t kMagic16 = 20240520;
constexpr int32_t kVersion16 = 1;
constexpr int32_t kMagic32 = 20240801;
constexpr int32_t kVersion32 = 7;
constexpr int64_t kScanBlockTokens = 1 << 16;

Result<TokenWidth> WidthOfHeader(const std::string& path, int32_t magic, int32_t version) {
  if (magic == kMagic16 && version == kVersion16) return TokenWidth::k16;
  if (magic == kMagic32 && version == kVersion32) return TokenWidth::k32;
  if (magic != kMagic16 && magic != kMagic32) {
    return InvalidArgumentError(
        StrFormat("%s is not a token shard: magic number %d, expected %d (16-bit) or %d (32-bit); "
                  "make shards with 'nibble tokenize'",
                  path.c_str(), magic, kMagic16, kMagic32));
  }
  return InvalidArgumentError(
      StrFormat("%s: version %d of shard magic %d is unknown, expected %d; make the shards again "
                "with 'nibble tokenize'",
                path.c_str(), version, magic, magic == kMagic16 ? kVersion16 : kVersion32));
}

// Loads token i of a packed little-endian array.
uint32_t LoadToken(const uint8_t* bytes, TokenWidth width, int64_t i) {
  if (width == TokenWidth::k16) {
    uint16_t token;
    std::memcpy(&token, bytes + 2 * i, 2);
    return token;
  }
  uint32_t token;
  std::memcpy(&token, bytes + 4 * i, 4);
  return token;
}

}  // namespace

TokenWidth TokenWidthFor(int64_t vocab_size) {
  return vocab_size <= 65536 ? TokenWidth::k16 : TokenWidth::k32;
}

TokenShard::~TokenShard() {
  if (fd_ >= 0) ::close(fd_);
}

TokenShard::TokenShard(TokenShard&& other) noexcept { *this = std::move(other); }

TokenShard& TokenShard::operator=(TokenShard&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(width_, other.width_);
  std::swap(magic_, other.magic_);
  std::swap(version_, other.version_);
  std::swap(token_count_, other.token_count_);
  return *this;
}

Result<TokenShard> TokenShard::Open(const std::string& path) {
  TokenShard shard;
  shard.path_ = path;
  shard.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (shard.fd_ < 0) {
    if (errno == EMFILE) {
      return ResourceExhaustedError("cannot open token shard " + path +
                                    ": too many open files; raise 'ulimit -n' or make larger "
                                    "shards with --shard-tokens");
    }
    return ErrnoError(errno, "cannot open token shard " + path);
  }
  struct stat info;
  if (::fstat(shard.fd_, &info) != 0) return ErrnoError(errno, "cannot stat " + path);
  if (!S_ISREG(info.st_mode)) {
    return InvalidArgumentError("token shard " + path + " is not a regular file");
  }
  const int64_t size = info.st_size;
  if (size < kShardHeaderBytes) {
    return DataLossError(StrFormat(
        "%s has %lld bytes, less than the %lld of a token shard's "
        "header; it is truncated or no shard: make it again",
        path.c_str(), static_cast<long long>(size), static_cast<long long>(kShardHeaderBytes)));
  }
  std::array<int32_t, kShardHeaderInts> header;
  RETURN_IF_ERROR(shard.ReadBytes(0, header.data(), sizeof(header)));
  ASSIGN_OR_RETURN(shard.width_, WidthOfHeader(path, header[0], header[1]));
  shard.magic_ = header[0];
  shard.version_ = header[1];
  shard.token_count_ = header[2];
  if (shard.token_count_ <= 0) {
    return InvalidArgumentError(
        StrFormat("%s: the header promises %d tokens, a shard has at least 1; leave the file out",
                  path.c_str(), header[2]));
  }
  const int64_t expected = kShardHeaderBytes + shard.token_count_ * static_cast<int>(shard.width_);
  if (size != expected) {
    return DataLossError(
        StrFormat("%s has %lld bytes, but its header promises %d tokens = %lld bytes; it is %s: "
                  "copy or make it again",
                  path.c_str(), static_cast<long long>(size), header[2],
                  static_cast<long long>(expected), size < expected ? "truncated" : "damaged"));
  }
  return shard;
}

Status TokenShard::ReadBytes(int64_t offset, void* out, size_t size_bytes) const {
  auto* bytes = static_cast<uint8_t*>(out);
  while (size_bytes > 0) {
    const ssize_t got = ::pread(fd_, bytes, size_bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, "cannot read " + path_);
    if (got == 0) {
      return DataLossError(StrFormat("%s became shorter while in use: nothing at byte %lld",
                                     path_.c_str(), static_cast<long long>(offset)));
    }
    bytes += got;
    offset += got;
    size_bytes -= static_cast<size_t>(got);
  }
  return OkStatus();
}

Status TokenShard::Read(int64_t begin, int64_t vocab_size, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  if (begin < 0 || begin > token_count_ || count > token_count_ - begin) {
    return OutOfRangeError(StrFormat("tokens %lld to %lld of %s, which has %lld",
                                     static_cast<long long>(begin),
                                     static_cast<long long>(begin + count), path_.c_str(),
                                     static_cast<long long>(token_count_)));
  }
  // The raw tokens land in the tail of `out` and are widened from the front: token i is read before
  // any byte at or after it is written, so no second buffer is needed.
  const size_t raw_bytes = out.size() * static_cast<size_t>(width_);
  uint8_t* raw = reinterpret_cast<uint8_t*>(out.data()) + (out.size_bytes() - raw_bytes);
  RETURN_IF_ERROR(ReadBytes(kShardHeaderBytes + begin * static_cast<int>(width_), raw, raw_bytes));
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t token = LoadToken(raw, width_, i);
    if (token >= vocab_size) {
      return InvalidArgumentError(StrFormat(
          "%s: token id %u at position %lld, but the vocabulary has %lld (largest id %lld); the "
          "shard was made with another tokenizer",
          path_.c_str(), token, static_cast<long long>(begin + i),
          static_cast<long long>(vocab_size), static_cast<long long>(vocab_size - 1)));
    }
    out[static_cast<size_t>(i)] = static_cast<int32_t>(token);
  }
  return OkStatus();
}

Result<TokenShard::Range> TokenShard::Scan() const {
  std::vector<int32_t> block(
      static_cast<size_t>(std::min<int64_t>(kScanBlockTokens, token_count_)));
  Range range{INT32_MAX, 0};
  for (int64_t begin = 0; begin < token_count_;) {
    const auto count =
        static_cast<size_t>(std::min<int64_t>(kScanBlockTokens, token_count_ - begin));
    const std::span<int32_t> part(block.data(), count);
    RETURN_IF_ERROR(Read(begin, int64_t{INT32_MAX} + 1, part));
    const auto [low, high] = std::minmax_element(part.begin(), part.end());
    range.min = std::min(range.min, *low);
    range.max = std::max(range.max, *high);
    begin += static_cast<int64_t>(count);
  }
  return range;
}

Result<std::string> ShardHeaderBytes(TokenWidth width, int64_t token_count) {
  if (token_count < 1 || token_count > kMaxShardTokens) {
    return InvalidArgumentError(StrFormat("a shard of %lld tokens: the limit is %lld",
                                          static_cast<long long>(token_count),
                                          static_cast<long long>(kMaxShardTokens)));
  }
  std::array<int32_t, kShardHeaderInts> header{};
  header[0] = width == TokenWidth::k16 ? kMagic16 : kMagic32;
  header[1] = width == TokenWidth::k16 ? kVersion16 : kVersion32;
  header[2] = static_cast<int32_t>(token_count);
  return std::string(reinterpret_cast<const char*>(header.data()), sizeof(header));
}

}  // namespace nibble
