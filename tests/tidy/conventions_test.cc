// SPDX-License-Identifier: Apache-2.0
//
// Conventions of CONTRIBUTING.md that a machine can hold: sizes, licence lines, leftovers, and that
// every source file belongs to a target.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/strings.h"
#include "tests/tidy/source_tree.h"

namespace nibble {
namespace {

constexpr size_t kMaxFileLines = 600;
constexpr size_t kMaxPublicHeaderLines = 400;
constexpr size_t kMaxFunctionLines = 70;
constexpr size_t kMaxColumns = 100;

const std::vector<std::string> kSources = {".h", ".cc", ".cu", ".cuh"};

// Counts code points, so that a line of braille or box drawing is measured as it is seen.
size_t Columns(const std::string& line) {
  return static_cast<size_t>(std::count_if(line.begin(), line.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

TEST(Conventions, FilesAndLinesStayShort) {
  for (const SourceFile& file : ReadTree(kSources)) {
    const bool table =
        file.path.find("_table") != std::string::npos || file.path.starts_with("tests/golden/");
    if (!table) {
      EXPECT_LE(file.lines.size(),
                file.path.ends_with(".h") ? kMaxPublicHeaderLines : kMaxFileLines)
          << file.path;
    }
    for (size_t i = 0; i < file.lines.size() && !table; ++i) {
      EXPECT_LE(Columns(file.lines[i]), kMaxColumns) << file.path << ":" << i + 1;
    }
  }
}

// clang-format puts a function's closing brace in the column of its opening line, so the body of a
// function at namespace or class level spans from a line ending in ") ... {" to that brace.
TEST(Conventions, FunctionsFitAScreen) {
  for (const SourceFile& file : ReadTree({".h", ".cc"})) {
    for (size_t start = 0; start < file.lines.size(); ++start) {
      const std::string& line = file.lines[start];
      const size_t indent = line.find_first_not_of(' ');
      if (indent == std::string::npos || indent > 2 || !line.ends_with("{")) continue;
      if (line.find(')') == std::string::npos || line.find("namespace") == indent) continue;
      if (line.find("](") != std::string::npos) continue;  // a lambda inside a statement
      const std::string first_word = line.substr(indent, line.find_first_of(" (", indent) - indent);
      static const std::set<std::string> kStatements = {"if", "for", "while", "switch", "}", ":"};
      if (kStatements.count(first_word) > 0) continue;
      const std::string closing(indent, ' ');
      size_t end = start + 1;
      while (end < file.lines.size() && !file.lines[end].starts_with(closing + "}")) ++end;
      EXPECT_LE(end - start + 1, kMaxFunctionLines) << file.path << ":" << start + 1 << " " << line;
    }
  }
}

TEST(Conventions, SourcesOpenWithTheLicenceLine) {
  for (const SourceFile& file : ReadTree({".h", ".cc", ".cu", ".cuh", ".proto"})) {
    ASSERT_FALSE(file.lines.empty()) << file.path;
    EXPECT_EQ(file.lines[0], "// SPDX-License-Identifier: Apache-2.0") << file.path;
    if (file.path.ends_with(".h")) {
      EXPECT_NE(std::find(file.lines.begin(), file.lines.end(), "#pragma once"), file.lines.end())
          << file.path;
    }
  }
}

TEST(Conventions, NoLeftovers) {
  // Spelled in two halves so that this file does not find itself.
  const std::string kMarks[] = {std::string("TO") + "DO", std::string("FIX") + "ME",
                                std::string("XX") + "X "};
  for (const SourceFile& file : ReadTree({".h", ".cc", ".proto", ".txt", ".cmake", ".sh"})) {
    for (size_t i = 0; i < file.lines.size(); ++i) {
      for (const std::string& mark : kMarks) {
        EXPECT_EQ(file.lines[i].find(mark), std::string::npos) << file.path << ":" << i + 1;
      }
    }
  }
}

TEST(Conventions, EverySourceBelongsToATarget) {
  std::string lists;
  for (const SourceFile& file : ReadTree({"CMakeLists.txt"})) {
    lists += StrJoin(file.lines, "\n") + "\n";
  }
  for (const SourceFile& file : ReadTree({".cc", ".cu"})) {
    EXPECT_NE(lists.find(BaseName(file.path)), std::string::npos)
        << file.path << " is in no CMakeLists.txt";
  }
}

TEST(Conventions, DocumentsLinkToFilesThatExist) {
  int links = 0;
  for (const SourceFile& file : ReadTree({".md"})) {
    for (const std::string& line : file.lines) {
      for (size_t at = line.find("]("); at != std::string::npos; at = line.find("](", at + 2)) {
        std::string target = line.substr(at + 2, line.find(')', at) - at - 2);
        target = target.substr(0, target.find('#'));
        if (target.empty() || target.find("://") != std::string::npos) continue;
        const std::string path = JoinPath(NIBBLE_SOURCE_DIR, JoinPath(DirName(file.path), target));
        EXPECT_TRUE(PathExists(path)) << file.path << " links to " << target;
        ++links;
      }
    }
  }
  EXPECT_GT(links, 10);
}

}  // namespace
}  // namespace nibble
