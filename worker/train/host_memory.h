// SPDX-License-Identifier: Apache-2.0
//
// Host memory: what this process may use. Thread-safe.
#pragma once

#include <cstdint>

namespace nibble {

// Physical memory, or the control group's limit when that is lower.
int64_t HostMemoryBytes();

}  // namespace nibble
