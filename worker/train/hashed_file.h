// SPDX-License-Identifier: Apache-2.0
//
// HashedFile: a new file written front to back, with size and SHA-256 known at the end.
// Thread-safety: one thread. Ownership: owns its descriptor. A file that was not finished is left
// where it is: checkpoints are written in a folder that is removed as a whole.
#pragma once

#include <cstdint>
#include <string>

#include "base/sha256.h"
#include "base/status.h"

namespace nibble {

struct FileDigest {
  int64_t size_bytes = 0;
  std::string sha256;
};

class HashedFile {
 public:
  // ALREADY_EXISTS when the path is taken.
  static Result<HashedFile> Create(const std::string& path);
  HashedFile(HashedFile&& other) noexcept;
  HashedFile& operator=(HashedFile&&) = delete;
  ~HashedFile();

  Status Write(const void* data, size_t size_bytes);  // RESOURCE_EXHAUSTED when the disk is full
  // fsync and close. Call once, last.
  Result<FileDigest> Finish();

 private:
  HashedFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  std::string path_;
  int fd_ = -1;
  int64_t size_bytes_ = 0;
  Sha256 hash_;
};

// Digest of an existing file, read in pieces.
Result<FileDigest> DigestFile(const std::string& path);

}  // namespace nibble
