// SPDX-License-Identifier: Apache-2.0
#include "client/lib/local_cluster.h"

#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/files.h"
#include "base/mutex.h"
#include "base/process.h"
#include "base/strings.h"
#include "client/lib/client.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPoll{100};
constexpr milliseconds kEventPoll{60'000};
constexpr milliseconds kRestartDelay{1000};
constexpr milliseconds kControllerGrace{15'000};
constexpr milliseconds kKillGrace{5'000};
constexpr int64_t kLogTailBytes = 1500;

// One of the two programs: how it is started, and the process when it runs.
struct Program {
  std::string name;
  std::vector<std::string> argv;
  std::string log_path;
  int64_t log_start = 0;  // where this start's output begins
  std::optional<Process> process;
  int restarts = 0;
};

Status StartProgram(Program& program) {
  program.log_start = FileSizeBytes(program.log_path).value_or(0);
  ProcessOptions options;
  options.argv = program.argv;
  options.stdout_path = options.stderr_path = program.log_path;
  options.parent_death_signal = SIGTERM;
  ASSIGN_OR_RETURN(program.process, Process::Start(options));
  return OkStatus();
}

std::string LogTail(const Program& program) {
  const int64_t size = FileSizeBytes(program.log_path).value_or(0);
  const int64_t from = std::max(program.log_start, size - kLogTailBytes);
  const std::string text = ReadFileRange(program.log_path, from, kLogTailBytes).value_or("");
  return text.empty() ? " and wrote nothing" : ":\n" + std::string(StrTrim(text));
}

// SIGTERM, then SIGKILL after `grace` or when the user insists.
Status EndProgram(Program& program, milliseconds grace, const Interrupt& interrupt) {
  if (!program.process.has_value()) return OkStatus();
  RETURN_IF_ERROR(program.process->Signal(SIGTERM));
  const auto end = steady_clock::now() + grace;
  std::optional<ExitStatus> ended;
  while (!ended.has_value() && steady_clock::now() < end && !interrupt.insisted()) {
    ASSIGN_OR_RETURN(ended, program.process->WaitFor(kPoll));
  }
  if (!ended.has_value()) {
    RETURN_IF_ERROR(program.process->Signal(SIGKILL));
    ASSIGN_OR_RETURN(ended, program.process->WaitFor(kKillGrace));
  }
  program.process.reset();
  return OkStatus();
}

// Process ids of trainers whose command line names a file below `folder`.
std::vector<pid_t> TrainersBelow(const std::string& folder) {
  std::vector<pid_t> pids;
  for (const std::string& name : ListDirectory("/proc").value_or({})) {
    const auto pid = ParseInt(name);
    if (!pid.ok()) continue;
    const std::string command = ReadFile("/proc/" + name + "/cmdline", 1 << 20).value_or("");
    const std::string program = command.substr(0, command.find('\0'));
    if (BaseName(program) == "nibble-trainer" && command.find(folder + "/") != std::string::npos) {
      pids.push_back(static_cast<pid_t>(*pid));
    }
  }
  return pids;
}

}  // namespace

Result<std::string> MakeAbsoluteDirectory(const std::string& path) {
  RETURN_IF_ERROR(MakeDirectories(path));
  char* absolute = ::realpath(path.c_str(), nullptr);
  if (absolute == nullptr) return ErrnoError(errno, "cannot resolve " + path);
  std::string result = absolute;
  std::free(absolute);
  return result;
}

class LocalCluster::Impl {
 public:
  Impl(LocalClusterOptions options, Interrupt& interrupt)
      : options_(std::move(options)), interrupt_(interrupt) {}

  Status Start();
  Status Stop();
  Status status() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return status_;
  }

  const LocalClusterOptions& options() const { return options_; }
  const std::string& server() const { return server_; }
  const std::string& http_address() const { return http_address_; }

 private:
  Status FindPrograms();
  Status WaitForAddress();
  Status WaitForWorker();
  // Nothing for a while: CANCELLED when interrupted, UNAVAILABLE when `program` ended or the time
  // is over.
  Status Pause(Program& program, steady_clock::time_point deadline);
  void Supervise() EXCLUDES(mutex_);
  bool CheckProgram(Program& program) EXCLUDES(mutex_);
  void Note(const std::string& text) const {
    if (options_.note) options_.note(text);
  }

  LocalClusterOptions options_;
  Interrupt& interrupt_;
  FileLock lock_;
  Program controller_, worker_;
  std::string server_, http_address_;
  // Restarts programs until stop_supervisor_, then says supervisor_idle_ and touches them no more.
  // It lives until release_supervisor_: the programs it started get SIGTERM when it ends.
  std::thread supervisor_;
  Interrupt stop_supervisor_, supervisor_idle_, release_supervisor_;
  mutable Mutex mutex_;
  Status status_ GUARDED_BY(mutex_);
};

Status LocalCluster::Impl::FindPrograms() {
  if (options_.bin_dir.empty()) {
    ASSIGN_OR_RETURN(options_.bin_dir, ExecutableDirectory());
  }
  for (const char* name : {"nibble-controller", "nibble-worker", "nibble-trainer"}) {
    if (!PathExists(JoinPath(options_.bin_dir, name))) {
      return NotFoundError(std::string(name) + " is not in " + options_.bin_dir +
                           "; build all programs with ./dev build");
    }
  }
  return OkStatus();
}

Status LocalCluster::Impl::Start() {
  if (!IsLoopback(options_.listen)) {
    return InvalidArgumentError("--listen " + options_.listen +
                                " is not on this machine; for other machines run "
                                "nibble-controller with a token and TLS");
  }
  RETURN_IF_ERROR(FindPrograms());
  // Trainers have other working directories.
  ASSIGN_OR_RETURN(options_.state_dir, MakeAbsoluteDirectory(options_.state_dir));
  const std::string& dir = options_.state_dir;
  const std::string logs = JoinPath(dir, "logs");
  for (const std::string& folder : {logs, JoinPath(dir, "controller"), JoinPath(dir, "worker")}) {
    RETURN_IF_ERROR(MakeDirectories(folder));
  }
  ASSIGN_OR_RETURN(lock_, FileLock::Acquire(JoinPath(dir, "up.lock")));
  RETURN_IF_ERROR(RemoveTree(AddressFileIn(dir)));

  controller_.name = "nibble-controller";
  controller_.log_path = JoinPath(logs, "controller.log");
  controller_.argv = {JoinPath(options_.bin_dir, controller_.name),
                      "--listen",
                      options_.listen,
                      "--http",
                      options_.http,
                      "--state-dir",
                      JoinPath(dir, "controller")};
  worker_.name = "nibble-worker";
  worker_.log_path = JoinPath(logs, "worker.log");
  worker_.argv = {JoinPath(options_.bin_dir, worker_.name),
                  "--state-dir",
                  JoinPath(dir, "worker"),
                  "--slots",
                  std::to_string(options_.slots),
                  "--stop-trainers-on-exit"};
  if (!options_.pool.empty()) worker_.argv.insert(worker_.argv.end(), {"--pool", options_.pool});
  if (!options_.token_file.empty()) {
    for (Program* program : {&controller_, &worker_}) {
      program->argv.insert(program->argv.end(), {"--token-file", options_.token_file});
    }
  }
  RETURN_IF_ERROR(StartProgram(controller_));
  RETURN_IF_ERROR(WaitForAddress());
  worker_.argv.insert(worker_.argv.end(), {"--controller", server_});
  RETURN_IF_ERROR(StartProgram(worker_));
  RETURN_IF_ERROR(WaitForWorker());
  // From now on at the same addresses, whatever was free at first.
  controller_.argv[2] = server_;
  controller_.argv[4] = http_address_.empty() ? options_.http : http_address_;
  supervisor_ = std::thread([this] { Supervise(); });
  return OkStatus();
}

Status LocalCluster::Impl::Pause(Program& program, steady_clock::time_point deadline) {
  if (interrupt_.WaitFor(kPoll)) return CancelledError("interrupted");
  ASSIGN_OR_RETURN(const std::optional<ExitStatus> ended, program.process->TryWait());
  if (ended.has_value()) {
    program.process.reset();
    return UnavailableError(program.name + " ended with " + ended->ToString() + LogTail(program));
  }
  if (steady_clock::now() < deadline) return OkStatus();
  return UnavailableError(StrFormat("%s is not ready after %lld s", program.name.c_str(),
                                    static_cast<long long>(options_.ready_timeout.count() / 1000)) +
                          LogTail(program));
}

Status LocalCluster::Impl::WaitForAddress() {
  const auto deadline = steady_clock::now() + options_.ready_timeout;
  const std::string path = AddressFileIn(options_.state_dir);
  while (true) {
    if (const auto text = ReadFile(path, 4096); text.ok() && !StrTrim(*text).empty()) {
      server_ = std::string(StrTrim(*text));
      return OkStatus();
    }
    RETURN_IF_ERROR(Pause(controller_, deadline));
  }
}

Status LocalCluster::Impl::WaitForWorker() {
  const auto deadline = steady_clock::now() + options_.ready_timeout;
  ConnectionFlags flags;
  flags.server = server_;
  flags.token_file = options_.token_file;
  flags.timeout = "2s";
  ASSIGN_OR_RETURN(const ConnectionOptions connection, ResolveConnection(flags));
  ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Connect(connection, interrupt_));
  while (true) {
    if (http_address_.empty()) {
      if (const auto info = client->GetServerInfo(); info.ok()) {
        http_address_ = info->http_address();
      }
    }
    if (const auto nodes = client->ListNodes(); nodes.ok() && !http_address_.empty()) {
      const auto up = [](const v1::Node& node) { return node.state() == "up"; };
      if (std::any_of(nodes->begin(), nodes->end(), up)) return OkStatus();
    }
    RETURN_IF_ERROR(Pause(controller_, deadline));
    RETURN_IF_ERROR(Pause(worker_, deadline));
  }
}

// False when the cluster has to give up.
bool LocalCluster::Impl::CheckProgram(Program& program) {
  Status failure;
  if (program.process.has_value()) {
    const auto ended = program.process->TryWait();
    if (ended.ok() && !ended->has_value()) return true;
    Note(program.name + " ended with " +
         (ended.ok() ? (*ended)->ToString() : ended.status().ToString()) + "; see " +
         program.log_path);
    program.process.reset();
  }
  if (program.restarts < kMaxRestarts) {
    ++program.restarts;
    if (stop_supervisor_.WaitFor(kRestartDelay)) return true;
    failure = StartProgram(program);
    if (failure.ok()) {
      Note("started " + program.name + " again");
      return true;
    }
  } else {
    failure = UnavailableError(
        StrFormat("%s ended %d times", program.name.c_str(), kMaxRestarts + 1) + LogTail(program));
  }
  {
    MutexLock lock(mutex_);
    status_ = failure;
  }
  Note(failure.message());
  if (options_.on_give_up) options_.on_give_up();
  return false;
}

void LocalCluster::Impl::Supervise() {
  while (!stop_supervisor_.WaitFor(kPoll)) {
    if (!CheckProgram(controller_) || !CheckProgram(worker_)) break;
  }
  supervisor_idle_.Trigger();
  while (!release_supervisor_.WaitFor(kEventPoll)) {
  }
}

Status LocalCluster::Impl::Stop() {
  if (!lock_.held()) return OkStatus();
  if (supervisor_.joinable()) {
    stop_supervisor_.Trigger();
    while (!supervisor_idle_.WaitFor(kEventPoll)) {
    }
  }
  Status status = EndProgram(worker_, options_.stop_grace, interrupt_);
  const Status controller = EndProgram(controller_, kControllerGrace, interrupt_);
  if (status.ok()) status = controller;
  if (supervisor_.joinable()) {
    release_supervisor_.Trigger();
    supervisor_.join();
  }
  // A worker that had to be killed leaves its trainers in groups of their own.
  for (const pid_t pid : TrainersBelow(options_.state_dir)) ::kill(pid, SIGKILL);
  const Status removed = RemoveTree(AddressFileIn(options_.state_dir));
  lock_ = FileLock();
  return status.ok() ? removed : status;
}

LocalCluster::LocalCluster(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

LocalCluster::~LocalCluster() {
  if (const Status status = Stop(); !status.ok() && impl_->options().note) {
    impl_->options().note(status.message());
  }
}

Result<std::unique_ptr<LocalCluster>> LocalCluster::Start(const LocalClusterOptions& options,
                                                          Interrupt& interrupt) {
  std::unique_ptr<LocalCluster> cluster(
      new LocalCluster(std::make_unique<Impl>(options, interrupt)));
  RETURN_IF_ERROR(cluster->impl_->Start());  // the destructor stops what was started
  return cluster;
}

const std::string& LocalCluster::server() const { return impl_->server(); }
const std::string& LocalCluster::http_address() const { return impl_->http_address(); }
const std::string& LocalCluster::state_dir() const { return impl_->options().state_dir; }
Status LocalCluster::status() const { return impl_->status(); }
Status LocalCluster::Stop() { return impl_->Stop(); }

ConnectionFlags LocalCluster::connection() const {
  ConnectionFlags flags;
  flags.server = impl_->server();
  flags.token_file = impl_->options().token_file;
  return flags;
}

}  // namespace nibble
