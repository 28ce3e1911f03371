// SPDX-License-Identifier: Apache-2.0
//
// The checked-out tree as text, for tests that hold its conventions.
#pragma once

#include <string>
#include <vector>

namespace nibble {

struct SourceFile {
  std::string path;  // relative to the root, "worker/train/model.cc"
  std::vector<std::string> lines;
};

// Every file below the project's own folders whose name ends with one of `suffixes`.
// Build folders and hidden folders are left out. The order is by path.
std::vector<SourceFile> ReadTree(const std::vector<std::string>& suffixes);

}  // namespace nibble
