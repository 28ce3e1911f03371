// SPDX-License-Identifier: Apache-2.0
#include "worker/train/hashed_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/files.h"

namespace nibble {

namespace {
constexpr int64_t kReadBytes = 1 << 20;
}  // namespace

Result<HashedFile> HashedFile::Create(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoError(errno, "cannot create " + path);
  return HashedFile(path, fd);
}

HashedFile::HashedFile(HashedFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_bytes_(other.size_bytes_),
      hash_(other.hash_) {}

HashedFile::~HashedFile() {
  if (fd_ >= 0) ::close(fd_);
}

Status HashedFile::Write(const void* data, size_t size_bytes) {
  const char* next = static_cast<const char*>(data);
  size_t left = size_bytes;
  while (left > 0) {
    const ssize_t written = ::write(fd_, next, left);
    if (written < 0) {
      if (errno == EINTR) continue;
      return ErrnoError(errno, "cannot write " + path_);
    }
    next += written;
    left -= static_cast<size_t>(written);
  }
  hash_.Update(data, size_bytes);
  size_bytes_ += static_cast<int64_t>(size_bytes);
  return OkStatus();
}

Result<FileDigest> HashedFile::Finish() {
  if (::fsync(fd_) != 0) return ErrnoError(errno, "cannot sync " + path_);
  if (::close(std::exchange(fd_, -1)) != 0) return ErrnoError(errno, "cannot close " + path_);
  return FileDigest{size_bytes_, hash_.HexDigest()};
}

Result<FileDigest> DigestFile(const std::string& path) {
  FileDigest digest;
  Sha256 hash;
  while (true) {
    ASSIGN_OR_RETURN(const std::string part, ReadFileRange(path, digest.size_bytes, kReadBytes));
    if (part.empty()) break;
    hash.Update(part);
    digest.size_bytes += static_cast<int64_t>(part.size());
  }
  digest.sha256 = hash.HexDigest();
  return digest;
}

}  // namespace nibble
