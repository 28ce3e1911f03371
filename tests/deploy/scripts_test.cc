// SPDX-License-Identifier: Apache-2.0
//
// The shell scripts of deploy/, run as people and containers run them.
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "base/process.h"
#include "tests/support/http_get.h"
#include "tests/support/prometheus_server.h"

namespace nibble::testing {
namespace {

std::string SourcePath(std::string_view path) { return JoinPath(NIBBLE_SOURCE_DIR, path); }

// A folder that is removed with the test.
class TempFolder {
 public:
  TempFolder() : path_(MakeTempDirectory("nibble-deploy").value_or("")) {}
  ~TempFolder() {
    if (path_.empty()) return;
    EXPECT_TRUE(RemoveTree(path_).ok());
  }
  std::string operator/(std::string_view name) const { return JoinPath(path_, name); }

 private:
  std::string path_;
};

CommandOutput RunTool(const std::vector<std::string>& argv) {
  Result<CommandOutput> run = RunCommand(argv);
  EXPECT_TRUE(run.ok()) << run.status().ToString();
  return std::move(run).value_or({});
}

TEST(TlsScript, CertificateIsValidForEveryNameAndItsAuthorityIsKept) {
  const std::string openssl = FindProgram("openssl");
  if (openssl.empty()) GTEST_SKIP() << "openssl is not installed";
  const TempFolder folder;
  const std::vector<std::string> make = {"/bin/sh", SourcePath("deploy/tls/make-certs.sh"),
                                         folder / "certs", "controller", "127.0.0.1"};
  const CommandOutput first = RunTool(make);
  ASSERT_TRUE(first.status.success()) << first.output;
  const std::string authority = ReadFile(folder / "certs/ca.crt").value_or("");
  for (const std::vector<std::string>& check :
       {std::vector<std::string>{"-verify_hostname", "controller"}, {"-verify_ip", "127.0.0.1"}}) {
    const CommandOutput verified =
        RunTool({openssl, "verify", "-CAfile", folder / "certs/ca.crt", "-purpose", "sslserver",
                 check[0], check[1], folder / "certs/server.crt"});
    EXPECT_TRUE(verified.status.success()) << verified.output;
  }
  EXPECT_FALSE(RunTool({openssl, "verify", "-CAfile", folder / "certs/ca.crt", "-verify_hostname",
                        "elsewhere", folder / "certs/server.crt"})
                   .status.success());

  const std::string certificate = ReadFile(folder / "certs/server.crt").value_or("");
  ASSERT_TRUE(RunTool(make).status.success());
  EXPECT_EQ(ReadFile(folder / "certs/ca.crt").value_or("x"), authority);
  EXPECT_NE(ReadFile(folder / "certs/server.crt").value_or(""), certificate);
}

TEST(TlsScript, CallWithoutANameIsAUsageError) {
  const TempFolder folder;
  const CommandOutput run =
      RunTool({"/bin/sh", SourcePath("deploy/tls/make-certs.sh"), folder / "certs"});
  EXPECT_EQ(run.status.exit_code, 2) << run.output;
  EXPECT_NE(run.output.find("usage:"), std::string::npos) << run.output;
}

TEST(TokenScript, TokenIsMadeOnceAndOnlyItsOwnerReadsIt) {
  if (FindProgram("openssl").empty()) GTEST_SKIP() << "openssl is not installed";
  const TempFolder folder;
  const std::vector<std::string> make = {"/bin/sh", SourcePath("deploy/docker/make-token.sh"),
                                         folder / "token"};
  ASSERT_TRUE(RunTool(make).status.success());
  const std::string token = ReadFile(folder / "token").value_or("");
  EXPECT_EQ(token.size(), 65u) << "32 bytes in hexadecimal and a line end";
  ASSERT_TRUE(RunTool(make).status.success());
  EXPECT_EQ(ReadFile(folder / "token").value_or(""), token);
  EXPECT_EQ(RunTool({"/usr/bin/stat", "-c", "%a", folder / "token"}).output, "600\n");
}

TEST(HealthcheckScript, FailsWhenNobodyAnswers) {
  const Result<int> port = FreeLoopbackPort();
  ASSERT_TRUE(port.ok()) << port.status().ToString();
  EXPECT_FALSE(
      RunTool({"/bin/bash", SourcePath("deploy/docker/healthcheck.sh"), std::to_string(*port)})
          .status.success());
}

}  // namespace
}  // namespace nibble::testing
