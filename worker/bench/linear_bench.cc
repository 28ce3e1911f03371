// SPDX-License-Identifier: Apache-2.0
//
// linear: one layer forward and backward under each recipe, all quantization in, against the three
// products by OpenBLAS and against our own fp32 recipe.
#include <cmath>
#include <utility>

#include "base/strings.h"
#include "kernels/linear.h"
#include "kernels/linear_product.h"
#include "worker/bench/bench.h"
#include "worker/bench/peers.h"
#include "worker/bench/timed_backend.h"

namespace nibble::bench {
namespace {

struct LinearShape {
  int64_t tokens = 0, in = 0, out = 0;
  double operations() const {
    return 6.0 * static_cast<double>(tokens) * static_cast<double>(in) * static_cast<double>(out);
  }
};

constexpr LinearShape kDefault[] = {{2048, 384, 1536}, {2048, 1536, 384}, {2048, 512, 2048},
                                    {2048, 768, 3072}, {2048, 3072, 768}, {4096, 1024, 2752}};
constexpr LinearShape kLarge[] = {{4096, 1024, 4096}, {4096, 4096, 1024}, {4096, 2048, 5504}};
// Those that are built in; the first one is the base of ratio_vs_fp32.
const char* const kRecipes[] = {"fp32", "bf16", "fp4_ms_paper", "fp4_fold4", "fp4_foldi8"};

Result<std::vector<LinearShape>> ChooseShapes(const Options& options) {
  std::vector<LinearShape> shapes;
  for (const std::string& text : options.shapes) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> sizes, ParseShape(text, 3));
    shapes.push_back({sizes[0], sizes[1], sizes[2]});
  }
  if (!shapes.empty()) return shapes;
  if (options.quick) return std::vector<LinearShape>{{32, 64, 128}};
  shapes.assign(std::begin(kDefault), std::end(kDefault));
  if (options.all) shapes.insert(shapes.end(), std::begin(kLarge), std::end(kLarge));
  return shapes;
}

struct Views {
  TensorView x, w, dy, y, dx, dw;
};

// One recipe's layer and where its time goes, a sample per round.
struct Layer {
  Layer(Backend* backend, const Recipe& r)
      : recipe(r),
        workspace(backend),
        input(&workspace, recipe.linear, 0),
        linear(&workspace, recipe.linear, 0) {}

  Recipe recipe;
  LinearWorkspace workspace;
  LinearInput input;
  QuantizedLinear linear;
  uint32_t round = 0;
  std::vector<double> forward, quantize, gemm;
};

// A fresh weight version each time, so W is quantized as after an optimizer step.
Result<Sample> RunLayer(const Views& v, TimedBackend& timer, ClockKind clock, Layer* layer) {
  LinearStep step;
  step.step = layer->round++;
  timer.Reset();
  const double cpu_start = NowSeconds(ClockKind::kProcessCpu);
  const double start = NowSeconds(clock);
  RETURN_IF_ERROR(layer->input.Set(step, v.x));
  RETURN_IF_ERROR(layer->linear.Forward(step, layer->input, v.w, layer->round, v.y));
  const double middle = NowSeconds(clock);
  RETURN_IF_ERROR(
      layer->linear.Backward(step, v.dy, layer->input, v.w, layer->round, v.dx, false, v.dw));
  const double end = NowSeconds(clock);
  const double gemm = timer.SecondsOf("gemm") + timer.SecondsOf("quantized_gemm");
  layer->forward.push_back(middle - start);
  layer->gemm.push_back(gemm);
  layer->quantize.push_back(end - start - gemm);
  return Sample{end - start, NowSeconds(ClockKind::kProcessCpu) - cpu_start};
}

class LinearRun {
 public:
  LinearRun(const Options& options, int threads, Report* report)
      : options_(options), threads_(threads), clock_(ClockFor(threads)), report_(*report) {}

  Status Shape(const LinearShape& shape, double seconds) {
    ASSIGN_OR_RETURN(const std::unique_ptr<Backend> cpu, CpuWithThreads(threads_));
    TimedBackend timer(cpu.get(), clock_);
    Tensors tensors(cpu.get());
    Views v;
    ASSIGN_OR_RETURN(v.x, tensors.MakeBell(1, 1.0f, shape.tokens, shape.in));
    ASSIGN_OR_RETURN(v.w, tensors.MakeBell(2, 0.05f, shape.out, shape.in));
    ASSIGN_OR_RETURN(v.dy, tensors.MakeBell(3, 1e-4f, shape.tokens, shape.out));
    ASSIGN_OR_RETURN(v.y, tensors.Make(shape.tokens, shape.out));
    ASSIGN_OR_RETURN(v.dx, tensors.Make(shape.tokens, shape.in));
    ASSIGN_OR_RETURN(v.dw, tensors.Make(shape.out, shape.in));
    std::vector<std::unique_ptr<Layer>> layers;
    ASSIGN_OR_RETURN(layers, MakeLayers(shape, timer, v));
    std::vector<Contestant> contestants;
    contestants.push_back({"openblas_fp32", Timed(clock_, [&] { return OpenBlas(shape, v); })});
    for (const std::unique_ptr<Layer>& layer : layers) {
      contestants.push_back({layer->recipe.name, [this, &v, &timer, one = layer.get()] {
                               return RunLayer(v, timer, clock_, one);
                             }});
    }
    Effort effort{seconds, options_.quick ? 2 : 3, options_.quick ? 2 : 60};
    RETURN_IF_ERROR(RunInterleaved(effort, contestants));
    AddRows(shape, *cpu, layers, contestants);
    return OkStatus();
  }

 private:
  // Layers that one trial shows to work.
  Result<std::vector<std::unique_ptr<Layer>>> MakeLayers(const LinearShape& shape,
                                                         TimedBackend& timer, const Views& v) {
    std::vector<std::string> names = options_.recipes;
    if (names.empty()) names.assign(std::begin(kRecipes), std::end(kRecipes));
    if (options_.all && options_.recipes.empty()) names = BuiltInRecipeNames();
    std::vector<std::unique_ptr<Layer>> layers;
    for (const std::string& name : names) {
      const Result<Recipe> recipe = FindRecipe(name);
      if (!recipe.ok() && !options_.recipes.empty()) return recipe.status();
      if (!recipe.ok()) {
        report_.Skip(name, "not a recipe of this build");
        continue;
      }
      auto layer = std::make_unique<Layer>(&timer, *recipe);
      const Result<Sample> trial = RunLayer(v, timer, clock_, layer.get());
      if (trial.ok()) {
        layer->forward.clear();
        layer->gemm.clear();
        layer->quantize.clear();
        layers.push_back(std::move(layer));
      } else {
        report_.Skip(
            StrFormat("%s %lldx%lldx%lld", name.c_str(), static_cast<long long>(shape.tokens),
                      static_cast<long long>(shape.in), static_cast<long long>(shape.out)),
            trial.status().message());
      }
    }
    return layers;
  }

  Status OpenBlas(const LinearShape& s, const Views& v) const {
    OpenBlasGemm({s.tokens, s.out, s.in}, false, true, v.x.f32(), v.w.f32(), 0.0f, v.y.f32(),
                 threads_);
    OpenBlasGemm({s.tokens, s.in, s.out}, false, false, v.dy.f32(), v.w.f32(), 0.0f, v.dx.f32(),
                 threads_);
    OpenBlasGemm({s.out, s.in, s.tokens}, true, false, v.dy.f32(), v.x.f32(), 1.0f, v.dw.f32(),
                 threads_);
    return OkStatus();
  }

  void AddRows(const LinearShape& shape, const Backend& backend,
               const std::vector<std::unique_ptr<Layer>>& layers,
               const std::vector<Contestant>& contestants) {
    const std::vector<double>* own_fp32 = nullptr;
    for (const Contestant& contestant : contestants) {
      if (contestant.name == "fp32") own_fp32 = &contestant.seconds;
    }
    for (size_t i = 0; i < contestants.size(); ++i) {
      const Contestant& contestant = contestants[i];
      Json row = Row(contestant.name,
                     Json::Object({{"tokens", shape.tokens}, {"in", shape.in}, {"out", shape.out}}),
                     threads_, contestant.seconds);
      row.Set("gops",
              Significant(shape.operations() * 1e-9 / Summarise(contestant.seconds).median));
      AddRatio("ratio_vs_openblas", contestants.front().seconds, contestant.seconds, &row);
      if (own_fp32 != nullptr) AddRatio("ratio_vs_fp32", *own_fp32, contestant.seconds, &row);
      if (i > 0) AddSplit(shape, backend, *layers[i - 1], &row);
      report_.Add(std::move(row));
    }
  }

  // RunInterleaved's warm-up is the first sample here.
  static Json Samples(const std::vector<double>& seconds) {
    return ToJson(Summarise({seconds.begin() + 1, seconds.end()}), 1e3);
  }

  static void AddSplit(const LinearShape& shape, const Backend& backend, const Layer& layer,
                       Json* row) {
    row->Set("forward_ms", Samples(layer.forward));
    row->Set("quantize_ms", Samples(layer.quantize));
    row->Set("gemm_ms", Samples(layer.gemm));
    const Result<LinearPaths> paths =
        PathsOf(backend, layer.recipe.linear, shape.tokens, shape.in, shape.out);
    if (!paths.ok()) return;
    for (const auto& [name, form] :
         {std::pair{"fprop", &paths->fprop}, {"dgrad", &paths->dgrad}, {"wgrad", &paths->wgrad}}) {
      row->Set(name, form->on_codes ? "codes" : "fp32");
    }
  }

  const Options& options_;
  int threads_;
  ClockKind clock_;
  Report& report_;
};

}  // namespace

Status LinearBench(const Options& options, Report* report) {
  const int threads = options.threads > 0 ? options.threads : 1;
  ASSIGN_OR_RETURN(const std::vector<LinearShape> shapes, ChooseShapes(options));
  LinearRun run(options, threads, report);
  // Time by the root of the work, so that small shapes get more rounds.
  double total = 0;
  for (const LinearShape& shape : shapes) total += std::sqrt(shape.operations());
  const double start = NowSeconds(ClockKind::kWall);
  double done = 0;
  for (const LinearShape& shape : shapes) {
    const double left = options.seconds - (NowSeconds(ClockKind::kWall) - start);
    // Test data and a trial come on top of the rounds.
    RETURN_IF_ERROR(run.Shape(shape, 0.8 * left * std::sqrt(shape.operations()) / (total - done)));
    done += std::sqrt(shape.operations());
  }
  return OkStatus();
}

}  // namespace nibble::bench
