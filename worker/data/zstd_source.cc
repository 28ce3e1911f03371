// SPDX-License-Identifier: Apache-2.0
#include <zstd.h>

#include <cerrno>
#include <cstdio>
#include <vector>

#include "worker/data/byte_source.h"

namespace nibble {
namespace {

class ZstdSource : public ByteSource {
 public:
  ZstdSource(std::string path, std::FILE* file)
      : path_(std::move(path)),
        file_(file),
        stream_(ZSTD_createDStream()),
        compressed_(ZSTD_DStreamInSize()) {}
  ~ZstdSource() override {
    ZSTD_freeDStream(stream_);
    std::fclose(file_);
  }

  Result<bool> ReadBlock(std::string& out) override {
    if (stream_ == nullptr) return ResourceExhaustedError("no memory for zstd");
    const size_t old_size = out.size();
    while (true) {
      if (input_.pos == input_.size && !Refill()) {
        if (std::ferror(file_) != 0) return ErrnoError(errno, "cannot read " + path_);
        if (frame_open_) {
          return DataLossError(path_ +
                               " is truncated: its zstd frame is not complete; copy or "
                               "download it again");
        }
        return false;
      }
      out.resize(old_size + ZSTD_DStreamOutSize());
      ZSTD_outBuffer output{out.data() + old_size, ZSTD_DStreamOutSize(), 0};
      const size_t rest = ZSTD_decompressStream(stream_, &output, &input_);
      out.resize(old_size + output.pos);
      if (ZSTD_isError(rest) != 0) {
        return DataLossError(path_ + " is damaged: zstd says '" + ZSTD_getErrorName(rest) + "'");
      }
      frame_open_ = rest != 0;
      if (output.pos > 0) return true;
    }
  }

 private:
  bool Refill() {
    input_ = {compressed_.data(), std::fread(compressed_.data(), 1, compressed_.size(), file_), 0};
    return input_.size > 0;
  }

  const std::string path_;
  std::FILE* const file_;
  ZSTD_DStream* const stream_;
  std::vector<char> compressed_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  bool frame_open_ = false;
};

}  // namespace

Result<std::unique_ptr<ByteSource>> OpenZstdSource(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return ErrnoError(errno, "cannot open " + path);
  return std::unique_ptr<ByteSource>(std::make_unique<ZstdSource>(path, file));
}

}  // namespace nibble
