// SPDX-License-Identifier: Apache-2.0
#include "worker/data/cli_args.h"

#include <algorithm>

#include "base/strings.h"

namespace nibble {
namespace {

std::vector<CliFlag> AllFlags(const CliCommand& command) {
  std::vector<CliFlag> flags = command.flags;
  flags.push_back({"--json", "", "print the summary as one JSON object on stdout", ""});
  flags.push_back({"--help", "", "print this text", ""});
  return flags;
}

Status CheckPresence(const CliCommand& command, const CliArgs& args) {
  for (const CliFlag& flag : command.flags) {
    if (flag.required && !args.Has(flag.name)) {
      return InvalidArgumentError("missing " + flag.name + " " + flag.value_name);
    }
  }
  if (command.needs_operand && args.operands().empty()) {
    return InvalidArgumentError("missing " + command.operands);
  }
  if (command.operands.empty() && !args.operands().empty()) {
    return InvalidArgumentError("unexpected operand '" + args.operands().front() + "'");
  }
  return OkStatus();
}

}  // namespace

Result<CliArgs> CliArgs::Parse(const CliCommand& command, const std::vector<std::string>& words) {
  const std::vector<CliFlag> flags = AllFlags(command);
  CliArgs args;
  std::vector<std::string> names;
  for (const CliFlag& flag : flags) {
    names.push_back(flag.name);
    args.fallbacks_[flag.name] = flag.fallback;
  }
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--") {
      args.operands_.insert(args.operands_.end(), words.begin() + static_cast<long>(i) + 1,
                            words.end());
      break;
    }
    if (!word.starts_with("--")) {
      args.operands_.push_back(word);
      continue;
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    const auto flag = std::find_if(flags.begin(), flags.end(),
                                   [&](const CliFlag& known) { return known.name == name; });
    if (flag == flags.end()) return InvalidArgumentError(UnknownNameMessage("flag", name, names));
    std::string value;
    if (flag->value_name.empty()) {
      if (equals != std::string::npos) return InvalidArgumentError(name + " takes no value");
    } else if (equals != std::string::npos) {
      value = word.substr(equals + 1);
    } else if (i + 1 < words.size()) {
      value = words[++i];
    } else {
      return InvalidArgumentError(name + " needs a value: " + name + " " + flag->value_name);
    }
    if (!args.values_.emplace(name, value).second) {
      return InvalidArgumentError(name + " is given twice");
    }
  }
  if (!args.Has("--help")) RETURN_IF_ERROR(CheckPresence(command, args));
  return args;
}

const std::string& CliArgs::Get(const std::string& flag) const {
  const auto given = values_.find(flag);
  return given != values_.end() ? given->second : fallbacks_.at(flag);
}

Result<int64_t> CliArgs::GetInt(const std::string& flag, int64_t low, int64_t high) const {
  const Result<int64_t> value = ParseInt(Get(flag));
  if (value.ok() && *value >= low && *value <= high) return *value;
  return InvalidArgumentError(StrFormat("%s %s: it must be an integer from %lld to %lld",
                                        flag.c_str(), Get(flag).c_str(),
                                        static_cast<long long>(low), static_cast<long long>(high)));
}

Result<double> CliArgs::GetDouble(const std::string& flag, double low, double high) const {
  const Result<double> value = ParseDouble(Get(flag));
  if (value.ok() && *value >= low && *value <= high) return *value;
  return InvalidArgumentError(StrFormat("%s %s: it must be a number from %g to %g", flag.c_str(),
                                        Get(flag).c_str(), low, high));
}

Result<std::string> CliArgs::GetChoice(const std::string& flag,
                                       const std::vector<std::string>& choices) const {
  const std::string& value = Get(flag);
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return value;
  return InvalidArgumentError(UnknownNameMessage(flag, value, choices));
}

std::string CliHelp(const std::string& program, const CliCommand& command) {
  std::string out = command.summary + "\n\nUsage: " + program + " " + command.name;
  for (const CliFlag& flag : command.flags) {
    if (flag.required) out += " " + flag.name + " " + flag.value_name;
  }
  out += " [flags]" + (command.operands.empty() ? "" : " " + command.operands) + "\n\nFlags:\n";
  for (const CliFlag& flag : AllFlags(command)) {
    const std::string left =
        flag.value_name.empty() ? flag.name : flag.name + " " + flag.value_name;
    const std::string fallback = flag.fallback.empty() ? "" : " (default " + flag.fallback + ")";
    out += StrFormat("  %-24s %s%s\n", left.c_str(), flag.help.c_str(), fallback.c_str());
  }
  return out + "\nExample:\n  " + command.example + "\n";
}

}  // namespace nibble
