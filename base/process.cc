// SPDX-License-Identifier: Apache-2.0
#include "base/process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>

#include "base/files.h"
#include "base/strings.h"

extern char** environ;

namespace nibble {
namespace {

ExitStatus FromWaitStatus(int wait_status) {
  ExitStatus status;
  if (WIFSIGNALED(wait_status)) {
    status.signal = WTERMSIG(wait_status);
  } else {
    status.exit_code = WEXITSTATUS(wait_status);
  }
  return status;
}

// The parent's environment with the additions laid over it, as NAME=VALUE strings.
std::vector<std::string> MergedEnvironment(const ProcessOptions& options) {
  std::vector<std::string> merged;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    bool replaced = false;
    for (const auto& [name, value] : options.env) {
      replaced |= text.substr(0, text.find('=')) == name;
    }
    if (!replaced) merged.emplace_back(text);
  }
  for (const auto& [name, value] : options.env) merged.push_back(name + "=" + value);
  return merged;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Runs in the child between fork and exec: async-signal-safe calls only. Returns errno.
int PrepareChild(const ProcessOptions& options, pid_t parent) {
  if (options.parent_death_signal != 0) {
    if (::prctl(PR_SET_PDEATHSIG, options.parent_death_signal) != 0) return errno;
    if (::getppid() != parent) return ECHILD;  // the parent ended before the request was made
  }
  if (options.new_session) {
    if (::setsid() < 0) return errno;
  } else if (options.new_process_group && ::setpgid(0, 0) != 0) {
    return errno;
  }
  if (!options.working_directory.empty() && ::chdir(options.working_directory.c_str()) != 0) {
    return errno;
  }
  const auto redirect = [](const std::string& path, int target) {
    if (path.empty()) return 0;
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (fd < 0 || ::dup2(fd, target) < 0) return errno;
    if (fd != target) ::close(fd);
    return 0;
  };
  if (const int error = redirect(options.stdout_path, STDOUT_FILENO); error != 0) return error;
  if (const int error = redirect(options.stderr_path, STDERR_FILENO); error != 0) return error;
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  return 0;
}

}  // namespace

std::string ExitStatus::ToString() const {
  if (signal != 0) return StrFormat("signal %d (%s)", signal, ::strsignal(signal));
  return StrFormat("exit code %d", exit_code);
}

Result<Process> Process::Start(const ProcessOptions& options) {
  if (options.argv.empty()) return InvalidArgumentError("a process needs a program to run");
  std::vector<std::string> argv = options.argv;
  std::vector<std::string> env = MergedEnvironment(options);
  std::vector<char*> argv_pointers = Pointers(argv), env_pointers = Pointers(env);
  int error_pipe[2];
  if (::pipe2(error_pipe, O_CLOEXEC) != 0) return ErrnoError(errno, "cannot create a pipe");
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    const int error = errno;
    ::close(error_pipe[0]);
    ::close(error_pipe[1]);
    return ErrnoError(error, "cannot fork for " + argv[0]);
  }
  if (pid == 0) {
    int error = PrepareChild(options, parent);
    if (error == 0) {
      ::execvpe(argv_pointers[0], argv_pointers.data(), env_pointers.data());
      error = errno;
    }
    [[maybe_unused]] const ssize_t ignored = ::write(error_pipe[1], &error, sizeof(error));
    ::_exit(127);
  }
  ::close(error_pipe[1]);
  int child_error = 0;
  ssize_t got;
  do {
    got = ::read(error_pipe[0], &child_error, sizeof(child_error));
  } while (got < 0 && errno == EINTR);
  ::close(error_pipe[0]);
  if (got == sizeof(child_error)) {
    ::waitpid(pid, nullptr, 0);
    return ErrnoError(child_error, "cannot start " + argv[0]);
  }
  Process process;
  process.pid_ = pid;
  process.own_group_ = options.new_process_group || options.new_session;
  return process;
}

Result<ExitStatus> Process::Wait() {
  if (ended_.has_value()) return *ended_;
  int wait_status = 0;
  while (::waitpid(pid_, &wait_status, 0) < 0) {
    if (errno != EINTR) return ErrnoError(errno, "cannot wait for process " + std::to_string(pid_));
  }
  ended_ = FromWaitStatus(wait_status);
  return *ended_;
}

Result<std::optional<ExitStatus>> Process::TryWait() {
  if (ended_.has_value()) return ended_;
  int wait_status = 0;
  const pid_t got = ::waitpid(pid_, &wait_status, WNOHANG);
  if (got < 0) return ErrnoError(errno, "cannot wait for process " + std::to_string(pid_));
  if (got == pid_) ended_ = FromWaitStatus(wait_status);
  return ended_;
}

Result<std::optional<ExitStatus>> Process::WaitFor(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (true) {
    ASSIGN_OR_RETURN(std::optional<ExitStatus> ended, TryWait());
    if (ended.has_value() || std::chrono::steady_clock::now() >= deadline) return ended;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // waitpid has no timeout
  }
}

Status Process::Signal(int signal) const {
  if (ended_.has_value()) return OkStatus();
  if (::kill(own_group_ ? -pid_ : pid_, signal) != 0 && errno != ESRCH) {
    return ErrnoError(errno, "cannot signal process " + std::to_string(pid_));
  }
  return OkStatus();
}

Result<CommandOutput> RunCommand(const std::vector<std::string>& argv, bool merge_stderr) {
  ASSIGN_OR_RETURN(const std::string folder, MakeTempDirectory("nibble-command"));
  const std::string path = JoinPath(folder, "output");
  ProcessOptions options;
  options.argv = argv;
  options.stdout_path = path;
  if (merge_stderr) options.stderr_path = path;
  CommandOutput result;
  Result<Process> process = Process::Start(options);
  Status status = process.status();
  if (process.ok()) {
    const Result<ExitStatus> ended = process->Wait();
    status = ended.status();
    if (ended.ok()) {
      result.status = *ended;
      result.output = ReadFile(path).value_or("");
    }
  }
  RETURN_IF_ERROR(RemoveTree(folder));
  RETURN_IF_ERROR(status);
  return result;
}

Result<int64_t> ProcessStartTicks(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/stat";
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  // Field 2 is "(name)" and may hold spaces; what follows its last ')' starts with field 3.
  const size_t close = text.rfind(')');
  if (close == std::string::npos || close + 2 >= text.size()) {
    return DataLossError("cannot parse " + path);
  }
  const std::vector<std::string> fields = StrSplit(std::string_view(text).substr(close + 2), ' ');
  constexpr size_t kStartTimeIndex = 22 - 3;
  if (fields.size() <= kStartTimeIndex) return DataLossError("cannot parse " + path);
  if (fields[0] == "Z" || fields[0] == "X") {
    return NotFoundError("process " + std::to_string(pid) + " has ended");
  }
  return ParseInt(fields[kStartTimeIndex]);
}

}  // namespace nibble
