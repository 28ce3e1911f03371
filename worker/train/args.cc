// SPDX-License-Identifier: Apache-2.0
#include "worker/train/args.h"

#include <algorithm>

#include "base/strings.h"

namespace nibble {
namespace {

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

Result<Args> Args::Parse(const std::vector<std::string>& args, const ArgSpec& spec) {
  Args parsed;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i] == "-h" ? std::string("--help") : args[i];
    if (arg.rfind("--", 0) != 0) return InvalidArgumentError("unexpected argument '" + arg + "'");
    const size_t equals = arg.find('=');
    const std::string name = arg.substr(2, equals == std::string::npos ? equals : equals - 2);
    const bool takes_value = Contains(spec.values, name);
    if (!takes_value && !Contains(spec.switches, name)) {
      std::vector<std::string> known = spec.values;
      known.insert(known.end(), spec.switches.begin(), spec.switches.end());
      return InvalidArgumentError(UnknownNameMessage("flag", name, known));
    }
    std::string value;
    if (equals != std::string::npos) {
      if (!takes_value) return InvalidArgumentError("--" + name + " takes no value");
      value = arg.substr(equals + 1);
    } else if (takes_value) {
      if (i + 1 == args.size()) return InvalidArgumentError("--" + name + " needs a value");
      value = args[++i];
    }
    if (!parsed.given_.emplace(name, value).second) {
      return InvalidArgumentError("--" + name + " is given twice");
    }
  }
  return parsed;
}

std::string Args::Text(const std::string& name, const std::string& fallback) const {
  const auto found = given_.find(name);
  return found == given_.end() ? fallback : found->second;
}

Result<int64_t> Args::Integer(const std::string& name, int64_t fallback, int64_t min,
                              int64_t max) const {
  if (!Has(name)) return fallback;
  const Result<int64_t> value = ParseInt(Text(name));
  if (value.ok() && *value >= min && *value <= max) return *value;
  return InvalidArgumentError(StrFormat("--%s is '%s'; it must be an integer from %lld to %lld",
                                        name.c_str(), Text(name).c_str(),
                                        static_cast<long long>(min), static_cast<long long>(max)));
}

Result<double> Args::Real(const std::string& name, double fallback, double min, double max) const {
  if (!Has(name)) return fallback;
  const Result<double> value = ParseDouble(Text(name));
  if (value.ok() && *value >= min && *value <= max) return *value;
  return InvalidArgumentError(StrFormat("--%s is '%s'; it must be a number from %g to %g",
                                        name.c_str(), Text(name).c_str(), min, max));
}

}  // namespace nibble
