// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "base/strings.h"
#include "worker/lab/lab_args.h"
#include "worker/lab/lab_commands.h"
#include "worker/lab/layer.h"
#include "worker/lab/tensor_file.h"
#include "worker/train/args.h"

namespace nibble {
namespace {

constexpr char kHelp[] =
    R"(usage: nibble-lab linear --recipe R --in FILE --out FILE

Runs one linear layer forward and backward: Y = X W^T, dX = dY W, dW = dY^T X.

  --recipe R   built-in name, or YAML or JSON file
  --in FILE    safetensors with X (T, K), W (N, K) and dY (T, N), BF16 or F32
  --out FILE   safetensors with Y (T, N), dX (T, K) and dW (N, K) in F32
  --path P     fast (default): products on codes run on the kernels for codes; reference: the same
               sums in FP32 GEMMs; both give the same bits
  --seed S     of stochastic rounding and random signs (default 1234)
  --step N     optimizer step, from which they are drawn too (default 0)
  --threads N  0: one per usable core (default)
  --json       print JSON

example: nibble-lab linear --recipe fp4_ms_paper --in xwg.safetensors --out y.safetensors
)";

Result<LayerData> LoadLayer(const std::string& path) {
  ASSIGN_OR_RETURN(Matrix x, LoadMatrix(path, "X"));
  ASSIGN_OR_RETURN(Matrix w, LoadMatrix(path, "W"));
  ASSIGN_OR_RETURN(Matrix dy, LoadMatrix(path, "dY"));
  Result<LayerData> data = MakeLayer(std::move(x), std::move(w), std::move(dy));
  if (!data.ok()) return data.status().WithContext(path);
  return data;
}

Result<Support> ParsePath(const std::string& text) {
  if (text == "fast") return Support::kFast;
  if (text == "reference") return Support::kReference;
  return InvalidArgumentError(UnknownNameMessage("path", text, {"fast", "reference"}));
}

// How a product ran: on codes by the kernels for codes or by the same sums in FP32, or decoded.
Json GemmJson(const ProductForm& form, Support path, const GemmPrecision& precision) {
  const bool fast = form.on_codes && path == Support::kFast;
  return Json::Object({{"path", fast ? "fast" : "reference"},
                       {"operands", form.on_codes ? "codes" : "decoded"},
                       {"why_not_codes", form.reason},
                       {"precision", PrecisionClassName(precision.result)},
                       {"why_not_fp4", precision.reason}});
}

Json Report(const Recipe& recipe, const LayerData& data, const LinearPaths& paths, Support path) {
  const RecipePrecision precision = PrecisionOf(recipe.linear);
  return Json::Object({{"recipe", recipe.name},
                       {"tokens", data.x.rows},
                       {"in", data.x.cols},
                       {"out", data.w.rows},
                       {"fprop", GemmJson(paths.fprop, path, precision.fprop)},
                       {"dgrad", GemmJson(paths.dgrad, path, precision.dgrad)},
                       {"wgrad", GemmJson(paths.wgrad, path, precision.wgrad)}});
}

std::string HumanText(const Json& json) {
  std::string text = StrFormat(
      "%s: X (%lld, %lld), W (%lld, %lld)\n", json["recipe"].AsString().c_str(),
      static_cast<long long>(json["tokens"].AsInt()), static_cast<long long>(json["in"].AsInt()),
      static_cast<long long>(json["out"].AsInt()), static_cast<long long>(json["in"].AsInt()));
  for (const char* name : {"fprop", "dgrad", "wgrad"}) {
    const Json& gemm = json[name];
    const std::string& why = gemm["why_not_codes"].AsString();
    text += StrFormat("%s: %s path, operands %s%s; precision %s\n", name,
                      gemm["path"].AsString().c_str(), gemm["operands"].AsString().c_str(),
                      why.empty() ? "" : (" (" + why + ")").c_str(),
                      gemm["precision"].AsString().c_str());
  }
  return text;
}

}  // namespace

Status LabLinearCommand(const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(const Args parsed,
                   Args::Parse(args, {{"recipe", "in", "out", "path", "seed", "step", "threads"},
                                      {"json", "help"}}));
  if (parsed.Has("help")) return LabPrint(kHelp);
  for (const char* flag : {"recipe", "in", "out"}) {
    if (!parsed.Has(flag)) return InvalidArgumentError(StrFormat("--%s is missing", flag));
  }
  ASSIGN_OR_RETURN(const Recipe recipe, LoadRecipe(parsed.Text("recipe")));
  ASSIGN_OR_RETURN(const LinearStep step, ParseLinearStep(parsed));
  ASSIGN_OR_RETURN(const int64_t threads, parsed.Integer("threads", 0, 0, kMaxThreads));
  ASSIGN_OR_RETURN(const Support path, ParsePath(parsed.Text("path", "fast")));
  ASSIGN_OR_RETURN(LayerData data, LoadLayer(parsed.Text("in")));
  ASSIGN_OR_RETURN(const auto backend, MakeBackend("cpu", {static_cast<int>(threads), 0}));
  ASSIGN_OR_RETURN(const LinearPaths paths,
                   PathsOf(*backend, recipe.linear, data.x.rows, data.x.cols, data.w.rows));
  RETURN_IF_ERROR(RunLayer(backend.get(), recipe.linear, step, path, &data));
  RETURN_IF_ERROR(SaveTensors(parsed.Text("out"),
                              {OutputOf(data.y), OutputOf(data.dx), OutputOf(data.dw)},
                              {{"recipe", recipe.name}}));
  const Json report = Report(recipe, data, paths, path);
  return LabPrint(parsed.Has("json") ? report.Dump() + "\n" : HumanText(report));
}

}  // namespace nibble
