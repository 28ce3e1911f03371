// SPDX-License-Identifier: Apache-2.0
#include "tests/support/prometheus_server.h"

#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <thread>

#include "base/files.h"
#include "base/strings.h"
#include "tests/support/http_get.h"

namespace nibble::testing {
namespace {

constexpr int kStartAttempts = 3;  // another program may take the free port first
constexpr auto kReadyTimeout = std::chrono::seconds(30);
constexpr auto kPollInterval = std::chrono::milliseconds(50);

Status AwaitReady(Process& process, int port, const std::string& log_path) {
  const auto deadline = std::chrono::steady_clock::now() + kReadyTimeout;
  while (std::chrono::steady_clock::now() < deadline) {
    ASSIGN_OR_RETURN(const std::optional<ExitStatus> ended, process.TryWait());
    if (ended) {
      return UnavailableError("prometheus ended with " + ended->ToString() + ": " +
                              ReadFile(log_path).value_or("no log"));
    }
    const Result<HttpResponse> answer = HttpGet(port, "/-/ready", std::chrono::seconds(1));
    if (answer.ok() && answer->code == 200) return OkStatus();
    std::this_thread::sleep_for(kPollInterval);
  }
  return DeadlineExceededError("prometheus is not ready after 30 s; see " + log_path);
}

}  // namespace

std::string FindProgram(std::string_view name) {
  const char* path = std::getenv("PATH");
  for (const std::string& folder : StrSplit(path == nullptr ? "" : path, ':')) {
    const std::string candidate = JoinPath(folder, name);
    if (!folder.empty() && access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return "";
}

Result<PrometheusServer> PrometheusServer::Start(const std::string& folder,
                                                 const std::string& config) {
  const std::string program = FindProgram("prometheus");
  if (program.empty()) return NotFoundError("program 'prometheus' is not in $PATH");
  const std::string config_path = JoinPath(folder, "prometheus.yml");
  const std::string log_path = JoinPath(folder, "prometheus.log");
  RETURN_IF_ERROR(AtomicWriteFile(config_path, config));
  Status last;
  for (int attempt = 0; attempt < kStartAttempts; ++attempt) {
    ASSIGN_OR_RETURN(const int port, FreeLoopbackPort());
    ProcessOptions options;
    options.argv = {program, "--config.file=" + config_path,
                    "--storage.tsdb.path=" + JoinPath(folder, "data"),
                    StrFormat("--web.listen-address=127.0.0.1:%d", port), "--log.level=warn"};
    options.stdout_path = log_path;
    options.stderr_path = log_path;
    ASSIGN_OR_RETURN(Process process, Process::Start(options));
    PrometheusServer server(std::move(process), port);
    last = AwaitReady(*server.process_, port, log_path);
    if (last.ok()) return server;
  }
  return last;
}

PrometheusServer::PrometheusServer(PrometheusServer&& other) noexcept
    : process_(std::move(other.process_)), port_(other.port_) {
  other.process_.reset();
}

PrometheusServer::~PrometheusServer() {
  if (!process_) return;
  (void)process_->Signal(SIGKILL);  // its data is thrown away with the test's folder
  (void)process_->Wait();
}

Result<Json> PrometheusServer::Query(std::string_view expression) const {
  ASSIGN_OR_RETURN(const HttpResponse response,
                   HttpGet(port_, "/api/v1/query?query=" + UrlEncode(expression)));
  ASSIGN_OR_RETURN(const Json answer, Json::Parse(response.body));
  if (answer["status"].AsString() != "success") {
    return InvalidArgumentError("query '" + std::string(expression) +
                                "': " + answer["error"].AsString());
  }
  return answer["data"]["result"];
}

Result<Json> PrometheusServer::QueryUntilNotEmpty(std::string_view expression,
                                                  std::chrono::milliseconds timeout) const {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (true) {
    ASSIGN_OR_RETURN(Json result, Query(expression));
    if (result.size() > 0) return result;
    if (std::chrono::steady_clock::now() >= deadline) {
      return DeadlineExceededError("query '" + std::string(expression) + "' stays empty");
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

}  // namespace nibble::testing
