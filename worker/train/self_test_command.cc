// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <thread>

#include "base/json.h"
#include "base/strings.h"
#include "kernels/self_test.h"
#include "worker/train/args.h"
#include "worker/train/commands.h"
#include "worker/train/host_memory.h"

namespace nibble {
namespace {

constexpr char kSelfTestHelp[] =
    R"(nibble-trainer self-test: proves that this machine computes what the recipes promise

  --json   one JSON object: devices [{index, kind, name, memory_bytes, threads, gflops, features}]

Checks number formats over all BF16 inputs, stochastic rounding, clamping, the gradient estimator
and quantized layers, in about a second. nibble-worker runs it before it registers.

exit codes: 0 passed, 1 failed (the message names the feature and the input), 2 wrong usage

example:
  nibble-trainer self-test
)";

}  // namespace

int SelfTestCommand(const std::vector<std::string>& args) {
  const Result<Args> parsed = Args::Parse(args, {{}, {"json", "help"}});
  if (!parsed.ok()) return UsageError(parsed.status(), "self-test ");
  if (parsed->Has("help")) return PrintOut(kSelfTestHelp);
  const Result<SelfTestReport> report = RunSelfTest("cpu", BackendOptions{});
  if (!report.ok()) return Fail(report.status());
  Json features = Json::Array();
  for (const std::string& feature : report->features) features.Append(feature);
  if (!parsed->Has("json")) {
    return PrintOut(StrFormat("%s: %s\nproved: %s\nFP32 GEMM: %.1f GFLOP/s; took %.2f s\n",
                              report->backend.c_str(), report->description.c_str(),
                              StrJoin(report->features, ", ").c_str(), report->gemm_gflops,
                              report->seconds));
  }
  const Json device = Json::Object({{"index", 0},
                                    {"kind", report->backend},
                                    {"name", HostProcessorName()},
                                    {"memory_bytes", HostMemoryBytes()},
                                    {"threads", std::max(1u, std::thread::hardware_concurrency())},
                                    {"gflops", report->gemm_gflops},
                                    {"features", std::move(features)}});
  return PrintOut(Json::Object({{"devices", Json::Array({device})}}).Dump() + "\n");
}

}  // namespace nibble
