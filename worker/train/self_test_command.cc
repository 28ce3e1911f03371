// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "base/files.h"
#include "base/json.h"
#include "base/process.h"
#include "base/strings.h"
#include "kernels/self_test.h"
#include "worker/train/args.h"
#include "worker/train/commands.h"
#include "worker/train/host_memory.h"

namespace nibble {
namespace {

constexpr char kSelfTestHelp[] =
    R"(nibble-trainer self-test: proves that this machine computes what the recipes promise

  --backend NAME  cpu, or cuda for the first visible GPU; default: the CPU and then every GPU, each
                  in a process of its own
  --json          one JSON object: devices [{index, kind, name, memory_bytes, threads, gflops,
                  features, refused, visible}] and notes [text]

Checks number formats over all BF16 inputs, stochastic rounding, clamping, the gradient estimator,
quantized layers of every built-in recipe at several shapes against the reference, and rounded
optimizer states, in a few seconds. `features` is what was proved, `refused` what the backend has
no path for. A GPU that computes something wrongly is left out, and a note says what. nibble-worker
runs it before it registers.

exit codes: 0 passed, 1 failed (the message names the feature and the input), 2 wrong usage

example:
  nibble-trainer self-test
)";

constexpr int kMaxGpus = 64;
constexpr int kGpuTimeoutMs = 120'000;
constexpr int64_t kMaxOutputBytes = 1 << 20;
constexpr size_t kShownErrorBytes = 600;  // its last words

Json DeviceJson(const SelfTestReport& report) {
  Json features = Json::Array(), refused = Json::Object();
  for (const std::string& feature : report.features) features.Append(feature);
  for (const auto& [feature, why] : report.refused) refused.Set(feature, why);
  const bool cpu = report.backend == kBackendCpu;
  const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
  return Json::Object({{"index", 0},
                       {"kind", report.backend},
                       {"name", cpu ? HostProcessorName() : report.description},
                       {"memory_bytes", cpu ? HostMemoryBytes() : report.memory_bytes},
                       {"threads", threads},
                       {"gflops", report.gemm_gflops},
                       {"features", std::move(features)},
                       {"refused", std::move(refused)}});
}

Json DevicesJson(Json devices, Json notes) {
  return Json::Object({{"devices", std::move(devices)}, {"notes", std::move(notes)}});
}

// One backend in this process. No device of the kind: an empty list and a note.
int ProveHere(const std::string& backend, bool json) {
  const Result<SelfTestReport> report = RunSelfTest(backend, BackendOptions{});
  const StatusCode code = report.status().code();
  const bool absent = code == StatusCode::kNotFound || code == StatusCode::kUnavailable;
  if (!report.ok() && !(json && absent)) return Fail(report.status());
  if (!json) {
    std::string refused;
    for (const auto& [feature, why] : report->refused)
      refused += "\nrefused: " + feature + ": " + why;
    return PrintOut(StrFormat("%s: %s\nproved: %s%s\nFP32 GEMM: %.1f GFLOP/s; took %.2f s\n",
                              report->backend.c_str(), report->description.c_str(),
                              StrJoin(report->features, ", ").c_str(), refused.c_str(),
                              report->gemm_gflops, report->seconds));
  }
  Json devices = Json::Array(), notes = Json::Array();
  if (report.ok()) devices.Append(DeviceJson(*report));
  if (!report.ok()) notes.Append(report.status().message());
  return PrintOut(DevicesJson(std::move(devices), std::move(notes)).Dump() + "\n");
}

// What CUDA_VISIBLE_DEVICES may name one by one.
std::vector<std::string> VisibleGpus() {
  const char* const named = std::getenv("CUDA_VISIBLE_DEVICES");
  if (named != nullptr && *named == '\0') return {};  // none is to be seen
  if (named != nullptr) return StrSplit(named, ',');
  std::vector<std::string> numbers;
  for (int i = 0; i < kMaxGpus; ++i) numbers.push_back(std::to_string(i));
  return numbers;
}

// The output of the self-test of one GPU: {"devices", "notes"}.
Result<Json> ProveGpu(const std::string& program, const std::string& visible,
                      const std::string& folder) {
  const std::string output_path = JoinPath(folder, "gpu.json"),
                    error_path = JoinPath(folder, "gpu.log");
  RETURN_IF_ERROR(RemoveTree(output_path));
  RETURN_IF_ERROR(RemoveTree(error_path));
  ProcessOptions options;
  options.argv = {program, "self-test", "--backend", kBackendCuda, "--json"};
  options.env = {{"CUDA_VISIBLE_DEVICES", visible}};
  options.stdout_path = output_path;
  options.stderr_path = error_path;
  ASSIGN_OR_RETURN(Process process, Process::Start(options));
  ASSIGN_OR_RETURN(const std::optional<ExitStatus> ended,
                   process.WaitFor(std::chrono::milliseconds(kGpuTimeoutMs)));
  if (!ended.has_value()) {
    RETURN_IF_ERROR(process.Signal(SIGKILL));
    RETURN_IF_ERROR(process.Wait().status());
    return DeadlineExceededError(
        StrFormat("its self-test did not end in %d s", kGpuTimeoutMs / 1000));
  }
  if (!ended->success()) {
    std::string errors(StrTrim(ReadFile(error_path, kMaxOutputBytes).value_or("")));
    errors.erase(0, errors.size() - std::min(errors.size(), kShownErrorBytes));
    return FailedPreconditionError("its self-test ended with " + ended->ToString() + ": " + errors);
  }
  ASSIGN_OR_RETURN(const std::string output, ReadFile(output_path, kMaxOutputBytes));
  return Json::Parse(output);
}

// Every GPU that passes, and why others are not offered. The first that is absent ends the list.
Status AddGpus(const std::string& program, Json* devices, Json* notes) {
  ASSIGN_OR_RETURN(const std::string folder, MakeTempDirectory("nibble-self-test"));
  bool any = false;
  const std::vector<std::string> gpus = VisibleGpus();
  if (gpus.empty()) notes->Append("no GPU slots: CUDA_VISIBLE_DEVICES is empty");
  for (const std::string& visible : gpus) {
    const Result<Json> proof = ProveGpu(program, visible, folder);
    if (!proof.ok()) {
      any = true;
      notes->Append("GPU " + visible + " is not offered: " + proof.status().message());
      continue;
    }
    const std::vector<Json>& found = (*proof)["devices"].items();
    if (found.empty()) {
      if (!any) notes->Append("no GPU slots: " + (*proof)["notes"].items().front().AsString());
      break;
    }
    any = true;
    Json device = found.front();
    device.Set("index", static_cast<int64_t>(devices->items().size()));
    device.Set("visible", visible);
    devices->Append(std::move(device));
  }
  return RemoveTree(folder);
}

}  // namespace

int SelfTestCommand(const std::vector<std::string>& args) {
  const Result<Args> parsed = Args::Parse(args, {{"backend"}, {"json", "help"}});
  if (!parsed.ok()) return UsageError(parsed.status(), "self-test ");
  if (parsed->Has("help")) return PrintOut(kSelfTestHelp);
  const bool json = parsed->Has("json");
  if (parsed->Has("backend")) return ProveHere(parsed->Text("backend"), json);
  if (!json) return ProveHere(kBackendCpu, false);
  const Result<SelfTestReport> cpu = RunSelfTest(kBackendCpu, BackendOptions{});
  if (!cpu.ok()) return Fail(cpu.status());
  Json devices = Json::Array(), notes = Json::Array();
  devices.Append(DeviceJson(*cpu));
  std::error_code error;
  const std::string program = std::filesystem::read_symlink("/proc/self/exe", error).string();
  const Status gpus = AddGpus(program, &devices, &notes);
  if (!gpus.ok()) notes.Append("no GPU slots: " + gpus.message());
  return PrintOut(DevicesJson(std::move(devices), std::move(notes)).Dump() + "\n");
}

}  // namespace nibble
