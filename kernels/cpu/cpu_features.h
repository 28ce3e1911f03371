// SPDX-License-Identifier: Apache-2.0
//
// What this processor can do, and which kernels it gets because of that.
//
// Purpose: the one place where instruction sets are detected and chosen; every choice can be shown
// to a person. NIBBLE_CPU_ISA in the environment overrides the choice. Results of GEMMs on
// codes and of loops never depend on it; those of BF16 products do, in their last bits
// (bf16_kernel.h), and those of FP32 products on a CPU without fused multiply-add.
// Thread-safety: thread-safe, pure after the first call.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble::cpu {

namespace codes {
struct KernelSet;
}

struct FloatKernel;

struct CpuFeatures {
  bool avx2 = false;          // with FMA, and the system saves 256-bit registers
  bool avx512 = false;        // with AVX2: F, BW, CD, DQ, VL; the system saves 512-bit registers
  bool avx512_vbmi2 = false;  // with avx512
  bool avx512_vnni = false;   // with avx512
  bool avx_vnni = false;      // the VEX encoding
  bool avx512_bf16 = false;   // with avx512_vnni
  bool neon_dot = false;      // SDOT
  bool neon_i8mm = false;     // SMMLA
};
// The features of the machine this runs on.
const CpuFeatures& HostCpuFeatures();
// Those that everything but GEMMs on codes uses in this process: the host's, less what the
// instruction set named by NIBBLE_CPU_ISA at the first call does not have ("avx2", "avxvnni" and
// "vnni256" leave out AVX-512, "baseline" AVX2 too). So one variable shows how an older CPU does.
const CpuFeatures& UsedCpuFeatures();

// The form in which vectorised loops run (vector_math.h): x86-64-v4, -v3, or whatever the compiler
// was told.
enum class LoopSet : uint8_t { kPlain, kV3, kV4 };
LoopSet LoopsOfProcess();

// One kernel choice and what else there was.
struct CpuCapability {
  struct Option {
    std::string name;
    bool usable = false;
    std::string reason;  // why it was taken, passed over, or cannot run here
  };
  std::string name;    // "code GEMM"
  std::string chosen;  // name of the option taken
  std::string why;
  std::vector<Option> considered;  // fastest first, the chosen one among them
};

// The instruction set of GEMMs on codes: the fastest that runs here, or the one `override_name`
// names ("" for none). INVALID_ARGUMENT for a name that is unknown or cannot run here, listing
// those that can.
Result<const codes::KernelSet*> ChooseCodeKernels(std::string_view override_name);
// The kernel of products rounded to BF16 that goes with these code kernels: AVX512_BF16 beside the
// AVX-512 ones where the CPU has it, else FP32 multiply-adds on rounded operands.
const FloatKernel& ChooseBf16Kernel(const codes::KernelSet& code_kernels);
// NIBBLE_CPU_ISA, "" when unset.
std::string CodeKernelOverride();

// Every choice made by instruction set in this process, NIBBLE_CPU_ISA included. Errors as
// ChooseCodeKernels.
Result<std::vector<CpuCapability>> CpuCapabilities();

}  // namespace nibble::cpu
