// SPDX-License-Identifier: Apache-2.0
//
// Self-test: a short proof that a backend computes what the recipes promise on this machine.
//
// Purpose: a worker registers a device only with features it has proved. Takes below a second.
// Thread-safety: thread-compatible; makes its own backend. Deterministic: no test is statistical
// in its outcome, because the random numbers are counter-based.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"

namespace nibble {

struct SelfTestReport {
  std::string backend;      // "cpu"
  std::string description;  // device, threads, math library
  // Proved, in this order: "e2m1", "e4m3", "e5m2", "sr24", "occ", "dge", "gemm.fp32",
  // "linear.fp8", "linear.fp4".
  std::vector<std::string> features;
  double gemm_gflops = 0;  // FP32 GEMM of 512 x 512 x 512, best of a few
  double seconds = 0;
};

// INTERNAL names the feature that failed, the input, what came out and what was expected; no
// partial report is given, because a device that miscomputes anything is not to be trusted.
// Other codes as MakeBackend.
Result<SelfTestReport> RunSelfTest(std::string_view backend_name, const BackendOptions& options);

}  // namespace nibble
