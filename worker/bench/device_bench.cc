// SPDX-License-Identifier: Apache-2.0
//
// nibble-device-bench: what the operations of a training step reach on one backend, at the shapes
// of a 7B layer, and whole steps of any model. Runs where nibble-bench does not: no OpenBLAS, any
// backend. Lines of JSON on stdout as they are measured: the device, then a row each.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "base/strings.h"
#include "kernels/backend.h"
#include "kernels/formats/philox.h"
#include "worker/bench/device_step_bench.h"
#include "worker/bench/measure.h"
#include "worker/train/args.h"

namespace nibble::bench {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;
constexpr int kRepeats = 8;                       // calls between two waits for the device
constexpr size_t kDraws = (size_t{1} << 20) - 3;  // rows of common widths begin at other places

struct Sizes {
  int64_t tokens, hidden, wide, seq, vocabulary;
  double seconds;  // of each operation
};
constexpr Sizes kLayer{8192, 4096, 11008, 2048, 32000, 1.0};
constexpr Sizes kQuick{64, 64, 128, 32, 100, 0.01};

// A row at once: what was measured stays if the program is stopped.
void Print(const Json& row) {
  std::printf("%s\n", row.Dump().c_str());
  std::fflush(stdout);
}

class DeviceBench {
 public:
  DeviceBench(Backend& backend, const Sizes& sizes) : backend_(backend), sizes_(sizes) {}

  Status Run() {
    RETURN_IF_ERROR(Copies());
    for (const auto& [n, k] : {std::pair{sizes_.hidden, sizes_.hidden},
                               {sizes_.wide, sizes_.hidden},
                               {sizes_.hidden, sizes_.wide}}) {
      RETURN_IF_ERROR(Products(n, k));
    }
    RETURN_IF_ERROR(Quantizers());
    for (const int64_t head_dim : {int64_t{64}, int64_t{128}}) {
      if (sizes_.hidden % head_dim == 0) RETURN_IF_ERROR(Attention(head_dim));
    }
    RETURN_IF_ERROR(Elementwise());
    return Embedding();
  }

 private:
  // A tensor of heavy-tailed random numbers, alive as long as this object: kDraws of them, again
  // and again.
  Result<TensorView> Random(int64_t rows, int64_t cols) {
    if (draws_.empty()) {
      draws_.resize(kDraws);
      for (size_t i = 0; i < draws_.size(); ++i) {
        const uint32_t word = formats::RandomWord(1, 0, 0, i);
        draws_[i] =
            static_cast<float>(static_cast<int32_t>(word)) * (word % 97 == 0 ? 0x1p-27f : 0x1p-31f);
      }
    }
    buffers_.push_back(std::make_unique<Buffer>());
    ASSIGN_OR_RETURN(const TensorView view, buffers_.back()->View(backend_, rows, cols));
    constexpr auto kEach = static_cast<int64_t>(kDraws);
    for (int64_t begin = 0; begin < view.size(); begin += kEach) {
      const int64_t count = std::min(kEach, view.size() - begin);
      RETURN_IF_ERROR(backend_.CopyIn(view.f32() + begin, draws_.data(), count * 4));
    }
    return view;
  }

  // Times `call`; `flops` and `bytes` of one call, 0 where they say nothing.
  Status Measure(const std::string& name, Json shape, double flops, double bytes,
                 const std::function<Status()>& call) {
    std::vector<Contestant> contestants;
    contestants.emplace_back(name, Timed(ClockKind::kWall, [&]() -> Status {
                               for (int i = 0; i < kRepeats; ++i) RETURN_IF_ERROR(call());
                               return backend_.Synchronize();
                             }));
    Effort effort;
    effort.seconds = sizes_.seconds;
    Json row = Json::Object({{"name", name}, {"shape", std::move(shape)}});
    const Status status = RunInterleaved(effort, contestants);
    if (!status.ok()) {
      Print(row.Set("skipped", status.message()));
      return OkStatus();
    }
    std::vector<double> seconds = contestants[0].seconds;
    for (double& value : seconds) value /= kRepeats;
    const double median = Summarise(seconds).median;
    row.Set("ms", ToJson(Summarise(seconds), 1e3));
    if (flops > 0) row.Set("tflops", Significant(flops / median * 1e-12));
    if (bytes > 0) row.Set("gb_per_s", Significant(bytes / median * 1e-9));
    Print(row);
    return OkStatus();
  }

  static Json ProductShape(int64_t m, int64_t n, int64_t k) {
    return Json::Object({{"m", m}, {"n", n}, {"k", k}});
  }
  static Json MatrixShape(TensorView x) {
    return Json::Object({{"rows", x.rows}, {"cols", x.cols}});
  }
  static Quant RowQuant(Elem elem, float max) {
    Quant quant;
    quant.elem = elem;
    quant.block = Block::kToken;
    quant.scale = ScaleRule::kF32;
    quant.scale_max = max;
    return quant;
  }

  Status Copies() {
    ASSIGN_OR_RETURN(const TensorView from, Random(sizes_.tokens, sizes_.hidden));
    ASSIGN_OR_RETURN(const TensorView to, Random(sizes_.tokens, sizes_.hidden));
    return Measure("copy", MatrixShape(from), 0, 2.0 * static_cast<double>(from.size_bytes()),
                   [&] { return backend_.Copy(to.data, from.data, from.size_bytes()); });
  }

  // y (tokens, n) = x (tokens, k) w (n, k)^T in BF16 and on codes; and as a folded input gradient.
  Status Products(int64_t n, int64_t k) {
    const int64_t m = sizes_.tokens;
    ASSIGN_OR_RETURN(const TensorView x, Random(m, k));
    ASSIGN_OR_RETURN(const TensorView w, Random(n, k));
    ASSIGN_OR_RETURN(const TensorView y, Random(m, n));
    const double flops =
        2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
    RETURN_IF_ERROR(Measure("gemm_bf16", ProductShape(m, n, k), flops, 0, [&] {
      return backend_.Gemm(GemmMode::kBf16, x, Transpose::kNo, w, Transpose::kYes, false, y);
    }));
    QuantizedTensor xq, wq, gq;
    RETURN_IF_ERROR(backend_.Quantize(RowQuant(Elem::kE2M1, 6), {}, x, &xq, {}));
    RETURN_IF_ERROR(backend_.Quantize(RowQuant(Elem::kE2M1, 6), {}, w, &wq, {}));
    QuantizedGemmParams forward;
    forward.transpose_b = Transpose::kYes;
    RETURN_IF_ERROR(Measure("gemm_codes_forward", ProductShape(m, n, k), flops, 0,
                            [&] { return backend_.QuantizedGemm(forward, xq, wq, y); }));
    QuantizeContext context;
    context.fold = &wq;
    RETURN_IF_ERROR(backend_.Quantize(RowQuant(Elem::kE4M3, 448), context, y, &gq, {}));
    QuantizedGemmParams backward;
    backward.fold_b = true;
    return Measure("gemm_codes_dgrad", ProductShape(m, k, n), flops, 0,
                   [&] { return backend_.QuantizedGemm(backward, gq, wq, x); });
  }

  Status Quantizers() {
    ASSIGN_OR_RETURN(const TensorView x, Random(sizes_.tokens, sizes_.hidden));
    QuantizedTensor rows, clamped;
    const auto elements = static_cast<double>(x.size());
    RETURN_IF_ERROR(Measure("quantize_e2m1_rows", MatrixShape(x), 0, 4.5 * elements, [&] {
      return backend_.Quantize(RowQuant(Elem::kE2M1, 6), {}, x, &rows, {});
    }));
    Quant quant = RowQuant(Elem::kE2M1, 6);
    quant.pre = {true, 0.99, OccScope::kTensor, OccComp::kWideE4M3};
    RETURN_IF_ERROR(Measure("quantize_e2m1_clamped", MatrixShape(x), 0, 4.5 * elements,
                            [&] { return backend_.Quantize(quant, {}, x, &clamped, {}); }));
    QuantizeContext turned;
    turned.contraction = Axis::kRows;
    Quant groups = RowQuant(Elem::kE2M1, 448);
    groups.block = Block::kGroup;
    groups.group = 16;
    groups.scale = ScaleRule::kNv;
    groups.round = Round::kTe8;
    QuantizedTensor grouped;
    RETURN_IF_ERROR(Measure("quantize_nvfp4", MatrixShape(x), 0, 4.6 * elements,
                            [&] { return backend_.Quantize(groups, {}, x, &grouped, {}); }));
    RETURN_IF_ERROR(Measure("quantize_nvfp4_turned", MatrixShape(x), 0, 4.6 * elements,
                            [&] { return backend_.Quantize(groups, turned, x, &grouped, {}); }));
    ASSIGN_OR_RETURN(const TensorView rotated, Random(sizes_.tokens, sizes_.hidden));
    groups.rotation = {16, Signs::kFixed};
    RETURN_IF_ERROR(Measure("quantize_nvfp4_rotated", MatrixShape(x), 0, 4.6 * elements, [&] {
      return backend_.QuantizeRotated(groups, turned, x, rotated, &grouped, {});
    }));
    Quant by_column = RowQuant(Elem::kE4M3, 448);
    by_column.block = Block::kOutputChannel;
    QuantizedTensor first, second;
    return Measure("quantize_gradient_twice", MatrixShape(x), 0, 6.0 * elements, [&] {
      return backend_.QuantizeBoth(RowQuant(Elem::kE4M3, 448), {}, by_column, turned, x, &first,
                                   &second);
    });
  }

  Status Attention(int64_t head_dim) {
    AttentionParams p;
    p.batch = sizes_.tokens / sizes_.seq;
    p.seq = p.kv_seq = sizes_.seq;
    p.heads = p.kv_heads = sizes_.hidden / head_dim;
    p.head_dim = head_dim;
    p.mode = GemmMode::kBf16;
    std::vector<TensorView> t;
    for (int i = 0; i < 8; ++i) {
      ASSIGN_OR_RETURN(t.emplace_back(), Random(sizes_.tokens, sizes_.hidden));
    }
    ASSIGN_OR_RETURN(const TensorView lse, Random(p.batch * p.heads, p.seq));
    // Two products over the causal half forward, five backward.
    const double flops = 2.0 * static_cast<double>(sizes_.tokens) *
                         static_cast<double>(sizes_.hidden) * static_cast<double>(sizes_.seq);
    const Json shape = Json::Object(
        {{"batch", p.batch}, {"seq", p.seq}, {"heads", p.heads}, {"head_dim", head_dim}});
    RETURN_IF_ERROR(Measure("attention_forward", shape, flops, 0, [&] {
      return backend_.AttentionForward(p, t[0], t[1], t[2], t[3], lse);
    }));
    return Measure("attention_backward", shape, 2.5 * flops, 0, [&] {
      return backend_.AttentionBackward(p, t[4], t[0], t[1], t[2], t[3], lse, t[5], t[6], t[7]);
    });
  }

  Status Elementwise() {
    std::vector<TensorView> t;
    for (int i = 0; i < 4; ++i) {
      ASSIGN_OR_RETURN(t.emplace_back(), Random(sizes_.tokens, sizes_.hidden));
    }
    ASSIGN_OR_RETURN(const TensorView weight, Random(1, sizes_.hidden));
    ASSIGN_OR_RETURN(const TensorView rstd, Random(1, sizes_.tokens));
    const Json shape = MatrixShape(t[0]);
    const auto tensor = static_cast<double>(t[0].size_bytes());
    RETURN_IF_ERROR(Measure("rms_norm_forward", shape, 0, 2 * tensor, [&] {
      return backend_.RmsNormForward(t[0], weight, 1e-5f, t[1], rstd);
    }));
    RETURN_IF_ERROR(Measure("add_rms_norm_forward", shape, 0, 4 * tensor, [&] {
      return backend_.AddRmsNormForward(t[0], t[1], weight, 1e-5f, t[2], t[3], rstd);
    }));
    RETURN_IF_ERROR(Measure("rms_norm_backward", shape, 0, 3 * tensor, [&] {
      return backend_.RmsNormBackward(t[2], t[0], weight, rstd, t[1], false, weight);
    }));
    RETURN_IF_ERROR(Measure("swiglu_forward", shape, 0, 3 * tensor,
                            [&] { return backend_.SwiGluForward(t[0], t[1], t[2]); }));
    return Optimizer(t);
  }

  // Gradient, moments and weight.
  Status Optimizer(const std::vector<TensorView>& t) {
    const Json shape = MatrixShape(t[0]);
    const auto elements = static_cast<double>(t[0].size());
    const AdamWParams adamw;
    RETURN_IF_ERROR(Measure("adamw", shape, 0, 28 * elements,
                            [&] { return backend_.AdamW(adamw, t[0], t[1], t[2], t[3]); }));
    const Quant quant = RowQuant(Elem::kE2M1, 6);
    QuantizedTensor codes;
    RETURN_IF_ERROR(Measure("adamw_quantize", shape, 0, 28.5 * elements, [&] {
      return backend_.AdamWQuantize(adamw, quant, {}, t[0], t[1], t[2], t[3], &codes);
    }));
    RETURN_IF_ERROR(Measure("gradient_norm", shape, 0, 4 * elements,
                            [&] { return backend_.SumOfSquares(t[0]).status(); }));
    PendingFactor factor{{}, t[3], &codes, t[0]};
    factor.estimator.kind = Estimator::kDge;
    return Measure("gradient_norm_with_dge", shape, 0, 12 * elements, [&] {
      return backend_.ScaledSumOfSquares({&factor, 1}, t[0]).status();
    });
  }

  // Ids as words come: few of them make up most of a text.
  Status Embedding() {
    std::vector<int32_t> ids(static_cast<size_t>(sizes_.tokens));
    std::vector<bool> seen(static_cast<size_t>(sizes_.vocabulary));
    double distinct = 0;
    for (size_t t = 0; t < ids.size(); ++t) {
      const double u = formats::RandomWord(2, 0, 0, t) * 0x1p-32;
      ids[t] = static_cast<int32_t>(u * u * u * u * static_cast<double>(sizes_.vocabulary));
      distinct += seen[static_cast<size_t>(ids[t])] ? 0 : 1;
      seen[static_cast<size_t>(ids[t])] = true;
    }
    ASSIGN_OR_RETURN(const TensorView dout, Random(sizes_.tokens, sizes_.hidden));
    ASSIGN_OR_RETURN(const TensorView dtable, Random(sizes_.vocabulary, sizes_.hidden));
    buffers_.push_back(std::make_unique<Buffer>());
    ASSIGN_OR_RETURN(const TensorView on_device,
                     buffers_.back()->View(backend_, 1, sizes_.tokens, DType::kI32));
    RETURN_IF_ERROR(backend_.CopyIn(on_device.data, ids.data(), on_device.size_bytes()));
    const double bytes =
        static_cast<double>(dout.size_bytes()) + 8 * distinct * static_cast<double>(sizes_.hidden);
    return Measure("embedding_backward", MatrixShape(dout), 0, bytes,
                   [&] { return backend_.EmbeddingBackward(on_device, dout, dtable); });
  }

  Backend& backend_;
  Sizes sizes_;
  std::vector<float> draws_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

constexpr char kUsage[] =
    R"(usage: nibble-device-bench [--backend cpu|cuda] [--quick]
       nibble-device-bench [--backend cpu|cuda] --config FILE [--recipes A,B] [--layers 1,2]
                           [--seconds S] [--shares]

Without --config: the operations of a step at the shapes of a 7B layer. With it: whole steps of the
model, data and schedule in FILE (docs/reference/job-spec.md), for each recipe and depth: time,
memory, and with --shares the time of each operation when each is waited for.

example: nibble-device-bench --backend cuda
)";

Result<StepCases> CasesOf(const Args& args) {
  StepCases cases;
  ASSIGN_OR_RETURN(const std::string text, ReadFile(args.Text("config")));
  ASSIGN_OR_RETURN(const Json json, Json::Parse(text));
  ASSIGN_OR_RETURN(cases.config, RunConfigFromJson(json));
  if (args.Has("recipes")) cases.recipes = StrSplit(args.Text("recipes"), ',');
  for (const std::string& word : StrSplit(args.Text("layers"), ',')) {
    if (word.empty()) continue;
    const Result<int64_t> layers = ParseInt(word);
    if (!layers.ok() || *layers < 1) {
      return InvalidArgumentError("--layers: '" + word + "' is no depth");
    }
    cases.layers.push_back(*layers);
  }
  ASSIGN_OR_RETURN(cases.seconds, args.Real("seconds", cases.seconds, 0, 600));
  cases.shares = args.Has("shares");
  return cases;
}

Status RunBench(const Args& args) {
  const std::string name = args.Text("backend", kBackendCuda);
  StepCases cases;
  if (args.Has("config")) {
    ASSIGN_OR_RETURN(cases, CasesOf(args));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeBackend(name, {}));
  Print(Json::Object(
      {{"backend", std::string(backend->name())}, {"device", backend->description()}}));
  if (!args.Has("config")) return DeviceBench(*backend, args.Has("quick") ? kQuick : kLayer).Run();
  backend.reset();  // each case has a device of its own
  return MeasureSteps(name, cases, Print);
}

int Main(const std::vector<std::string>& arguments) {
  const Result<Args> args = Args::Parse(
      arguments,
      {{"backend", "config", "recipes", "layers", "seconds"}, {"quick", "shares", "help"}});
  if (!args.ok() || args->Has("help")) {
    std::fprintf(stderr, "%s\n%s", args.ok() ? "" : args.status().message().c_str(), kUsage);
    return args.ok() ? 0 : kExitUsage;
  }
  const Status status = RunBench(*args);
  if (status.ok()) return 0;
  std::fprintf(stderr, "nibble-device-bench: %s\n", status.message().c_str());
  return kExitFailed;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  return nibble::bench::Main(std::vector<std::string>(argv + 1, argv + argc));
}
