// SPDX-License-Identifier: Apache-2.0
//
// quantize: every distinct quantizer of the chosen recipes against a copy of the same FP32 bytes.
#include <cstring>
#include <utility>

#include "base/strings.h"
#include "worker/bench/bench.h"

namespace nibble::bench {
namespace {

const char* const kRecipes[] = {"te_fp8_current", "fp4_direct",   "fp4_ms_paper",
                                "fp4_fold4",      "fp4_foldi8",   "mxfp4_plain",
                                "nvfp4_te",       "te_fp8_block", "quartet"};

struct Case {
  std::string name;  // "fp4_ms_paper Xf"
  Quant quant;
  Slot slot;
};

// The axis the slot's GEMM sums over, of the tensor as it is stored.
Axis ContractionOf(Slot slot) {
  const bool rows = slot == Slot::kWd || slot == Slot::kGw || slot == Slot::kXw;
  return rows ? Axis::kRows : Axis::kCols;
}

Result<std::vector<Case>> ChooseCases(const Options& options, Report* report) {
  std::vector<std::string> names = options.recipes;
  if (names.empty()) names.assign(std::begin(kRecipes), std::end(kRecipes));
  if (options.all && options.recipes.empty()) names = BuiltInRecipeNames();
  std::vector<Case> cases;
  for (const std::string& name : names) {
    const Result<Recipe> recipe = FindRecipe(name);
    if (!recipe.ok() && !options.recipes.empty()) return recipe.status();
    if (!recipe.ok()) {
      report->Skip(name, "not a recipe of this build");
      continue;
    }
    for (int i = 0; i < kSlotCount; ++i) {
      const Slot slot = static_cast<Slot>(i);
      const Quant& quant = recipe->linear.slot(slot);
      if (!quant.has_scale() || quant.source == Source::kReuse) continue;
      bool known = false;
      for (const Case& other : cases) {
        known |= other.quant == quant && ContractionOf(other.slot) == ContractionOf(slot);
      }
      if (!known) cases.push_back({name + " " + SlotName(slot), quant, slot});
    }
  }
  return cases;
}

std::string Describe(const Quant& quant) {
  std::string text = ElemName(quant.elem) + " " + BlockName(quant.block, quant.group);
  text += " " + ScaleName(quant) + " " + RoundName(quant.round);
  if (quant.rotation.size > 0) text += StrFormat(" rotated %d", quant.rotation.size);
  if (quant.pre.enabled) text += StrFormat(" clamped %g", quant.pre.alpha);
  return text;
}

}  // namespace

Status QuantizeBench(const Options& options, Report* report) {
  const int threads = options.threads > 0 ? options.threads : 1;
  const ClockKind clock = ClockFor(threads);
  int64_t rows = options.quick ? 32 : 2048;
  int64_t cols = options.quick ? 128 : 2048;
  if (options.shapes.size() > 1) return InvalidArgumentError("quantize takes one shape, RxC");
  if (!options.shapes.empty()) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> sizes, ParseShape(options.shapes[0], 2));
    rows = sizes[0];
    cols = sizes[1];
  }
  ASSIGN_OR_RETURN(const std::vector<Case> cases, ChooseCases(options, report));
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, CpuWithThreads(threads));
  Tensors tensors(backend.get());
  ASSIGN_OR_RETURN(const TensorView x, tensors.MakeBell(1, 1.0f, rows, cols));
  ASSIGN_OR_RETURN(const TensorView copy, tensors.Make(rows, cols));
  std::vector<Contestant> contestants;
  contestants.push_back({"memcpy", Timed(clock, [&] {
                           std::memcpy(copy.data, x.data, static_cast<size_t>(x.size_bytes()));
                           return OkStatus();
                         })});
  std::vector<std::unique_ptr<QuantizedTensor>> outputs;
  std::vector<std::string> formats = {"fp32"};
  for (const Case& one : cases) {
    outputs.push_back(std::make_unique<QuantizedTensor>());
    QuantizeContext context;
    context.contraction = ContractionOf(one.slot);
    const auto quantize = [&backend, &x, context, quant = one.quant, out = outputs.back().get()] {
      return backend->Quantize(quant, context, x, out, TensorView{});
    };
    const Status trial = quantize();
    if (!trial.ok()) {
      report->Skip(one.name, trial.message());
      continue;
    }
    contestants.push_back({one.name, Timed(clock, quantize)});
    formats.push_back(Describe(one.quant));
  }
  const Effort effort{0.9 * options.seconds, options.quick ? 2 : 3, options.quick ? 2 : 60};
  RETURN_IF_ERROR(RunInterleaved(effort, contestants));
  for (size_t i = 0; i < contestants.size(); ++i) {
    Json row = Row(contestants[i].name, Json::Object({{"rows", rows}, {"cols", cols}}), threads,
                   contestants[i].seconds);
    const double median = Summarise(contestants[i].seconds).median;
    row.Set("quantizer", formats[i]);
    row.Set("source_gb_per_s", Significant(static_cast<double>(x.size_bytes()) * 1e-9 / median));
    row.Set("ns_per_element", Significant(1e9 * median / static_cast<double>(x.size())));
    AddRatio("ratio_vs_copy", contestants[0].seconds, contestants[i].seconds, &row);
    report->Add(std::move(row));
  }
  return OkStatus();
}

}  // namespace nibble::bench
