// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/trainer_process.h"

#include <sys/wait.h>

#include <csignal>

#include "base/log.h"
#include "base/process.h"
#include "worker/agent/process_tree.h"

namespace nibble::agent {

Result<TrainerProcess> TrainerProcess::Start(const Launch& launch) {
  ProcessOptions options;
  options.argv = {launch.supervisor, kSuperviseCommand, launch.run_dir};
  options.argv.insert(options.argv.end(), launch.command.begin(), launch.command.end());
  options.env.assign(launch.env.begin(), launch.env.end());
  options.working_directory = launch.run_dir;
  options.stdout_path = launch.log_path;
  options.stderr_path = launch.log_path;
  options.new_session = true;
  ASSIGN_OR_RETURN(const Process process, Process::Start(options));
  TrainerProcess trainer;
  trainer.run_dir_ = launch.run_dir;
  trainer.pid_ = process.pid();
  // NOT_FOUND for one that has ended already; its number stays taken until it is waited for.
  trainer.start_ticks_ = ProcessStartTicks(process.pid()).value_or(0);
  trainer.child_ = true;
  return trainer;
}

Result<TrainerProcess> TrainerProcess::Adopt(const std::string& run_dir) {
  TrainerProcess trainer;
  trainer.run_dir_ = run_dir;
  const Status claimed = ClaimSupervisor(run_dir, SupervisorId{});
  if (!claimed.ok() && claimed.code() != StatusCode::kAlreadyExists) return claimed;
  ASSIGN_OR_RETURN(const SupervisorId id, ReadSupervisor(run_dir));
  trainer.pid_ = id.pid;
  trainer.start_ticks_ = id.start_ticks;
  trainer.gone_ = id.pid <= 1 || id.boot_id != BootId();
  return trainer;
}

bool TrainerProcess::SupervisorAlive() {
  if (leader_gone_) return false;
  if (child_) {
    int wait_status = 0;
    leader_gone_ = ::waitpid(pid_, &wait_status, WNOHANG) != 0;
  } else {
    const Result<int64_t> ticks = ProcessStartTicks(pid_);
    leader_gone_ = !ticks.ok() || *ticks != start_ticks_;
  }
  return !leader_gone_;
}

bool TrainerProcess::Gone() {
  if (gone_) return true;
  const bool had_ended = leader_gone_;
  if (SupervisorAlive()) return false;
  const std::vector<pid_t> members = SessionMembers(pid_, start_ticks_);
  gone_ = members.empty();
  if (!gone_ && !had_ended) {
    LogWarning("the supervisor of a trainer ended before its processes; killing them",
               {{"run", run_dir_}, {"processes", std::to_string(members.size())}});
  }
  KillProcesses(members);
  return gone_;
}

void TrainerProcess::Terminate() {
  if (SupervisorAlive()) ::kill(pid_, SIGTERM);
}

void TrainerProcess::Kill(bool supervisor_too) {
  if (gone_) return;
  const bool alive = SupervisorAlive();
  KillProcesses(SessionMembers(pid_, start_ticks_));
  if (alive && supervisor_too) ::kill(pid_, SIGKILL);
}

Result<TrainerExit> TrainerProcess::Exit() const { return ReadTrainerExit(run_dir_); }

}  // namespace nibble::agent
