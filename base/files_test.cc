// SPDX-License-Identifier: Apache-2.0
#include "base/files.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

namespace nibble {
namespace {

class FilesTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = MakeTempDirectory("nibble-files").value(); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  std::string folder_;
};

TEST_F(FilesTest, AtomicWriteReplacesAndLeavesNoTemporary) {
  const std::string path = JoinPath(folder_, "a");
  ASSERT_TRUE(AtomicWriteFile(path, "one").ok());
  ASSERT_TRUE(AtomicWriteFile(path, "two").ok());
  EXPECT_EQ(*ReadFile(path), "two");
  EXPECT_EQ(*ReadFileRange(path, 1, 10), "wo");
  EXPECT_EQ(ListDirectory(folder_)->size(), 1u);
}

TEST_F(FilesTest, FailedAtomicWriteKeepsTheOldContent) {
  const std::string path = JoinPath(folder_, "a");
  ASSERT_TRUE(AtomicWriteFile(path, "old").ok());
  // A file size limit makes write(2) fail the way a full disk does.
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit small = {16, old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const Status status = AtomicWriteFile(path, std::string(1000, 'x'));
  setrlimit(RLIMIT_FSIZE, &old_limit);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.ToString();
  EXPECT_EQ(*ReadFile(path), "old");
  EXPECT_EQ(ListDirectory(folder_)->size(), 1u);
}

TEST_F(FilesTest, AppendFileCutsBackAfterAFailedAppend) {
  const std::string path = JoinPath(folder_, "log");
  auto file = AppendFile::Open(path);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(file->Append("0123456789").ok());
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit small = {16, old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_FALSE(file->Append(std::string(100, 'x')).ok());
  setrlimit(RLIMIT_FSIZE, &old_limit);
  EXPECT_EQ(*ReadFile(path), "0123456789");
  ASSERT_TRUE(file->Append("!").ok());
  EXPECT_EQ(*ReadFile(path), "0123456789!");
}

TEST_F(FilesTest, LockIsExclusiveAndNamesItsHolder) {
  const std::string path = JoinPath(folder_, "lock");
  auto first = FileLock::Acquire(path);
  ASSERT_TRUE(first.ok());
  const auto second = FileLock::Acquire(path);
  EXPECT_EQ(second.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(second.status().message().find(std::to_string(::getpid())), std::string::npos);
  { FileLock released = std::move(*first); }
  EXPECT_TRUE(FileLock::Acquire(path).ok());
}

TEST_F(FilesTest, ErrorsNameThePath) {
  const auto missing = ReadFile(JoinPath(folder_, "none"));
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
  EXPECT_NE(missing.status().message().find("none"), std::string::npos);
  ASSERT_TRUE(AtomicWriteFile(JoinPath(folder_, "big"), "12345").ok());
  EXPECT_EQ(ReadFile(JoinPath(folder_, "big"), 4).status().code(), StatusCode::kResourceExhausted);
}

TEST(Paths, JoinBaseDir) {
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("a", "/b"), "/b");
  EXPECT_EQ(BaseName("/x/y"), "y");
  EXPECT_EQ(DirName("/x/y"), "/x");
  EXPECT_EQ(DirName("/x"), "/");
  EXPECT_EQ(DirName("x"), ".");
}

}  // namespace
}  // namespace nibble
