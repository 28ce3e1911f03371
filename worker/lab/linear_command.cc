// SPDX-License-Identifier: Apache-2.0
#include "base/strings.h"
#include "kernels/linear.h"
#include "worker/lab/lab_args.h"
#include "worker/lab/lab_commands.h"
#include "worker/lab/tensor_file.h"
#include "worker/train/args.h"

namespace nibble {
namespace {

constexpr char kHelp[] =
    R"(usage: nibble-lab linear --recipe R --in FILE --out FILE

Runs one linear layer forward and backward: Y = X W^T, dX = dY W, dW = dY^T X.

  --recipe R   built-in name or JSON file
  --in FILE    safetensors with X (T, K), W (N, K) and dY (T, N), BF16 or F32
  --out FILE   safetensors with Y (T, N), dX (T, K) and dW (N, K) in F32
  --seed S     of stochastic rounding and random signs (default 1234)
  --step N     optimizer step, from which they are drawn too (default 0)
  --threads N  0: one per usable core (default)
  --json       print JSON

example: nibble-lab linear --recipe fp4_ms_paper --in xwg.safetensors --out y.safetensors
)";

struct LayerData {
  Matrix x, w, dy;   // in
  Matrix y, dx, dw;  // out
};

Result<LayerData> LoadLayer(const std::string& path) {
  LayerData data;
  ASSIGN_OR_RETURN(data.x, LoadMatrix(path, "X"));
  ASSIGN_OR_RETURN(data.w, LoadMatrix(path, "W"));
  ASSIGN_OR_RETURN(data.dy, LoadMatrix(path, "dY"));
  if (data.x.cols != data.w.cols || data.dy.rows != data.x.rows || data.dy.cols != data.w.rows) {
    const auto shape = [](const Matrix& m) {
      return StrFormat("%s (%lld, %lld)", m.name.c_str(), static_cast<long long>(m.rows),
                       static_cast<long long>(m.cols));
    };
    return InvalidArgumentError(path + ": " + shape(data.x) + ", " + shape(data.w) + " and " +
                                shape(data.dy) +
                                " do not fit; expected X (T, K), W (N, K), dY (T, N)");
  }
  data.y = MakeMatrix("Y", data.x.rows, data.w.rows);
  data.dx = MakeMatrix("dX", data.x.rows, data.x.cols);
  data.dw = MakeMatrix("dW", data.w.rows, data.w.cols);
  return data;
}

Status RunLayer(Backend* backend, const LinearRecipe& recipe, const LinearStep& step,
                LayerData* data) {
  constexpr uint32_t kLayer = 0;  // of the random stream
  constexpr uint64_t kWeightVersion = 1;
  LinearWorkspace workspace(backend);
  LinearInput input(&workspace, recipe, kLayer);
  QuantizedLinear linear(&workspace, recipe, kLayer);
  RETURN_IF_ERROR(input.Set(step, data->x.view()));
  RETURN_IF_ERROR(linear.Forward(step, input, data->w.view(), kWeightVersion, data->y.view()));
  return linear.Backward(step, data->dy.view(), input, data->w.view(), kWeightVersion,
                         data->dx.view(), false, data->dw.view());
}

Json Report(const Recipe& recipe, const LayerData& data, const LinearPaths& paths) {
  const RecipePrecision precision = PrecisionOf(recipe.linear);
  const auto gemm = [](const ProductForm& form, const GemmPrecision& p) {
    return Json::Object({{"path", SupportName(form.support)},
                         {"precision", PrecisionClassName(p.result)},
                         {"reason", p.reason}});
  };
  return Json::Object({{"recipe", recipe.name},
                       {"tokens", data.x.rows},
                       {"in", data.x.cols},
                       {"out", data.w.rows},
                       {"fprop", gemm(paths.fprop, precision.fprop)},
                       {"dgrad", gemm(paths.dgrad, precision.dgrad)},
                       {"wgrad", gemm(paths.wgrad, precision.wgrad)}});
}

std::string HumanText(const Json& json) {
  std::string text = StrFormat(
      "%s: X (%lld, %lld), W (%lld, %lld)\n", json["recipe"].AsString().c_str(),
      static_cast<long long>(json["tokens"].AsInt()), static_cast<long long>(json["in"].AsInt()),
      static_cast<long long>(json["out"].AsInt()), static_cast<long long>(json["in"].AsInt()));
  for (const char* name : {"fprop", "dgrad", "wgrad"}) {
    const Json& gemm = json[name];
    const std::string& reason = gemm["reason"].AsString();
    text += StrFormat("%s: %s path, %s%s\n", name, gemm["path"].AsString().c_str(),
                      gemm["precision"].AsString().c_str(),
                      reason.empty() ? "" : (" (" + reason + ")").c_str());
  }
  return text;
}

}  // namespace

Status LabLinearCommand(const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(
      const Args parsed,
      Args::Parse(args, {{"recipe", "in", "out", "seed", "step", "threads"}, {"json", "help"}}));
  if (parsed.Has("help")) return LabPrint(kHelp);
  for (const char* flag : {"recipe", "in", "out"}) {
    if (!parsed.Has(flag)) return InvalidArgumentError(StrFormat("--%s is missing", flag));
  }
  ASSIGN_OR_RETURN(const Recipe recipe, LoadRecipe(parsed.Text("recipe")));
  ASSIGN_OR_RETURN(const LinearStep step, ParseLinearStep(parsed));
  ASSIGN_OR_RETURN(const int64_t threads, parsed.Integer("threads", 0, 0, kMaxThreads));
  ASSIGN_OR_RETURN(LayerData data, LoadLayer(parsed.Text("in")));
  ASSIGN_OR_RETURN(const auto backend, MakeBackend("cpu", {static_cast<int>(threads), 0}));
  ASSIGN_OR_RETURN(const LinearPaths paths,
                   PathsOf(*backend, recipe.linear, data.x.rows, data.x.cols, data.w.rows));
  RETURN_IF_ERROR(RunLayer(backend.get(), recipe.linear, step, &data));
  RETURN_IF_ERROR(SaveTensors(parsed.Text("out"),
                              {OutputOf(data.y), OutputOf(data.dx), OutputOf(data.dw)},
                              {{"recipe", recipe.name}}));
  const Json report = Report(recipe, data, paths);
  return LabPrint(parsed.Has("json") ? report.Dump() + "\n" : HumanText(report));
}

}  // namespace nibble
