// SPDX-License-Identifier: Apache-2.0
#include "worker/study/study_report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/files.h"
#include "base/strings.h"
#include "worker/study/run_record.h"
#include "worker/study/study_figures.h"
#include "worker/study/study_test_support.h"
#include "worker/study/svg.h"

namespace nibble {
namespace {

class StudyReportTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = MakeTempDirectory("nibble-study").value(); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  std::string Path(const std::string& name) const { return JoinPath(folder_, name); }

  // Baseline and one arm complete, the third refused.
  static void Fill(TestResults& results) {
    for (int s = 0; s < 3; ++s) {
      for (const double rate : {1e-3, 2e-3, 4e-3}) {
        if (s > 0 && rate != 2e-3) continue;
        const double best = rate == 2e-3 ? 0 : 1;
        results.Set({1, rate, 7 + s}, RunState::kCompleted, 4 + 0.1 * s + best);
        results.Set({0, rate, 7 + s}, RunState::kCompleted, 4.2 + 0.1 * s + 0.01 * s * s + best);
      }
    }
    results.Set({2, 1e-3, 7}, RunState::kNotRun).message = "E2M1 <ties> & \"away\" have no kernel";
  }

  std::string folder_;
};

TEST(XmlFault, FindsWhatIsBroken) {
  EXPECT_EQ(XmlFault("<a b=\"c\"><d/>x &lt; y</a>\n"), "");
  for (const char* broken : {"<a>", "<a></b>", "<a b=c/>", "<a>&x</a>", "<a/><b/>", "x<a/>"}) {
    EXPECT_NE(XmlFault(broken), "") << broken;
  }
}

TEST(Svg, TextIsEscapedAndTheDocumentWellFormed) {
  SvgCanvas svg(100, 50, "a < b & \"c\"");
  svg.Text({1, 2}, "x<y>&'\x01", "text");
  svg.BeginClip({0, 0}, 10, 10);
  svg.Polyline({{0, 0}, {1, 1}}, SvgCanvas::Series(9));
  svg.EndClip();
  const std::string text = svg.Finish();
  EXPECT_EQ(XmlFault(text), "");
  EXPECT_NE(text.find("x&lt;y&gt;&amp;&apos; "), std::string::npos);
  EXPECT_NE(text.find("prefers-color-scheme:dark"), std::string::npos);
}

TEST(NiceTicks, AreRoundFewAndInside) {
  EXPECT_EQ(NiceTicks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  for (const auto& [low, high] : {std::pair{3.91, 4.07}, {-1.3, 2.2}, {0.0, 1e6}, {5.0, 5.001}}) {
    const std::vector<double> ticks = NiceTicks(low, high, 7);
    EXPECT_GE(ticks.size(), 2u) << low;
    EXPECT_LE(ticks.size(), 8u) << low;
    for (const double tick : ticks) {
      EXPECT_GE(tick, low - 1e-9);
      EXPECT_LE(tick, high + 1e-9 * std::abs(high) + 1e-9);
    }
  }
}

TEST_F(StudyReportTest, FiguresShowEveryArmAndAreWellFormed) {
  const StudyPlan plan = TestPlan();
  TestResults results(plan);
  const StudySummary empty = Summarise(plan, results.Find());
  EXPECT_EQ(XmlFault(CurvesFigure("t", empty)), "");
  EXPECT_EQ(XmlFault(GapFigure("t", empty)), "");
  Fill(results);
  const StudySummary summary = Summarise(plan, results.Find());
  const std::string curves = CurvesFigure("t & u", summary);
  const std::string gaps = GapFigure("t & u", summary);
  EXPECT_EQ(XmlFault(curves), "");
  EXPECT_EQ(XmlFault(gaps), "");
  EXPECT_NE(curves.find("bf16"), std::string::npos);
  EXPECT_NE(curves.find("fp4_direct"), std::string::npos);
  EXPECT_NE(gaps.find("not run: E2M1 &lt;ties&gt;"), std::string::npos) << gaps;
  EXPECT_EQ(curves.find("nan"), std::string::npos);
  EXPECT_EQ(gaps.find("nan"), std::string::npos);
  EXPECT_EQ(gaps.find("inf"), std::string::npos);
}

TEST_F(StudyReportTest, TheTableStatesLossesGapsAndWhatIsMissing) {
  const StudyPlan plan = TestPlan();
  TestResults results(plan);
  Fill(results);
  const std::string text = ReportMarkdown(plan, Summarise(plan, results.Find()));
  // Differences 0.2, 0.21, 0.24 on a mean of 4.1; t(2) = 4.303.
  EXPECT_NE(text.find("| fp4_direct | 0.002 | 4.2000, 4.3100, 4.4400 |"), std::string::npos)
      << text;
  EXPECT_NE(text.find("0.2167 ± 0.0517"), std::string::npos) << text;
  EXPECT_NE(text.find("+5.28 (+4.02 to +6.55)"), std::string::npos) << text;
  EXPECT_NE(text.find("| bf16 | 0.002 | 4.0000, 4.1000, 4.2000 | 4.1000 ± 0.2484 | – | – |"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("- ties away: not run: E2M1 <ties>"), std::string::npos) << text;
  EXPECT_LT(text.find("| bf16"), text.find("| fp4_direct"));
}

TEST_F(StudyReportTest, WritesDataFiguresAndItsBlockOfTheDocument) {
  const StudyPlan plan = TestPlan();
  TestResults results(plan);
  Fill(results);
  const std::string document = Path("convergence.md");
  ASSERT_TRUE(
      AtomicWriteFile(document,
                      "# Head\n\n<!-- study test begin -->\nold\n<!-- study test end -->\n\n"
                      "<!-- study other begin -->\nkept\n<!-- study other end -->\n")
          .ok());
  ASSERT_TRUE(WriteReport(plan, results.Find(), {folder_, document, "a machine"}).ok());
  const std::string text = ReadFile(document).value();
  EXPECT_TRUE(text.starts_with("# Head\n\n<!-- study test begin -->\n")) << text;
  EXPECT_EQ(text.find("old"), std::string::npos);
  EXPECT_NE(text.find("kept"), std::string::npos);
  EXPECT_NE(text.find("| fp4_direct |"), std::string::npos);
  const Json json = Json::Parse(ReadFile(Path("data/study-test.json")).value()).value();
  EXPECT_EQ(json["machine"].AsString(), "a machine");
  ASSERT_EQ(json["arms"].size(), 3u);
  EXPECT_EQ(json["arms"].At(0)["runs"].size(), 5u);
  EXPECT_NEAR(json["arms"].At(0)["gap_percent"].AsDouble(), 5.2846, 1e-4);
  EXPECT_NE(json["arms"].At(2)["not_run"].AsString(), "");
  for (const char* name : {"curves", "gaps"}) {
    const auto svg = ReadFile(Path(StrFormat("figures/study-test-%s.svg", name)));
    ASSERT_TRUE(svg.ok());
    EXPECT_EQ(XmlFault(*svg), "");
  }
}

TEST_F(StudyReportTest, AJournalIsReadThroughKillsAndTornLines) {
  std::string text;
  int64_t seq = 0;
  const auto add = [&](auto event) {
    JournalRecord record;
    record.seq = ++seq;
    record.event = std::move(event);
    text += EncodeJournalLine(record);
  };
  StartRecord start;
  start.parameters = 99;
  const auto step = [](int64_t number, double loss) {
    StepRecord record;
    record.step = number;
    record.loss = loss;
    record.tokens = number * 10;
    record.step_seconds = 0.5;
    return record;
  };
  add(start);
  for (int i = 1; i <= 4; ++i) add(step(i, 5.0 - i));
  add(start);  // killed after step 4, resumed from step 2
  for (int i = 3; i <= 5; ++i) add(step(i, 6.0 - i));
  add(ValidationRecord{5, 1.5});
  EndRecord end;
  end.reason = kEndCompleted;
  end.final_validation_loss = 1.5;
  add(end);
  ASSERT_TRUE(AtomicWriteFile(Path("journal.jsonl"), text + "{\"seq\":99,\"type\":\"st").ok());
  const auto run = ReadRunJournal(Path("journal.jsonl"));
  ASSERT_TRUE(run.ok());
  EXPECT_EQ(run->state, RunState::kCompleted);
  ASSERT_EQ(run->curve.size(), 5u);
  EXPECT_DOUBLE_EQ(run->curve[1].loss, 3.0);
  EXPECT_DOUBLE_EQ(run->curve[2].loss, 3.0) << "the later record of step 3 stands";
  EXPECT_EQ(run->tokens, 50);
  EXPECT_DOUBLE_EQ(run->tokens_per_second, 20);
  EXPECT_EQ(run->parameters, 99);
  RunRecord named = *run;
  named.hash = "abc";
  const auto again = RunRecordFromJson(RunRecordToJson(named));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(RunRecordToJson(*again).Dump(), RunRecordToJson(named).Dump());
  EXPECT_EQ(RunRecordFromJson(Json::Object()).status().code(), StatusCode::kDataLoss);
}

}  // namespace
}  // namespace nibble
