// SPDX-License-Identifier: Apache-2.0
#include "client/lib/local_cluster.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <thread>

#include "base/files.h"
#include "base/mutex.h"
#include "base/strings.h"
#include "client/lib/client.h"

namespace nibble {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kPatience{60};

std::string ProgramFolder() { return JoinPath(NIBBLE_BINARY_DIR, "bin"); }

bool ProgramsAreBuilt() {
  for (const char* name : {"nibble-controller", "nibble-worker", "nibble-trainer"}) {
    if (!PathExists(JoinPath(ProgramFolder(), name))) return false;
  }
  return true;
}

// Process ids of programs whose command line mentions `text`.
std::vector<pid_t> ProcessesNaming(const std::string& text, const std::string& program) {
  std::vector<pid_t> pids;
  for (const std::string& name : ListDirectory("/proc").value_or({})) {
    const auto pid = ParseInt(name);
    if (!pid.ok() || *pid == ::getpid()) continue;
    const std::string command = ReadFile("/proc/" + name + "/cmdline", 1 << 20).value_or("");
    if (command.find(text) == std::string::npos) continue;
    if (command.find(program) != std::string::npos) pids.push_back(static_cast<pid_t>(*pid));
  }
  return pids;
}

class LocalClusterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = MakeTempDirectory("local-cluster").value();
    options_.bin_dir = ProgramFolder();
    options_.state_dir = JoinPath(folder_, "state");
    options_.listen = options_.http = "127.0.0.1:0";
    options_.note = [this](const std::string& text) {
      MutexLock lock(mutex_);
      notes_ += text + "\n";
    };
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  std::string notes() {
    MutexLock lock(mutex_);
    return notes_;
  }

  // Waits until one process runs the program and it is not `other`; 0 after kPatience. A program
  // that starts, ends or forks may show beside another for a moment.
  pid_t TheOnly(const char* program, pid_t other) {
    const auto deadline = steady_clock::now() + kPatience;
    while (steady_clock::now() < deadline) {
      const std::vector<pid_t> pids = ProcessesNaming(options_.state_dir, program);
      if (pids.size() == 1 && pids[0] != other) return pids[0];
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return 0;
  }

  // A folder with shell scripts in place of the programs.
  std::string FakePrograms(const std::string& controller_script) {
    const std::string bin = JoinPath(folder_, "bin");
    EXPECT_TRUE(MakeDirectories(bin).ok());
    for (const char* name : {"nibble-controller", "nibble-worker", "nibble-trainer"}) {
      const std::string path = JoinPath(bin, name);
      EXPECT_TRUE(AtomicWriteFile(path, "#!/bin/sh\n" + controller_script).ok());
      EXPECT_EQ(::chmod(path.c_str(), 0755), 0);
    }
    return bin;
  }

  std::string folder_;
  Interrupt interrupt_;
  LocalClusterOptions options_;
  Mutex mutex_;
  std::string notes_ GUARDED_BY(mutex_);
};

TEST_F(LocalClusterTest, MissingProgramIsNamed) {
  options_.bin_dir = folder_;
  const auto cluster = LocalCluster::Start(options_, interrupt_);
  EXPECT_EQ(cluster.status().code(), StatusCode::kNotFound);
  EXPECT_NE(cluster.status().message().find("nibble-controller is not in " + folder_),
            std::string::npos);
}

TEST_F(LocalClusterTest, OtherMachinesAreRefused) {
  options_.listen = "0.0.0.0:7790";
  EXPECT_EQ(LocalCluster::Start(options_, interrupt_).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_F(LocalClusterTest, ProgramThatEndsAtOnceIsReportedWithItsLastWords) {
  options_.bin_dir = FakePrograms("echo 'no such luck' >&2; exit 3\n");
  const auto cluster = LocalCluster::Start(options_, interrupt_);
  EXPECT_EQ(cluster.status().code(), StatusCode::kUnavailable);
  EXPECT_NE(cluster.status().message().find("nibble-controller ended with exit code 3"),
            std::string::npos)
      << cluster.status().message();
  EXPECT_NE(cluster.status().message().find("no such luck"), std::string::npos);
}

TEST_F(LocalClusterTest, InterruptWhileStartingLeavesNothing) {
  options_.bin_dir = FakePrograms("exec sleep 100\n");
  interrupt_.Trigger();
  const auto cluster = LocalCluster::Start(options_, interrupt_);
  EXPECT_EQ(cluster.status().code(), StatusCode::kCancelled);
  EXPECT_FALSE(PathExists(AddressFileIn(options_.state_dir)));
}

TEST_F(LocalClusterTest, RunsOnceAStateDirectoryAndLeavesNothing) {
  if (!ProgramsAreBuilt()) GTEST_SKIP() << "programs are not in " << ProgramFolder();
  {
    auto cluster = LocalCluster::Start(options_, interrupt_);
    ASSERT_TRUE(cluster.ok()) << cluster.status().ToString();
    EXPECT_TRUE((*cluster)->status().ok());
    const auto client =
        Client::Connect(ResolveConnection((*cluster)->connection()).value(), interrupt_);
    ASSERT_TRUE(client.ok());
    EXPECT_EQ((*client)->ListNodes()->size(), 1u);
    EXPECT_EQ((*client)->GetServerInfo()->http_address(), (*cluster)->http_address());
    const auto second = LocalCluster::Start(options_, interrupt_);
    EXPECT_EQ(second.status().code(), StatusCode::kFailedPrecondition);
    EXPECT_TRUE((*client)->ListNodes().ok());  // the first one is unharmed
    EXPECT_TRUE((*cluster)->Stop().ok());
  }
  EXPECT_TRUE(ProcessesNaming(options_.state_dir, "nibble-").empty());
  EXPECT_FALSE(PathExists(AddressFileIn(options_.state_dir)));
}

TEST_F(LocalClusterTest, ProgramsThatDieComeBackAtTheSameAddress) {
  if (!ProgramsAreBuilt()) GTEST_SKIP() << "programs are not in " << ProgramFolder();
  auto cluster = LocalCluster::Start(options_, interrupt_);
  ASSERT_TRUE(cluster.ok()) << cluster.status().ToString();
  for (const char* program : {"nibble-controller", "nibble-worker"}) {
    const pid_t before = TheOnly(program, 0);
    ASSERT_GT(before, 0) << program << "\n" << notes();
    ASSERT_EQ(::kill(before, SIGKILL), 0);
    ASSERT_GT(TheOnly(program, before), 0) << program << "\n" << notes();
  }
  const auto client =
      Client::Connect(ResolveConnection((*cluster)->connection()).value(), interrupt_);
  ASSERT_TRUE(client.ok());
  const auto deadline = steady_clock::now() + kPatience;
  bool up = false;
  while (!up && steady_clock::now() < deadline) {
    const auto nodes = (*client)->ListNodes();
    up = nodes.ok() && nodes->size() == 1 && nodes->at(0).state() == "up";
  }
  EXPECT_TRUE(up) << notes();
  EXPECT_NE(notes().find("nibble-controller ended with signal 9"), std::string::npos) << notes();
  EXPECT_TRUE((*cluster)->status().ok());
  EXPECT_TRUE((*cluster)->Stop().ok());
  EXPECT_TRUE(ProcessesNaming(options_.state_dir, "nibble-").empty());
}

TEST_F(LocalClusterTest, PortInUseIsReported) {
  if (!ProgramsAreBuilt()) GTEST_SKIP() << "programs are not in " << ProgramFolder();
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(fd, 1), 0);
  ASSERT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  options_.listen = StrFormat("127.0.0.1:%d", ntohs(address.sin_port));
  const auto cluster = LocalCluster::Start(options_, interrupt_);
  EXPECT_EQ(cluster.status().code(), StatusCode::kUnavailable);
  EXPECT_NE(cluster.status().message().find(options_.listen), std::string::npos)
      << cluster.status().message();
  ::close(fd);
}

}  // namespace
}  // namespace nibble
