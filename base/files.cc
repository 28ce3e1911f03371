// SPDX-License-Identifier: Apache-2.0
#include "base/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Closes the descriptor at the end of the scope.
class ScopedFd {
 public:
  explicit ScopedFd(int fd) : fd_(fd) {}
  ~ScopedFd() {
    if (fd_ >= 0) ::close(fd_);
  }
  ScopedFd(const ScopedFd&) = delete;
  ScopedFd& operator=(const ScopedFd&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

Status WriteAll(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return ErrnoError(errno, "cannot write " + path);
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return OkStatus();
}

Status ErrorCodeError(const std::error_code& error, const std::string& what) {
  return ErrnoError(error.value(), what);
}

}  // namespace

Result<std::string> ReadFileRange(const std::string& path, int64_t offset, int64_t size) {
  ScopedFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoError(errno, "cannot open " + path);
  std::string content(static_cast<size_t>(size), '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t got = ::pread(fd.get(), content.data() + done, content.size() - done,
                                static_cast<off_t>(offset + static_cast<int64_t>(done)));
    if (got < 0) {
      if (errno == EINTR) continue;
      return ErrnoError(errno, "cannot read " + path);
    }
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  content.resize(done);
  return content;
}

Result<std::string> ReadFile(const std::string& path, int64_t limit_bytes) {
  ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(path));
  if (size > limit_bytes) {
    return ResourceExhaustedError(path + " has " + std::to_string(size) + " bytes, limit " +
                                  std::to_string(limit_bytes));
  }
  if (size > 0) return ReadFileRange(path, 0, size);
  // Pseudo files such as those of /proc have size 0 and content nevertheless.
  std::string content;
  while (static_cast<int64_t>(content.size()) <= limit_bytes) {
    ASSIGN_OR_RETURN(const std::string part,
                     ReadFileRange(path, static_cast<int64_t>(content.size()), 65536));
    if (part.empty()) break;
    content += part;
  }
  return content;
}

Status AtomicWriteFile(const std::string& path, std::string_view content) {
  static std::atomic<uint64_t> counter{0};
  const std::string temp =
      path + ".tmp." + std::to_string(::getpid()) + "." + std::to_string(counter++);
  Status status;
  {
    ScopedFd fd(::open(temp.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (fd.get() < 0) return ErrnoError(errno, "cannot create " + temp);
    status = WriteAll(fd.get(), content, temp);
    if (status.ok() && ::fsync(fd.get()) != 0) status = ErrnoError(errno, "cannot sync " + temp);
  }
  if (status.ok() && ::rename(temp.c_str(), path.c_str()) != 0) {
    status = ErrnoError(errno, "cannot rename " + temp + " to " + path);
  }
  if (!status.ok()) {
    ::unlink(temp.c_str());
    return status;
  }
  return SyncDirectory(DirName(path));
}

Status SyncDirectory(const std::string& path) {
  ScopedFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoError(errno, "cannot open folder " + path);
  if (::fsync(fd.get()) != 0) return ErrnoError(errno, "cannot sync folder " + path);
  return OkStatus();
}

Status MakeDirectories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return ErrorCodeError(error, "cannot create folder " + path);
  return OkStatus();
}

Status RemoveTree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return ErrorCodeError(error, "cannot remove " + path);
  return OkStatus();
}

Status RenamePath(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    return ErrnoError(errno, "cannot rename " + from + " to " + to);
  }
  return OkStatus();
}

Result<std::vector<std::string>> ListDirectory(const std::string& path) {
  std::error_code error;
  fs::directory_iterator it(path, error);
  if (error) return ErrorCodeError(error, "cannot list folder " + path);
  std::vector<std::string> names;
  for (; it != fs::directory_iterator(); it.increment(error)) {
    if (error) return ErrorCodeError(error, "cannot list folder " + path);
    names.push_back(it->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool PathExists(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0;
}

Result<int64_t> FileSizeBytes(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return ErrnoError(errno, "cannot read " + path);
  if (S_ISDIR(info.st_mode)) return InvalidArgumentError(path + " is a folder, expected a file");
  return static_cast<int64_t>(info.st_size);
}

Result<int64_t> FreeDiskBytes(const std::string& path) {
  struct statvfs info;
  if (::statvfs(path.c_str(), &info) != 0) return ErrnoError(errno, "cannot stat " + path);
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

std::string JoinPath(std::string_view a, std::string_view b) {
  if (a.empty() || (!b.empty() && b.front() == '/')) return std::string(b);
  std::string out(a);
  if (out.back() != '/') out += '/';
  return out.append(b);
}

std::string BaseName(std::string_view path) {
  const size_t slash = path.rfind('/');
  return std::string(slash == std::string_view::npos ? path : path.substr(slash + 1));
}

std::string DirName(std::string_view path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return std::string(slash == 0 ? "/" : path.substr(0, slash));
}

Result<std::string> MakeTempDirectory(std::string_view prefix) {
  const char* root = std::getenv("TMPDIR");
  std::string path =
      JoinPath(root != nullptr && *root ? root : "/tmp", std::string(prefix) + ".XXXXXX");
  if (::mkdtemp(path.data()) == nullptr) return ErrnoError(errno, "cannot create " + path);
  return path;
}

Result<std::string> ExecutableDirectory() {
  std::error_code error;
  const fs::path path = fs::read_symlink("/proc/self/exe", error);
  if (error) return ErrorCodeError(error, "cannot read /proc/self/exe");
  return path.parent_path().string();
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) ::close(fd_);
}

AppendFile::AppendFile(AppendFile&& other) noexcept { *this = std::move(other); }

AppendFile& AppendFile::operator=(AppendFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

Result<AppendFile> AppendFile::Open(const std::string& path) {
  AppendFile file;
  file.path_ = path;
  file.fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file.fd_ < 0) return ErrnoError(errno, "cannot open " + path + " for appending");
  ASSIGN_OR_RETURN(file.size_bytes_, FileSizeBytes(path));
  return file;
}

Status AppendFile::Append(std::string_view bytes) {
  if (fd_ < 0) return FailedPreconditionError("append to a file that is not open");
  const Status status = WriteAll(fd_, bytes, path_);
  if (!status.ok()) {
    if (::ftruncate(fd_, static_cast<off_t>(size_bytes_)) != 0) {
      return DataLossError(status.message() + "; and cannot cut back the torn tail");
    }
    return status;
  }
  size_bytes_ += static_cast<int64_t>(bytes.size());
  return OkStatus();
}

Status AppendFile::Sync() {
  if (::fdatasync(fd_) != 0) return ErrnoError(errno, "cannot sync " + path_);
  return OkStatus();
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

FileLock::FileLock(FileLock&& other) noexcept { std::swap(fd_, other.fd_); }

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Result<FileLock> FileLock::Acquire(const std::string& path) {
  FileLock lock;
  lock.fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock.fd_ < 0) return ErrnoError(errno, "cannot open lock file " + path);
  if (::flock(lock.fd_, LOCK_EX | LOCK_NB) != 0) {
    const std::string holder = ReadFileRange(path, 0, 32).value_or("");
    return FailedPreconditionError(path + " is locked by process " +
                                   (holder.empty() ? "(unknown)" : holder) +
                                   "; stop it or choose another folder");
  }
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(lock.fd_, 0) != 0) return ErrnoError(errno, "cannot write " + path);
  RETURN_IF_ERROR(WriteAll(lock.fd_, pid, path));
  return lock;
}

}  // namespace nibble
