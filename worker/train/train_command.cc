// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include "base/log.h"
#include "worker/train/args.h"
#include "worker/train/commands.h"
#include "worker/train/stop_signal.h"
#include "worker/train/training_run.h"

namespace nibble {
namespace {

constexpr int64_t kTerminalIntervalMs = 1'000;
constexpr int64_t kLogIntervalMs = 10'000;

}  // namespace

int TrainCommand(const std::vector<std::string>& args) {
  const Result<Args> parsed = Args::Parse(args, {{"config", "dir", "backend"}, {"quiet", "help"}});
  if (!parsed.ok()) return UsageError(parsed.status(), "");
  if (parsed->Has("help")) {
    return PrintOut(
        "usage: nibble-trainer --config FILE [--dir DIR] [--backend cpu|cuda] [--quiet]\n"
        "example: nibble-trainer --config run.json --dir runs/first\n");
  }
  if (!parsed->Has("config")) return UsageError(InvalidArgumentError("--config is missing"), "");
  StopSignal::Install();
  Result<RunConfig> config = LoadRunConfig(parsed->Text("config"));
  if (!config.ok()) return Fail(config.status(), kExitUsage);
  config->run.dir = parsed->Text("dir", config->run.dir);
  config->run.backend = parsed->Text("backend", config->run.backend);
  if (config->run.backend != kBackendCpu && config->run.backend != kBackendCuda) {
    return UsageError(
        InvalidArgumentError("--backend is \"" + config->run.backend + "\"; expected cpu or cuda"),
        "");
  }
  if (config->run.dir.empty()) {
    return UsageError(InvalidArgumentError("neither --dir nor run.dir names a run folder"), "");
  }
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  ProgressPrinter progress(STDERR_FILENO, terminal ? kTerminalIntervalMs : kLogIntervalMs,
                           &Clock::Real());
  RunEnvironment environment;
  environment.stop_requested = &StopSignal::Requested;
  if (!parsed->Has("quiet")) environment.progress = &progress;
  TrainingRun run(*std::move(config), environment);
  const EndRecord end = run.Execute();
  const int code = TrainerExitCode(end.reason);
  if (code != 0 && environment.progress == nullptr)
    LogError("training ended", {{"reason", end.reason}, {"message", end.message}});
  return code;
}

}  // namespace nibble
