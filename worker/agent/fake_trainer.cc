// SPDX-License-Identifier: Apache-2.0
//
// A trainer for the tests of the worker: keeps the contract of nibble-trainer (self-test, run.json,
// journal, signals, exit codes) and does no arithmetic. "supervise" makes it its own supervisor, so
// that tests of the process table need no other program.
//
// What it does is chosen by the environment of the job:
//   FAKE_STEPS    steps to make (default 5); FAKE_STEP_MS time of each (default 1)
//   FAKE_MODE     ignore_term: SIGTERM changes nothing; kill_self: SIGKILL after the last step;
//                 exit_3: exit code 3 without an end record; diverge: end record Diverged, exit 10;
//                 garbage: unreadable lines, a gap and a torn tail in the journal;
//                 grandchild: leaves a process in a session of its own (grandchild.pid), SIGTERM
//                 ignored by both
//   FAKE_SELF_TEST=fail   the self-test does not pass
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "worker/agent/supervise.h"
#include "worker/spec/journal.h"

namespace nibble::agent {
namespace {

volatile std::sig_atomic_t asked_to_stop = 0;

std::string Env(const char* name, const std::string& fallback) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : fallback;
}

int SelfTest() {
  if (Env("FAKE_SELF_TEST", "") == "fail") {
    std::fprintf(stderr, "canary e2m1_gemm: 3 of 64 results differ from the reference\n");
    return 1;
  }
  std::printf(
      "{\"devices\":[{\"index\":0,\"kind\":\"cpu\",\"name\":\"fake cpu\",\"memory_bytes\":"
      "8589934592,\"threads\":8,\"gflops\":40.0,\"features\":[\"e2m1\",\"int8\"]}],"
      "\"notes\":[\"no GPU slots: none here\"]}\n");
  return 0;
}

class Journal {
 public:
  explicit Journal(const std::string& run_dir)
      : file_(AppendFile::Open(JoinPath(run_dir, kJournalFileName)).value()) {}
  void Write(decltype(JournalRecord::event) event) {
    Raw(EncodeJournalLine({++seq_, Clock::Real().WallMillis(), std::move(event)}));
  }
  void Raw(const std::string& bytes) {
    if (!file_.Append(bytes).ok()) std::_Exit(1);
  }
  void SkipSeq() { ++seq_; }

 private:
  AppendFile file_;
  int64_t seq_ = 0;
};

void LeaveGrandchild(const std::string& run_dir) {
  if (::fork() != 0) return;
  ::setsid();
  ::signal(SIGTERM, SIG_IGN);
  const std::string text = std::to_string(::getpid());
  if (!AtomicWriteFile(JoinPath(run_dir, "grandchild.pid"), text).ok()) std::_Exit(1);
  while (true) ::pause();
}

int Train(const std::string& config_path) {
  const Json config = Json::Parse(ReadFile(config_path).value()).value();
  const std::string run_dir = config["run"]["dir"].AsString();
  const int64_t steps = ParseInt(Env("FAKE_STEPS", "5")).value();
  const std::chrono::milliseconds step_time(ParseInt(Env("FAKE_STEP_MS", "1")).value());
  const std::string mode = Env("FAKE_MODE", "");
  ::signal(
      SIGTERM,
      mode == "ignore_term" || mode == "grandchild" ? SIG_IGN : [](int) { asked_to_stop = 1; });
  if (mode == "grandchild") LeaveGrandchild(run_dir);
  Journal journal(run_dir);
  journal.Write(StartRecord{0, steps, 1000, 64, "fp32", {{"fprop", "reference"}}});
  int64_t step = 0;
  while (step < steps && asked_to_stop == 0) {
    std::this_thread::sleep_for(step_time);  // stands for the work of a step
    ++step;
    if (mode == "garbage" && step == 2) {
      journal.Raw("{\"seq\":3,\"t\":1,\"type\":\"st\n");
      journal.SkipSeq();
    }
    journal.Write(
        StepRecord{step, 3.0 / static_cast<double>(step), 1, 1e-3, step * 64, 0.01, 6400});
  }
  if (mode == "kill_self") ::raise(SIGKILL);
  if (mode == "exit_3") return 3;
  if (asked_to_stop != 0) journal.Write(CheckpointRecord{step, run_dir + "/checkpoints/c", 0.1, 9});
  EndRecord end;
  end.reason = mode == "diverge"    ? kEndDiverged
               : asked_to_stop != 0 ? kEndPreempted
                                    : kEndCompleted;
  end.message = "after step " + std::to_string(step);
  end.step = step;
  journal.Write(end);
  if (mode == "garbage") journal.Raw("{\"seq\":99,\"t");
  return TrainerExitCode(end.reason);
}

}  // namespace
}  // namespace nibble::agent

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && arguments[0] == nibble::agent::kSuperviseCommand) {
    return nibble::agent::SuperviseMain({arguments.begin() + 1, arguments.end()});
  }
  if (!arguments.empty() && arguments[0] == "self-test") return nibble::agent::SelfTest();
  if (arguments.size() == 2 && arguments[0] == "--config")
    return nibble::agent::Train(arguments[1]);
  std::fprintf(stderr, "usage: fake_trainer --config FILE | self-test --json\n");
  return 2;
}
