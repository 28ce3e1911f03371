// SPDX-License-Identifier: Apache-2.0
//
// nibble-bench: statistics, the timing backend, and that every benchmark prints what its users
// parse.
#include "worker/bench/bench.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "base/process.h"
#include "worker/bench/measure.h"
#include "worker/bench/timed_backend.h"
#include "worker/train/test_support.h"

namespace nibble::bench {
namespace {

TEST(BenchMeasure, SummariesAreOrderStatistics) {
  const Summary summary = Summarise({5, 1, 2, 4, 3});
  EXPECT_EQ(summary.n, 5);
  EXPECT_DOUBLE_EQ(summary.median, 3);
  EXPECT_DOUBLE_EQ(summary.p10, 1.4);
  EXPECT_DOUBLE_EQ(summary.p90, 4.6);
  EXPECT_DOUBLE_EQ(summary.min, 1);
  EXPECT_EQ(Summarise({}).n, 0);
}

TEST(BenchMeasure, RatiosPairSamplesOfTheSameRound) {
  // Medians of each would say 2 / 2 = 1; paired, the second is 0.5, 1 and 4 times as fast.
  const Summary ratios = SummariseRatios({1, 2, 8}, {2, 2, 2});
  EXPECT_DOUBLE_EQ(ratios.median, 1);
  EXPECT_DOUBLE_EQ(ratios.min, 0.5);
  EXPECT_EQ(ratios.n, 3);
}

TEST(BenchMeasure, ContestantsTakeTurnsAndWarmUpIsNotCounted) {
  std::string order;
  std::vector<Contestant> contestants;
  for (const char* name : {"a", "b"}) {
    contestants.push_back({name, [&order, name]() -> Result<Sample> {
                             order += name;
                             return Sample{1.0, 2.0};
                           }});
  }
  ASSERT_TRUE(RunInterleaved({0.0, 3, 10}, contestants).ok());
  EXPECT_EQ(order, "abababab");  // no time left: min_rounds after the warm-up
  EXPECT_EQ(contestants[1].seconds, std::vector<double>(3, 1.0));
  EXPECT_EQ(contestants[1].cpu_seconds, std::vector<double>(3, 2.0));
}

TEST(BenchMeasure, FailureNamesTheContestant) {
  std::vector<Contestant> contestants;
  contestants.push_back({"broken", [] { return Result<Sample>(InternalError("no")); }});
  const Status status = RunInterleaved({}, contestants);
  EXPECT_NE(status.message().find("broken"), std::string::npos) << status.ToString();
}

TEST(BenchTimedBackend, ForwardsAndCountsByOperation) {
  std::unique_ptr<Backend> cpu = CpuWithThreads(1).value();
  TimedBackend timer(cpu.get(), ClockKind::kWall, /*head_size=*/48);
  Tensors tensors(&timer);
  const TensorView x = tensors.MakeBell(1, 1.0f, 16, 32).value();
  const TensorView w = tensors.MakeBell(2, 1.0f, 24, 32).value();
  const TensorView head = tensors.MakeBell(3, 1.0f, 48, 32).value();
  const TensorView y = tensors.Make(16, 24).value();
  const TensorView logits = tensors.Make(16, 48).value();
  timer.Reset();
  const auto multiply = [&](ConstTensorView weight, TensorView out) {
    return timer.Gemm(GemmMode::kF32, x, Transpose::kNo, weight, Transpose::kYes, false, out);
  };
  ASSERT_TRUE(multiply(w, y).ok());
  ASSERT_TRUE(multiply(head, logits).ok());
  EXPECT_GT(timer.SecondsOf("gemm"), 0);
  EXPECT_GT(timer.SecondsOf("head_gemm"), 0);
  EXPECT_EQ(timer.SecondsOf("attention"), 0);
  double expected = 0;
  for (int64_t k = 0; k < 32; ++k) expected += x.f32()[k] * w.f32()[k];
  EXPECT_NEAR(y.f32()[0], expected, 1e-3);
}

TEST(BenchReport, RowsCarryTheSpread) {
  const Json row = Row("x", Json::Object({{"m", 2}}), 1, {0.001, 0.002, 0.003});
  EXPECT_DOUBLE_EQ(row["ms"]["median"].AsDouble(), 2);
  EXPECT_EQ(row["ms"]["n"].AsInt(), 3);
  EXPECT_EQ(row["clock"].AsString(), "thread_cpu");
}

TEST(BenchShape, RefusesWhatIsNoShape) {
  EXPECT_EQ(ParseShape("2x3x4", 3).value(), (std::vector<int64_t>{2, 3, 4}));
  for (const char* bad : {"", "2x3", "2x3x4x5", "0x3x4", "2xax4", "2x3x99999999999"}) {
    EXPECT_FALSE(ParseShape(bad, 3).ok()) << bad;
  }
}

class BenchProgram : public testing::TestWithParam<const char*> {};

TEST_P(BenchProgram, PrintsResultsAsJson) {
  const std::string program = NIBBLE_BINARY_DIR "/bin/nibble-bench";
  const Result<CommandOutput> run =
      RunCommand({program, GetParam(), "--quick", "--json"}, /*merge_stderr=*/false);
  ASSERT_TRUE(run.ok()) << run.status().ToString();
  ASSERT_TRUE(run->status.success()) << run->status.ToString();
  const Result<Json> json = Json::Parse(run->output);
  ASSERT_TRUE(json.ok()) << run->output;
  EXPECT_EQ((*json)["benchmark"].AsString(), GetParam());
  for (const char* key : {"cpu", "cores", "commit", "openblas"}) {
    EXPECT_NE((*json)["machine"].Find(key), nullptr) << key;
  }
  ASSERT_GT((*json)["results"].size(), 1u);
  const std::string name = GetParam();
  for (const Json& row : (*json)["results"].items()) {
    EXPECT_FALSE(row["name"].AsString().empty());
    EXPECT_TRUE(row["shape"].is_object()) << row.Dump();
    EXPECT_GE(row["ms"]["n"].AsInt(), 2) << row.Dump();
    EXPECT_GE(row["ms"]["median"].AsDouble(), 0) << row.Dump();
    EXPECT_LE(row["ms"]["p10"].AsDouble(), row["ms"]["p90"].AsDouble()) << row.Dump();
    if (name == "gemm" || name == "linear") {
      EXPECT_GT(row["ratio_vs_openblas"].AsDouble(), 0) << row.Dump();
    }
    if (name == "quantize") {
      EXPECT_GT(row["ratio_vs_copy"].AsDouble(), 0) << row.Dump();
    }
    if (name == "step") {
      EXPECT_GT(row["tokens_per_s"].AsDouble(), 0) << row.Dump();
      double total = 0;
      for (const auto& [op, share] : row["share_by_op"].members()) total += share.AsDouble();
      EXPECT_NEAR(total, 1, 0.02) << row.Dump();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, BenchProgram,
                         testing::Values("gemm", "linear", "quantize", "attention", "step"));

TEST(StepBench, SampledHealthHasAShareOfTheStep) {
  const Result<CommandOutput> run =
      RunCommand({NIBBLE_BINARY_DIR "/bin/nibble-bench", "step", "--health", "--quick", "--json",
                  "--recipes", "fp4_ms_paper"},
                 /*merge_stderr=*/false);
  ASSERT_TRUE(run.ok() && run->status.success());
  const Result<Json> json = Json::Parse(run->output);
  ASSERT_TRUE(json.ok()) << run->output;
  const std::vector<Json>& rows = (*json)["results"].items();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["name"].AsString(), "fp4_ms_paper");
  EXPECT_EQ(rows[0]["share_by_op"].Find("health"), nullptr);
  EXPECT_EQ(rows[1]["name"].AsString(), "fp4_ms_paper+health");
  EXPECT_GT(rows[1]["share_by_op"]["health"].AsDouble(), 0);
  EXPECT_NE(rows[1].Find("health_share_at_default"), nullptr);
}

// The lines a run of nibble-device-bench prints.
std::vector<Json> DeviceBenchLines(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(),
                   {NIBBLE_BINARY_DIR "/bin/nibble-device-bench", "--backend", "cpu"});
  const Result<CommandOutput> run = RunCommand(arguments, /*merge_stderr=*/false);
  EXPECT_TRUE(run.ok() && run->status.success()) << run.status().ToString();
  std::vector<Json> lines;
  for (const std::string& line : StrSplit(run->output, '\n')) {
    if (line.empty()) continue;
    const Result<Json> json = Json::Parse(line);
    EXPECT_TRUE(json.ok()) << line;
    if (json.ok()) lines.push_back(*json);
  }
  return lines;
}

TEST(DeviceBench, MeasuresEveryOperation) {
  const std::vector<Json> lines = DeviceBenchLines({"--quick"});
  ASSERT_GE(lines.size(), 18u);
  EXPECT_EQ(lines[0]["backend"].AsString(), "cpu");
  for (size_t i = 1; i < lines.size(); ++i) {
    const Json& row = lines[i];
    const bool skipped = row.Find("skipped") != nullptr;  // no kernel for FP8 codes on a CPU
    EXPECT_EQ(skipped, row["name"].AsString() == "gemm_codes_dgrad") << row.Dump();
    EXPECT_TRUE(skipped || row["ms"]["median"].AsDouble() > 0) << row.Dump();
  }
}

class DeviceStepBench : public RunTest {};

TEST_F(DeviceStepBench, MeasuresStepsByRecipeAndDepth) {
  const std::string config = Path("config.json");
  ASSERT_TRUE(AtomicWriteFile(config, RunConfigToJson(Config("run")).Dump()).ok());
  const std::vector<Json> lines =
      DeviceBenchLines({"--config", config, "--recipes", "bf16,fp4_fold8", "--layers", "1,2",
                        "--seconds", "0.01", "--shares"});
  ASSERT_EQ(lines.size(), 5u);
  for (size_t i = 1; i < lines.size(); ++i) {
    const Json& row = lines[i];
    EXPECT_EQ(row["recipe"].AsString(), i < 3 ? "bf16" : "fp4_fold8");
    EXPECT_EQ(row["layers"].AsInt(), i % 2 == 1 ? 1 : 2);
    EXPECT_EQ(row["tokens"].AsInt(), 64);
    EXPECT_GT(row["ms"]["median"].AsDouble(), 0) << row.Dump();
    EXPECT_GT(row["peak_bytes"].AsInt(), row["parameters"].AsInt() * 16) << row.Dump();
    EXPECT_EQ(row["share_by_op"].Find("quantize") != nullptr, i >= 3) << row.Dump();
    double shares = 0;
    for (const auto& [operation, share] : row["share_by_op"].members()) shares += share.AsDouble();
    EXPECT_GT(shares, 0.3) << row.Dump();
    EXPECT_LE(shares, 1.01) << row.Dump();
  }
}

TEST(BenchCommandLine, RefusesWhatTheDeviceBenchCannotRead) {
  const std::string program = NIBBLE_BINARY_DIR "/bin/nibble-device-bench";
  EXPECT_EQ(RunCommand({program, "--shape", "1"})->status.exit_code, 2);
  EXPECT_EQ(RunCommand({program, "--backend", "cpu", "--config", "/nowhere"})->status.exit_code, 1);
}

TEST(BenchCommandLine, RefusesUnknownNames) {
  const std::string program = NIBBLE_BINARY_DIR "/bin/nibble-bench";
  EXPECT_EQ(RunCommand({program, "gem"})->status.exit_code, 2);
  EXPECT_EQ(RunCommand({program, "gemm", "--shapes", "1x2"})->status.exit_code, 2);
  EXPECT_EQ(RunCommand({program, "gemm", "--isa", "sse9"})->status.exit_code, 2);
}

}  // namespace
}  // namespace nibble::bench
