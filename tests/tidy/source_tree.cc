// SPDX-License-Identifier: Apache-2.0
#include "tests/tidy/source_tree.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/files.h"
#include "base/strings.h"

namespace nibble {
namespace fs = std::filesystem;

std::vector<SourceFile> ReadTree(const std::vector<std::string>& suffixes) {
  std::vector<SourceFile> files;
  const fs::path root = NIBBLE_SOURCE_DIR;
  fs::recursive_directory_iterator it(root), end;
  for (; it != end; ++it) {
    const std::string name = it->path().filename().string();
    // What git ignores: builds, and the runs of studies.
    const bool output = name == "build" || it->path() == root / "study";
    if (it->is_directory() && (name.starts_with('.') || output)) {
      it.disable_recursion_pending();
      continue;
    }
    const bool wanted = std::any_of(suffixes.begin(), suffixes.end(),
                                    [&](const std::string& s) { return name.ends_with(s); });
    if (!wanted || !it->is_regular_file()) continue;
    std::string text = ReadFile(it->path().string()).value();
    if (text.ends_with('\n')) text.pop_back();
    files.push_back({fs::relative(it->path(), root).string(), StrSplit(text, '\n')});
  }
  std::sort(files.begin(), files.end(),
            [](const SourceFile& a, const SourceFile& b) { return a.path < b.path; });
  return files;
}

}  // namespace nibble
