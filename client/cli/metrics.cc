// SPDX-License-Identifier: Apache-2.0
//
// nibble metrics: a job's recorded curve as table, JSON, JSON lines or CSV.
#include <algorithm>
#include <set>

#include "base/strings.h"
#include "client/cli/commands.h"
#include "client/cli/table.h"
#include "client/lib/proto_json.h"

namespace nibble::cli {
namespace {

constexpr int kTablePoints = 20;

const std::vector<std::string>& Kinds() {
  static const std::vector<std::string> kinds = {"step",       "validation", "health",
                                                 "checkpoint", "memory",     "all"};
  return kinds;
}

// {"kind": "step", "attempt": 1, "rank": 0, "time": ..., and the record's own fields}.
Json Flatten(const v1::MetricRecord& metric) {
  const Json record = MessageToJson(metric.record());
  for (const auto& [name, value] : record.members()) {
    if (!value.is_object()) continue;
    Json flat =
        Json::Object({{"kind", name}, {"attempt", metric.attempt()}, {"rank", metric.rank()}});
    const int64_t time_ms = metric.record().time_ms();
    if (time_ms > 0) flat.Set("time", FormatUtc(time_ms));
    for (const auto& [key, field] : value.members()) {
      if (name == "memory" && field.is_object()) {
        for (const auto& [memory_class, bytes] : field.members()) flat.Set(memory_class, bytes);
      } else {
        flat.Set(key, field);
      }
    }
    return flat;
  }
  return {};
}

std::string CsvCell(const Json& value) {
  if (value.is_null()) return "";
  if (!value.is_string()) return value.Dump();
  const std::string& text = value.AsString();
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

// Columns in the order in which rows first name them.
std::vector<std::string> Columns(const Json& rows) {
  std::vector<std::string> columns;
  std::set<std::string> seen;
  for (const Json& row : rows.items()) {
    for (const auto& [key, value] : row.members()) {
      if (seen.insert(key).second) columns.push_back(key);
    }
  }
  return columns;
}

void PrintCsv(CliContext& context, const Json& rows) {
  const std::vector<std::string> columns = Columns(rows);
  if (context.headers) context.out << StrJoin(columns, ",") << "\n";
  for (const Json& row : rows.items()) {
    std::vector<std::string> cells;
    for (const std::string& column : columns) cells.push_back(CsvCell(row[column]));
    context.out << StrJoin(cells, ",") << "\n";
  }
  context.out.flush();
}

std::string TableCell(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.AsString();
  if (value.is_int()) return value.Dump();
  return value.is_number() ? StrFormat("%.6g", value.AsDouble()) : value.Dump();
}

void PrintTable(CliContext& context, const Json& rows) {
  const bool wide = context.output == OutputFormat::kWide;
  std::vector<std::string> columns, titles;
  for (const std::string& column : Columns(rows)) {
    if (!wide && (column == "kind" || column == "rank" || column == "time")) continue;
    columns.push_back(column);
    std::string title = ">";
    for (const char c : column) {
      if (c >= 'A' && c <= 'Z') title += '_';
      title += static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
    }
    titles.push_back(title);
  }
  Table table(titles);
  for (const Json& row : rows.items()) {
    std::vector<std::string> cells;
    for (const std::string& column : columns) cells.push_back(TableCell(row[column]));
    table.AddRow(std::move(cells));
  }
  table.Print(context.out, context.headers);
}

}  // namespace

int RunMetrics(CliContext& context, const MetricsOptions& options) {
  const std::vector<std::string>& kinds = Kinds();
  if (std::find(kinds.begin(), kinds.end(), options.kind) == kinds.end()) {
    return context.Fail(InvalidArgumentError(UnknownNameMessage("kind", options.kind, kinds)));
  }
  const bool for_people =
      context.output == OutputFormat::kTable || context.output == OutputFormat::kWide;
  v1::GetMetricsRequest request;
  request.set_job(options.job);
  request.set_from_step(options.from_step);
  request.set_max_points(options.max_points >= 0 ? options.max_points
                         : for_people            ? kTablePoints
                                                 : 0);
  request.set_raw(options.raw);
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  const auto response = (*client)->GetMetrics(request);
  if (!response.ok()) return context.Fail(response.status());
  const bool all = options.kind == "all";
  Json rows = Json::Array();
  for (const v1::MetricRecord& record : response->records()) {
    Json row = Flatten(record);
    if (all || row["kind"].AsString() == options.kind) rows.Append(std::move(row));
  }
  if (context.PrintStructured(rows)) return kExitOk;
  if (context.output == OutputFormat::kCsv) {
    PrintCsv(context, rows);
  } else {
    PrintTable(context, rows);
    if (rows.size() == 0) context.Note("no " + options.kind + " points yet");
  }
  return kExitOk;
}

}  // namespace nibble::cli
