// SPDX-License-Identifier: Apache-2.0
#include "client/cli/completion.h"

#include <gtest/gtest.h>

#include "base/files.h"
#include "base/process.h"
#include "client/cli/command_line.h"
#include "client/cli/table.h"

namespace nibble::cli {
namespace {

// Writes the script and lets the shell parse it; skips shells this machine lacks.
void ExpectParses(const std::string& shell) {
  const auto script = CompletionScript(shell, DescribeCommands());
  ASSERT_TRUE(script.ok());
  for (const CommandInfo& command : DescribeCommands()) {
    EXPECT_NE(script->find(command.name), std::string::npos) << command.name;
  }
  const auto folder = MakeTempDirectory("completion");
  ASSERT_TRUE(folder.ok());
  const std::string path = JoinPath(*folder, "script");
  ASSERT_TRUE(AtomicWriteFile(path, *script).ok());
  const auto checked = RunCommand({shell, "-n", path});
  if (!checked.ok()) {
    EXPECT_TRUE(RemoveTree(*folder).ok());
    GTEST_SKIP() << shell << " is not installed";
  }
  EXPECT_TRUE(checked->status.success()) << checked->output;
  EXPECT_TRUE(RemoveTree(*folder).ok());
}

TEST(Completion, BashParsesTheScript) { ExpectParses("bash"); }
TEST(Completion, ZshParsesTheScript) { ExpectParses("zsh"); }
TEST(Completion, FishParsesTheScript) { ExpectParses("fish"); }

TEST(Completion, BashOffersCommandsFlagsAndChoices) {
  const auto script = CompletionScript("bash", DescribeCommands());
  ASSERT_TRUE(script.ok());
  const auto complete = [&](const std::string& words, int index) {
    const std::string program = *script + "\nCOMP_WORDS=(" + words +
                                ")\nCOMP_CWORD=" + std::to_string(index) +
                                "\n_nibble\necho \"${COMPREPLY[@]}\"\n";
    const auto run = RunCommand({"bash", "-c", program});
    return run.ok() ? run->output : run.status().ToString();
  };
  EXPECT_EQ(complete("nibble sub", 1), "submit\n");
  EXPECT_EQ(complete("nibble ps --no", 2), "--no-headers\n");
  EXPECT_EQ(complete("nibble ps -o j", 3), "json\n");
  EXPECT_EQ(complete("nibble metrics job -o c", 4), "csv\n");
  EXPECT_EQ(complete("nibble completion z", 2), "zsh\n");
  EXPECT_EQ(complete("nibble recipes val", 2), "validate\n");
}

TEST(Completion, UnknownShellListsTheKnownOnes) {
  const auto script = CompletionScript("tcsh", {});
  EXPECT_EQ(script.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(script.status().message().find("bash, zsh, fish"), std::string::npos);
}

TEST(Table, AlignsByCharactersNotBytes) {
  Table table({"NAME", ">N"});
  table.AddRow({"ü▁", "1"});
  table.AddRow({"long", "22"});
  table.AddRow({"", ""});
  const std::vector<std::string> expected = {"NAME   N", "ü▁     1", "long  22", "-      -"};
  EXPECT_EQ(table.Lines(true), expected);
  EXPECT_EQ(table.Lines(false).size(), 3u);
  EXPECT_EQ(CutToWidth("üüüü", 3), "üü…");
  EXPECT_EQ(CutToWidth("abc", 3), "abc");
}

}  // namespace
}  // namespace nibble::cli
