// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/options.h"

#include <gtest/gtest.h>

#include "base/files.h"
#include "server/rpc/page_token.h"
#include "server/rpc/test_support.h"

namespace nibble::rpc {
namespace {

ControllerOptions Valid() {
  ControllerOptions options;
  options.state_dir = "/tmp/x";
  return options;
}

TEST(Options, AddressesParseOrNameTheirFlag) {
  EXPECT_EQ(ParseHostPort("127.0.0.1:7790", "--listen")->port, 7790);
  EXPECT_EQ(ParseHostPort("[::1]:0", "--listen")->host, "::1");
  EXPECT_EQ(ParseHostPort("[::1]:80", "--listen")->ToString(), "[::1]:80");
  for (const char* bad : {"", "host", ":80", "host:", "host:x", "host:65536", "host:-1", "::1:80",
                          "[]:80", "[::1:80"}) {
    const auto parsed = ParseHostPort(bad, "--http");
    ASSERT_FALSE(parsed.ok()) << bad;
    EXPECT_NE(parsed.status().message().find("--http"), std::string::npos);
  }
}

TEST(Options, LoopbackNeedsNeitherTokenNorTls) {
  for (const char* address : {"127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"}) {
    ControllerOptions options = Valid();
    options.listen = address;
    EXPECT_TRUE(CheckOptions(options).ok()) << address;
  }
}

TEST(Options, OtherAddressesDemandTokenThenTlsOrInsecure) {
  ControllerOptions options = Valid();
  options.listen = "0.0.0.0:7790";
  EXPECT_NE(CheckOptions(options).message().find("--token-file"), std::string::npos);
  options.token = "0123456789abcdef";
  EXPECT_NE(CheckOptions(options).message().find("--insecure"), std::string::npos);
  options.insecure = true;
  EXPECT_TRUE(CheckOptions(options).ok());
  options.insecure = false;
  options.tls_cert = "a";
  EXPECT_NE(CheckOptions(options).message().find("--tls-key"), std::string::npos);
  options.tls_key = "b";
  EXPECT_TRUE(CheckOptions(options).ok());
}

TEST(Options, TimingsMustGrow) {
  ControllerOptions options = Valid();
  options.suspect_after_ms = options.heartbeat_ms;
  EXPECT_NE(CheckOptions(options).message().find("--suspect-after"), std::string::npos);
  options = Valid();
  options.lease_ms = options.suspect_after_ms;
  EXPECT_FALSE(CheckOptions(options).ok());
  options = Valid();
  options.job_series_grace_ms = -1;
  EXPECT_FALSE(CheckOptions(options).ok());
}

TEST(Options, AuthorizationAcceptsOnlyTheExactToken) {
  const std::string token = "correct-horse";
  EXPECT_TRUE(CheckAuthorization("", "").ok());
  EXPECT_TRUE(CheckAuthorization(token, "Bearer correct-horse").ok());
  for (const char* wrong :
       {"", "Bearer ", "Bearer correct-hors", "Bearer correct-horse ", "Bearer correct-horsf",
        "Basic correct-horse", "correct-horse", "Bearer correct-horsecorrect-horse"}) {
    EXPECT_EQ(CheckAuthorization(token, wrong).code(), StatusCode::kUnauthenticated) << wrong;
  }
}

TEST(Options, TokenFilesAreCheckedForLengthAndShape) {
  TempDirectory directory;
  const std::string path = JoinPath(directory.path(), "token");
  ASSERT_TRUE(AtomicWriteFile(path, "  0123456789abcdef\n").ok());
  EXPECT_EQ(LoadToken(path).value(), "0123456789abcdef");
  ASSERT_TRUE(AtomicWriteFile(path, "short\n").ok());
  EXPECT_FALSE(LoadToken(path).ok());
  ASSERT_TRUE(AtomicWriteFile(path, "two words here\n").ok());
  EXPECT_FALSE(LoadToken(path).ok());
  EXPECT_EQ(LoadToken(path + ".missing").status().code(), StatusCode::kNotFound);
}

TEST(PageToken, ReadsBackForTheSameQuestionOnly) {
  const std::string token = MakePageToken(123456789, "jobs\nmain");
  EXPECT_EQ(ReadPageToken(token, "jobs\nmain").value(), 123456789);
  EXPECT_EQ(ReadPageToken("", "jobs\nmain").value(), 0);
  EXPECT_FALSE(ReadPageToken(token, "jobs\nother").ok());
  for (const char* bad :
       {"x", ".", "12", "12.", "zz.000000000000", "-1.000000000000", "ffffffffffffffffff.0"}) {
    EXPECT_EQ(ReadPageToken(bad, "q").status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace nibble::rpc
