// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda_plugin.h"

#include "kernels/plugin.h"

namespace nibble {

Result<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options) {
  ASSIGN_OR_RETURN(void* const symbol,
                   OpenPlugin({"backend cuda", "NIBBLE_CUDA_PLUGIN", kCudaPluginFile,
                               kMakeCudaBackendSymbol, "the CUDA 13 libraries", "backend cpu"}));
  const auto make = reinterpret_cast<MakeCudaBackendFn>(symbol);
  std::unique_ptr<Backend> backend;
  RETURN_IF_ERROR(make(kCudaPluginVersion, options, &backend));
  return backend;
}

}  // namespace nibble
