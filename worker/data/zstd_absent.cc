// SPDX-License-Identifier: Apache-2.0
//
// Compiled instead of zstd_source.cc on machines without the library.
#include "worker/data/byte_source.h"

namespace nibble {

Result<std::unique_ptr<ByteSource>> OpenZstdSource(const std::string& path) {
  return UnimplementedError(path +
                            " is compressed with zstd, and this build has no zstd; install "
                            "libzstd-dev, then configure and build again, or decompress it first");
}

}  // namespace nibble
