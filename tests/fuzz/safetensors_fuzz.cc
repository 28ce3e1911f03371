// SPDX-License-Identifier: Apache-2.0
//
// Any bytes as a safetensors file: opened or refused, and what is opened keeps its promises.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "worker/train/safetensors.h"

namespace nibble {
namespace {

// A file in memory, so that the same code reads it that reads files on disk.
class MemoryFile {
 public:
  MemoryFile() : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) { NIBBLE_CHECK(fd_ >= 0); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(fd_); }

  void Replace(const uint8_t* data, size_t size) {
    NIBBLE_CHECK(::ftruncate(fd_, 0) == 0);
    NIBBLE_CHECK(::pwrite(fd_, data, size, 0) == static_cast<ssize_t>(size));
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

void CheckReader(const SafetensorsReader& reader, size_t file_bytes) {
  int64_t covered = 0;
  for (const SafetensorsEntry& entry : reader.entries()) {
    NIBBLE_CHECK(entry.begin == covered);
    NIBBLE_CHECK(entry.size_bytes() == entry.elements() * SafetensorsElementBytes(entry.dtype));
    covered = entry.end;
    const Result<std::string> bytes = reader.Read(entry, 0, entry.size_bytes());
    NIBBLE_CHECK(bytes.ok() && static_cast<int64_t>(bytes->size()) == entry.size_bytes());
    NIBBLE_CHECK(reader.Find(entry.name) != nullptr);
    NIBBLE_CHECK(!reader.Read(entry, 0, entry.size_bytes() + 1).ok());
    NIBBLE_CHECK(!reader.Read(entry, -1, 1).ok());
  }
  NIBBLE_CHECK(covered <= static_cast<int64_t>(file_bytes));
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static nibble::MemoryFile file;
  file.Replace(data, size);
  const auto reader = nibble::SafetensorsReader::Open(file.path());
  if (reader.ok()) nibble::CheckReader(*reader, size);
  return 0;
}
