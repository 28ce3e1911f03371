// SPDX-License-Identifier: Apache-2.0
//
// Test support: where the optional real data lies. Include from tests only.
#pragma once

#include <cstdlib>
#include <string>

#include "base/files.h"

namespace nibble {

// $NIBBLE_DATA_DIR, else shared/data beside the source tree; `name` below it, or "" when absent.
inline std::string TestDataPath(const std::string& name) {
  const char* configured = std::getenv("NIBBLE_DATA_DIR");
  const std::string root =
      configured != nullptr ? configured : JoinPath(NIBBLE_SOURCE_DIR, "../shared/data");
  const std::string path = JoinPath(root, name);
  return PathExists(path) ? path : "";
}

}  // namespace nibble
