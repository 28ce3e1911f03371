// SPDX-License-Identifier: Apache-2.0
//
// nibble-worker: flags, wiring and signals. docs/reference/cli.md lists the flags.
//
// Exit codes: 0 asked to end, 1 failure, 2 wrong flags. "nibble-worker supervise" is the small
// program between a worker and one trainer (supervise.h); people do not call it.
#include <CLI/CLI.hpp>
#include <atomic>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/strings.h"
#include "worker/agent/agent.h"
#include "worker/agent/supervise.h"

namespace nibble::agent {
namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

std::atomic<bool> stop_requested = false;

void RequestStop(int) { stop_requested = true; }

void HandleSignals() {
  struct sigaction action {};
  action.sa_handler = RequestStop;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

std::string DefaultStateDir() {
  const char* home = std::getenv("HOME");
  return JoinPath(home != nullptr ? home : "/var/lib", ".nibble/worker");
}

int Fail(const Status& status) {
  std::fprintf(stderr, "nibble-worker: %s\n", status.message().c_str());
  return status.code() == StatusCode::kInvalidArgument ? kExitUsage : kExitFailure;
}

void AddFlags(CLI::App& app, AgentOptions& options, std::string& grace) {
  app.add_option("--controller", options.session.controller, "address of the controller")
      ->type_name("HOST:PORT");
  app.add_option("--state-dir", options.state_dir, "identity, run folders and checkpoints")
      ->type_name("DIR");
  app.add_option("--pool", options.pool, "queue this worker serves")->type_name("NAME");
  app.add_option("--slots", options.slots, "jobs at a time on the CPU; each gets cores/N threads")
      ->type_name("N");
  app.add_option("--worker-id", options.worker_id, "name of this worker; else made once and kept")
      ->type_name("ID");
  app.add_option("--http", options.http,
                 "address of /metrics and /healthz; port 0 takes a free one")
      ->type_name("HOST:PORT");
  app.add_option("--trainer", options.trainer, "nibble-trainer; else the one beside this program")
      ->type_name("PATH");
  app.add_option("--token-file", options.session.token_file, "file with the controller's token")
      ->type_name("FILE");
  app.add_option("--tls-ca", options.session.tls_ca,
                 "PEM authority of the controller; turns TLS on")
      ->type_name("FILE");
  app.add_option("--tls-cert", options.session.tls_cert, "PEM certificate of this worker")
      ->type_name("FILE");
  app.add_option("--tls-key", options.session.tls_key, "PEM key of --tls-cert")->type_name("FILE");
  app.add_flag("--insecure", options.insecure, "talk in the clear to a controller elsewhere");
  app.add_option("--grace", grace, "time for a trainer to save, when the controller names none")
      ->type_name("TIME");
  app.add_flag("--stop-trainers-on-exit", options.stop_trainers_on_exit,
               "save and end the trainers when this program ends; else they go on");
}

Status Resolve(AgentOptions& options, const std::string& grace) {
  ASSIGN_OR_RETURN(const double grace_seconds, ParseDurationSeconds(grace));
  options.grace_ms = static_cast<int64_t>(grace_seconds * 1000);
  ASSIGN_OR_RETURN(const std::string folder, ExecutableDirectory());
  if (options.trainer.empty()) options.trainer = JoinPath(folder, "nibble-trainer");
  // Trainers run in their own folders, and a self-made path must still name the same file there.
  options.trainer = std::filesystem::absolute(options.trainer).string();
  options.state_dir = std::filesystem::absolute(options.state_dir).string();
  if (!PathExists(options.trainer)) {
    return NotFoundError("trainer " + options.trainer +
                         " does not exist; give its path with --trainer");
  }
  options.supervisor = std::filesystem::read_symlink("/proc/self/exe").string();
  return OkStatus();
}

int WorkerMain(int argc, char** argv) {
  AgentOptions options;
  options.version = NIBBLE_VERSION;
  options.session.controller = "127.0.0.1:7790";
  options.state_dir = DefaultStateDir();
  std::string grace = "60s";
  CLI::App app{"Runs training jobs of a Nibble controller on this machine.", "nibble-worker"};
  app.option_defaults()->always_capture_default();
  app.set_version_flag("--version", std::string("nibble-worker ") + NIBBLE_VERSION);
  app.footer(
      "\nExample: two CPU slots for the controller on this machine\n"
      "  nibble-worker --controller 127.0.0.1:7790 --slots 2 --state-dir /var/lib/nibble/worker\n\n"
      "SIGTERM ends the worker; its trainers go on and are adopted by the next one with the same\n"
      "state folder. docs/reference/cli.md tells more.");
  AddFlags(app, options, grace);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  SetLogComponent("worker");
  HandleSignals();
  if (const Status status = Resolve(options, grace); !status.ok()) return Fail(status);
  Result<std::unique_ptr<Agent>> agent = Agent::Create(std::move(options), Clock::Real());
  if (!agent.ok()) return Fail(agent.status());
  (*agent)->Run(stop_requested);
  return 0;
}

}  // namespace
}  // namespace nibble::agent

int main(int argc, char** argv) {
  if (argc >= 2 && std::string(argv[1]) == nibble::agent::kSuperviseCommand) {
    return nibble::agent::SuperviseMain(std::vector<std::string>(argv + 2, argv + argc));
  }
  return nibble::agent::WorkerMain(argc, argv);
}
