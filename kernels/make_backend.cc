// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "base/strings.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cuda_plugin.h"

namespace nibble {

Result<std::unique_ptr<Backend>> MakeBackend(std::string_view name, const BackendOptions& options) {
  if (name != "cpu" && name != "cuda") {
    return InvalidArgumentError(UnknownNameMessage("backend", name, {"cpu", "cuda"}));
  }
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return InvalidArgumentError(
        StrFormat("threads = %d; expected 0 (one per core) to %d", options.threads, kMaxThreads));
  }
  if (options.memory_limit_bytes < 0) {
    return InvalidArgumentError(StrFormat("memory limit = %lld bytes; expected 0 (none) or more",
                                          static_cast<long long>(options.memory_limit_bytes)));
  }
  if (name == "cuda") return MakeCudaBackend(options);
  ASSIGN_OR_RETURN(const cpu::codes::KernelSet* code_kernels,
                   cpu::ChooseCodeKernels(cpu::CodeKernelOverride()));
  std::unique_ptr<Backend> backend =
      std::make_unique<cpu::CpuBackend>(options.threads, options.memory_limit_bytes, *code_kernels);
  return backend;
}

}  // namespace nibble
