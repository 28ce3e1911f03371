// SPDX-License-Identifier: Apache-2.0
#include "base/strings.h"
#include "kernels/cpu/cpu_features.h"
#include "worker/lab/lab_commands.h"
#include "worker/train/args.h"

namespace nibble {
namespace {

constexpr char kHelp[] = R"(usage: nibble-lab cpu [--json]

Shows which CPU kernels this machine gets, what else was considered, and why.
NIBBLE_CPU_ISA in the environment overrides the choice.

example: NIBBLE_CPU_ISA=avx2 nibble-lab cpu
)";

Json CapabilityJson(const cpu::CpuCapability& capability) {
  Json considered = Json::Array();
  for (const cpu::CpuCapability::Option& option : capability.considered) {
    considered.Append(Json::Object(
        {{"name", option.name}, {"usable", option.usable}, {"reason", option.reason}}));
  }
  return Json::Object({{"kernels", capability.name},
                       {"chosen", capability.chosen},
                       {"why", capability.why},
                       {"considered", std::move(considered)}});
}

std::string HumanText(const Json& capabilities) {
  std::string text;
  for (const Json& capability : capabilities.items()) {
    text += capability["kernels"].AsString() + ": " + capability["chosen"].AsString() + " (" +
            capability["why"].AsString() + ")\n";
    for (const Json& option : capability["considered"].items()) {
      text += StrFormat("  %-14s %s\n", option["name"].AsString().c_str(),
                        option["reason"].AsString().c_str());
    }
  }
  return text;
}

}  // namespace

Status LabCpuCommand(const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(const Args parsed, Args::Parse(args, {{}, {"json", "help"}}));
  if (parsed.Has("help")) return LabPrint(kHelp);
  ASSIGN_OR_RETURN(const std::vector<cpu::CpuCapability> capabilities, cpu::CpuCapabilities());
  Json json = Json::Array();
  for (const cpu::CpuCapability& capability : capabilities) {
    json.Append(CapabilityJson(capability));
  }
  return LabPrint(parsed.Has("json") ? json.Dump() + "\n" : HumanText(json));
}

}  // namespace nibble
