// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <optional>

#include "base/strings.h"
#include "worker/lab/lab_args.h"
#include "worker/lab/lab_commands.h"
#include "worker/lab/operand.h"
#include "worker/train/args.h"

namespace nibble {
namespace {

constexpr char kHelp[] =
    R"(usage: nibble-lab quantize --recipe R --slot S --in FILE[:NAME] [--out FILE]

Takes one tensor through one operand slot and prints how well its codes stand for it.

  --recipe R       built-in name, or YAML or JSON file
  --slot S         Xf, Xw (tensor X (T, K)), Wf, Wd (W (N, K)), Gd or Gw (dY (T, N))
  --in FILE[:NAME] safetensors, BF16 or F32; NAME may be left out where there is one tensor
  --fold FILE[:NAME]  W for Gd, X for Gw, where the recipe folds its scales into the slot
  --out FILE       safetensors with codes, scales, decoded and what the format adds
  --seed S         of stochastic rounding and random signs (default 1234)
  --step N         optimizer step, from which they are drawn too (default 0)
  --threads N      0: one per usable core (default)
  --json           print JSON

example: nibble-lab quantize --recipe fp4_ms_paper --slot Xf --in x.safetensors:X
)";

struct Request {
  Recipe recipe;
  Slot slot = Slot::kXf;
  LinearStep step;
  TensorPlace in;
  std::optional<TensorPlace> fold;
  std::string out;
  int threads = 0;
};

Result<Request> ReadRequest(const Args& args) {
  for (const char* flag : {"recipe", "slot", "in"}) {
    if (!args.Has(flag)) return InvalidArgumentError(StrFormat("--%s is missing", flag));
  }
  Request request;
  ASSIGN_OR_RETURN(request.recipe, LoadRecipe(args.Text("recipe")));
  ASSIGN_OR_RETURN(request.slot, ParseSlot(args.Text("slot")));
  ASSIGN_OR_RETURN(request.step, ParseLinearStep(args));
  ASSIGN_OR_RETURN(const int64_t threads, args.Integer("threads", 0, 0, kMaxThreads));
  request.threads = static_cast<int>(threads);
  request.in = ParseTensorPlace(args.Text("in"));
  if (args.Has("fold")) request.fold = ParseTensorPlace(args.Text("fold"));
  request.out = args.Text("out");
  return request;
}

Json Report(const Request& request, const Matrix& x, const Operand& operand) {
  const QuantizationHealth& h = operand.health;
  const double elements = static_cast<double>(h.elements);
  return Json::Object({{"recipe", request.recipe.name},
                       {"slot", SlotName(request.slot)},
                       {"codes_of", SlotName(operand.holder)},
                       {"tensor", x.name},
                       {"shape", Json::Array({x.rows, x.cols})},
                       {"elem", ElemName(operand.quant.elem)},
                       {"block", BlockName(operand.quant.block, operand.quant.group)},
                       {"scale", ScaleName(operand.quant)},
                       {"round", RoundName(operand.quant.round)},
                       {"mse", h.mse},
                       {"snr_db", h.snr_db},
                       {"cosine", h.cosine},
                       {"underflow_ratio", h.underflow_share},
                       {"saturation_ratio", h.saturation_share},
                       {"nonfinite_amax", h.nonfinite_amax},
                       {"bits_per_element", 8.0 * static_cast<double>(h.size_bytes) / elements},
                       {"scale_min", h.scale_min},
                       {"scale_max", h.scale_max},
                       {"scale_histogram", ScaleHistogram(operand.scales)}});
}

std::string HumanText(const Json& json) {
  std::string text;
  for (const auto& [key, value] : json.members()) {
    if (key == "scale_histogram") continue;
    text += StrFormat("%-18s", key.c_str()) +
            (value.is_string() ? value.AsString() : value.Dump()) + "\n";
  }
  for (const Json& bin : json["scale_histogram"].items()) {
    text += bin["log2"].is_null() ? StrFormat("scales not positive and finite: %lld\n",
                                              static_cast<long long>(bin["count"].AsInt()))
                                  : StrFormat("scales from 2^%lld: %lld\n",
                                              static_cast<long long>(bin["log2"].AsInt()),
                                              static_cast<long long>(bin["count"].AsInt()));
  }
  return text;
}

}  // namespace

Status LabQuantizeCommand(const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(
      const Args parsed,
      Args::Parse(args, {{"recipe", "slot", "in", "fold", "out", "seed", "step", "threads"},
                         {"json", "help"}}));
  if (parsed.Has("help")) return LabPrint(kHelp);
  ASSIGN_OR_RETURN(const Request request, ReadRequest(parsed));
  ASSIGN_OR_RETURN(const Matrix x, LoadMatrix(request.in.path, request.in.name));
  std::optional<Matrix> other;
  if (request.fold.has_value()) {
    ASSIGN_OR_RETURN(other, LoadMatrix(request.fold->path, request.fold->name));
  }
  ASSIGN_OR_RETURN(const auto backend, MakeBackend("cpu", {request.threads, 0}));
  ASSIGN_OR_RETURN(const Operand operand,
                   QuantizeOperand(backend.get(), request.recipe.linear, request.slot, request.step,
                                   x, other.has_value() ? &*other : nullptr));
  if (!request.out.empty()) {
    RETURN_IF_ERROR(SaveTensors(request.out, operand.tensors, operand.metadata));
  }
  const Json report = Report(request, x, operand);
  return LabPrint(parsed.Has("json") ? report.Dump() + "\n" : HumanText(report));
}

Status LabPrint(const std::string& text) {
  const bool written = std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  return written ? OkStatus() : UnavailableError("stdout is closed");
}

}  // namespace nibble
