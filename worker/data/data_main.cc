// SPDX-License-Identifier: Apache-2.0
//
// nibble-data: corpora, tokenizers and token shards.
#include <csignal>
#include <cstdio>

#include "base/strings.h"
#include "worker/data/data_commands.h"

namespace nibble {

int FailCommand(const Status& status) {
  std::fprintf(stderr, "nibble-data: %s\n", status.message().c_str());
  return kExitFailed;
}

int FailUsage(const Status& status) {
  std::fprintf(stderr, "nibble-data: %s\n", status.message().c_str());
  return kExitUsage;
}

int PrintData(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) {
    return kExitOk;
  }
  std::fprintf(stderr, "nibble-data: cannot write to stdout\n");
  return kExitFailed;
}

int PrintSummary(const CliArgs& args, const Json& json, const std::string& text) {
  if (args.json()) return PrintData(json.Dump() + "\n");
  std::fprintf(stderr, "%s\n", text.c_str());
  return kExitOk;
}

namespace {

std::vector<DataCommand> AllCommands() {
  std::vector<DataCommand> all = CorpusCommands();
  for (const auto& group : {TokenizerCommands(), TokenCommands()}) {
    all.insert(all.end(), group.begin(), group.end());
  }
  return all;
}

std::string Overview(const std::vector<DataCommand>& commands) {
  std::string out =
      "nibble-data prepares what a training run reads: corpora, tokenizers, token shards.\n\n"
      "Usage: nibble-data COMMAND [flags] ...\n\nCommands:\n";
  for (const DataCommand& command : commands) {
    out += StrFormat("  %-16s %s\n", command.cli.name.c_str(), command.cli.summary.c_str());
  }
  return out +
         "\n'nibble-data COMMAND --help' explains one.\n\nExample:\n"
         "  nibble-data corpus perl-doc --out corpus.txt\n"
         "  nibble-data train-tokenizer --input corpus.txt --vocab-size 4096 --out t.model\n"
         "  nibble-data tokenize --tokenizer t.model --out tokens corpus.txt\n";
}

int Main(const std::vector<std::string>& words) {
  const std::vector<DataCommand> commands = AllCommands();
  if (words.empty() || words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    const std::string overview = Overview(commands);
    if (!words.empty()) return PrintData(overview);
    std::fputs(overview.c_str(), stderr);
    return kExitUsage;
  }
  // A command's name has one word or two.
  const std::string one = words[0];
  const std::string two = words.size() > 1 ? words[0] + " " + words[1] : one;
  std::vector<std::string> names;
  for (const DataCommand& command : commands) {
    names.push_back(command.cli.name);
    if (command.cli.name != one && command.cli.name != two) continue;
    const size_t used = command.cli.name == one ? 1 : 2;
    const auto args = CliArgs::Parse(
        command.cli,
        std::vector<std::string>(words.begin() + static_cast<long>(used), words.end()));
    if (!args.ok()) {
      return FailUsage(
          Status(args.status().code(),
                 args.status().message() + "; see 'nibble-data " + command.cli.name + " --help'"));
    }
    if (args->Has("--help")) return PrintData(CliHelp("nibble-data", command.cli));
    return command.run(*args);
  }
  return FailUsage(
      InvalidArgumentError(UnknownNameMessage("command", one == "corpus" ? two : one, names)));
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  // A closed pipe is an error of the write, with a message, not a silent death.
  std::signal(SIGPIPE, SIG_IGN);
  return nibble::Main(std::vector<std::string>(argv + 1, argv + argc));
}
