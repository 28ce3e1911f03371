// SPDX-License-Identifier: Apache-2.0
//
// The command line of `nibble`: subcommands, flags, help. One thread.
#pragma once

#include <string>
#include <vector>

#include "client/cli/completion.h"
#include "client/cli/context.h"

namespace nibble::cli {

// Parses the arguments (without the program's name) and runs the subcommand they name. Returns the
// exit code; kExitUsage for anything that does not parse.
int RunCommandLine(const std::vector<std::string>& arguments, CliContext& context);

// The tree behind the completion scripts and the reference page's test.
std::vector<CommandInfo> DescribeCommands();

}  // namespace nibble::cli
