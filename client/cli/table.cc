// SPDX-License-Identifier: Apache-2.0
#include "client/cli/table.h"

#include <algorithm>
#include <utility>

namespace nibble::cli {
namespace {

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

}  // namespace

size_t DisplayWidth(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !IsContinuation(c); }));
}

std::string CutToWidth(const std::string& text, size_t width) {
  if (DisplayWidth(text) <= width || width == 0) return text;
  size_t columns = 0, end = 0;
  while (end < text.size() && columns + 1 < width) {
    ++end;
    while (end < text.size() && IsContinuation(text[end])) ++end;
    ++columns;
  }
  return text.substr(0, end) + "…";
}

Table::Table(const std::vector<std::string>& columns) {
  for (const std::string& name : columns) {
    const bool right = name.starts_with(">");
    columns_.push_back({right ? name.substr(1) : name, right});
  }
}

void Table::AddRow(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  for (std::string& cell : cells) {
    if (cell.empty()) cell = "-";
    std::replace(cell.begin(), cell.end(), '\n', ' ');
  }
  rows_.push_back(std::move(cells));
}

std::vector<std::string> Table::Lines(bool headers) const {
  std::vector<std::vector<std::string>> all;
  if (headers) {
    all.emplace_back();
    for (const Column& column : columns_) all.back().push_back(column.name);
  }
  all.insert(all.end(), rows_.begin(), rows_.end());
  std::vector<size_t> widths(columns_.size());
  for (const auto& row : all) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i]));
  }
  std::vector<std::string> lines;
  for (const auto& row : all) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - DisplayWidth(row[i]), ' ');
      line += (i > 0 ? "  " : "") + (columns_[i].right ? space + row[i] : row[i] + space);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    lines.push_back(std::move(line));
  }
  return lines;
}

void Table::Print(std::ostream& out, bool headers) const {
  for (const std::string& line : Lines(headers)) out << line << "\n";
  out.flush();
}

}  // namespace nibble::cli
