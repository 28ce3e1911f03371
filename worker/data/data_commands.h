// SPDX-License-Identifier: Apache-2.0
//
// The commands of nibble-data. Each prints its data (or, with --json, its summary) on stdout and
// messages on stderr, and returns the exit code: 0 done, 1 failed, 2 wrong usage. One thread.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "worker/data/cli_args.h"

namespace nibble {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

struct DataCommand {
  CliCommand cli;
  int (*run)(const CliArgs& args);
};

std::vector<DataCommand> CorpusCommands();     // corpus perl-doc, corpus files
std::vector<DataCommand> TokenizerCommands();  // train-tokenizer, encode, decode
std::vector<DataCommand> TokenCommands();      // tokenize, inspect

// Prints the status on stderr and returns the exit code.
int FailCommand(const Status& status);
int FailUsage(const Status& status);
// Writes to stdout; kExitFailed when that fails (a full disk, a closed pipe).
int PrintData(const std::string& text);
// With --json the JSON on stdout, else `text` on stderr.
int PrintSummary(const CliArgs& args, const Json& json, const std::string& text);

}  // namespace nibble
