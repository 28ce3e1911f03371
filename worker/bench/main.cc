// SPDX-License-Identifier: Apache-2.0
//
// nibble-bench: what this machine does with the kernels, and what other libraries do beside them.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/strings.h"
#include "worker/bench/bench.h"
#include "worker/bench/machine.h"
#include "worker/train/args.h"

namespace nibble::bench {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

constexpr char kHelp[] =
    R"(nibble-bench: times the CPU kernels and the training step beside their peers

usage:
  nibble-bench gemm       products on codes; OpenBLAS FP32, oneDNN FP32 and int8
  nibble-bench linear     a linear layer forward and backward under each recipe; OpenBLAS FP32
  nibble-bench quantize   every quantizer; a copy of the same bytes
  nibble-bench attention  causal attention forward and backward
  nibble-bench step       whole training steps; our own fp32, PyTorch where python3 has it

flags:
  --json           one JSON object {"results": [...], "machine": {...}} instead of a table
  --threads N      1 for gemm, linear and quantize, 1 and 2 for attention, two for step
  --seconds S      wall time of the whole run, roughly (default 45)
  --shapes A,B     gemm MxNxK, linear TOKENSxINxOUT, quantize RxC, attention BATCHxSEQxHEADSxDIM
  --recipes A,B    of linear, quantize and step
  --models A,B     of step: d384-v4096, d384-v32000, llama2-60m
  --health         of step: each recipe also with quantization health sampled, and its share
  --all            every shape, model and recipe; takes minutes
  --isa avx2       everything, peers included, without AVX-512
  --no-peers       our own code only
  --quick          tiny shapes: shows that it runs, measures nothing

Contestants take turns; ratios are medians over the rounds of same-round ratios. With one thread
times are processor time, with more wall time. docs/performance/cpu.md explains the figures.

exit codes: 0 measured, 1 failed, 2 wrong usage

example:
  nibble-bench gemm --json
  nibble-bench linear --shapes 2048x768x3072 --recipes fp32,fp4_fold4
)";

std::vector<std::string> List(const Args& args, const std::string& name) {
  return args.Has(name) ? StrSplit(args.Text(name), ',') : std::vector<std::string>{};
}

Result<Options> ParseOptions(const Args& args) {
  Options options;
  ASSIGN_OR_RETURN(const int64_t threads, args.Integer("threads", 0, 0, kMaxThreads));
  options.threads = static_cast<int>(threads);
  ASSIGN_OR_RETURN(options.seconds, args.Real("seconds", options.seconds, 0.01, 86400));
  options.quick = args.Has("quick");
  options.all = args.Has("all");
  options.health = args.Has("health");
  options.with_peers = !args.Has("no-peers");
  options.isa = args.Text("isa", options.isa);
  options.shapes = List(args, "shapes");
  options.recipes = List(args, "recipes");
  options.models = List(args, "models");
  return options;
}

// Libraries read these variables when they are loaded, so the program starts itself once more.
Status RestartWith(const std::string& isa, char** argv) {
  ASSIGN_OR_RETURN(const auto variables, EnvironmentFor(isa));
  bool changed = false;
  for (const auto& [name, value] : variables) {
    const char* const now = std::getenv(name.c_str());
    if (now != nullptr && value == now) continue;
    if (::setenv(name.c_str(), value.c_str(), 1) != 0) return ErrnoError(errno, "setenv " + name);
    changed = true;
  }
  if (changed) ::execv("/proc/self/exe", argv);
  return changed ? ErrnoError(errno, "restart of /proc/self/exe") : OkStatus();
}

int Usage(const Status& status) {
  std::fprintf(stderr, "nibble-bench: %s\nsee nibble-bench --help\n", status.message().c_str());
  return kExitUsage;
}

Status RunBenchmark(const std::string& name, const Options& options, Report* report) {
  if (name == "gemm") return GemmBench(options, report);
  if (name == "linear") return LinearBench(options, report);
  if (name == "quantize") return QuantizeBench(options, report);
  if (name == "attention") return AttentionBench(options, report);
  return StepBench(options, report);
}

int Main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty() || words[0] == "--help" || words[0] == "-h") {
    std::fputs(kHelp, words.empty() ? stderr : stdout);
    return words.empty() ? kExitUsage : 0;
  }
  const std::string& name = words[0];
  const std::vector<std::string> known = {"gemm", "linear", "quantize", "attention", "step"};
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    return Usage(InvalidArgumentError(UnknownNameMessage("benchmark", name, known)));
  }
  const Result<Args> args =
      Args::Parse({words.begin() + 1, words.end()},
                  {{"threads", "seconds", "shapes", "recipes", "models", "isa"},
                   {"json", "all", "quick", "health", "no-peers", "help"}});
  if (!args.ok()) return Usage(args.status());
  if (args->Has("help")) return std::fputs(kHelp, stdout) < 0 ? kExitFailed : 0;
  const Result<Options> options = ParseOptions(*args);
  if (!options.ok()) return Usage(options.status());
  const Status restarted = RestartWith(options->isa, argv);
  if (!restarted.ok()) return Usage(restarted);

  Json machine = DescribeMachine();
  Report report;
  const double start = NowSeconds(ClockKind::kWall);
  const Status status = RunBenchmark(name, *options, &report);
  if (!status.ok()) {
    std::fprintf(stderr, "nibble-bench: %s\n", status.ToString().c_str());
    return status.code() == StatusCode::kInvalidArgument ? kExitUsage : kExitFailed;
  }
  machine.Set("wall_seconds", Significant(NowSeconds(ClockKind::kWall) - start, 3));
  const std::string text = args->Has("json") ? report.ToJson(name, *options, machine).Dump(1) + "\n"
                                             : report.ToText(machine);
  return std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0 ? kExitFailed : 0;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  nibble::SetLogComponent("bench");
  return nibble::bench::Main(argc, argv);
}
