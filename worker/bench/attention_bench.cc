// SPDX-License-Identifier: Apache-2.0
//
// attention: causal attention forward and backward by sequence length and head size.
#include <utility>

#include "worker/bench/bench.h"
#include "worker/bench/machine.h"

namespace nibble::bench {
namespace {

struct AttentionShape {
  int64_t batch = 0, seq = 0, heads = 0, head_dim = 0;
  // One product of all heads, the half above the diagonal left out.
  double product() const { return static_cast<double>(batch * heads * seq * seq * head_dim); }
};

// About 2048 tokens of width 512 each, and one long sequence.
constexpr AttentionShape kDefault[] = {
    {8, 256, 6, 64},  {4, 512, 8, 64},  {2, 1024, 8, 64}, {1, 2048, 8, 64},
    {4, 512, 16, 32}, {4, 512, 4, 128}, {1, 4096, 8, 64},
};

Result<std::vector<AttentionShape>> ChooseShapes(const Options& options) {
  std::vector<AttentionShape> shapes;
  for (const std::string& text : options.shapes) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> sizes, ParseShape(text, 4));
    shapes.push_back({sizes[0], sizes[1], sizes[2], sizes[3]});
  }
  if (!shapes.empty()) return shapes;
  if (options.quick) return std::vector<AttentionShape>{{1, 32, 2, 16}};
  shapes.assign(std::begin(kDefault), std::end(kDefault));
  return shapes;
}

// Forward has two products (scores, output), backward five (scores again, dP, dV, dQ, dK).
constexpr double kForwardProducts = 2, kBackwardProducts = 5;

Status RunShape(const AttentionShape& s, int threads, const Effort& effort, double peak_gflops,
                Report* report) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, CpuWithThreads(threads));
  Tensors tensors(backend.get());
  const int64_t tokens = s.batch * s.seq;
  const int64_t width = s.heads * s.head_dim;
  TensorView x[4], out[4];
  for (uint32_t i = 0; i < 4; ++i) {
    ASSIGN_OR_RETURN(x[i], tensors.MakeBell(i, 1.0f, tokens, width));  // q, k, v, dout
    ASSIGN_OR_RETURN(out[i], tensors.Make(tokens, width));             // out, dq, dk, dv
  }
  ASSIGN_OR_RETURN(const TensorView lse, tensors.Make(s.batch * s.heads, s.seq));
  std::vector<Contestant> contestants;
  for (const GemmMode mode : {GemmMode::kF32, GemmMode::kBf16}) {
    const AttentionParams params{s.batch, s.seq, s.seq, s.heads, s.heads, s.head_dim, mode};
    const std::string suffix = mode == GemmMode::kF32 ? "_fp32" : "_bf16";
    contestants.push_back({"forward" + suffix, Timed(ClockFor(threads), [&, params] {
                             return backend->AttentionForward(params, x[0], x[1], x[2], out[0],
                                                              lse);
                           })});
    contestants.push_back({"backward" + suffix, Timed(ClockFor(threads), [&, params] {
                             return backend->AttentionBackward(params, x[3], x[0], x[1], x[2],
                                                               out[0], lse, out[1], out[2], out[3]);
                           })});
  }
  RETURN_IF_ERROR(RunInterleaved(effort, contestants));
  for (const Contestant& contestant : contestants) {
    Json row =
        Row(contestant.name,
            Json::Object(
                {{"batch", s.batch}, {"seq", s.seq}, {"heads", s.heads}, {"head_dim", s.head_dim}}),
            threads, contestant.seconds);
    const bool forward = contestant.name.starts_with("forward");
    const double gflops = (forward ? kForwardProducts : kBackwardProducts) * s.product() * 1e-9 /
                          Summarise(contestant.seconds).median;
    row.Set("gflops", Significant(gflops));
    row.Set("share_of_fp32_peak", Significant(gflops / peak_gflops, 3));
    report->Add(std::move(row));
  }
  return OkStatus();
}

}  // namespace

Status AttentionBench(const Options& options, Report* report) {
  ASSIGN_OR_RETURN(const std::vector<AttentionShape> shapes, ChooseShapes(options));
  std::vector<int> thread_counts = {1, 2};
  if (options.threads > 0) thread_counts = {options.threads};
  if (options.quick && options.threads == 0) thread_counts = {1};
  const double share =
      0.7 * options.seconds / static_cast<double>(shapes.size() * thread_counts.size());
  const Effort effort{share, options.quick ? 2 : 3, options.quick ? 2 : 60};
  for (const int threads : thread_counts) {
    const double peak = MeasureFp32PeakGflops(threads, options.isa == "avx2");
    for (const AttentionShape& shape : shapes) {
      RETURN_IF_ERROR(RunShape(shape, threads, effort, peak, report));
    }
  }
  return OkStatus();
}

}  // namespace nibble::bench
