// SPDX-License-Identifier: Apache-2.0
//
// nibble-lab: what a recipe does to numbers, without a service and without training.
#include <cstdio>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/strings.h"
#include "worker/lab/lab_commands.h"

namespace nibble {
namespace {

constexpr char kHelp[] = R"(nibble-lab: what a recipe does to numbers

usage:
  nibble-lab quantize --recipe R --slot S --in FILE[:NAME]   one tensor through one slot
  nibble-lab linear --recipe R --in FILE --out FILE          Y, dX and dW of one linear layer
  nibble-lab table1 [--checkpoint DIR]                       E2M1 activations of a trained model
  nibble-lab cpu                                             kernels of this machine, and why
  nibble-lab estimate --model P --recipe R                   analytic speed-up over BF16
  nibble-lab COMMAND --help

A recipe is a built-in name or a JSON file. docs/reference/lab.md has every flag and format.

exit codes: 0 done, 1 failed, 2 wrong usage

example:
  nibble-lab quantize --recipe fp4_ms_paper --slot Xf --in x.safetensors:X --out q.safetensors
)";

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

struct Command {
  const char* name;
  Status (*run)(const std::vector<std::string>&);
};
constexpr Command kCommands[] = {{"quantize", &LabQuantizeCommand},
                                 {"linear", &LabLinearCommand},
                                 {"table1", &LabTable1Command},
                                 {"cpu", &LabCpuCommand},
                                 {"estimate", &LabEstimateCommand}};

int ExitCode(const Status& status, const std::string& command) {
  if (status.ok()) return 0;
  if (status.code() != StatusCode::kInvalidArgument) {
    std::fprintf(stderr, "nibble-lab: %s\n", status.ToString().c_str());
    return kExitFailed;
  }
  std::fprintf(stderr, "nibble-lab: %s\nsee: nibble-lab %s--help\n", status.message().c_str(),
               command.empty() ? "" : (command + " ").c_str());
  return kExitUsage;
}

int Run(const std::vector<std::string>& args) {
  if (args.empty()) {
    std::fputs(kHelp, stderr);
    return kExitUsage;
  }
  if (args[0] == "--help" || args[0] == "-h") return ExitCode(LabPrint(kHelp), "");
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    names.emplace_back(command.name);
    if (args[0] != command.name) continue;
    return ExitCode(command.run({args.begin() + 1, args.end()}), args[0]);
  }
  return ExitCode(InvalidArgumentError(UnknownNameMessage("command", args[0], names)), "");
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::SetLogComponent("lab");
  return nibble::Run({argv + 1, argv + argc});
}
