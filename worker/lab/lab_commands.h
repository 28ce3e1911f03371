// SPDX-License-Identifier: Apache-2.0
//
// Commands of nibble-lab. Each takes the arguments after its name and prints its result to stdout.
// INVALID_ARGUMENT and NOT_FOUND of an argument are wrong usage; other errors are failures.
// Thread-safety: one thread.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace nibble {

Status LabQuantizeCommand(const std::vector<std::string>& args);
Status LabLinearCommand(const std::vector<std::string>& args);
Status LabCpuCommand(const std::vector<std::string>& args);
Status LabTable1Command(const std::vector<std::string>& args);
Status LabEstimateCommand(const std::vector<std::string>& args);

// Prints to stdout; UNAVAILABLE when nobody takes it.
Status LabPrint(const std::string& text);

}  // namespace nibble
