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

// Whether a kernel failed on the device, in any operation before the call that tells; no call
// succeeds afterwards.
inline bool IsDeviceFault(cudaError_t error) {
  return error == cudaErrorIllegalAddress || error == cudaErrorMisalignedAddress ||
         error == cudaErrorLaunchFailure || error == cudaErrorIllegalInstruction ||
         error == cudaErrorInvalidAddressSpace || error == cudaErrorInvalidPc ||
         error == cudaErrorHardwareStackError || error == cudaErrorAssert;
}

// RESOURCE_EXHAUSTED when the device has no memory, else INTERNAL; `what` names the call. The
// runtime forgets the error, so that the next launch does not answer for it.
inline Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return OkStatus();
  cudaGetLastError();
  std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  if (IsDeviceFault(error)) {
    message += "; this or an earlier operation failed: CUDA_LAUNCH_BLOCKING=1 names it";
  }
  return error == cudaErrorMemoryAllocation ? ResourceExhaustedError(message)
                                            : InternalError(message);
}

}  // namespace nibble::cuda
