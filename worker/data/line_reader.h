// SPDX-License-Identifier: Apache-2.0
//
// LineReader: the lines of a plain or zstd-compressed file, streamed. One thread; owns its file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/status.h"
#include "worker/data/byte_source.h"

namespace nibble {

inline constexpr int64_t kMaxLineBytes = int64_t{64} << 20;

class LineReader {
 public:
  // zstd is known by its magic number, not by name. UNIMPLEMENTED when this build lacks zstd.
  static Result<LineReader> Open(const std::string& path);

  // The next line without its line end (LF or CRLF); false at the end of the file. DATA_LOSS for a
  // truncated or damaged zstd stream; RESOURCE_EXHAUSTED for a line above kMaxLineBytes.
  Result<bool> Next(std::string& line);

  const std::string& path() const { return path_; }
  int64_t line_number() const { return line_number_; }  // of the last line, from 1
  int64_t line_offset() const { return line_offset_; }  // its first byte in the uncompressed text

 private:
  LineReader(std::string path, std::unique_ptr<ByteSource> source)
      : path_(std::move(path)), source_(std::move(source)) {}

  std::string path_;
  std::unique_ptr<ByteSource> source_;
  std::string buffer_;
  size_t buffer_pos_ = 0;
  bool at_end_ = false;
  int64_t line_number_ = 0;
  int64_t line_offset_ = 0;
  int64_t next_offset_ = 0;
};

}  // namespace nibble
