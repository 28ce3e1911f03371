// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpu_features.h"

#include <cstdint>
#include <cstdlib>

#include "base/strings.h"
#include "kernels/cpu/bf16_kernel.h"
#include "kernels/cpu/codes/kernels.h"
#include "kernels/cpu/float_kernel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace nibble::cpu {
namespace {

constexpr const char* kOverrideVariable = "NIBBLE_CPU_ISA";

#if defined(__x86_64__)
// Registers the system saves on a context switch.
uint64_t SavedRegisters() {
  uint32_t eax, edx;
  __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (static_cast<uint64_t>(edx) << 32) | eax;
}

CpuFeatures Detect() {
  CpuFeatures found;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool fma = (c >> 12 & 1u) != 0;
  if ((c >> 27 & 1u) == 0) return found;  // no OSXSAVE: no wide registers
  const uint64_t saved = SavedRegisters();
  const bool saves_256 = (saved & 0x6u) == 0x6u;
  const bool saves_512 = (saved & 0xE6u) == 0xE6u;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const uint32_t subleaves = a;
  found.avx2 = saves_256 && fma && (b >> 5 & 1u) != 0;
  constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
  found.avx512 = found.avx2 && saves_512 && (b & kAvx512) == kAvx512;
  found.avx512_vbmi2 = found.avx512 && (c >> 6 & 1u) != 0;
  found.avx512_vnni = found.avx512 && (c >> 11 & 1u) != 0;
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    found.avx_vnni = found.avx2 && (a >> 4 & 1u) != 0;
    found.avx512_bf16 = found.avx512_vnni && (a >> 5 & 1u) != 0;
  }
  return found;
}
#elif defined(__aarch64__) && defined(__linux__)
CpuFeatures Detect() {
  CpuFeatures found;
  found.neon_dot = (getauxval(AT_HWCAP) >> 20 & 1u) != 0;                      // HWCAP_ASIMDDP
  found.neon_i8mm = found.neon_dot && (getauxval(AT_HWCAP2) >> 13 & 1u) != 0;  // HWCAP2_I8MM
  return found;
}
#else
CpuFeatures Detect() { return {}; }
#endif

struct Candidate {
  const codes::KernelSet* kernels;
  bool usable;
  const char* needs;
  const char* strength;
  bool automatic;  // taken without being asked for
};

// Fastest first.
std::vector<Candidate> Candidates() {
  const CpuFeatures& cpu = HostCpuFeatures();
  std::vector<Candidate> all;
#if defined(__x86_64__)
  all.push_back({&codes::Avx512VnniKernels(), cpu.avx512_vnni, "AVX-512 F, BW, VL and VNNI",
                 "64 products per vpdpbusd on 512-bit vectors, full 8-bit codes", true});
  all.push_back({&codes::AvxVnniKernels(), cpu.avx_vnni, "AVX-VNNI",
                 "32 products per vpdpbusd on 256-bit vectors, full 8-bit codes", true});
  all.push_back({&codes::Vnni256Kernels(), cpu.avx512_vnni, "AVX-512 F, BW, VL and VNNI",
                 "the AVX-VNNI code in AVX-512 encoding, for comparison", false});
  all.push_back({&codes::Avx2Kernels(), cpu.avx2, "AVX2 and FMA",
                 "Winograd's inner product on vpmaddubsw, half the multiplications", true});
#elif defined(__aarch64__)
  all.push_back({&codes::NeonI8mmKernels(), cpu.neon_i8mm, "I8MM", "32 products per SMMLA", true});
  all.push_back({&codes::NeonDotKernels(), cpu.neon_dot, "DOTPROD", "16 products per SDOT", true});
#endif
  (void)cpu;
  all.push_back({&codes::BaselineKernels(), true, "nothing", "portable C++ on 16-bit pairs", true});
  return all;
}

CpuFeatures Used() {
  CpuFeatures used = HostCpuFeatures();
  const std::string name = CodeKernelOverride();
  const bool baseline = name == "baseline";
  if (baseline || name == "avx2" || name == "avxvnni" || name == "vnni256") {
    used.avx512 = used.avx512_vbmi2 = used.avx512_vnni = used.avx512_bf16 = false;
  }
  if (baseline) used.avx2 = used.avx_vnni = false;
  return used;
}

std::string WhyWidest(const std::string& asked, const char* widest) {
  if (asked.empty()) return widest;
  return "the widest under " + std::string(kOverrideVariable) + "=" + asked;
}

std::string LoopName(LoopSet loops) {
  return loops == LoopSet::kV4 ? "x86-64-v4" : loops == LoopSet::kV3 ? "x86-64-v3" : "default";
}

// Which kernel multiplies operands rounded to BF16 beside `taken`.
CpuCapability Bf16Capability(const codes::KernelSet& taken) {
  const FloatKernel* pairs = Bf16PairKernel();
  const FloatKernel& chosen = ChooseBf16Kernel(taken);
  const bool fast = &chosen == pairs;
  CpuCapability bf16;
  bf16.name = "BF16 GEMM";
  bf16.chosen = chosen.name;
  bf16.why = fast ? "32 products per vdpbf16ps on 512-bit vectors"
                  : "FP32 multiply-adds on operands rounded to BF16";
  std::string passed_over = "this CPU lacks AVX512_BF16";
  if (pairs != nullptr) passed_over = "runs here; not with code GEMM " + std::string(taken.name);
  bf16.considered.push_back({"AVX512_BF16", pairs != nullptr, fast ? bf16.why : passed_over});
  for (const FloatKernel* const* kernel = FloatKernels(); *kernel != nullptr; ++kernel) {
    bf16.considered.push_back(
        {(*kernel)->name, true, *kernel == &chosen ? bf16.why : "runs here, slower"});
  }
  return bf16;
}

}  // namespace

const CpuFeatures& HostCpuFeatures() {
  static const CpuFeatures features = Detect();
  return features;
}

const CpuFeatures& UsedCpuFeatures() {
  static const CpuFeatures features = Used();
  return features;
}

LoopSet LoopsOfProcess() {
  static const LoopSet loops = UsedCpuFeatures().avx512 ? LoopSet::kV4
                               : UsedCpuFeatures().avx2 ? LoopSet::kV3
                                                        : LoopSet::kPlain;
  return loops;
}

std::string CodeKernelOverride() {
  const char* value = std::getenv(kOverrideVariable);
  return value == nullptr ? "" : value;
}

Result<const codes::KernelSet*> ChooseCodeKernels(std::string_view override_name) {
  std::string names;
  for (const Candidate& candidate : Candidates()) {
    if (!candidate.usable) continue;
    if (override_name.empty() ? candidate.automatic : candidate.kernels->name == override_name) {
      return candidate.kernels;
    }
    names += (names.empty() ? "" : ", ") + std::string(candidate.kernels->name);
  }
  return InvalidArgumentError(StrFormat("%s=%s: this CPU runs %s", kOverrideVariable,
                                        std::string(override_name).c_str(), names.c_str()));
}

const FloatKernel& ChooseBf16Kernel(const codes::KernelSet& code_kernels) {
  const FloatKernel* pairs = Bf16PairKernel();
#if defined(__x86_64__)
  if (pairs != nullptr && &code_kernels == &codes::Avx512VnniKernels()) return *pairs;
#endif
  (void)pairs;
  (void)code_kernels;
  return BestFloatKernel();
}

Result<std::vector<CpuCapability>> CpuCapabilities() {
  const std::string asked = CodeKernelOverride();
  ASSIGN_OR_RETURN(const codes::KernelSet* taken, ChooseCodeKernels(asked));
  CpuCapability gemm;
  gemm.name = "code GEMM";
  gemm.chosen = taken->name;
  for (const Candidate& candidate : Candidates()) {
    CpuCapability::Option option{candidate.kernels->name, candidate.usable, ""};
    if (candidate.kernels == taken) {
      gemm.why = asked.empty() ? "the fastest this CPU runs: " + std::string(candidate.strength)
                               : std::string(kOverrideVariable) + "=" + asked + " asks for it";
      option.reason = gemm.why;
    } else if (!candidate.usable) {
      option.reason = StrFormat("this CPU lacks %s", candidate.needs);
    } else {
      option.reason = StrFormat("runs here (%s); %s", candidate.strength,
                                candidate.automatic ? "slower than the one taken, or not asked for"
                                                    : "only when asked for by name");
    }
    gemm.considered.push_back(std::move(option));
  }
  CpuCapability bf16 = Bf16Capability(*taken);
  CpuCapability fp32;
  fp32.name = "FP32 GEMM";
  fp32.chosen = BestFloatKernel().name;
  fp32.why = WhyWidest(asked, "the widest that this CPU runs");
  for (const FloatKernel* const* kernel = FloatKernels(); *kernel != nullptr; ++kernel) {
    fp32.considered.push_back(
        {(*kernel)->name, true, *kernel == &BestFloatKernel() ? fp32.why : "runs here, slower"});
  }
  CpuCapability loops;
  loops.name = "vector loops";
  loops.chosen = LoopName(LoopsOfProcess());
  loops.why = WhyWidest(asked, "the widest form of each loop that this CPU runs");
  const CpuFeatures& host = HostCpuFeatures();
  for (const LoopSet set : {LoopSet::kV4, LoopSet::kV3, LoopSet::kPlain}) {
    const bool usable = set == LoopSet::kV4 ? host.avx512 : set == LoopSet::kPlain || host.avx2;
    loops.considered.push_back({LoopName(set), usable,
                                LoopsOfProcess() == set ? loops.why
                                : usable                ? "runs here; not taken"
                                                        : "not in this CPU"});
  }
  return std::vector<CpuCapability>{std::move(gemm), std::move(bf16), std::move(fp32),
                                    std::move(loops)};
}

}  // namespace nibble::cpu
