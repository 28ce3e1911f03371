// SPDX-License-Identifier: Apache-2.0
//
// ByteSource: the bytes of a file, block by block. One thread.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"

namespace nibble {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Appends the next block to `out`; false, and nothing appended, at the end.
  virtual Result<bool> ReadBlock(std::string& out) = 0;
};

// DATA_LOSS from ReadBlock when the stream is truncated or damaged. Reads `path` from its start.
// UNIMPLEMENTED when this build lacks zstd.
Result<std::unique_ptr<ByteSource>> OpenZstdSource(const std::string& path);

// NOT_FOUND and other reasons why `path` cannot be read. Chooses zstd by the magic number.
Result<std::unique_ptr<ByteSource>> OpenByteSource(const std::string& path);

// Whether the file begins with zstd's magic number.
Result<bool> IsZstdFile(const std::string& path);

}  // namespace nibble
