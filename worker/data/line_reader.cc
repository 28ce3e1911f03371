// SPDX-License-Identifier: Apache-2.0
#include "worker/data/line_reader.h"

#include "base/strings.h"

namespace nibble {

Result<LineReader> LineReader::Open(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<ByteSource> source, OpenByteSource(path));
  return LineReader(path, std::move(source));
}

Result<bool> LineReader::Next(std::string& line) {
  size_t searched = buffer_pos_;
  size_t end;
  while ((end = buffer_.find('\n', searched)) == std::string::npos && !at_end_) {
    searched = buffer_.size() - buffer_pos_;
    buffer_.erase(0, buffer_pos_);
    buffer_pos_ = 0;
    if (static_cast<int64_t>(buffer_.size()) > kMaxLineBytes) {
      return ResourceExhaustedError(StrFormat(
          "%s:%lld: a line of more than %lld bytes", path_.c_str(),
          static_cast<long long>(line_number_ + 1), static_cast<long long>(kMaxLineBytes)));
    }
    ASSIGN_OR_RETURN(const bool more, source_->ReadBlock(buffer_));
    at_end_ = !more;
  }
  if (end == std::string::npos && buffer_pos_ == buffer_.size()) return false;
  const size_t line_end = end == std::string::npos ? buffer_.size() : end;
  line.assign(buffer_, buffer_pos_, line_end - buffer_pos_);
  const size_t next = end == std::string::npos ? line_end : end + 1;
  line_offset_ = next_offset_;
  next_offset_ += static_cast<int64_t>(next - buffer_pos_);
  buffer_pos_ = next;
  ++line_number_;
  if (line.ends_with('\r')) line.pop_back();
  return true;
}

}  // namespace nibble
