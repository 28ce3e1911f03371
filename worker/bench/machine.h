// SPDX-License-Identifier: Apache-2.0
//
// Machine: what a figure was measured on. Thread-safety: one thread.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace nibble::bench {

// GFLOP/s of independent FP32 multiply-adds in registers (2 each), one per thread on every thread
// at once, by the widest vectors this CPU has (256 bits at most when `avx2_only`). The best of
// several short bursts: an upper bound for anything FP32 does here.
double MeasureFp32PeakGflops(int threads, bool avx2_only);

// CPU, cores, instruction sets, libraries, commit.
Json DescribeMachine();

// The environment under which everything (this program, OpenBLAS, oneDNN, PyTorch) uses the named
// instruction set and one OpenMP thread per asked thread: pairs to set before the process starts.
// `isa` is "native" or "avx2"; INVALID_ARGUMENT otherwise.
Result<std::vector<std::pair<std::string, std::string>>> EnvironmentFor(const std::string& isa);

}  // namespace nibble::bench
