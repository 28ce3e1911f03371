// SPDX-License-Identifier: Apache-2.0
//
// Files: reading, atomic replacement, appending and locking, with errors that name the path.
//
// Thread-safety: free functions are thread-safe as far as the file system is; classes are
// thread-compatible. Ownership: AppendFile and FileLock own their descriptor and close it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble {

// Whole file as bytes. NOT_FOUND, PERMISSION_DENIED; RESOURCE_EXHAUSTED above `limit_bytes`.
Result<std::string> ReadFile(const std::string& path, int64_t limit_bytes = int64_t{1} << 33);

// Up to `size` bytes at `offset`; shorter at the end of the file.
Result<std::string> ReadFileRange(const std::string& path, int64_t offset, int64_t size);

// Replaces `path` as a whole: temporary file beside it, fsync, rename, fsync of the folder.
// After a failure or a crash the old content stands and no temporary file is left by a failure.
Status AtomicWriteFile(const std::string& path, std::string_view content);

// fsync of a folder, so that names created or renamed in it survive power loss.
Status SyncDirectory(const std::string& path);

Status MakeDirectories(const std::string& path);  // like mkdir -p
Status RemoveTree(const std::string& path);       // like rm -rf; a missing path is OK
Status RenamePath(const std::string& from, const std::string& to);
Result<std::vector<std::string>> ListDirectory(const std::string& path);  // names, sorted
bool PathExists(const std::string& path);
Result<int64_t> FileSizeBytes(const std::string& path);
Result<int64_t> FreeDiskBytes(const std::string& path);  // for an unprivileged user
std::string JoinPath(std::string_view a, std::string_view b);
std::string BaseName(std::string_view path);
std::string DirName(std::string_view path);                      // "." when there is no slash
Result<std::string> MakeTempDirectory(std::string_view prefix);  // below $TMPDIR or /tmp
Result<std::string> ExecutableDirectory();                       // where the running program lies

// An append-only file. Appends are whole: after an error the file is cut back to its old length.
class AppendFile {
 public:
  AppendFile() = default;
  ~AppendFile();
  AppendFile(AppendFile&& other) noexcept;
  AppendFile& operator=(AppendFile&& other) noexcept;

  // Opens or creates `path` for appending.
  static Result<AppendFile> Open(const std::string& path);
  Status Append(std::string_view bytes);  // RESOURCE_EXHAUSTED when the disk is full
  Status Sync();                          // fdatasync
  int64_t size_bytes() const { return size_bytes_; }
  bool is_open() const { return fd_ >= 0; }

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_bytes_ = 0;
};

// An exclusive advisory lock on a file, held until destruction; dies with the process.
class FileLock {
 public:
  FileLock() = default;
  ~FileLock();
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;

  // FAILED_PRECONDITION naming the holder's process id when another process holds it.
  static Result<FileLock> Acquire(const std::string& path);
  bool held() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

}  // namespace nibble
