// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "base/strings.h"
#include "worker/lab/cpu_rates.h"
#include "worker/lab/lab_args.h"
#include "worker/lab/lab_commands.h"
#include "worker/lab/speedup.h"

namespace nibble {
namespace {

constexpr char kHelp[] =
    R"(usage: nibble-lab estimate --model P --recipe R

Counts operations: the speed-up over BF16 as published with arXiv 2501.17116, and with the
precision that each GEMM of the recipe really has.

  --model P      llama2-9m, llama2-60m, ... llama2-13b
  --recipe R     built-in name, or YAML or JSON file
  --seq N        tokens of a sequence (default 2048)
  --device D     h100, b200 (default: both), or cpu: this machine, whose rate on codes is measured
  --threads N    of cpu; 0: one per usable core (default)
  --json         print JSON

example: nibble-lab estimate --model llama2-7b --recipe fp4_ms_paper
)";

constexpr int64_t kMaxSeq = 1 << 20;
constexpr char kErratum[] =
    "the published 2.95 needs 48(1-a)h, a residual multiplied at the BF16 rate; the printed "
    "formula has 24(1-a)h, a residual at the FP8 rate, and gives 3.03";

Json PublishedJson(const ModelConfig& model, int64_t seq, double alpha) {
  const PublishedSpeedup s =
      CountAsPublished(static_cast<double>(model.hidden_size), static_cast<double>(seq), alpha);
  return Json::Object({{"hidden", model.hidden_size},
                       {"seq", seq},
                       {"alpha", alpha},
                       {"fp4", s.fp4},
                       {"fp8", s.fp8},
                       {"fp4_with_overhead", s.fp4_with_overhead},
                       {"fp4_residual_in_bf16", s.fp4_residual_in_bf16},
                       {"note", kErratum}});
}

Json CountedJson(const ModelConfig& model, int64_t seq, const Recipe& recipe,
                 const DeviceRates& device) {
  const CountedSpeedup counted = CountForRecipe(model, seq, recipe, device);
  Json items = Json::Array();
  for (const WorkItem& item : counted.items) {
    items.Append(Json::Object({{"work", item.name},
                               {"flops_per_token", item.flops_per_token},
                               {"rate", item.mean_rate},
                               {"time_share", item.seconds_share}}));
  }
  return Json::Object({{"device", device.name},
                       {"rates", Json::Object({{"fp32", device.fp32},
                                               {"bf16", device.bf16},
                                               {"fp8", device.fp8},
                                               {"fp4", device.fp4}})},
                       {"basis", device.basis},
                       {"speedup", counted.speedup},
                       {"work", std::move(items)}});
}

Json GemmJson(const GemmPrecision& p) {
  return Json::Object({{"precision", PrecisionClassName(p.result)}, {"reason", p.reason}});
}

std::string HumanText(const Json& json) {
  const Json& published = json["published"];
  std::string text = StrFormat(
      "as published (every GEMM FP4): %.2f, with clamping and DGE %.2f (%.2f with a BF16 "
      "residual: the published 2.95 is an erratum); FP8: %.2f\n",
      published["fp4"].AsDouble(), published["fp4_with_overhead"].AsDouble(),
      published["fp4_residual_in_bf16"].AsDouble(), published["fp8"].AsDouble());
  for (const auto& [name, gemm] : json["gemms"].members()) {
    const std::string& reason = gemm["reason"].AsString();
    text += name + " " + gemm["precision"].AsString() +
            (reason.empty() ? "" : " (" + reason + ")") + "\n";
  }
  for (const Json& device : json["counted"].items()) {
    text += StrFormat("%s: %.2f times BF16 (%s)\n", device["device"].AsString().c_str(),
                      device["speedup"].AsDouble(), device["basis"].AsString().c_str());
    for (const Json& item : device["work"].items()) {
      text +=
          StrFormat("  %-12s rate %.2f, %5.1f %% of the time\n", item["work"].AsString().c_str(),
                    item["rate"].AsDouble(), 100 * item["time_share"].AsDouble());
    }
  }
  return text;
}

Result<std::vector<DeviceRates>> DevicesOf(const std::string& name, Backend* backend) {
  if (name.empty()) return KnownDevices();
  std::vector<std::string> names = {"cpu"};
  if (name == names[0]) {
    ASSIGN_OR_RETURN(DeviceRates rates, MeasureCpuRates(backend));
    return std::vector<DeviceRates>{std::move(rates)};
  }
  for (const DeviceRates& device : KnownDevices()) {
    names.push_back(device.name);
    if (device.name == name) return std::vector<DeviceRates>{device};
  }
  return InvalidArgumentError(UnknownNameMessage("device", name, names));
}

}  // namespace

Status LabEstimateCommand(const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(
      const Args parsed,
      Args::Parse(args, {{"model", "recipe", "seq", "device", "threads"}, {"json", "help"}}));
  if (parsed.Has("help")) return LabPrint(kHelp);
  for (const char* flag : {"model", "recipe"}) {
    if (!parsed.Has(flag)) return InvalidArgumentError(StrFormat("--%s is missing", flag));
  }
  ASSIGN_OR_RETURN(const ModelConfig model, ModelPreset(parsed.Text("model")));
  ASSIGN_OR_RETURN(const Recipe recipe, LoadRecipe(parsed.Text("recipe")));
  ASSIGN_OR_RETURN(const int64_t seq, parsed.Integer("seq", 2048, 1, kMaxSeq));
  ASSIGN_OR_RETURN(const int64_t threads, parsed.Integer("threads", 0, 0, kMaxThreads));
  ASSIGN_OR_RETURN(const auto backend, MakeBackend("cpu", {static_cast<int>(threads), 0}));
  ASSIGN_OR_RETURN(const std::vector<DeviceRates> devices,
                   DevicesOf(parsed.Text("device"), backend.get()));
  const Occ& occ = recipe.linear.Resolved(Slot::kXf).pre;
  constexpr double kPublishedAlpha = 0.99;
  const RecipePrecision p = PrecisionOf(recipe.linear);
  Json counted = Json::Array();
  for (const DeviceRates& device : devices) {
    counted.Append(CountedJson(model, seq, recipe, device));
  }
  const Json report = Json::Object(
      {{"model", model.preset},
       {"recipe", recipe.name},
       {"published", PublishedJson(model, seq, occ.enabled ? occ.alpha : kPublishedAlpha)},
       {"gemms", Json::Object({{"fprop", GemmJson(p.fprop)},
                               {"dgrad", GemmJson(p.dgrad)},
                               {"wgrad", GemmJson(p.wgrad)}})},
       {"counted", std::move(counted)}});
  return LabPrint(parsed.Has("json") ? report.Dump() + "\n" : HumanText(report));
}

}  // namespace nibble
