// SPDX-License-Identifier: Apache-2.0
//
// Args: the command line of nibble-trainer: --name VALUE, --name=VALUE and --switch.
// Thread-safety: value type.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"

namespace nibble {

struct ArgSpec {
  std::vector<std::string> values;    // names that take a value, without "--"
  std::vector<std::string> switches;  // names that take none
};

class Args {
 public:
  // INVALID_ARGUMENT for an unknown or repeated name, a missing value, or a positional argument.
  // -h means --help.
  static Result<Args> Parse(const std::vector<std::string>& args, const ArgSpec& spec);

  bool Has(const std::string& name) const { return given_.count(name) != 0; }
  std::string Text(const std::string& name, const std::string& fallback = "") const;
  // INVALID_ARGUMENT naming the flag, the text and the range.
  Result<int64_t> Integer(const std::string& name, int64_t fallback, int64_t min,
                          int64_t max) const;
  Result<double> Real(const std::string& name, double fallback, double min, double max) const;

 private:
  std::map<std::string, std::string> given_;
};

}  // namespace nibble
