// SPDX-License-Identifier: Apache-2.0
#include "tests/e2e/cluster_harness.h"

#include <signal.h>

#include <cerrno>
#include <thread>
#include <utility>

#include "base/files.h"
#include "base/strings.h"
#include "tests/support/http_get.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr milliseconds kPollInterval{50};

std::string Program(const std::string& name) {
  return JoinPath(JoinPath(NIBBLE_BINARY_DIR, "bin"), name);
}

// A few hundred short documents from a small grammar: enough structure for the loss to fall.
std::string SmallCorpus() {
  static constexpr const char* kSubjects[] = {"the cat",   "a model",      "the old river",
                                              "my friend", "one engineer", "the quiet machine"};
  static constexpr const char* kVerbs[] = {"sees", "follows", "remembers", "counts", "likes"};
  static constexpr const char* kObjects[] = {"small numbers", "the long road", "a warm evening",
                                             "seven apples",  "every letter",  "the open door"};
  std::string text;
  uint32_t state = 12345;
  const auto next = [&state](uint32_t bound) {
    state = state * 1664525u + 1013904223u;
    return (state >> 16) % bound;
  };
  for (int document = 0; document < 400; ++document) {
    for (int sentence = 0; sentence < 12; ++sentence) {
      text += StrFormat("%s %s %s. ", kSubjects[next(6)], kVerbs[next(5)], kObjects[next(6)]);
    }
    text += "\n\n";
  }
  return text;
}

Status Succeeded(const Result<CommandOutput>& run, const std::string& what) {
  RETURN_IF_ERROR(run.status());
  if (run->status.success()) return OkStatus();
  return InternalError(what + " ended with " + run->status.ToString() + ": " + run->output);
}

Status Kill(std::optional<Process>& process) {
  if (!process.has_value()) return FailedPreconditionError("the process does not run");
  RETURN_IF_ERROR(process->Signal(SIGKILL));
  RETURN_IF_ERROR(process->Wait().status());
  process.reset();
  return OkStatus();
}

}  // namespace

bool ProgramsAreBuilt() {
  for (const char* name :
       {"nibble", "nibble-controller", "nibble-worker", "nibble-trainer", "nibble-data"}) {
    if (!PathExists(Program(name))) return false;
  }
  return true;
}

std::string StateOf(const Json& job) {
  std::string state = job["state"].AsString();
  constexpr std::string_view kPrefix = "JOB_STATE_";
  if (state.starts_with(kPrefix)) state.erase(0, kPrefix.size());
  return state;
}

bool IsTerminal(const std::string& state) {
  return state == "SUCCEEDED" || state == "FAILED" || state == "CANCELLED" ||
         state == "TIMED_OUT" || state == "REJECTED";
}

Result<std::unique_ptr<ClusterHarness>> ClusterHarness::Create() {
  std::unique_ptr<ClusterHarness> cluster(new ClusterHarness());
  ASSIGN_OR_RETURN(cluster->folder_, MakeTempDirectory("nibble-cluster"));
  cluster->data_folder_ = JoinPath(cluster->folder_, "data");
  ASSIGN_OR_RETURN(const int port, testing::FreeLoopbackPort());
  ASSIGN_OR_RETURN(const int http_port, testing::FreeLoopbackPort());
  cluster->server_address_ = StrFormat("127.0.0.1:%d", port);
  cluster->http_address_ = StrFormat("127.0.0.1:%d", http_port);
  RETURN_IF_ERROR(cluster->PrepareData());
  return cluster;
}

ClusterHarness::~ClusterHarness() {
  if (worker_.has_value()) (void)Kill(worker_).ok();
  if (controller_.has_value()) (void)Kill(controller_).ok();
  (void)KillTrainers().ok();
  (void)RemoveTree(folder_).ok();
}

Status ClusterHarness::PrepareData() {
  const std::string text = JoinPath(folder_, "corpus.txt");
  const std::string model = JoinPath(folder_, "tokenizer.model");
  RETURN_IF_ERROR(AtomicWriteFile(text, SmallCorpus()));
  RETURN_IF_ERROR(Succeeded(RunCommand({Program("nibble-data"), "train-tokenizer", "--input", text,
                                        "--vocab-size", "320", "--out", model}),
                            "train-tokenizer"));
  return Succeeded(RunCommand({Program("nibble-data"), "tokenize", "--tokenizer", model, "--out",
                               data_folder_, "--val-fraction", "0.05", text}),
                   "tokenize");
}

Status ClusterHarness::StartController() {
  ProcessOptions options;
  options.argv = {Program("nibble-controller"),
                  "--listen",
                  server_address_,
                  "--http",
                  http_address_,
                  "--state-dir",
                  JoinPath(folder_, "controller")};
  options.stdout_path = options.stderr_path = JoinPath(folder_, "controller.log");
  ASSIGN_OR_RETURN(controller_, Process::Start(options));
  return OkStatus();
}

Status ClusterHarness::StartWorker() {
  ProcessOptions options;
  options.argv = {Program("nibble-worker"), "--controller", server_address_, "--state-dir",
                  JoinPath(folder_, "worker")};
  options.stdout_path = options.stderr_path = JoinPath(folder_, "worker.log");
  ASSIGN_OR_RETURN(worker_, Process::Start(options));
  return OkStatus();
}

Status ClusterHarness::KillController() { return Kill(controller_); }

Status ClusterHarness::KillWorker() { return Kill(worker_); }

std::vector<pid_t> ClusterHarness::TrainerPids() const {
  std::vector<pid_t> pids;
  for (const std::string& name : ListDirectory("/proc").value_or({})) {
    const Result<int64_t> pid = ParseInt(name);
    if (!pid.ok()) continue;
    const std::string command = ReadFile("/proc/" + name + "/cmdline").value_or("");
    if (command.find("nibble-trainer") == std::string::npos) continue;
    if (command.find(folder_) != std::string::npos) pids.push_back(static_cast<pid_t>(*pid));
  }
  return pids;
}

Status ClusterHarness::KillTrainers() {
  for (const pid_t pid : TrainerPids()) {
    if (::kill(pid, SIGKILL) != 0 && errno != ESRCH) return ErrnoError(errno, "kill");
  }
  return OkStatus();
}

Status ClusterHarness::WaitForWorker(seconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  Result<Json> nodes = UnavailableError("never asked");
  while (steady_clock::now() < deadline) {
    nodes = NibbleJson({"nodes"});
    if (nodes.ok() && nodes->Dump().find("\"up\"") != std::string::npos) return OkStatus();
    std::this_thread::sleep_for(kPollInterval);
  }
  return DeadlineExceededError(
      "no worker is up: " + (nodes.ok() ? nodes->Dump() : nodes.status().ToString()) + "\n" +
      ReadFile(JoinPath(folder_, "worker.log")).value_or("") +
      ReadFile(JoinPath(folder_, "controller.log")).value_or(""));
}

Result<CommandOutput> ClusterHarness::Nibble(std::vector<std::string> arguments) const {
  std::vector<std::string> argv = {Program("nibble"), "--server", server_address_};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunCommand(argv, /*merge_stderr=*/true);
}

Result<Json> ClusterHarness::NibbleJson(std::vector<std::string> arguments) const {
  std::vector<std::string> argv = {Program("nibble"), "--server", server_address_};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  argv.insert(argv.end(), {"-o", "json"});
  ASSIGN_OR_RETURN(const CommandOutput run, RunCommand(argv, /*merge_stderr=*/false));
  if (!run.status.success()) {
    return UnavailableError("nibble " + StrJoin(arguments, " ") + ": " + run.status.ToString() +
                            " " + run.output);
  }
  return Json::Parse(run.output);
}

Result<std::string> ClusterHarness::Submit(const std::vector<std::string>& set) const {
  std::vector<std::string> arguments = {"submit", "-f",
                                        JoinPath(NIBBLE_SOURCE_DIR, "tests/e2e/tiny.yaml"), "--set",
                                        "data.path=" + data_folder_};
  for (const std::string& pair : set) arguments.insert(arguments.end(), {"--set", pair});
  ASSIGN_OR_RETURN(const Json answer, NibbleJson(arguments));
  const Json& job = answer.Find("job") != nullptr ? answer["job"] : answer;
  if (job["id"].AsString().empty()) return InternalError("no job id in " + answer.Dump());
  return job["id"].AsString();
}

std::string ClusterHarness::JobState(const std::string& job) const {
  const Result<Json> answer = NibbleJson({"describe", job});
  return answer.ok() ? StateOf(*answer) : "";
}

Result<Json> ClusterHarness::WaitForJob(const std::string& job, seconds timeout,
                                        const std::function<bool(const Json&)>& done) const {
  const auto deadline = steady_clock::now() + timeout;
  Result<Json> answer = UnavailableError("never asked");
  while (steady_clock::now() < deadline) {
    answer = NibbleJson({"describe", job});
    if (answer.ok() && done(*answer)) return answer;
    std::this_thread::sleep_for(kPollInterval);
  }
  return DeadlineExceededError("job " + job + " is still " +
                               (answer.ok() ? answer->Dump() : answer.status().ToString()) + "\n" +
                               ReadFile(JoinPath(folder_, "worker.log")).value_or("") +
                               ReadFile(JoinPath(folder_, "controller.log")).value_or(""));
}

Result<Json> ClusterHarness::WaitForEnd(const std::string& job, seconds timeout) const {
  return WaitForJob(job, timeout, [](const Json& json) { return IsTerminal(StateOf(json)); });
}

Result<std::string> ClusterHarness::WeightsHash(const Json& job) const {
  const std::string path = job["checkpointPath"].AsString();
  if (path.empty()) return NotFoundError("the job has no checkpoint: " + job.Dump());
  ASSIGN_OR_RETURN(const std::string text, ReadFile(JoinPath(path, "manifest.json")));
  ASSIGN_OR_RETURN(const Json manifest, Json::Parse(text));
  const Json& files = manifest["files"];
  for (const Json& file : files.items()) {
    if (file["name"].AsString() == "model.safetensors") return file["sha256"].AsString();
  }
  const std::string hash = files["model.safetensors"]["sha256"].AsString();
  if (hash.empty()) return DataLossError("no model.safetensors in " + text);
  return hash;
}

}  // namespace nibble
