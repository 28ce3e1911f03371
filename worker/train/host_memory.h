// SPDX-License-Identifier: Apache-2.0
//
// Host: the memory this process may use, and what the processor calls itself. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace nibble {

// Physical memory, or the control group's limit when that is lower.
int64_t HostMemoryBytes();

// "AMD EPYC 7B13" from /proc/cpuinfo, or the machine architecture.
std::string HostProcessorName();

}  // namespace nibble
