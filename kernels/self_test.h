// SPDX-License-Identifier: Apache-2.0
//
// Self-test: a short proof that a backend computes what the recipes promise on this machine.
//
// Purpose: a worker registers a device only with features it has proved (kernels/recipe/proofs.h).
// Takes a few seconds.
// Thread-safety: thread-compatible; makes its own backend. Deterministic: no test is statistical
// in its outcome, because the random numbers are counter-based.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kernels/backend.h"

namespace nibble {

struct SelfTestReport {
  std::string backend;       // "cpu"
  std::string description;   // device, threads, math library
  int64_t memory_bytes = 0;  // of the device; 0: not known, or the host's
  // Proved, of: "e2m1", "e4m3", "e5m2", "sr24", "occ", "gemm.fp32", "linear.fp8", "linear.fp4",
  // "dge", "state.rounded", "comm.e4m3", "weight_rule", "recipe:NAME" of each built-in recipe.
  std::vector<std::string> features;
  // Those of them that the backend has no path for, with its words.
  std::vector<std::pair<std::string, std::string>> refused;
  double gemm_gflops = 0;  // FP32 GEMM of 512 x 512 x 512, best of a few
  double seconds = 0;
};

// Proves `backend` against `reference`, the CPU backend (which may be the same). INTERNAL names
// each feature that failed, eight at most, the input, what came out and what was expected; no
// partial report is given, because a device that miscomputes anything is not to be trusted.
// FAILED_PRECONDITION when it has no path for an operation of every step (kernels/self_test_ops.h).
Result<SelfTestReport> ProveBackend(Backend& backend, Backend& reference);

// The same for a backend by name; other codes as MakeBackend.
Result<SelfTestReport> RunSelfTest(std::string_view backend_name, const BackendOptions& options);

}  // namespace nibble
