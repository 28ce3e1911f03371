// SPDX-License-Identifier: Apache-2.0
//
// gemm: Y (M, N) = A (M, K) B^T on codes, against FP32 by OpenBLAS and FP32 and int8 by oneDNN.
#include <array>
#include <cmath>
#include <utility>

#include "base/strings.h"
#include "worker/bench/bench.h"
#include "worker/bench/machine.h"
#include "worker/bench/packed_gemm.h"
#include "worker/bench/peers.h"

namespace nibble::bench {
namespace {

// E2M1 products against FP32 multiply-adds: bytes instead of words, so four times as many per
// vector at best. A figure above that is a mistake of the measurement.
constexpr double kOperationBound = 4.0;

// Both operands as recipe slots, so that the recipe's rules say what this build has.
struct Variant {
  const char* name;
  const char* left;
  const char* right;
  bool groups;
};

// Groups of 32 and 16 as MXFP4 and NVFP4 scale them.
constexpr Variant kVariants[] = {
    {"e2m1_x_e2m1", R"j({"elem":"e2m1","block":"tok","scale":"f32(6)"})j",
     R"j({"elem":"e2m1","block":"och","scale":"f32(6)"})j", false},
    {"int8_x_e2m1", R"j({"elem":"int8","block":"tok","scale":"f32(127)"})j",
     R"j({"elem":"e2m1","block":"och","scale":"f32(6)"})j", false},
    {"e2m1_group128", R"j({"elem":"e2m1","block":"1x128","scale":"f32(6)"})j",
     R"j({"elem":"e2m1","block":"1x128","scale":"f32(6)"})j", true},
    {"e2m1_group32_mxfp4", R"j({"elem":"e2m1","block":"1x32","scale":"e8f"})j",
     R"j({"elem":"e2m1","block":"1x32","scale":"e8f"})j", true},
    {"e2m1_group16_nvfp4", R"j({"elem":"e2m1","block":"1x16","scale":"nv"})j",
     R"j({"elem":"e2m1","block":"1x16","scale":"nv"})j", true},
};

constexpr GemmShape kDefault[] = {
    {512, 512, 512},   {1024, 1024, 1024}, {2048, 2048, 2048},
    {2048, 1536, 384}, {2048, 384, 1536},  {2048, 2048, 512},
    {2048, 3072, 768}, {2048, 768, 3072},  {4096, 2752, 1024},
};
constexpr GemmShape kLarge[] = {
    {4096, 4096, 4096}, {4096, 4096, 1024}, {4096, 1024, 4096}, {4096, 5504, 2048}};
constexpr GemmShape kGroupShapes[] = {{1024, 1024, 1024}, {2048, 2048, 2048}, {2048, 768, 3072}};

bool HasGroups(const GemmShape& shape) {
  for (const GemmShape& known : kGroupShapes) {
    if (known.m == shape.m && known.n == shape.n && known.k == shape.k) return true;
  }
  return false;
}

Result<std::vector<GemmShape>> ChooseShapes(const Options& options) {
  std::vector<GemmShape> shapes;
  for (const std::string& text : options.shapes) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> sizes, ParseShape(text, 3));
    shapes.push_back({sizes[0], sizes[1], sizes[2]});
  }
  if (!shapes.empty()) return shapes;
  if (options.quick) return std::vector<GemmShape>{{48, 32, 128}};
  shapes.assign(std::begin(kDefault), std::end(kDefault));
  if (options.all) shapes.insert(shapes.end(), std::begin(kLarge), std::end(kLarge));
  return shapes;
}

// The forward slots of a recipe that is BF16 otherwise.
Result<LinearRecipe> RecipeOf(const Variant& variant) {
  std::string text = R"j({"name":"bench","linear":{"Xf":)j";
  text += variant.left;
  text += R"j(,"Wf":)j";
  text += variant.right;
  for (const char* slot : {"Gd", "Wd", "Gw", "Xw"}) {
    text += StrFormat(R"j(,"%s":{"elem":"bf16"})j", slot);
  }
  ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipeText(text + "}}"));
  return recipe.linear;
}

// The operands of one shape; codes are made once, outside the timing.
struct Operands {
  TensorView a, b, out;
  std::array<QuantizedTensor, std::size(kVariants)> left, right;
  std::vector<std::unique_ptr<PackedGemm>> packed;
};

class GemmRun {
 public:
  GemmRun(const Options& options, int threads, double peak_gflops, Report* report)
      : options_(options), threads_(threads), peak_gflops_(peak_gflops), report_(*report) {}

  Status Shape(const GemmShape& shape, double seconds) {
    ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, CpuWithThreads(threads_));
    Tensors tensors(backend.get());
    Operands operands;
    ASSIGN_OR_RETURN(operands.a, tensors.MakeBell(1, 1.0f, shape.m, shape.k));
    ASSIGN_OR_RETURN(operands.b, tensors.MakeBell(2, 0.05f, shape.n, shape.k));
    ASSIGN_OR_RETURN(operands.out, tensors.Make(shape.m, shape.n));
    std::vector<Contestant> contestants;
    AddFp32(shape, *backend, operands, contestants);
    std::vector<std::unique_ptr<OneDnnGemm>> products;
    AddOneDnn(shape, operands, products, contestants);
    AddCodes(shape, *backend, operands, contestants);
    Effort effort{seconds, options_.quick ? 2 : 3, options_.quick ? 2 : 60};
    RETURN_IF_ERROR(RunInterleaved(effort, contestants)
                        .WithContext(StrFormat(
                            "gemm %lldx%lldx%lld", static_cast<long long>(shape.m),
                            static_cast<long long>(shape.n), static_cast<long long>(shape.k))));
    AddRows(shape, contestants);
    return OkStatus();
  }

 private:
  void AddFp32(const GemmShape& shape, Backend& backend, const Operands& o,
               std::vector<Contestant>& contestants) const {
    const ClockKind clock = ClockFor(threads_);
    const TensorView a = o.a, b = o.b, out = o.out;
    const auto openblas = [=, threads = threads_] {
      OpenBlasGemm(shape, false, true, a.f32(), b.f32(), 0.0f, out.f32(), threads);
      return OkStatus();
    };
    contestants.push_back({"openblas_fp32", Timed(clock, openblas)});
    Backend* const engine = &backend;
    contestants.push_back({"nibble_fp32", Timed(clock, [=] {
                             return engine->Gemm(GemmMode::kF32, a, Transpose::kNo, b,
                                                 Transpose::kYes, false, out);
                           })});
  }

  void AddOneDnn(const GemmShape& shape, const Operands& o,
                 std::vector<std::unique_ptr<OneDnnGemm>>& products,
                 std::vector<Contestant>& contestants) {
    if (!options_.with_peers) return;
    const auto add = [&](const char* name, Result<std::unique_ptr<OneDnnGemm>> made) {
      if (!made.ok()) return report_.Skip(name, made.status().message());
      OneDnnGemm* const product = made->get();
      products.push_back(std::move(made).value());
      contestants.push_back(
          {name, Timed(ClockFor(threads_), [product] { return product->Run(); })});
    };
    add("onednn_fp32", MakeOneDnnF32(shape, o.a.f32(), o.b.f32(), o.out.f32(), threads_));
    add("onednn_int8", MakeOneDnnInt8(shape, threads_));
  }

  // Whole calls (both operands at rest as 4-bit codes or bytes, packing included) and "_packed",
  // the product alone.
  void AddCodes(const GemmShape& shape, Backend& backend, Operands& o,
                std::vector<Contestant>& contestants) {
    QuantizedGemmParams params;
    params.transpose_b = Transpose::kYes;
    for (size_t v = 0; v < std::size(kVariants); ++v) {
      const Variant& variant = kVariants[v];
      const bool listed = options_.quick || options_.all || !options_.shapes.empty();
      if (variant.groups && !listed && !HasGroups(shape)) continue;
      const auto multiply = [params, out = o.out, left = &o.left[v], right = &o.right[v],
                             engine = &backend] {
        return engine->QuantizedGemm(params, *left, *right, out);
      };
      Status status = Quantize(variant, backend, o, &o.left[v], &o.right[v]);
      if (status.ok()) status = multiply();
      if (!status.ok()) {
        report_.Skip(variant.name, status.message());
        continue;
      }
      contestants.push_back({variant.name, Timed(ClockFor(threads_), multiply)});
      const std::string packed_name = std::string(variant.name) + "_packed";
      Result<std::unique_ptr<PackedGemm>> packed =
          PackedGemm::Make(&backend, threads_, o.left[v], o.right[v], o.out);
      if (!packed.ok()) {
        report_.Skip(packed_name, packed.status().message());
        continue;
      }
      contestants.push_back(
          {packed_name, Timed(ClockFor(threads_), [one = packed->get()] { return one->Run(); })});
      o.packed.push_back(std::move(packed).value());
    }
  }

  static Status Quantize(const Variant& variant, Backend& backend, const Operands& o,
                         QuantizedTensor* left, QuantizedTensor* right) {
    ASSIGN_OR_RETURN(const LinearRecipe recipe, RecipeOf(variant));
    RETURN_IF_ERROR(backend.Quantize(recipe.slot(Slot::kXf), {}, o.a, left, TensorView{}));
    return backend.Quantize(recipe.slot(Slot::kWf), {}, o.b, right, TensorView{});
  }

  void AddRows(const GemmShape& shape, const std::vector<Contestant>& contestants) {
    const std::vector<double>* int8 = nullptr;
    for (const Contestant& contestant : contestants) {
      if (contestant.name == "onednn_int8") int8 = &contestant.seconds;
    }
    for (const Contestant& contestant : contestants) {
      Json row =
          Row(contestant.name, Json::Object({{"m", shape.m}, {"n", shape.n}, {"k", shape.k}}),
              threads_, contestant.seconds);
      const double gops = shape.operations() * 1e-9 / Summarise(contestant.seconds).median;
      row.Set("gops", Significant(gops));
      row.Set("share_of_fp32_peak", Significant(gops / peak_gflops_, 3));
      AddRatio("ratio_vs_openblas", contestants.front().seconds, contestant.seconds, &row);
      if (int8 != nullptr) AddRatio("ratio_vs_onednn_int8", *int8, contestant.seconds, &row);
      const bool fp32 = contestant.name.ends_with("_fp32");
      const double bound = fp32 ? peak_gflops_ : kOperationBound * peak_gflops_;
      if (gops > bound) {
        row.Set("measurement_error",
                StrFormat("%.0f GOP/s are above the operation bound of %.0f", gops, bound));
      }
      report_.Add(std::move(row));
    }
  }

  const Options& options_;
  int threads_;
  double peak_gflops_;
  Report& report_;
};

}  // namespace

Status GemmBench(const Options& options, Report* report) {
  const int threads = options.threads > 0 ? options.threads : 1;
  ASSIGN_OR_RETURN(const std::vector<GemmShape> shapes, ChooseShapes(options));
  GemmRun run(options, threads, MeasureFp32PeakGflops(threads, options.isa == "avx2"), report);
  // Time by the root of the work, so that small shapes get more rounds.
  double total = 0;
  for (const GemmShape& shape : shapes) total += std::sqrt(shape.operations());
  const double start = NowSeconds(ClockKind::kWall);
  double done = 0;
  for (const GemmShape& shape : shapes) {
    const double left = options.seconds - (NowSeconds(ClockKind::kWall) - start);
    RETURN_IF_ERROR(run.Shape(shape, 0.85 * left * std::sqrt(shape.operations()) / (total - done)));
    done += std::sqrt(shape.operations());
  }
  return OkStatus();
}

}  // namespace nibble::bench
