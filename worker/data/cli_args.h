// SPDX-License-Identifier: Apache-2.0
//
// Command-line arguments of nibble-data and nibble-study: a table of flags per command, parsed
// strictly. Thread-compatible; std only.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"

namespace nibble {

struct CliFlag {
  std::string name;        // "--out"
  std::string value_name;  // "FILE"; "" for a switch
  std::string help;
  std::string fallback;  // used when the flag is not given
  bool required = false;
};

struct CliCommand {
  std::string name;      // "corpus files"
  std::string summary;   // one line
  std::string operands;  // "TEXT..."; "" when the command takes none
  bool needs_operand = false;
  std::vector<CliFlag> flags;  // --help and --json are added to every command
  std::string example;
};

class CliArgs {
 public:
  // INVALID_ARGUMENT: unknown flag (with the nearest known one), value missing or given to a
  // switch, required flag or operand missing, operand too many. After "--" all are operands. With
  // --help the checks for what is missing are left out.
  static Result<CliArgs> Parse(const CliCommand& command, const std::vector<std::string>& words);

  bool Has(const std::string& flag) const { return values_.contains(flag); }
  const std::string& Get(const std::string& flag) const;  // fallback or "" when absent
  // INVALID_ARGUMENT naming flag, value and limits.
  Result<int64_t> GetInt(const std::string& flag, int64_t low, int64_t high) const;
  Result<double> GetDouble(const std::string& flag, double low, double high) const;
  // INVALID_ARGUMENT when the value is none of `choices`.
  Result<std::string> GetChoice(const std::string& flag,
                                const std::vector<std::string>& choices) const;
  const std::vector<std::string>& operands() const { return operands_; }
  bool json() const { return Has("--json"); }

 private:
  std::map<std::string, std::string> values_;
  std::map<std::string, std::string> fallbacks_;
  std::vector<std::string> operands_;
};

// What --help prints.
std::string CliHelp(const std::string& program, const CliCommand& command);

}  // namespace nibble
