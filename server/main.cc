// SPDX-License-Identifier: Apache-2.0
//
// nibble-controller: flags, wiring and signals.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/strings.h"
#include "server/rpc/server.h"

namespace nibble {
namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;
constexpr std::chrono::milliseconds kShutdownPatience{3000};

#ifndef NIBBLE_VERSION
#define NIBBLE_VERSION "0.0.0"
#endif

constexpr char kExample[] =
    "Example, on this machine only:\n"
    "  nibble-controller --state-dir /var/lib/nibble\n"
    "Example, for a cluster:\n"
    "  openssl rand -hex 32 > /etc/nibble/token && chmod 600 /etc/nibble/token\n"
    "  nibble-controller --listen 0.0.0.0:7790 --token-file /etc/nibble/token \\\n"
    "    --tls-cert server.crt --tls-key server.key --tls-ca workers-ca.crt\n"
    "Exit codes: 0 stopped by a signal, 1 cannot start or serve, 2 wrong usage.";

std::string DefaultStateDir() {
  const char* home = std::getenv("HOME");
  return JoinPath(home != nullptr && *home != '\0' ? home : ".", ".nibble/controller");
}

struct Flags {
  rpc::ControllerOptions options;
  std::string token_file;
  std::string reflection = "auto";
  std::string heartbeat = "5s";
  std::string suspect_after = "30s";
  std::string lease = "120s";
  std::string job_series_grace = "10m";
};

void Declare(CLI::App& app, Flags& flags) {
  rpc::ControllerOptions& options = flags.options;
  app.add_option("--listen", options.listen,
                 "HOST:PORT of the gRPC API; port 0 takes a free one, written to "
                 "STATE-DIR/controller.address. Beyond loopback it needs --token-file, and TLS or "
                 "--insecure")
      ->capture_default_str();
  app.add_option("--http", options.http,
                 "HOST:PORT of /metrics, /sd, /healthz and /readyz (read-only, no token)")
      ->capture_default_str();
  app.add_option("--state-dir", options.state_dir, "Folder of the event log, metrics and job logs")
      ->capture_default_str();
  app.add_option("--token-file", flags.token_file,
                 "File with the token every call must carry as 'authorization: Bearer TOKEN'");
  app.add_option("--tls-cert", options.tls_cert, "PEM certificate of the server");
  app.add_option("--tls-key", options.tls_key, "PEM private key of the server");
  app.add_option("--tls-ca", options.tls_ca,
                 "PEM certificates of the authority that signs workers' certificates; with it, "
                 "workers must show one");
  app.add_flag("--insecure", options.insecure,
               "Serve beyond loopback without TLS: token and data travel in clear text");
  app.add_option("--reflection", flags.reflection,
                 "gRPC server reflection: on, off, or auto (on when listening on loopback)")
      ->check(CLI::IsMember({"on", "off", "auto"}))
      ->capture_default_str();
  app.add_option("--heartbeat", flags.heartbeat, "How often workers report")->capture_default_str();
  app.add_option("--suspect-after", flags.suspect_after,
                 "Silence after which a worker and its jobs are SUSPECT")
      ->capture_default_str();
  app.add_option("--lease", flags.lease,
                 "Silence after which a worker is lost and its jobs are placed again")
      ->capture_default_str();
  app.add_option("--job-series-grace", flags.job_series_grace,
                 "How long the series of an ended job stay on /metrics")
      ->capture_default_str();
  app.set_version_flag("--version", std::string("nibble-controller ") + NIBBLE_VERSION);
  app.footer(kExample);
}

Status ReadDuration(const char* flag, const std::string& text, int64_t& out_ms) {
  const Result<double> seconds = ParseDurationSeconds(text);
  if (!seconds.ok()) return seconds.status().WithContext(flag);
  out_ms = static_cast<int64_t>(*seconds * 1000);
  return OkStatus();
}

Status Complete(Flags& flags) {
  rpc::ControllerOptions& options = flags.options;
  options.version = NIBBLE_VERSION;
  RETURN_IF_ERROR(ReadDuration("--heartbeat", flags.heartbeat, options.heartbeat_ms));
  RETURN_IF_ERROR(ReadDuration("--suspect-after", flags.suspect_after, options.suspect_after_ms));
  RETURN_IF_ERROR(ReadDuration("--lease", flags.lease, options.lease_ms));
  RETURN_IF_ERROR(
      ReadDuration("--job-series-grace", flags.job_series_grace, options.job_series_grace_ms));
  if (!flags.token_file.empty()) {
    ASSIGN_OR_RETURN(options.token, rpc::LoadToken(flags.token_file));
  }
  ASSIGN_OR_RETURN(const rpc::HostPort listen, rpc::ParseHostPort(options.listen, "--listen"));
  options.reflection =
      flags.reflection == "on" || (flags.reflection == "auto" && rpc::IsLoopback(listen.host));
  return rpc::CheckOptions(options);
}

void WarnAloud(const rpc::ControllerOptions& options) {
  const Result<rpc::HostPort> listen = rpc::ParseHostPort(options.listen, "--listen");
  const Result<rpc::HostPort> http = rpc::ParseHostPort(options.http, "--http");
  if (options.insecure && listen.ok() && !rpc::IsLoopback(listen->host)) {
    LogWarning("no TLS: the token and all data are readable on the network",
               {{"listen", options.listen}});
  }
  if (http.ok() && !rpc::IsLoopback(http->host)) {
    LogWarning("names of jobs and users are readable on the network by anyone",
               {{"http", options.http}});
  }
}

int Run(int argc, char** argv) {
  SetLogComponent("controller");
  // Before any thread: all of them inherit the mask, and the main thread waits for the signal.
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  CLI::App app(
      "Nibble's controller: queues training jobs, places them on workers and serves their "
      "curves.");
  Flags flags;
  flags.options.state_dir = DefaultStateDir();
  Declare(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  const Status complete = Complete(flags);
  if (!complete.ok()) {
    std::fprintf(stderr, "nibble-controller: %s\n", complete.message().c_str());
    return kExitUsage;
  }
  WarnAloud(flags.options);
  Result<std::unique_ptr<rpc::ControllerServer>> server =
      rpc::ControllerServer::Start(flags.options, Clock::Real());
  if (!server.ok()) {
    std::fprintf(stderr, "nibble-controller: %s\n", server.status().message().c_str());
    return kExitFailure;
  }
  int received = 0;
  sigwait(&stop_signals, &received);
  LogInfo("stopping", {{"signal", std::to_string(received)}});
  (*server)->Shutdown(kShutdownPatience);
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Run(argc, argv); }
