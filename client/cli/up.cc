// SPDX-License-Identifier: Apache-2.0
//
// nibble up: a one-machine cluster in the foreground. nibble tokenize: nibble-data's front door.
#include <csignal>

#include "base/files.h"
#include "base/process.h"
#include "client/cli/commands.h"
#include "client/lib/local_cluster.h"

namespace nibble::cli {
namespace {

constexpr std::chrono::milliseconds kStatusPoll{500};

void PrintReady(CliContext& context, const LocalCluster& cluster, const UpOptions& options) {
  std::string flags = cluster.server() == kDefaultServer ? "" : " --server " + cluster.server();
  if (!options.token_file.empty()) flags += " --token-file " + options.token_file;
  context.out << "Nibble is up.\n"
              << "  API      " << cluster.server() << "\n"
              << "  metrics  http://" << cluster.http_address() << "/metrics\n"
              << "  state    " << cluster.state_dir() << "\n"
              << "Try, in another terminal:\n"
              << "  nibble nodes" << flags << "\n"
              << "  nibble submit -f job.yaml --watch" << flags << "\n"
              << "  nibble ps" << flags << "\n"
              << "Ctrl-C stops both programs; running jobs save first and go on at the next start."
              << std::endl;
}

}  // namespace

int RunUp(CliContext& context, const UpOptions& options) {
  LocalClusterOptions local;
  local.state_dir = options.state_dir.empty() ? DefaultStateDirectory() : options.state_dir;
  local.slots = options.slots;
  local.pool = options.pool;
  local.token_file = options.token_file;
  if (!options.listen.empty()) local.listen = options.listen;
  if (!options.http.empty()) local.http = options.http;
  local.note = [&context](const std::string& text) { context.Note(text); };
  auto cluster = LocalCluster::Start(local, context.interrupt);
  if (!cluster.ok()) {
    const int code = context.Fail(cluster.status());
    // The programs are ours: that they do not start is no unreachable server.
    return code == kExitUnreachable ? kExitFailure : code;
  }
  PrintReady(context, **cluster, options);
  while (!context.interrupt.WaitFor(kStatusPoll)) {
    if (const Status status = (*cluster)->status(); !status.ok()) break;
  }
  context.Note("stopping; press Ctrl-C again to stop without saving");
  const Status failed = (*cluster)->status();
  const Status stopped = (*cluster)->Stop();
  if (!failed.ok()) return kExitFailure;
  return context.Fail(stopped);
}

int RunTokenize(CliContext& context, const TokenizeOptions& options) {
  const auto folder = ExecutableDirectory();
  if (!folder.ok()) return context.Fail(folder.status());
  ProcessOptions process_options;
  process_options.argv = {JoinPath(*folder, "nibble-data"), "tokenize"};
  process_options.argv.insert(process_options.argv.end(), options.arguments.begin(),
                              options.arguments.end());
  process_options.new_process_group = false;  // it may read the terminal
  auto process = Process::Start(process_options);
  if (!process.ok()) return context.Fail(process.status());
  while (true) {
    const auto ended = process->WaitFor(std::chrono::milliseconds(100));
    if (!ended.ok()) return context.Fail(ended.status());
    if (ended->has_value()) {
      return (*ended)->signal != 0 ? kExitInterrupted : (*ended)->exit_code;
    }
    if (context.interrupt.requested()) {
      if (const Status status = process->Signal(SIGTERM); !status.ok()) return context.Fail(status);
    }
  }
}

}  // namespace nibble::cli
