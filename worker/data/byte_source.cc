// SPDX-License-Identifier: Apache-2.0
#include "worker/data/byte_source.h"

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "base/files.h"

namespace nibble {
namespace {

constexpr size_t kBlockBytes = size_t{256} << 10;
constexpr std::string_view kZstdMagic = "\x28\xB5\x2F\xFD";

class PlainSource : public ByteSource {
 public:
  PlainSource(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  ~PlainSource() override { std::fclose(file_); }

  Result<bool> ReadBlock(std::string& out) override {
    const size_t old_size = out.size();
    out.resize(old_size + kBlockBytes);
    const size_t got = std::fread(out.data() + old_size, 1, kBlockBytes, file_);
    out.resize(old_size + got);
    if (got == 0 && std::ferror(file_) != 0) return ErrnoError(errno, "cannot read " + path_);
    return got > 0;
  }

 private:
  const std::string path_;
  std::FILE* const file_;
};

}  // namespace

Result<bool> IsZstdFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string head, ReadFileRange(path, 0, 4));
  return head == kZstdMagic;
}

Result<std::unique_ptr<ByteSource>> OpenByteSource(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return InvalidArgumentError(path + " is a folder; name the files in it");
  }
  ASSIGN_OR_RETURN(const bool zstd, IsZstdFile(path));
  if (zstd) return OpenZstdSource(path);
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return ErrnoError(errno, "cannot open " + path);
  return std::unique_ptr<ByteSource>(std::make_unique<PlainSource>(path, file));
}

}  // namespace nibble
