// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/supervise.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <utility>

#include "base/files.h"
#include "base/json.h"
#include "base/process.h"
#include "worker/agent/process_tree.h"

namespace nibble::agent {
namespace {

constexpr int kExitUsage = 2;
constexpr int kExitNotStarted = 126;
constexpr int64_t kMaxStateFileBytes = 64 * 1024;

Result<Json> ReadJsonFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxStateFileBytes));
  Result<Json> json = Json::Parse(text);
  if (!json.ok()) return DataLossError(path + ": " + json.status().message());
  return json;
}

void WriteExit(const std::string& run_dir, const TrainerExit& how) {
  Json json = Json::Object({{"exitCode", how.exit_code}, {"signal", how.signal}});
  if (!how.start_error.empty()) json.Set("startError", how.start_error);
  const Status status = AtomicWriteFile(JoinPath(run_dir, kExitFile), json.Dump() + "\n");
  if (!status.ok()) std::fprintf(stderr, "supervisor: %s\n", status.ToString().c_str());
}

// Nothing of the worker stays open here: a socket kept by a trainer would block its address.
void DetachFiles() {
  const int null = ::open("/dev/null", O_RDONLY);
  if (null > 0) ::dup2(null, STDIN_FILENO);
  ::close_range(3, ~0U, 0);
}

// Kills and reaps every descendant; returns when there is none.
void KillDescendants() {
  const pid_t self = ::getpid();
  const int64_t ticks = ProcessStartTicks(self).value_or(0);
  while (true) {
    KillProcesses(SessionMembers(self, ticks));
    if (::waitpid(-1, nullptr, 0) < 0 && errno == ECHILD) return;
  }
}

// Reaps whatever ended; true once `trainer` was among it.
bool Reap(pid_t trainer, TrainerExit& how) {
  bool ended = false;
  while (true) {
    int wait_status = 0;
    const pid_t pid = ::waitpid(-1, &wait_status, WNOHANG);
    if (pid <= 0) return ended;
    if (pid != trainer) continue;
    ended = true;
    how.signal = WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : 0;
    how.exit_code = WIFSIGNALED(wait_status) ? 0 : WEXITSTATUS(wait_status);
  }
}

}  // namespace

Status ClaimSupervisor(const std::string& run_dir, const SupervisorId& id) {
  const std::string path = JoinPath(run_dir, kSupervisorFile);
  const std::string draft = path + "." + std::to_string(::getpid());
  const Json json =
      Json::Object({{"pid", id.pid}, {"startTicks", id.start_ticks}, {"bootId", id.boot_id}});
  RETURN_IF_ERROR(AtomicWriteFile(draft, json.Dump() + "\n"));
  const int error = ::link(draft.c_str(), path.c_str()) == 0 ? 0 : errno;
  ::unlink(draft.c_str());
  if (error != 0) return ErrnoError(error, "cannot create " + path);
  return SyncDirectory(run_dir);
}

Result<SupervisorId> ReadSupervisor(const std::string& run_dir) {
  ASSIGN_OR_RETURN(const Json json, ReadJsonFile(JoinPath(run_dir, kSupervisorFile)));
  SupervisorId id;
  id.pid = static_cast<pid_t>(json["pid"].AsInt());
  id.start_ticks = json["startTicks"].AsInt();
  id.boot_id = json["bootId"].AsString();
  return id;
}

Result<TrainerExit> ReadTrainerExit(const std::string& run_dir) {
  ASSIGN_OR_RETURN(const Json json, ReadJsonFile(JoinPath(run_dir, kExitFile)));
  TrainerExit how;
  how.exit_code = static_cast<int>(json["exitCode"].AsInt());
  how.signal = static_cast<int>(json["signal"].AsInt());
  how.start_error = json["startError"].AsString();
  return how;
}

int SuperviseMain(const std::vector<std::string>& arguments) {
  if (arguments.size() < 2) {
    std::fprintf(stderr, "usage: supervise RUN_DIR TRAINER [ARGUMENT...]\n");
    return kExitUsage;
  }
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&signals, number);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGHUP, SIG_IGN);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  DetachFiles();
  const std::string& run_dir = arguments[0];
  const SupervisorId id{::getpid(), ProcessStartTicks(::getpid()).value_or(0), BootId()};
  if (const Status claimed = ClaimSupervisor(run_dir, id); !claimed.ok()) {
    std::fprintf(stderr, "supervisor: not starting: %s\n", claimed.ToString().c_str());
    return kExitNotStarted;
  }
  ProcessOptions options;
  options.argv.assign(arguments.begin() + 1, arguments.end());
  options.parent_death_signal = SIGKILL;
  Result<Process> trainer = Process::Start(options);
  TrainerExit how;
  if (!trainer.ok()) {
    how.start_error = trainer.status().message();
    WriteExit(run_dir, how);
    return kExitNotStarted;
  }
  while (!Reap(trainer->pid(), how)) {
    const int number = ::sigwaitinfo(&signals, nullptr);
    if (number == SIGTERM || number == SIGINT) ::kill(-trainer->pid(), SIGTERM);
  }
  KillDescendants();
  WriteExit(run_dir, how);
  return how.signal != 0 ? 128 + how.signal : how.exit_code;
}

}  // namespace nibble::agent
