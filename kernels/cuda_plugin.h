// SPDX-License-Identifier: Apache-2.0
//
// The CUDA backend as a plug-in: libnibble_cuda.so, opened only when somebody asks for it.
//
// Purpose: a machine without a GPU never loads, links or pays for a CUDA library. The plug-in is
// built by the same compiler from the same headers; its version word guards against an old one.
// Thread-safety: thread-safe. Ownership: the library stays loaded for the life of the process.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "kernels/backend.h"

namespace nibble {

// Changes with every change of Backend's functions or of a struct they take.
inline constexpr uint32_t kCudaPluginVersion = 10;
inline constexpr char kCudaPluginFile[] = "libnibble_cuda.so";
// The plug-in's only exported symbol has this type and name: fills *backend and returns OK, or
// UNAVAILABLE when no device can be used, FAILED_PRECONDITION for another version.
using MakeCudaBackendFn = Status (*)(uint32_t version, const BackendOptions& options,
                                     std::unique_ptr<Backend>* backend);
inline constexpr char kMakeCudaBackendSymbol[] = "nibble_make_cuda_backend";

// Looks for the plug-in at NIBBLE_CUDA_PLUGIN, beside the running program, in ../lib of it.
// NOT_FOUND names the places; UNAVAILABLE carries the driver's or loader's words.
Result<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options);

}  // namespace nibble
