// SPDX-License-Identifier: Apache-2.0
#include "tests/deploy/dashboard_queries.h"

#include <yaml-cpp/yaml.h>

#include <cctype>
#include <utility>

#include "base/files.h"
#include "base/strings.h"

namespace nibble::testing {
namespace {

bool IsNameCharacter(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == ':';
}

void ReplaceAll(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// "label_values(metric, label)" -> "metric"; "" for another form.
std::string VariableExpression(const std::string& query) {
  constexpr std::string_view kPrefix = "label_values(";
  const size_t comma = query.rfind(',');
  if (!query.starts_with(kPrefix) || comma == std::string::npos) return "";
  return query.substr(kPrefix.size(), comma - kPrefix.size());
}

void AppendPanelQueries(const std::string& board, const Json& panels,
                        std::vector<DashboardQuery>& out) {
  for (const Json& panel : panels.items()) {
    for (const Json& target : panel["targets"].items()) {
      const std::string& raw = target["expr"].AsString();
      out.push_back({board + " / " + panel["title"].AsString() + " / " + target["refId"].AsString(),
                     raw, SubstituteVariables(raw)});
    }
    AppendPanelQueries(board, panel["panels"], out);
  }
}

std::string Text(const YAML::Node& node) { return node ? node.as<std::string>() : ""; }

Status AppendRules(const std::string& folder, const std::string& file,
                   std::vector<AlertRule>& out) {
  try {
    const YAML::Node root = YAML::LoadFile(JoinPath(folder, file));
    for (const YAML::Node& group : root["groups"]) {
      for (const YAML::Node& rule : group["rules"]) {
        AlertRule entry;
        entry.file = file;
        entry.alert = static_cast<bool>(rule["alert"]);
        entry.name = Text(entry.alert ? rule["alert"] : rule["record"]);
        entry.expr = Text(rule["expr"]);
        if (entry.alert) {
          entry.severity = Text(rule["labels"]["severity"]);
          entry.summary = Text(rule["annotations"]["summary"]);
          entry.description = Text(rule["annotations"]["description"]);
        }
        out.push_back(std::move(entry));
      }
    }
  } catch (const YAML::Exception& error) {
    return InvalidArgumentError(JoinPath(folder, file) + ": " + error.what());
  }
  return OkStatus();
}

}  // namespace

Result<std::vector<Dashboard>> ReadDashboards(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(folder));
  std::vector<Dashboard> dashboards;
  for (const std::string& name : names) {
    if (!name.ends_with(".json")) continue;
    ASSIGN_OR_RETURN(const std::string text, ReadFile(JoinPath(folder, name)));
    Result<Json> json = Json::Parse(text);
    if (!json.ok()) return json.status().WithContext(name);
    dashboards.push_back({name, std::move(json).value()});
  }
  return dashboards;
}

std::vector<DashboardQuery> QueriesOf(const Dashboard& dashboard) {
  std::vector<DashboardQuery> queries;
  const std::string& uid = dashboard.json["uid"].AsString();
  AppendPanelQueries(uid, dashboard.json["panels"], queries);
  for (const Json& variable : dashboard.json["templating"]["list"].items()) {
    const std::string raw = VariableExpression(variable["definition"].AsString());
    queries.push_back(
        {uid + " / variable " + variable["name"].AsString(), raw, SubstituteVariables(raw)});
  }
  return queries;
}

Result<std::vector<AlertRule>> ReadRules(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(folder));
  std::vector<AlertRule> rules;
  for (const std::string& name : names) {
    if (name.ends_with(".yml")) RETURN_IF_ERROR(AppendRules(folder, name, rules));
  }
  return rules;
}

std::string SubstituteVariables(std::string_view expr) {
  static constexpr std::pair<std::string_view, std::string_view> kVariables[] = {
      {"$__rate_interval", "1m"}, {"$__interval", "15s"}, {"$__range", "1h"},
      {"$queue", ".*"},           {"$job", ".*"},
  };
  std::string text(expr);
  for (const auto& [name, value] : kVariables) ReplaceAll(text, name, value);
  return text;
}

std::set<std::string> MetricNamesIn(std::string_view expr) {
  std::set<std::string> names;
  size_t at = 0;
  while (at < expr.size()) {
    size_t end = at;
    while (end < expr.size() && IsNameCharacter(expr[end])) ++end;
    if (end == at) {
      // A quoted label value is no name: jump over it.
      if (expr[at] == '"') at = std::min(expr.find('"', at + 1), expr.size() - 1);
      ++at;
      continue;
    }
    std::string name(expr.substr(at, end - at));
    at = end;
    if (!name.starts_with("nibble_") && !name.starts_with("nibble:")) continue;
    for (const std::string_view suffix : {"_bucket", "_sum", "_count"}) {
      if (name.ends_with(suffix)) name.resize(name.size() - suffix.size());
    }
    names.insert(name);
  }
  return names;
}

}  // namespace nibble::testing
