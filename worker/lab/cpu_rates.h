// SPDX-License-Identifier: Apache-2.0
//
// How much faster this machine multiplies codes than FP32 numbers, measured now.
// Thread-safety: one thread, the backend's caller.
#pragma once

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/lab/speedup.h"

namespace nibble {

// Times one product of 1024 x 1024 x 1024 on E2M1 codes with per-row and per-column scales and the
// same product in FP32, in turns, and takes the median ratio of a round. The result borrows the
// backend. UNIMPLEMENTED when it has no kernel for codes.
Result<DeviceRates> MeasureCpuRates(Backend* backend);

}  // namespace nibble
