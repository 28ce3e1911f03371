// SPDX-License-Identifier: Apache-2.0
//
// The boards against the truth: a real controller, worker and trainer, scraped by a real Prometheus
// with the shipped rules, asked every expression of the boards.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/files.h"
#include "base/process.h"
#include "base/strings.h"
#include "tests/deploy/dashboard_queries.h"
#include "tests/deploy/metric_reference.h"
#include "tests/e2e/cluster_harness.h"
#include "tests/support/http_get.h"
#include "tests/support/prometheus_server.h"

namespace nibble::testing {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr int kSeriesBudget = 192;
constexpr auto kPollInterval = std::chrono::milliseconds(100);

std::string SourcePath(std::string_view path) { return JoinPath(NIBBLE_SOURCE_DIR, path); }

std::string Program(std::string_view name) {
  return JoinPath(JoinPath(NIBBLE_BINARY_DIR, "bin"), name);
}

// The port of "host:port".
int PortOf(const std::string& address) {
  return static_cast<int>(ParseInt(address.substr(address.rfind(':') + 1)).value_or(0));
}

// Scrapes the controller statically and the workers by its /sd, as the shipped prometheus.yml does,
// every second, with the shipped rules.
std::string PrometheusConfig(const std::string& controller_http) {
  return StrFormat(
      "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
      "rule_files: ['%s/*.yml']\n"
      "scrape_configs:\n"
      "  - job_name: nibble-controller\n"
      "    static_configs: [{targets: ['%s']}]\n"
      "  - job_name: nibble-worker\n"
      "    http_sd_configs: [{url: 'http://%s/sd', refresh_interval: 1s}]\n",
      SourcePath("deploy/prometheus/rules").c_str(), controller_http.c_str(),
      controller_http.c_str());
}

std::vector<DashboardQuery> AllQueries() {
  std::vector<DashboardQuery> all;
  const auto boards = ReadDashboards(SourcePath("deploy/grafana/dashboards"));
  EXPECT_TRUE(boards.ok()) << boards.status().ToString();
  if (!boards.ok()) return all;
  for (const Dashboard& board : *boards) {
    for (DashboardQuery& query : QueriesOf(board)) all.push_back(std::move(query));
  }
  return all;
}

struct ExportedMetrics {
  std::map<std::string, std::string> types;             // from the "# TYPE" lines
  std::map<std::string, std::set<std::string>> labels;  // of all series of the metric
  std::map<std::string, int> series_of_job;             // by job_id
};

// The value of one label in `name{a="b",...} 1`, and all label names. Values of ours hold no
// quotes.
void ReadSeries(const std::string& line, ExportedMetrics& out) {
  const size_t brace = line.find('{');
  const size_t end = std::min(line.find('}'), line.size());
  std::string name = line.substr(0, std::min(brace, line.find(' ')));
  for (const std::string_view suffix : {"_bucket", "_sum", "_count"}) {
    const std::string base = name.substr(0, name.size() - std::min(name.size(), suffix.size()));
    if (name.ends_with(suffix) && out.types.contains(base)) name = base;
  }
  std::set<std::string>& labels = out.labels[name];
  if (brace == std::string::npos) return;
  for (const std::string& pair : StrSplit(line.substr(brace + 1, end - brace - 1), ',')) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos) continue;
    const std::string label = pair.substr(0, equals);
    if (label != "le") labels.insert(label);
    if (label == "job_id") ++out.series_of_job[pair.substr(equals + 1)];
  }
}

ExportedMetrics ParseExposition(const std::string& text) {
  ExportedMetrics metrics;
  for (const std::string& line : StrSplit(text, '\n')) {
    if (line.starts_with("# TYPE nibble_")) {
      const std::vector<std::string> words = StrSplit(line, ' ');
      if (words.size() == 4) metrics.types[words[2]] = words[3];
    } else if (line.starts_with("nibble_")) {
      ReadSeries(line, metrics);
    }
  }
  return metrics;
}

// A cluster of its own, because it needs metrics on the worker and a short series grace.
class LiveBoards : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!ProgramsAreBuilt()) GTEST_SKIP() << "the programs are not built; build target 'programs'";
    if (FindProgram("prometheus").empty()) GTEST_SKIP() << "prometheus is not installed";
    auto cluster = ClusterHarness::Create();
    ASSERT_TRUE(cluster.ok()) << cluster.status().ToString();
    cluster_ = std::move(*cluster);
    controller_ = Launch("controller",
                         {Program("nibble-controller"), "--listen", cluster_->server_address(),
                          "--http", cluster_->http_address(), "--state-dir",
                          JoinPath(cluster_->folder(), "controller"), "--job-series-grace", "1s"});
    worker_ = Launch(
        "worker", {Program("nibble-worker"), "--controller", cluster_->server_address(), "--http",
                   "127.0.0.1:0", "--state-dir", JoinPath(cluster_->folder(), "worker")});
    const Status ready = cluster_->WaitForWorker(seconds(30));
    ASSERT_TRUE(ready.ok()) << ready.ToString();
  }

  void TearDown() override {
    for (std::optional<Process>* process : {&worker_, &controller_}) {
      if (!process->has_value()) continue;
      (void)(*process)->Signal(SIGKILL);
      (void)(*process)->Wait();
    }
  }

  std::optional<Process> Launch(const std::string& name, std::vector<std::string> argv) {
    ProcessOptions options;
    options.argv = std::move(argv);
    options.stdout_path = options.stderr_path = JoinPath(cluster_->folder(), name + ".log");
    auto process = Process::Start(options);
    EXPECT_TRUE(process.ok()) << process.status().ToString();
    if (!process.ok()) return std::nullopt;
    return std::move(*process);
  }

  std::string SubmitLongJob() {
    const auto job = cluster_->Submit({"schedule.steps=1000000"});
    EXPECT_TRUE(job.ok()) << job.status().ToString();
    return job.value_or("");
  }

  std::string Get(int port, const std::string& target) {
    const auto response = HttpGet(port, target);
    EXPECT_TRUE(response.ok()) << response.status().ToString();
    if (!response.ok()) return "";
    EXPECT_EQ(response->code, 200) << target;
    return response->body;
  }

  std::string ControllerMetrics() { return Get(PortOf(cluster_->http_address()), "/metrics"); }

  // The port of the one worker that /sd lists.
  int WorkerPort() {
    const auto list = Json::Parse(Get(PortOf(cluster_->http_address()), "/sd"));
    EXPECT_TRUE(list.ok() && list->size() == 1) << "/sd must list one worker";
    if (!list.ok() || list->size() != 1) return 0;
    EXPECT_FALSE(list->At(0)["labels"]["worker"].AsString().empty());
    return PortOf(list->At(0)["targets"].At(0).AsString());
  }

  // Until the controller exports `needle`.
  bool AwaitMetric(const std::string& needle, seconds timeout) {
    const auto deadline = steady_clock::now() + timeout;
    while (steady_clock::now() < deadline) {
      if (ControllerMetrics().find(needle) != std::string::npos) return true;
      std::this_thread::sleep_for(kPollInterval);
    }
    return false;
  }

  std::unique_ptr<ClusterHarness> cluster_;
  std::optional<Process> controller_;
  std::optional<Process> worker_;
};

TEST_F(LiveBoards, EveryExpressionOfTheBoardsHasAnAnswer) {
  SubmitLongJob();
  const std::string prometheus_folder = JoinPath(cluster_->folder(), "prometheus");
  ASSERT_TRUE(MakeDirectories(prometheus_folder).ok());
  auto prometheus =
      PrometheusServer::Start(prometheus_folder, PrometheusConfig(cluster_->http_address()));
  ASSERT_TRUE(prometheus.ok()) << prometheus.status().ToString();
  // The slowest to appear: a validation, a checkpoint, a health sample.
  ASSERT_TRUE(AwaitMetric("nibble_checkpoint_size_bytes{", seconds(60))) << ControllerMetrics();
  ASSERT_TRUE(AwaitMetric("nibble_quant_snr_db{", seconds(60))) << ControllerMetrics();

  const auto deadline = steady_clock::now() + seconds(30);
  for (const DashboardQuery& query : AllQueries()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - steady_clock::now());
    const auto result = prometheus->QueryUntilNotEmpty(query.expr, left);
    EXPECT_TRUE(result.ok()) << query.where << ": " << result.status().ToString();
  }
  const auto firing = prometheus->Query("ALERTS{alertstate=\"firing\"}");
  ASSERT_TRUE(firing.ok()) << firing.status().ToString();
  EXPECT_EQ(firing->size(), 0u) << "in a healthy cluster: " << firing->Dump(2);
}

TEST_F(LiveBoards, ProgramsExportWhatTheReferenceSays) {
  SubmitLongJob();
  ASSERT_TRUE(AwaitMetric("nibble_checkpoint_size_bytes{", seconds(60))) << ControllerMetrics();
  ASSERT_TRUE(AwaitMetric("nibble_quant_snr_db{", seconds(60))) << ControllerMetrics();
  // Job states come from a snapshot, which may be a moment older than what trainers have told.
  ASSERT_TRUE(AwaitMetric("nibble_train_progress_age_seconds{", seconds(60)))
      << ControllerMetrics();
  const auto page = ReadFile(SourcePath("docs/reference/metrics.md"));
  ASSERT_TRUE(page.ok());
  const auto reference = ParseMetricReference(*page);
  ASSERT_TRUE(reference.ok()) << reference.status().ToString();
  const std::map<std::string, std::string> texts = {{"controller", ControllerMetrics()},
                                                    {"worker", Get(WorkerPort(), "/metrics")}};
  for (const auto& [process, text] : texts) {
    const ExportedMetrics exported = ParseExposition(text);
    for (const auto& [name, type] : exported.types) {
      const auto row = reference->find(name);
      ASSERT_NE(row, reference->end()) << name << " is not in docs/reference/metrics.md";
      EXPECT_EQ(row->second.type, type) << name;
      EXPECT_TRUE(row->second.by.contains(process)) << name << " is exported by the " << process;
    }
    for (const auto& [name, row] : *reference) {
      if (!row.by.contains(process)) continue;
      const auto labels = exported.labels.find(name);
      EXPECT_NE(labels, exported.labels.end()) << name << " is not exported by the " << process;
      if (labels == exported.labels.end()) continue;
      EXPECT_EQ(labels->second, row.labels) << name;
    }
    for (const auto& [job, series] : exported.series_of_job) EXPECT_LE(series, kSeriesBudget);
  }
}

TEST_F(LiveBoards, ExpositionPassesPromtool) {
  const std::string promtool = FindProgram("promtool");
  if (promtool.empty()) GTEST_SKIP() << "promtool is not installed";
  SubmitLongJob();
  ASSERT_TRUE(AwaitMetric("nibble_quant_snr_db{", seconds(60))) << ControllerMetrics();
  for (const int port : {PortOf(cluster_->http_address()), WorkerPort()}) {
    const std::string path = JoinPath(cluster_->folder(), "metrics.txt");
    ASSERT_TRUE(AtomicWriteFile(path, Get(port, "/metrics")).ok());
    const auto check =
        RunCommand({"/bin/sh", "-c", "\"$1\" check metrics < \"$2\"", "check", promtool, path});
    ASSERT_TRUE(check.ok()) << check.status().ToString();
    EXPECT_TRUE(check->status.success()) << check->output;
  }
}

TEST_F(LiveBoards, SeriesOfAnEndedJobVanish) {
  const std::string job = SubmitLongJob();
  const std::string label = "job_id=\"" + job + "\"";
  ASSERT_TRUE(AwaitMetric("nibble_train_step{" + label, seconds(60))) << ControllerMetrics();
  ASSERT_TRUE(cluster_->Nibble({"cancel", job, "--now"}).ok());
  const auto deadline = steady_clock::now() + seconds(30);
  std::string metrics = ControllerMetrics();
  while (metrics.find(label) != std::string::npos && steady_clock::now() < deadline) {
    std::this_thread::sleep_for(kPollInterval);
    metrics = ControllerMetrics();
  }
  EXPECT_EQ(metrics.find(label), std::string::npos) << metrics;
}

TEST(BoardQueries, EveryExpressionIsValidForPrometheus) {
  if (FindProgram("prometheus").empty()) GTEST_SKIP() << "prometheus is not installed";
  const auto folder = MakeTempDirectory("nibble-queries");
  ASSERT_TRUE(folder.ok()) << folder.status().ToString();
  {
    auto prometheus = PrometheusServer::Start(*folder, "global: {scrape_interval: 1h}\n");
    ASSERT_TRUE(prometheus.ok()) << prometheus.status().ToString();
    for (const DashboardQuery& query : AllQueries()) {
      const auto result = prometheus->Query(query.expr);
      EXPECT_TRUE(result.ok()) << query.where << ": " << result.status().ToString();
    }
    EXPECT_FALSE(prometheus->Query("rate(nibble_train_step)").ok()) << "bad PromQL must be refused";
  }
  EXPECT_TRUE(RemoveTree(*folder).ok());
}

}  // namespace
}  // namespace nibble::testing
