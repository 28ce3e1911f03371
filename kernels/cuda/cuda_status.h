// SPDX-License-Identifier: Apache-2.0
//
// Errors of the CUDA runtime as Status.
//
// Thread-safety: pure functions.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "base/status.h"

namespace nibble::cuda {

// RESOURCE_EXHAUSTED when the device has no memory, else INTERNAL; `what` names the call.
inline Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return OkStatus();
  const std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  return error == cudaErrorMemoryAllocation ? ResourceExhaustedError(message)
                                            : InternalError(message);
}

}  // namespace nibble::cuda
