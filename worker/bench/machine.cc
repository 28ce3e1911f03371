// SPDX-License-Identifier: Apache-2.0
#include "worker/bench/machine.h"

#include <sys/utsname.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "base/clock.h"
#include "base/files.h"
#include "base/strings.h"
#include "kernels/cpu/cpu_features.h"
#include "worker/bench/bench.h"
#include "worker/bench/peers.h"

namespace nibble::bench {
namespace {

// Each kernel runs `rounds` rounds of 12 independent multiply-adds per vector and returns a number
// that depends on all of them. Twelve cover latency times throughput of every CPU met so far.
constexpr int kChains = 12;

#if defined(__x86_64__)
__attribute__((target("avx512f"))) float FmaAvx512(int64_t rounds) {
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 factor = _mm512_set1_ps(0.999f);
  const __m512 term = _mm512_set1_ps(1e-3f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, term);
  }
  __m512 total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, sums[i]);
  float parts[16];
  _mm512_storeu_ps(parts, total);
  return parts[0] + parts[5] + parts[10] + parts[15];
}

__attribute__((target("avx2,fma"))) float FmaAvx2(int64_t rounds) {
  __m256 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 factor = _mm256_set1_ps(0.999f);
  const __m256 term = _mm256_set1_ps(1e-3f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = _mm256_fmadd_ps(sums[i], factor, term);
  }
  __m256 total = sums[0];
  for (int i = 1; i < kChains; ++i) total = _mm256_add_ps(total, sums[i]);
  float parts[8];
  _mm256_storeu_ps(parts, total);
  return parts[0] + parts[3] + parts[5] + parts[7];
}
#endif

// Multiply and add apart: what the widest unit of an unknown CPU does is not known here.
float FmaBaseline(int64_t rounds) {
  using Vector [[gnu::vector_size(16)]] = float;
  Vector sums[kChains] = {};
  for (int i = 0; i < kChains; ++i) sums[i] += static_cast<float>(i);
  const Vector factor = Vector{} + 0.999f;
  const Vector term = Vector{} + 1e-3f;
  for (int64_t round = 0; round < rounds; ++round) {
#if defined(__aarch64__)
    for (int i = 0; i < kChains; ++i) sums[i] = vfmaq_f32(term, sums[i], factor);
#else
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
#endif
  }
  Vector total = sums[0];
  for (int i = 1; i < kChains; ++i) total += sums[i];
  return total[0] + total[1] + total[2] + total[3];
}

struct FmaKernel {
  float (*run)(int64_t rounds);
  int lanes;
};

FmaKernel ChooseFma([[maybe_unused]] bool avx2_only) {
#if defined(__x86_64__)
  if (!avx2_only && __builtin_cpu_supports("avx512f")) return {FmaAvx512, 16};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {FmaAvx2, 8};
#endif
  return {FmaBaseline, 4};
}

// The value after "NAME :" of the first such line of /proc/cpuinfo, or "".
std::string CpuInfo(const std::string& text, std::string_view name) {
  for (const std::string& line : StrSplit(text, '\n')) {
    if (line.starts_with(name)) {
      return std::string(StrTrim(std::string_view(line).substr(line.find(':') + 1)));
    }
  }
  return "";
}

// Those of a CPU's feature flags that a GEMM cares about.
std::string VectorFeatures(const std::string& flags) {
  static const char* const kKnown[] = {"avx2",        "fma",      "avx512f",  "avx512bw",
                                       "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16",
                                       "asimd",       "asimddp",  "i8mm"};
  const std::vector<std::string> have = StrSplit(flags, ' ');
  std::vector<std::string> found;
  for (const char* known : kKnown) {
    if (std::find(have.begin(), have.end(), known) != have.end()) found.emplace_back(known);
  }
  return StrJoin(found, " ");
}

double LoadAverage() {
  const std::string text = ReadFile("/proc/loadavg").value_or("0");
  return ParseDouble(text.substr(0, text.find(' '))).value_or(0);
}

}  // namespace

double MeasureFp32PeakGflops(int threads, bool avx2_only) {
  const FmaKernel kernel = ChooseFma(avx2_only);
  constexpr int64_t kRounds = 400000;
  constexpr int kBursts = 40;
  const double operations = 2.0 * kChains * kernel.lanes * static_cast<double>(kRounds);
  std::vector<double> best(static_cast<size_t>(threads), 0.0);
  std::atomic<float> sink{0};
  const auto burst = [&](size_t index) {
    for (int i = 0; i < kBursts; ++i) {
      // Processor time: another program's share of the core is not this core's speed.
      const double start = NowSeconds(ClockKind::kThreadCpu);
      sink = kernel.run(kRounds);
      const double seconds = NowSeconds(ClockKind::kThreadCpu) - start;
      best[index] = std::max(best[index], operations / seconds);
    }
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < best.size(); ++i) others.emplace_back(burst, i);
  burst(0);
  for (std::thread& other : others) other.join();
  double total = 0;
  for (const double one : best) total += one;
  return total * 1e-9;
}

Json DescribeMachine() {
  const std::string cpu = ReadFile("/proc/cpuinfo").value_or("");
  std::string model = CpuInfo(cpu, "model name");
  utsname names{};
  if (model.empty() && ::uname(&names) == 0) model = names.machine;
  const std::string flags = CpuInfo(cpu, "flags") + " " + CpuInfo(cpu, "Features");
  Json machine = Json::Object({{"date", FormatUtc(Clock::Real().WallMillis())},
                               {"commit", NIBBLE_REVISION},
                               {"cpu", model},
                               {"cores", std::max(1u, std::thread::hardware_concurrency())},
                               {"features", VectorFeatures(flags)},
                               {"load_average", LoadAverage()}});
  for (const cpu::CpuCapability& choice : cpu::CpuCapabilities().value_or({})) {
    machine.Set(choice.name, choice.chosen);
  }
  const Result<std::unique_ptr<Backend>> backend = CpuWithThreads(1);
  if (backend.ok()) machine.Set("backend", (*backend)->description());
  machine.Set("openblas", OpenBlasDescription());
  const std::string onednn = OneDnnDescription();
  machine.Set("onednn", onednn.empty() ? Json() : Json(onednn));
  return machine;
}

Result<std::vector<std::pair<std::string, std::string>>> EnvironmentFor(const std::string& isa) {
  // Idle OpenMP threads of a peer sleep instead of spinning through the next contestant's turn.
  std::vector<std::pair<std::string, std::string>> variables = {{"OMP_WAIT_POLICY", "passive"}};
  if (isa == "avx2") {
    variables.insert(variables.end(), {{"NIBBLE_CPU_ISA", "avx2"},
                                       {"OPENBLAS_CORETYPE", "Haswell"},
                                       {"DNNL_MAX_CPU_ISA", "AVX2"},
                                       {"ATEN_CPU_CAPABILITY", "avx2"}});
  } else if (isa != "native") {
    return InvalidArgumentError(UnknownNameMessage("instruction set", isa, {"native", "avx2"}));
  }
  return variables;
}

}  // namespace nibble::bench
