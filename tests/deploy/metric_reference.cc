// SPDX-License-Identifier: Apache-2.0
#include "tests/deploy/metric_reference.h"

#include "base/strings.h"

namespace nibble::testing {
namespace {

constexpr size_t kColumns = 7;

// The cells of "| a | b |", without the bars and the white space around them.
std::vector<std::string> Cells(std::string_view line) {
  std::vector<std::string> cells;
  for (const std::string& cell : StrSplit(line, '|')) cells.emplace_back(StrTrim(cell));
  if (cells.size() < 3) return {};
  return {cells.begin() + 1, cells.end() - 1};
}

std::string WithoutBackticks(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c != '`') out += c;
  }
  return out;
}

std::set<std::string> CommaSeparated(std::string_view text) {
  std::set<std::string> words;
  for (const std::string& part : StrSplit(WithoutBackticks(text), ',')) {
    const std::string word(StrTrim(part));
    if (!word.empty() && word != "-") words.insert(word);
  }
  return words;
}

Result<MetricRow> ParseRow(const std::vector<std::string>& cells) {
  if (cells.size() != kColumns) {
    return InvalidArgumentError(
        StrFormat("row of %s: %zu columns, must be %zu", cells[0].c_str(), cells.size(), kColumns));
  }
  MetricRow row;
  row.name = WithoutBackticks(cells[0]);
  row.type = cells[1];
  row.unit = cells[2];
  row.labels = CommaSeparated(cells[3]);
  row.by = CommaSeparated(cells[4]);
  if (cells[5] != "not on a board") row.shown = CommaSeparated(cells[5]);
  row.meaning = cells[6];
  if (row.type != "gauge" && row.type != "counter" && row.type != "histogram") {
    return InvalidArgumentError(row.name + ": type '" + row.type +
                                "' must be gauge, counter or histogram");
  }
  return row;
}

}  // namespace

Result<MetricReference> ParseMetricReference(std::string_view markdown) {
  MetricReference reference;
  bool in_table = false;
  for (const std::string& line : StrSplit(markdown, '\n')) {
    const std::vector<std::string> cells = Cells(line);
    if (cells.empty()) {
      in_table = false;
    } else if (cells[0] == "metric") {
      in_table = cells.size() == kColumns;
    } else if (in_table && cells[0].starts_with("`nibble_")) {
      ASSIGN_OR_RETURN(MetricRow row, ParseRow(cells));
      const std::string name = row.name;
      if (!reference.emplace(name, std::move(row)).second) {
        return InvalidArgumentError(name + " is listed twice");
      }
    }
  }
  return reference;
}

}  // namespace nibble::testing
