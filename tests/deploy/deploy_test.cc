// SPDX-License-Identifier: Apache-2.0
//
// What deploy/ ships, checked by the tools it is meant for and against the reference pages.
#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/files.h"
#include "base/process.h"
#include "tests/deploy/dashboard_queries.h"
#include "tests/deploy/metric_reference.h"
#include "tests/support/prometheus_server.h"

namespace nibble::testing {
namespace {

std::string SourcePath(std::string_view path) { return JoinPath(NIBBLE_SOURCE_DIR, path); }

std::string ReadSource(std::string_view path) {
  const Result<std::string> text = ReadFile(SourcePath(path));
  EXPECT_TRUE(text.ok()) << text.status().ToString();
  return text.value_or("");
}

std::vector<std::string> SourceFiles(std::string_view folder, std::string_view suffix) {
  std::vector<std::string> paths;
  const auto names = ListDirectory(SourcePath(folder));
  EXPECT_TRUE(names.ok()) << names.status().ToString();
  if (!names.ok()) return paths;
  for (const std::string& name : *names) {
    if (name.ends_with(suffix)) paths.push_back(SourcePath(JoinPath(folder, name)));
  }
  return paths;
}

std::vector<Dashboard> Boards() {
  Result<std::vector<Dashboard>> boards = ReadDashboards(SourcePath("deploy/grafana/dashboards"));
  EXPECT_TRUE(boards.ok()) << boards.status().ToString();
  return std::move(boards).value_or({});
}

std::vector<AlertRule> Rules() {
  Result<std::vector<AlertRule>> rules = ReadRules(SourcePath("deploy/prometheus/rules"));
  EXPECT_TRUE(rules.ok()) << rules.status().ToString();
  return std::move(rules).value_or({});
}

MetricReference Reference() {
  Result<MetricReference> reference = ParseMetricReference(ReadSource("docs/reference/metrics.md"));
  EXPECT_TRUE(reference.ok()) << reference.status().ToString();
  return std::move(reference).value_or({});
}

// Skips the test when `program` is not installed; fails when it answers anything but success.
#define EXPECT_PROGRAM_ACCEPTS(...)                                              \
  do {                                                                           \
    std::vector<std::string> argv = __VA_ARGS__;                                 \
    const std::string program = FindProgram(argv[0]);                            \
    if (program.empty()) GTEST_SKIP() << argv[0] << " is not installed";         \
    argv[0] = program;                                                           \
    const Result<CommandOutput> run = RunCommand(argv);                          \
    ASSERT_TRUE(run.ok()) << run.status().ToString();                            \
    EXPECT_TRUE(run->status.success()) << run->status.ToString() << run->output; \
  } while (false)

std::vector<std::string> Promtool(std::vector<std::string> words,
                                  const std::vector<std::string>& files) {
  words.insert(words.begin(), "promtool");
  words.insert(words.end(), files.begin(), files.end());
  return words;
}

TEST(Prometheus, ConfigIsAccepted) {
  EXPECT_PROGRAM_ACCEPTS(
      Promtool({"check", "config"}, {SourcePath("deploy/prometheus/prometheus.yml")}));
}

TEST(Prometheus, RulesAreAccepted) {
  EXPECT_PROGRAM_ACCEPTS(
      Promtool({"check", "rules"}, SourceFiles("deploy/prometheus/rules", ".yml")));
}

TEST(Prometheus, AlertsFireAndStaySilentAsTested) {
  EXPECT_PROGRAM_ACCEPTS(
      Promtool({"test", "rules"}, SourceFiles("deploy/prometheus/tests", ".yml")));
}

TEST(Prometheus, EveryAlertHasAFiringAndASilentTest) {
  std::map<std::string, std::set<bool>> tested;
  for (const std::string& path : SourceFiles("deploy/prometheus/tests", ".yml")) {
    const YAML::Node root = YAML::LoadFile(path);
    for (const YAML::Node& test : root["tests"]) {
      for (const YAML::Node& check : test["alert_rule_test"]) {
        tested[check["alertname"].as<std::string>()].insert(check["exp_alerts"].size() > 0);
      }
    }
  }
  for (const AlertRule& rule : Rules()) {
    if (!rule.alert) continue;
    EXPECT_EQ(tested[rule.name].size(), 2u) << rule.name;
  }
}

TEST(Prometheus, EveryAlertSaysWhatItMeansAndWhatToDo) {
  const std::string guide = ReadSource("docs/guides/monitoring.md");
  std::set<std::string> names;
  for (const AlertRule& rule : Rules()) {
    if (!rule.alert) continue;
    EXPECT_TRUE(names.insert(rule.name).second) << rule.name << " is defined twice";
    EXPECT_TRUE(rule.severity == "warning" || rule.severity == "critical") << rule.name;
    EXPECT_FALSE(rule.summary.empty()) << rule.name;
    EXPECT_FALSE(rule.description.empty()) << rule.name;
    EXPECT_NE(guide.find("`" + rule.name + "`"), std::string::npos)
        << rule.name << " is not explained in docs/guides/monitoring.md";
  }
}

TEST(Grafana, EveryMetricOnABoardOrInARuleIsInTheReferenceAndNoRowIsWrong) {
  std::map<std::string, std::set<std::string>> used;  // metric -> fleet, job, alert
  std::set<std::string> recorded;
  for (const AlertRule& rule : Rules()) {
    if (!rule.alert) recorded.insert(rule.name);
    for (const std::string& name : MetricNamesIn(rule.expr)) used[name].insert("alert");
  }
  for (const Dashboard& board : Boards()) {
    const std::string shown = board.file.substr(0, board.file.size() - std::string(".json").size());
    for (const DashboardQuery& query : QueriesOf(board)) {
      for (const std::string& name : MetricNamesIn(query.expr)) used[name].insert(shown);
    }
  }
  const MetricReference reference = Reference();
  for (const auto& [name, places] : used) {
    if (recorded.contains(name)) continue;
    EXPECT_TRUE(reference.contains(name)) << name << " is not in docs/reference/metrics.md";
  }
  for (const auto& [name, row] : reference) {
    EXPECT_EQ(row.shown, used[name]) << name << ": column Shown of docs/reference/metrics.md";
  }
}

TEST(MetricReference, NamesFollowTheConventions) {
  for (const auto& [name, row] : Reference()) {
    EXPECT_EQ(row.type == "counter", name.ends_with("_total")) << name;
    for (const char* unit : {"seconds", "bytes", "ratio"}) {
      if (row.unit != unit) continue;
      EXPECT_TRUE(name.ends_with(std::string("_") + unit)) << name;
    }
    EXPECT_FALSE(row.by.empty()) << name;
    EXPECT_FALSE(row.meaning.empty()) << name;
  }
}

TEST(MetricReference, LiveJobStaysWithinItsSeriesBudget) {
  constexpr int kBudget = 192;
  constexpr int kMemoryClasses = 6;
  constexpr int kTensorClasses = 18;
  int series = 0;
  for (const auto& [name, row] : Reference()) {
    if (!row.labels.contains("job_id")) continue;
    series += row.labels.contains("class")          ? kMemoryClasses
              : row.labels.contains("tensor_class") ? kTensorClasses
                                                    : 1;
  }
  EXPECT_LE(series, kBudget);
  EXPECT_GT(series, 0);
}

TEST(MetricReference, BrokenPagesAreRefused) {
  const std::string head = "| metric | type | unit | labels | by | shown | meaning |\n";
  const std::string row = "| `nibble_x` | gauge | - | - | worker | not on a board | text |\n";
  const Result<MetricReference> good = ParseMetricReference(head + row);
  ASSERT_TRUE(good.ok());
  EXPECT_TRUE(good->at("nibble_x").shown.empty());
  EXPECT_FALSE(ParseMetricReference(head + row + row).ok());
  EXPECT_FALSE(ParseMetricReference(head + "| `nibble_x` | gauge | - |\n").ok());
  EXPECT_FALSE(
      ParseMetricReference(head + "| `nibble_x` | number | - | - | worker | job | text |\n").ok());
}

void CheckPanels(const Dashboard& board, const std::string& datasource) {
  std::set<int64_t> ids;
  std::set<std::string> titles;
  std::set<std::pair<int64_t, int64_t>> cells;
  for (const Json& panel : board.json["panels"].items()) {
    const std::string where = board.file + " / " + panel["title"].AsString();
    EXPECT_TRUE(ids.insert(panel["id"].AsInt()).second) << where << ": id used twice";
    EXPECT_TRUE(titles.insert(panel["title"].AsString()).second) << where << ": title used twice";
    const Json& position = panel["gridPos"];
    EXPECT_LE(position["x"].AsInt() + position["w"].AsInt(), 24) << where;
    for (int64_t x = 0; x < position["w"].AsInt(); ++x) {
      for (int64_t y = 0; y < position["h"].AsInt(); ++y) {
        EXPECT_TRUE(cells.insert({position["x"].AsInt() + x, position["y"].AsInt() + y}).second)
            << where << " covers another panel";
      }
    }
    if (panel["type"].AsString() == "row") continue;
    EXPECT_FALSE(panel["description"].AsString().empty()) << where << ": no description";
    EXPECT_EQ(panel["datasource"]["uid"].AsString(), datasource) << where;
    EXPECT_FALSE(panel["targets"].items().empty()) << where << ": no query";
    for (const Json& target : panel["targets"].items()) {
      EXPECT_EQ(target["datasource"]["uid"].AsString(), datasource) << where;
    }
  }
}

TEST(Grafana, BoardsAreWellFormed) {
  const YAML::Node source =
      YAML::Load(ReadSource("deploy/grafana/provisioning/datasources/prometheus.yml"));
  EXPECT_EQ(source["apiVersion"].as<int>(), 1);
  const std::string datasource = source["datasources"][0]["uid"].as<std::string>();
  std::set<std::string> uids;
  const std::vector<Dashboard> boards = Boards();
  EXPECT_EQ(boards.size(), 2u);
  for (const Dashboard& board : boards) {
    EXPECT_TRUE(uids.insert(board.json["uid"].AsString()).second) << board.file;
    EXPECT_EQ(board.json["uid"].AsString(), "nibble-" + board.file.substr(0, board.file.size() - 5))
        << "uids never change: people link to them";
    CheckPanels(board, datasource);
  }
}

TEST(Grafana, NoQueryUsesAnUnknownVariable) {
  for (const Dashboard& board : Boards()) {
    for (const DashboardQuery& query : QueriesOf(board)) {
      EXPECT_FALSE(query.raw.empty()) << query.where;
      EXPECT_EQ(query.expr.find('$'), std::string::npos) << query.where << ": " << query.expr;
    }
  }
}

TEST(DashboardQueries, NamesAreFoundOutsideQuotesAndWithoutSuffixes) {
  EXPECT_EQ(MetricNamesIn("sum(rate(nibble_a_bucket{x=\"nibble_b\"}[1m])) / nibble:c:d + up"),
            (std::set<std::string>{"nibble_a", "nibble:c:d"}));
  EXPECT_TRUE(MetricNamesIn("x{y=\"open").empty());
}

TEST(DashboardQueries, LongerVariableNamesWin) {
  EXPECT_EQ(SubstituteVariables("rate(a{j=~\"$job\"}[$__rate_interval]) $other"),
            "rate(a{j=~\".*\"}[1m]) $other");
}

TEST(Compose, FileIsAccepted) {
  EXPECT_PROGRAM_ACCEPTS(
      {"docker-compose", "-f", SourcePath("docker-compose.yml"), "config", "-q"});
}

TEST(Compose, FileWithTlsIsAccepted) {
  EXPECT_PROGRAM_ACCEPTS({"docker-compose", "-f", SourcePath("docker-compose.yml"), "-f",
                          SourcePath("deploy/tls/docker-compose.tls.yml"), "config", "-q"});
}

TEST(Compose, FileWithGpusGivesThemToTheWorkerAndOneImageToAll) {
  const YAML::Node root = YAML::Load(ReadSource("deploy/docker/docker-compose.gpu.yml"));
  const YAML::Node devices =
      root["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"];
  ASSERT_EQ(devices.size(), 1u);
  EXPECT_EQ(devices[0]["driver"].as<std::string>(), "nvidia");
  const YAML::Node base = YAML::Load(ReadSource("docker-compose.yml"));
  for (const auto& service : base["services"]) {
    const std::string name = service.first.as<std::string>();
    const YAML::Node merged = service.second["<<"];
    if (!merged) continue;  // an image of somebody else's
    EXPECT_TRUE(root["services"][name]) << name << " would run from " << merged["image"];
  }
  EXPECT_PROGRAM_ACCEPTS({"docker-compose", "-f", SourcePath("docker-compose.yml"), "-f",
                          SourcePath("deploy/docker/docker-compose.gpu.yml"), "config", "-q"});
}

}  // namespace
}  // namespace nibble::testing
