// SPDX-License-Identifier: Apache-2.0
#include "base/process.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <thread>

namespace nibble {
namespace {

TEST(Process, ReportsExitCodesSignalsAndMissingPrograms) {
  const auto seven = RunCommand({"/bin/sh", "-c", "echo out; echo err >&2; exit 7"});
  ASSERT_TRUE(seven.ok());
  EXPECT_EQ(seven->status.ToString(), "exit code 7");
  EXPECT_EQ(seven->output, "out\nerr\n");
  EXPECT_EQ(RunCommand({"/bin/sh", "-c", "kill -9 $$"})->status.signal, SIGKILL);
  EXPECT_EQ(RunCommand({"/does/not/exist"}).status().code(), StatusCode::kNotFound);
}

TEST(Process, EnvironmentIsLaidOverTheParents) {
  ::setenv("NIBBLE_PROCESS_TEST", "old", 1);
  ProcessOptions options;
  options.argv = {"/bin/sh", "-c", "test \"$NIBBLE_PROCESS_TEST\" = new && test -n \"$PATH\""};
  options.env = {{"NIBBLE_PROCESS_TEST", "new"}};
  EXPECT_TRUE(Process::Start(options)->Wait()->success());
}

TEST(Process, SignalReachesTheWholeGroup) {
  ProcessOptions options;
  options.argv = {"/bin/sh", "-c", "sleep 100 & wait"};
  auto process = Process::Start(options);
  ASSERT_TRUE(process.ok());
  EXPECT_FALSE(process->WaitFor(std::chrono::milliseconds(20))->has_value());
  ASSERT_TRUE(process->Signal(SIGKILL).ok());
  EXPECT_EQ(process->Wait()->signal, SIGKILL);
}

TEST(Process, KillWithParentEndsTheChildWithTheThreadThatStartedIt) {
  ProcessOptions options;
  options.argv = {"/bin/sleep", "100"};
  options.parent_death_signal = SIGKILL;
  Result<Process> process = InternalError("not started");
  std::thread([&] { process = Process::Start(options); }).join();
  ASSERT_TRUE(process.ok());
  EXPECT_EQ(process->Wait()->signal, SIGKILL);
}

TEST(Process, EndWithParentAsksTheChildToEnd) {
  ProcessOptions options;
  options.argv = {"/bin/sleep", "100"};
  options.parent_death_signal = SIGTERM;
  Result<Process> process = InternalError("not started");
  std::thread([&] { process = Process::Start(options); }).join();
  ASSERT_TRUE(process.ok());
  EXPECT_EQ(process->Wait()->signal, SIGTERM);
}

TEST(Process, StartTicksIdentifyALivingProcessOnly) {
  EXPECT_GT(ProcessStartTicks(::getpid()).value(), 0);
  ProcessOptions options;
  options.argv = {"/bin/true"};
  auto process = Process::Start(options);
  ASSERT_TRUE(process.ok());
  ASSERT_TRUE(process->Wait().ok());
  EXPECT_EQ(ProcessStartTicks(process->pid()).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace nibble
