// SPDX-License-Identifier: Apache-2.0
//
// Commands of nibble-trainer. Each takes the arguments after its name and returns the exit code;
// data goes to stdout, messages to stderr. Thread-safety: one thread.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "worker/spec/run_config.h"

namespace nibble {

inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

int TrainCommand(const std::vector<std::string>& args);
int GenerateCommand(const std::vector<std::string>& args);
int InspectCommand(const std::vector<std::string>& args);
int EstimateCommand(const std::vector<std::string>& args);
int SelfTestCommand(const std::vector<std::string>& args);

// Reads and checks run.json. Errors name the file and every wrong field.
Result<RunConfig> LoadRunConfig(const std::string& path);

// Prints the message and where help is, and returns kExitUsage.
int UsageError(const Status& status, const char* command);
// Prints the message and returns `code`.
int Fail(const Status& status, int code = kExitFailed);
// Prints to stdout; 0, or kExitFailed when nobody takes it.
int PrintOut(const std::string& text);

}  // namespace nibble
