// SPDX-License-Identifier: Apache-2.0
//
// The small parts of client/lib: quantities, connection, curves, JSON output, interrupts.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <csignal>
#include <limits>
#include <map>

#include "base/files.h"
#include "client/lib/connection.h"
#include "client/lib/curve.h"
#include "client/lib/exit_code.h"
#include "client/lib/interrupt.h"
#include "client/lib/proto_json.h"
#include "client/lib/quantities.h"

namespace nibble {
namespace {

TEST(Quantities, BytesTakeBinaryAndDecimalUnits) {
  const std::map<std::string, int64_t> good = {{"0", 0},
                                               {"512", 512},
                                               {"512B", 512},
                                               {"4GiB", 1LL << 32},
                                               {"1.5 MiB", 1572864},
                                               {"2KB", 2000},
                                               {"1TB", 1000000000000},
                                               {"1TiB", 1LL << 40},
                                               {"2e3", 2000}};
  for (const auto& [text, bytes] : good) {
    const auto parsed = ParseBytes(text);
    ASSERT_TRUE(parsed.ok()) << text << parsed.status().ToString();
    EXPECT_EQ(*parsed, bytes) << text;
  }
  for (const char* text : {"", "GiB", "-1", "4 gib", "4GiBs", "1e30", "nan", "4G"}) {
    EXPECT_FALSE(ParseBytes(text).ok()) << text;
  }
}

TEST(Quantities, WholeNumbersTakeExponentsButNoFractions) {
  EXPECT_EQ(ParseWholeNumber("20e9").value(), 20'000'000'000);
  EXPECT_EQ(ParseWholeNumber("9223372036854775807").value(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(ParseWholeNumber("-2.0").value(), -2);
  EXPECT_EQ(ParseWholeNumber("0.5").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ParseWholeNumber("1e19").status().code(), StatusCode::kOutOfRange);
  for (const char* text : {"", "x", "1 2", "0x10", "inf", "nan", "1_000"}) {
    EXPECT_FALSE(ParseWholeNumber(text).ok()) << text;
  }
}

TEST(Quantities, DurationsAndAgesReadWell) {
  EXPECT_EQ(WriteDuration(0), "0s");
  EXPECT_EQ(WriteDuration(5400), "1h30m");
  EXPECT_EQ(WriteDuration(90061.25), "1d1h1m1s250ms");
  EXPECT_EQ(FormatAge(5.9), "5s");
  EXPECT_EQ(FormatAge(192), "3m12s");
  EXPECT_EQ(FormatAge(-1), "0s");
  EXPECT_EQ(FormatAge(std::nan("")), "0s");
}

TEST(ExitCodes, FollowTheReference) {
  EXPECT_EQ(ExitCodeFor(OkStatus()), 0);
  EXPECT_EQ(ExitCodeFor(InternalError("")), 1);
  EXPECT_EQ(ExitCodeFor(InvalidArgumentError("")), 2);
  EXPECT_EQ(ExitCodeFor(NotFoundError("")), 3);
  EXPECT_EQ(ExitCodeFor(UnauthenticatedError("")), 4);
  EXPECT_EQ(ExitCodeFor(PermissionDeniedError("")), 4);
  EXPECT_EQ(ExitCodeFor(UnavailableError("")), 5);
  EXPECT_EQ(ExitCodeFor(FailedPreconditionError("")), 7);
  EXPECT_EQ(ExitCodeFor(AlreadyExistsError("")), 7);
  EXPECT_EQ(ExitCodeFor(DeadlineExceededError("")), 124);
  EXPECT_EQ(ExitCodeFor(CancelledError("")), 130);
}

TEST(Connection, FlagBeatsEnvironmentBeatsAddressFileBeatsDefault) {
  const auto folder = MakeTempDirectory("connection");
  ASSERT_TRUE(folder.ok());
  std::map<std::string, std::string> env = {{"NIBBLE_STATE_DIR", *folder}};
  const EnvironmentReader reader = [&](const char* name) { return env[name]; };
  EXPECT_EQ(ResolveConnection({}, reader)->server, kDefaultServer);
  const std::string file = AddressFileIn(*folder);
  ASSERT_TRUE(MakeDirectories(DirName(file)).ok());
  ASSERT_TRUE(AtomicWriteFile(file, "127.0.0.1:1234\n").ok());
  EXPECT_EQ(ResolveConnection({}, reader)->server, "127.0.0.1:1234");
  EXPECT_EQ(ResolveConnection({}, reader)->server_source, file);
  env["NIBBLE_SERVER"] = "host:80";
  EXPECT_EQ(ResolveConnection({}, reader)->server, "host:80");
  ConnectionFlags flags;
  flags.server = "[::1]:81";
  EXPECT_EQ(ResolveConnection(flags, reader)->server, "[::1]:81");
  EXPECT_TRUE(RemoveTree(*folder).ok());
}

TEST(Connection, BadAddressesTimeoutsAndTokensAreNamed) {
  const EnvironmentReader nothing = [](const char*) { return std::string(); };
  for (const char* server : {"host", ":80", "host:", "host:0", "host:65536", "host:x"}) {
    ConnectionFlags flags;
    flags.server = server;
    const auto options = ResolveConnection(flags, nothing);
    EXPECT_EQ(options.status().code(), StatusCode::kInvalidArgument) << server;
    EXPECT_NE(options.status().message().find("--server"), std::string::npos);
  }
  for (const char* timeout : {"0", "x", "2h", "-1s"}) {
    ConnectionFlags flags;
    flags.timeout = timeout;
    EXPECT_FALSE(ResolveConnection(flags, nothing).ok()) << timeout;
  }
  ConnectionFlags flags;
  flags.timeout = "250ms";
  EXPECT_EQ(ResolveConnection(flags, nothing)->timeout.count(), 250);
  flags.token_file = "/nonexistent/token";
  EXPECT_EQ(ResolveConnection(flags, nothing).status().code(), StatusCode::kNotFound);
}

TEST(Connection, TokenComesFromTheFilesFirstLineOrTheEnvironment) {
  const auto folder = MakeTempDirectory("connection");
  ASSERT_TRUE(folder.ok());
  const EnvironmentReader env = [](const char* name) {
    return std::string(name == std::string("NIBBLE_TOKEN") ? "from-env" : "");
  };
  EXPECT_EQ(ResolveConnection({}, env)->token, "from-env");
  ConnectionFlags flags;
  flags.token_file = JoinPath(*folder, "token");
  ASSERT_TRUE(AtomicWriteFile(flags.token_file, "  from-file \nsecond\n").ok());
  EXPECT_EQ(ResolveConnection(flags, env)->token, "from-file");
  ASSERT_TRUE(AtomicWriteFile(flags.token_file, "\nsecond\n").ok());
  EXPECT_EQ(ResolveConnection(flags, env).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(RemoveTree(*folder).ok());
}

TEST(Curve, FallingLossLooksAsDrawnHere) {
  std::vector<CurvePoint> line;
  for (int step = 1; step <= 40; ++step) line.push_back({step * 1.0, 2 + 6.0 / step});
  CurveOptions options;
  options.width = 20;
  options.height = 4;
  options.x_max = 40;
  options.x_label = "step";
  const std::vector<std::string> drawn = DrawCurve(line, {{20, 5}, {40, 3}}, options);
  const std::vector<std::string> expected = {
      "8.000 ┤⢸                   ", "      │ ⡇                  ", "      │ ⠱⡀       o         ",
      "2.150 ┤  ⠉⠒⠢⠤⠤⠤⠤⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀o", "       0            step 40",
  };
  std::string text;
  for (const std::string& row : drawn) text += row + "\n";
  ASSERT_EQ(drawn.size(), expected.size()) << text;
  for (size_t i = 0; i < drawn.size(); ++i) EXPECT_EQ(drawn[i], expected[i]) << text;
}

TEST(Curve, OddInputsDrawSomethingSensible) {
  const double nan = std::nan("");
  EXPECT_EQ(DrawCurve({}, {}, {}), std::vector<std::string>{"(no points yet)"});
  EXPECT_EQ(DrawCurve({{1, nan}}, {}, {}), std::vector<std::string>{"(no points yet)"});
  CurveOptions tiny;
  tiny.width = 1;
  tiny.height = 1;
  EXPECT_EQ(DrawCurve({{5, 2}}, {}, tiny).size(), 3u);  // clamped to two rows and an axis
  EXPECT_EQ(DrawCurve({{1, 2}, {2, nan}, {3, 2}}, {{2, HUGE_VAL}}, {}).size(), 11u);
}

TEST(Curve, ProgressBarFillsInEighths) {
  EXPECT_EQ(ProgressBar(0, 4), "    ");
  EXPECT_EQ(ProgressBar(0.5, 4), "██  ");
  EXPECT_EQ(ProgressBar(0.53125, 4), "██▏ ");
  EXPECT_EQ(ProgressBar(1, 4), "████");
  EXPECT_EQ(ProgressBar(7, 4), "████");
  EXPECT_EQ(ProgressBar(std::nan(""), 4), "    ");
}

TEST(Curve, SparklineAveragesIntoItsWidth) {
  EXPECT_EQ(Sparkline({8, 4, 1}, 10), "█▄▁");
  EXPECT_EQ(Sparkline({8, 8, 1, 1}, 2), "█▁");
  EXPECT_EQ(Sparkline({3, 3}, 5), "▅▅");
  EXPECT_EQ(Sparkline({}, 5), "");
  EXPECT_EQ(Sparkline({std::nan("")}, 5), "");
}

TEST(ProtoJson, JobShowsStableNamesAndTypes) {
  v1::Job job;
  job.set_id("j-1");
  job.set_state(v1::JOB_STATE_TIMED_OUT);
  job.mutable_submit_time()->set_seconds(1'700'000'000);
  job.mutable_spec()->mutable_time_limit()->set_seconds(5400);
  job.mutable_progress()->set_tokens(int64_t{1} << 60);
  job.mutable_progress()->set_loss(std::nan(""));
  const Json json = MessageToJson(job);
  EXPECT_EQ(json["state"].AsString(), "TIMED_OUT");
  EXPECT_EQ(json["submitTime"].AsString(), "2023-11-14T22:13:20.000Z");
  EXPECT_EQ(json["spec"]["timeLimit"].AsString(), "1h30m");
  EXPECT_EQ(json["spec"].size(), 1u);  // a spec shows what was set
  EXPECT_EQ(json["progress"]["tokens"].AsInt(), int64_t{1} << 60);
  EXPECT_EQ(json["progress"]["loss"].Dump(), "\"NaN\"");
  EXPECT_TRUE(json["attempts"].is_array());
  EXPECT_TRUE(json["checkpointPath"].is_string());
  EXPECT_EQ(json.Find("endTime"), nullptr);
}

TEST(ProtoJson, YamlQuotesWhatWouldReadDifferently) {
  const Json json = Json::Object({{"a", "plain text"},
                                  {"b", "true"},
                                  {"c", "12"},
                                  {"d", "x: y"},
                                  {"e", Json::Array({"- z", 1, Json::Array()})},
                                  {"f", Json::Object()},
                                  {"g", Json::Array({Json::Object({{"k", 1}, {"l", "ü"}})})}});
  EXPECT_EQ(JsonToYaml(json),
            "a: plain text\nb: \"true\"\nc: \"12\"\nd: \"x: y\"\ne:\n  - \"- z\"\n  - 1\n  - []\n"
            "f: {}\ng:\n  - k: 1\n    l: \"ü\"\n");
}

TEST(ProtoJson, JobStatesParseInAnyCase) {
  EXPECT_EQ(ParseJobState("running").value(), v1::JOB_STATE_RUNNING);
  EXPECT_EQ(ParseJobState("Timed_Out").value(), v1::JOB_STATE_TIMED_OUT);
  EXPECT_FALSE(ParseJobState("unspecified").ok());
  const auto unknown = ParseJobState("runing");
  EXPECT_NE(unknown.status().message().find("did you mean"), std::string::npos)
      << unknown.status().message();
}

TEST(Interrupt, SignalEndsAWaitAndCallsRegisteredCallbacks) {
  Interrupt interrupt;
  EXPECT_FALSE(interrupt.WaitFor(std::chrono::milliseconds(1)));
  std::atomic<int> calls = 0;
  {
    SignalInterrupt signals(interrupt);
    Interrupt::Registration registration(interrupt, [&] { ++calls; });
    ::kill(::getpid(), SIGTERM);
    EXPECT_TRUE(interrupt.WaitFor(std::chrono::seconds(10)));
    EXPECT_EQ(calls, 1);
    EXPECT_FALSE(interrupt.insisted());
  }
  interrupt.Trigger();
  EXPECT_TRUE(interrupt.insisted());
  EXPECT_EQ(calls, 1);  // not registered any more
  Interrupt::Registration late(interrupt, [&] { ++calls; });
  EXPECT_EQ(calls, 2);  // at once
}

}  // namespace
}  // namespace nibble
