// SPDX-License-Identifier: Apache-2.0
//
// Reads every include of the tree and fails on a dependency arrow the house does not have
// (docs/internals/architecture.md), and on heavy headers where they do not belong.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/strings.h"
#include "tests/tidy/source_tree.h"

namespace nibble {
namespace {

// Layer -> layers it may include besides itself. The longest matching prefix is a file's layer.
const std::map<std::string, std::vector<std::string>>& AllowedArrows() {
  static const std::map<std::string, std::vector<std::string>> arrows = {
      {"base", {}},
      {"kernels/recipe", {"kernels/formats", "base"}},
      {"kernels/recipe/yaml", {"kernels/recipe", "base"}},
      {"kernels/formats", {}},
      {"kernels", {"kernels/recipe", "kernels/formats", "base"}},
      {"kernels/cuda", {"kernels", "kernels/recipe", "kernels/formats", "base"}},
      {"worker/spec", {"kernels/recipe", "base"}},
      {"worker/data", {"base"}},
      {"worker/train",
       {"worker/spec", "worker/data", "kernels", "kernels/recipe", "kernels/formats", "base"}},
      {"worker/lab",
       {"worker/train", "worker/spec", "worker/data", "kernels", "kernels/recipe",
        "kernels/recipe/yaml", "kernels/formats", "base"}},
      {"worker/bench",
       {"worker/train", "worker/spec", "worker/data", "kernels", "kernels/recipe",
        "kernels/formats", "base"}},
      {"worker/study",
       {"worker/train", "worker/spec", "worker/data", "kernels", "kernels/recipe",
        "kernels/formats", "base"}},
      {"worker/agent", {"worker/spec", "nibble/v1", "base"}},
      {"server/core", {"base"}},
      {"server/store", {"server/core", "base"}},
      {"server",
       {"server/core", "server/store", "worker/spec", "kernels/recipe", "nibble/v1", "base"}},
      {"client/lib", {"worker/spec", "kernels/recipe", "kernels/recipe/yaml", "nibble/v1", "base"}},
      {"client",
       {"client/lib", "worker/spec", "kernels/recipe", "kernels/recipe/yaml", "nibble/v1", "base"}},
  };
  return arrows;
}

std::string LayerOf(const std::string& path) {
  std::string best;
  for (const auto& [layer, unused] : AllowedArrows()) {
    if (path.starts_with(layer + "/") && layer.size() > best.size()) best = layer;
  }
  if (best.empty() && path.starts_with("nibble/v1/")) return "nibble/v1";
  return best;
}

// The text between quotes or angle brackets of an #include line, or "".
std::string IncludedHeader(const std::string& line, bool& quoted) {
  if (!StrTrim(line).starts_with("#include")) return "";
  const size_t open = line.find_first_of("\"<");
  if (open == std::string::npos) return "";
  quoted = line[open] == '"';
  const size_t close = line.find(quoted ? '"' : '>', open + 1);
  return close == std::string::npos ? "" : line.substr(open + 1, close - open - 1);
}

bool IsTest(const std::string& path) {
  return path.starts_with("tests/") || path.ends_with("_test.cc") ||
         path.find("_test_") != std::string::npos || path.find("/testing/") != std::string::npos;
}

TEST(Layers, EveryIncludeFollowsAnAllowedArrow) {
  int checked = 0;
  for (const SourceFile& file : ReadTree({".h", ".cc", ".cu", ".cuh"})) {
    const std::string layer = LayerOf(file.path);
    if (layer.empty()) continue;
    const std::vector<std::string>& allowed = AllowedArrows().at(layer);
    for (const std::string& line : file.lines) {
      bool quoted = false;
      const std::string header = IncludedHeader(line, quoted);
      const std::string target = LayerOf(header);
      if (!quoted || target.empty() || target == layer) continue;
      const bool ok = std::find(allowed.begin(), allowed.end(), target) != allowed.end() ||
                      (IsTest(file.path) && target == "base");
      EXPECT_TRUE(ok) << file.path << " includes " << header << ": " << layer << " may not use "
                      << target;
      ++checked;
    }
  }
  EXPECT_GT(checked, 100) << "the test found no includes to check";
}

TEST(Layers, ProjectHeadersAreIncludedByTheirFullPath) {
  for (const SourceFile& file : ReadTree({".h", ".cc"})) {
    for (const std::string& line : file.lines) {
      bool quoted = false;
      const std::string header = IncludedHeader(line, quoted);
      if (quoted && !header.empty()) {
        EXPECT_NE(header.find('/'), std::string::npos) << file.path << " includes " << header;
      }
    }
  }
}

struct Ban {
  const char* header_prefix;               // of the included header
  std::vector<const char*> allowed_below;  // folders that may include it
  bool headers_only;                       // the ban concerns .h files only
};

TEST(Layers, HeavyLibrariesStayInTheirRooms) {
  const std::vector<const char*> service = {"server/rpc/", "worker/agent/", "client/", "tests/"};
  const Ban bans[] = {
      {"grpc", {"server/", "worker/agent/", "client/", "tests/"}, false},
      {"grpc", service, true},
      {"google/protobuf", {"server/", "worker/agent/", "client/", "tests/"}, false},
      {"nibble/v1/", service, true},
      {"absl/", {"server/", "worker/agent/", "client/", "tests/"}, false},
      {"sqlite3", {"server/store/", "tests/"}, false},
      {"yaml-cpp", {"client/", "kernels/recipe/yaml/", "tests/"}, false},
      {"CLI/", {"client/", "server/main.cc", "worker/agent/main.cc"}, false},
      {"sentencepiece", {"worker/data/"}, false},
      {"zstd", {"worker/data/", "tests/"}, false},
      {"cblas", {"kernels/", "worker/train/", "worker/bench/"}, false},
      {"oneapi/dnnl", {"worker/bench/"}, false},
      {"cuda", {"kernels/cuda/", "kernels/formats/", "worker/train/nccl/", "tests/"}, false},
      {"nccl", {"worker/train/nccl/", "tests/"}, false},
      {"cublas", {"kernels/cuda/"}, false},
      {"prometheus/", {"server/rpc/", "worker/agent/", "tests/"}, false},
      {"civetweb", {"server/rpc/", "worker/agent/", "tests/"}, false},
  };
  for (const SourceFile& file : ReadTree({".h", ".cc"})) {
    for (const std::string& line : file.lines) {
      bool quoted = false;
      const std::string header = IncludedHeader(line, quoted);
      if (header.empty()) continue;
      for (const Ban& ban : bans) {
        if (!header.starts_with(ban.header_prefix)) continue;
        if (ban.headers_only && !file.path.ends_with(".h")) continue;
        const bool ok =
            std::any_of(ban.allowed_below.begin(), ban.allowed_below.end(),
                        [&](const char* folder) { return file.path.starts_with(folder); });
        EXPECT_TRUE(ok) << file.path << " may not include " << header;
      }
    }
  }
}

}  // namespace
}  // namespace nibble
