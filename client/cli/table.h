// SPDX-License-Identifier: Apache-2.0
//
// Table: aligned columns of text. One thread.
#pragma once

#include <cstddef>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::cli {

// Columns a UTF-8 text takes on screen, every character counted as one.
size_t DisplayWidth(std::string_view text);
// At most `width` columns; a cut text ends in "…".
std::string CutToWidth(const std::string& text, size_t width);

class Table {
 public:
  // A name that starts with '>' aligns its column to the right.
  explicit Table(const std::vector<std::string>& columns);
  void AddRow(std::vector<std::string> cells);  // as many cells as columns; "" prints as "-"
  // Two spaces between columns, no trailing spaces.
  void Print(std::ostream& out, bool headers) const;
  std::vector<std::string> Lines(bool headers) const;

 private:
  struct Column {
    std::string name;
    bool right = false;
  };
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace nibble::cli
