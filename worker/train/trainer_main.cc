// SPDX-License-Identifier: Apache-2.0
//
// nibble-trainer: trains a model from a config file, without any service.
#include <cstdio>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/strings.h"
#include "worker/train/commands.h"

namespace {

constexpr char kHelp[] = R"(nibble-trainer: pretrains a LLaMA model in low precision

usage:
  nibble-trainer --config FILE [--dir DIR]   train (or go on after the newest checkpoint)
  nibble-trainer generate --checkpoint DIR --prompt TEXT
  nibble-trainer inspect --checkpoint DIR    verify a checkpoint and print what it holds
  nibble-trainer estimate --config FILE      parameters, FLOPs and memory before a run
  nibble-trainer self-test                   prove that this machine computes correctly
  nibble-trainer COMMAND --help

flags of training:
  --config FILE    run config (JSON); docs/reference/job-spec.md lists every key
  --dir DIR        run folder for journal and checkpoints; overrides run.dir of the config
  --backend NAME   cpu (the default) or cuda
  --quiet          no progress lines

Progress goes to stderr, the journal to DIR/journal.jsonl, checkpoints to DIR/checkpoints.
SIGTERM or Ctrl-C finishes the step, saves a checkpoint and ends with exit code 0; the same
command goes on from there.

exit codes: 0 completed or stopped as asked, 1 failed, 2 wrong usage or config, 10 diverged,
11 data unreadable, 12 checkpoint unreadable, 13 out of host memory

example:
  nibble-trainer --config run.json --dir runs/first
  nibble-trainer generate --checkpoint runs/first --prompt "Once upon a time" --tokens 100
)";

}  // namespace

int main(int argc, char** argv) {
  nibble::SetLogComponent("trainer");
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.empty()) {
    std::fputs(kHelp, stderr);
    return nibble::kExitUsage;
  }
  const std::string& first = args.front();
  if (first == "--help" || first == "-h") return nibble::PrintOut(kHelp);
  if (first.rfind("-", 0) == 0) return nibble::TrainCommand(args);
  const std::vector<std::string> rest(args.begin() + 1, args.end());
  if (first == "train") return nibble::TrainCommand(rest);
  if (first == "generate") return nibble::GenerateCommand(rest);
  if (first == "inspect") return nibble::InspectCommand(rest);
  if (first == "estimate") return nibble::EstimateCommand(rest);
  if (first == "self-test") return nibble::SelfTestCommand(rest);
  return nibble::UsageError(
      nibble::InvalidArgumentError(nibble::UnknownNameMessage(
          "command", first, {"train", "generate", "inspect", "estimate", "self-test"})),
      "");
}
