// SPDX-License-Identifier: Apache-2.0
//
// Shell completion scripts, made from the tree of subcommands. Pure functions, thread-safe.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"

namespace nibble::cli {

struct OptionInfo {
  std::vector<std::string> names;  // "-o", "--output"
  std::string description;
  bool takes_value = false;
  std::vector<std::string> choices;  // of its value; empty = anything
  bool takes_file = false;
};

// What stands at the positions of a subcommand.
enum class Positional { kNone, kJob, kNode, kFile, kShell, kRecipe };

struct CommandInfo {
  std::string name;
  std::vector<std::string> aliases;
  std::string description;
  std::vector<OptionInfo> options;
  Positional positional = Positional::kNone;
};

// The script for "bash", "zsh" or "fish". Job and node ids are completed by asking the server.
// INVALID_ARGUMENT lists the known shells.
Result<std::string> CompletionScript(const std::string& shell,
                                     const std::vector<CommandInfo>& commands);

}  // namespace nibble::cli
