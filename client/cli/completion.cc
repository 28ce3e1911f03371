// SPDX-License-Identifier: Apache-2.0
#include "client/cli/completion.h"

#include <algorithm>
#include <iterator>

#include "base/strings.h"

namespace nibble::cli {
namespace {

constexpr char kJobIds[] = "nibble ps -o name --timeout 2s 2>/dev/null";
constexpr char kRecipeNames[] = "nibble recipes list -o name 2>/dev/null";
constexpr char kNodeIds[] = "nibble nodes -o name --timeout 2s 2>/dev/null";

std::vector<std::string> OptionNames(const CommandInfo& command) {
  std::vector<std::string> names;
  for (const OptionInfo& option : command.options) {
    names.insert(names.end(), option.names.begin(), option.names.end());
  }
  return names;
}

std::vector<std::string> CommandNames(const CommandInfo& command) {
  std::vector<std::string> names = {command.name};
  names.insert(names.end(), command.aliases.begin(), command.aliases.end());
  return names;
}

// Inside single quotes of any of the three shells.
std::string Plain(const std::string& text) {
  std::string out;
  std::copy_if(text.begin(), text.end(), std::back_inserter(out), [](char c) {
    return c != '\'' && c != '\n' && c != '[' && c != ']' && c != ':' && c != '\\' && c != '`';
  });
  return out;
}

std::string BashValueCases(const CommandInfo& command) {
  std::string out;
  for (const OptionInfo& option : command.options) {
    if (!option.takes_value) continue;
    std::string action = "return";
    if (!option.choices.empty()) {
      action =
          "COMPREPLY=($(compgen -W '" + StrJoin(option.choices, " ") + "' -- \"$cur\")); return";
    } else if (option.takes_file) {
      action = "COMPREPLY=($(compgen -f -- \"$cur\")); return";
    }
    out += "        " + StrJoin(option.names, "|") + ") " + action + " ;;\n";
  }
  return out;
}

std::string BashPositional(Positional positional) {
  switch (positional) {
    case Positional::kJob:
      return std::string("COMPREPLY=($(compgen -W \"$(") + kJobIds + ")\" -- \"$cur\"))";
    case Positional::kNode:
      return std::string("COMPREPLY=($(compgen -W \"$(") + kNodeIds + ")\" -- \"$cur\"))";
    case Positional::kFile:
      return "COMPREPLY=($(compgen -f -- \"$cur\"))";
    case Positional::kShell:
      return "COMPREPLY=($(compgen -W 'bash zsh fish' -- \"$cur\"))";
    case Positional::kRecipe:
      return std::string("COMPREPLY=($(compgen -f -W \"list show validate $(") + kRecipeNames +
             ")\" -- \"$cur\"))";
    case Positional::kNone:
      break;
  }
  return ":";
}

std::string Bash(const std::vector<CommandInfo>& commands) {
  std::vector<std::string> names;
  std::string cases;
  for (const CommandInfo& command : commands) {
    const std::vector<std::string> own = CommandNames(command);
    names.insert(names.end(), own.begin(), own.end());
    cases += "    " + StrJoin(own, "|") + ")\n      case \"$prev\" in\n" + BashValueCases(command) +
             "      esac\n      if [[ $cur == -* ]]; then\n        COMPREPLY=($(compgen -W '" +
             StrJoin(OptionNames(command), " ") + "' -- \"$cur\"))\n      else\n        " +
             BashPositional(command.positional) + "\n      fi\n      ;;\n";
  }
  return "# bash completion of nibble; load it with: source <(nibble completion bash)\n"
         "_nibble() {\n"
         "  local cur prev command word\n"
         "  cur=${COMP_WORDS[COMP_CWORD]}\n"
         "  prev=${COMP_WORDS[COMP_CWORD-1]}\n"
         "  command=\n"
         "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
         "    case \"$word\" in\n      " +
         StrJoin(names, "|") +
         ") command=$word; break ;;\n    esac\n  done\n"
         "  COMPREPLY=()\n"
         "  case \"$command\" in\n"
         "    '') COMPREPLY=($(compgen -W '" +
         StrJoin(names, " ") + " --help --version' -- \"$cur\")) ;;\n" + cases +
         "  esac\n}\ncomplete -F _nibble nibble\n";
}

std::string ZshOption(const OptionInfo& option) {
  std::string out;
  for (const std::string& name : option.names) {
    std::string spec = "'" + name + "[" + Plain(option.description) + "]";
    if (option.takes_value) {
      spec += ":value:";
      if (!option.choices.empty()) {
        spec += "(" + StrJoin(option.choices, " ") + ")";
      } else if (option.takes_file) {
        spec += "_files";
      }
    }
    out += " \\\n        " + spec + "'";
  }
  return out;
}

std::string ZshPositional(Positional positional) {
  switch (positional) {
    case Positional::kJob:
      return " \\\n        '*:job:_nibble_jobs'";
    case Positional::kNode:
      return " \\\n        '*:node:_nibble_nodes'";
    case Positional::kFile:
      return " \\\n        '*:file:_files'";
    case Positional::kShell:
      return " \\\n        '1:shell:(bash zsh fish)'";
    case Positional::kRecipe:
      return " \\\n        '1:action:(list show validate)' '2:recipe or file:_nibble_recipes'";
    case Positional::kNone:
      break;
  }
  return "";
}

std::string Zsh(const std::vector<CommandInfo>& commands) {
  std::string list, cases;
  for (const CommandInfo& command : commands) {
    for (const std::string& name : CommandNames(command)) {
      list += "    '" + name + ":" + Plain(command.description) + "'\n";
    }
    cases += "    " + StrJoin(CommandNames(command), "|") + ")\n      _arguments";
    for (const OptionInfo& option : command.options) cases += ZshOption(option);
    cases += ZshPositional(command.positional) + "\n      ;;\n";
  }
  return "#compdef nibble\n"
         "# zsh completion of nibble; load it with: source <(nibble completion zsh)\n"
         "_nibble_jobs() {\n  local -a ids\n  ids=(${(f)\"$(" +
         std::string(kJobIds) +
         ")\"})\n  compadd -a ids\n}\n"
         "_nibble_nodes() {\n  local -a ids\n  ids=(${(f)\"$(" +
         kNodeIds +
         ")\"})\n  compadd -a ids\n}\n"
         "_nibble_recipes() {\n  local -a names\n  names=(${(f)\"$(" +
         kRecipeNames +
         ")\"})\n  compadd -a names\n  _files\n}\n"
         "_nibble() {\n  local -a commands\n  commands=(\n" +
         list +
         "  )\n  if (( CURRENT == 2 )); then\n    _describe command commands\n    return\n  fi\n"
         "  local command=${words[2]}\n  shift words\n  (( CURRENT-- ))\n"
         "  case $command in\n" +
         cases + "  esac\n}\ncompdef _nibble nibble\n";
}

std::string FishOption(const std::string& condition, const OptionInfo& option) {
  std::string line = "complete -c nibble -n '" + condition + "'";
  for (const std::string& name : option.names) {
    line += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
  }
  if (option.takes_value) {
    line += option.takes_file ? " -r -F" : " -x";
    if (!option.choices.empty()) line += " -a '" + StrJoin(option.choices, " ") + "'";
  }
  return line + " -d '" + Plain(option.description) + "'\n";
}

std::string Fish(const std::vector<CommandInfo>& commands) {
  std::string out =
      "# fish completion of nibble; load it with: nibble completion fish | source\n"
      "complete -c nibble -f\n";
  for (const CommandInfo& command : commands) {
    for (const std::string& name : CommandNames(command)) {
      out += "complete -c nibble -n __fish_use_subcommand -a " + name + " -d '" +
             Plain(command.description) + "'\n";
    }
    const std::string condition =
        "__fish_seen_subcommand_from " + StrJoin(CommandNames(command), " ");
    for (const OptionInfo& option : command.options) out += FishOption(condition, option);
    const std::string start = "complete -c nibble -n '" + condition + "'";
    if (command.positional == Positional::kJob) out += start + " -a '(" + kJobIds + ")'\n";
    if (command.positional == Positional::kNode) out += start + " -a '(" + kNodeIds + ")'\n";
    if (command.positional == Positional::kFile) out += start + " -F\n";
    if (command.positional == Positional::kShell) out += start + " -a 'bash zsh fish'\n";
    if (command.positional == Positional::kRecipe) {
      out += start + " -F -a 'list show validate (" + kRecipeNames + ")'\n";
    }
  }
  return out;
}

}  // namespace

Result<std::string> CompletionScript(const std::string& shell,
                                     const std::vector<CommandInfo>& commands) {
  if (shell == "bash") return Bash(commands);
  if (shell == "zsh") return Zsh(commands);
  if (shell == "fish") return Fish(commands);
  return InvalidArgumentError(UnknownNameMessage("shell", shell, {"bash", "zsh", "fish"}));
}

}  // namespace nibble::cli
