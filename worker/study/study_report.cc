// SPDX-License-Identifier: Apache-2.0
#include "worker/study/study_report.h"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "base/files.h"
#include "base/strings.h"
#include "worker/study/study_figures.h"
#include "worker/train/host_memory.h"

namespace nibble {
namespace {

constexpr size_t kTrainPoints = 64;  // of a training curve in the report

Json IntervalJson(const Interval& interval) {
  if (interval.count == 0) return {};
  Json json = Json::Object({{"count", interval.count}, {"mean", interval.mean}});
  if (interval.bounded()) json.Set("half_width_95", interval.half_width);
  return json;
}

// Every n-th step's loss, n such that at most kTrainPoints remain, and the last.
Json ThinnedCurve(const RunRecord& record) {
  Json points = Json::Array();
  const size_t count = record.curve.size();
  const size_t every = (count + kTrainPoints - 1) / kTrainPoints;
  for (size_t i = 0; i < count; ++i) {
    if (i % every != 0 && i + 1 != count) continue;
    points.Append(Json::Array({record.curve[i].step, record.curve[i].loss}));
  }
  return points;
}

Json RunJson(const StudyPlan& plan, const RunKey& key, const ResultLookup& results) {
  const std::string hash = RunHash(ConfigOf(plan, key), plan.data.fingerprint);
  Json json =
      Json::Object({{"learning_rate", key.learning_rate}, {"seed", key.seed}, {"hash", hash}});
  const RunRecord* record = results(hash);
  if (record == nullptr) return json.Set("state", "missing");
  Json validation = Json::Array();
  for (const ValidationRecord& v : record->validation) {
    validation.Append(Json::Array({v.step, v.loss}));
  }
  json.Set("state", RunStateName(record->state));
  if (!record->message.empty()) json.Set("message", record->message);
  json.Set("revision", record->revision);
  json.Set("tokens_per_second", record->tokens_per_second);
  json.Set("final_validation_loss", record->final_validation_loss);
  json.Set("weights_sha256", record->weights_sha256);
  json.Set("validation", std::move(validation));
  return json.Set("training", ThinnedCurve(*record));
}

Json ArmJson(const StudyPlan& plan, const ArmSummary& arm, int index, const ResultLookup& results) {
  const ArmPlan& planned = plan.arms[static_cast<size_t>(index)];
  Json json = Json::Object({{"name", arm.name},
                            {"label", arm.label},
                            {"recipe", planned.arm.recipe},
                            {"patch", planned.arm.patch}});
  if (!arm.not_run.empty()) json.Set("not_run", arm.not_run);
  if (arm.rate) json.Set("learning_rate", *arm.rate).Set("rate_at_edge", arm.rate_at_edge);
  json.Set("loss", IntervalJson(arm.loss));
  json.Set("difference", IntervalJson(arm.difference));
  if (arm.difference.count > 0) json.Set("gap_percent", arm.gap_percent);
  if (arm.difference.bounded()) json.Set("gap_percent_half_width_95", arm.gap_half_width);
  Json runs = Json::Array();
  if (planned.not_run.empty()) {
    const std::vector<int64_t>& seeds = plan.definition.seeds;
    for (const double rate : planned.arm.learning_rates) {
      runs.Append(RunJson(plan, {index, rate, seeds.front()}, results));
    }
    for (size_t s = 1; s < seeds.size() && arm.rate; ++s) {
      runs.Append(RunJson(plan, {index, *arm.rate, seeds[s]}, results));
    }
  }
  return json.Set("runs", std::move(runs));
}

std::string PlusMinus(const char* format, const Interval& interval) {
  if (interval.count == 0) return "–";
  const std::string mean = StrFormat("%.4f", interval.mean);
  return interval.bounded() ? mean + StrFormat(format, interval.half_width) : mean;
}

std::string GapText(const ArmSummary& arm) {
  if (arm.difference.count == 0) return "–";
  if (!arm.difference.bounded()) return StrFormat("%+.2f", arm.gap_percent);
  return StrFormat("%+.2f (%+.2f to %+.2f)", arm.gap_percent, arm.gap_percent - arm.gap_half_width,
                   arm.gap_percent + arm.gap_half_width);
}

std::string RateText(const ArmSummary& arm) {
  return arm.rate ? StrFormat("%g%s", *arm.rate, arm.rate_at_edge ? "*" : "") : "–";
}

std::string SeedTexts(const ArmSummary& arm) {
  std::vector<std::string> texts;
  for (const std::optional<double>& loss : arm.losses) {
    texts.push_back(loss ? StrFormat("%.4f", *loss) : "–");
  }
  return StrJoin(texts, ", ");
}

std::string Row(const ArmSummary& arm, bool baseline) {
  return StrFormat("| %s | %s | %s | %s | %s | %s | %s |\n", arm.label.c_str(),
                   RateText(arm).c_str(), SeedTexts(arm).c_str(),
                   PlusMinus(" ± %.4f", arm.loss).c_str(),
                   baseline ? "–" : PlusMinus(" ± %.4f", arm.difference).c_str(),
                   baseline ? "–" : GapText(arm).c_str(),
                   arm.tokens_per_second > 0 ? FormatCount(arm.tokens_per_second).c_str() : "–");
}

// Sentences about arms without a complete result.
std::string Remarks(const StudySummary& summary) {
  std::string text;
  for (const ArmSummary& arm : summary.arms) {
    if (!arm.not_run.empty()) {
      text += "- " + arm.label + ": not run: " + arm.not_run + "\n";
    } else if (arm.diverged > 0) {
      text += StrFormat("- %s: %d run%s diverged\n", arm.label.c_str(), arm.diverged,
                        arm.diverged == 1 ? "" : "s");
    } else if (!arm.complete()) {
      text += StrFormat("- %s: %d of %zu seeds have finished\n", arm.label.c_str(), arm.loss.count,
                        arm.losses.size());
    }
  }
  return text.empty() ? "" : "\n" + text;
}

}  // namespace

Json ReportJson(const StudyPlan& plan, const StudySummary& summary, const ResultLookup& results,
                const std::string& machine) {
  const StudyDefinition& d = plan.definition;
  Json seeds = Json::Array();
  for (const int64_t seed : d.seeds) seeds.Append(seed);
  Json revisions = Json::Array();
  for (const std::string& revision : summary.revisions) revisions.Append(revision);
  Json arms = Json::Array();
  for (size_t i = 0; i < summary.arms.size(); ++i) {
    arms.Append(ArmJson(plan, summary.arms[i], static_cast<int>(i), results));
  }
  return Json::Object(
      {{"study", d.name},
       {"scale", d.scale},
       {"title", d.title},
       {"question", d.question},
       {"command", "./dev study " + d.name + (d.scale == kFullScale ? "" : " --scale " + d.scale)},
       {"machine", machine},
       {"revisions", std::move(revisions)},
       {"baseline", d.baseline},
       {"seeds", std::move(seeds)},
       {"run", d.run},
       {"data", Json::Object({{"source", plan.data.source},
                              {"fingerprint", plan.data.fingerprint},
                              {"train_tokens", plan.data.train_tokens},
                              {"validation_tokens", plan.data.validation_tokens}})},
       {"parameters", summary.parameters},
       {"tokens_per_run", summary.tokens},
       {"train_hours", summary.train_hours},
       {"arms", std::move(arms)}});
}

std::string ReportMarkdown(const StudyPlan& plan, const StudySummary& summary) {
  const StudyDefinition& d = plan.definition;
  const std::string figures = "figures/study-" + d.id();
  std::string text = StrFormat(
      "%s parameters, %s tokens a run, %zu seed%s, %s; %.2f trainer hours; revision %s.\n\n",
      FormatCount(static_cast<double>(summary.parameters)).c_str(),
      FormatCount(static_cast<double>(summary.tokens)).c_str(), d.seeds.size(),
      d.seeds.size() == 1 ? "" : "s", plan.data.source.c_str(), summary.train_hours,
      StrJoin(summary.revisions, ", ").c_str());
  text += "| arm | peak rate | final validation loss by seed | mean ± 95 % | difference to " +
          d.baseline + " ± 95 % | gap in % (95 %) | tokens/s |\n";
  text += "| --- | --- | --- | --- | --- | --- | --- |\n";
  std::vector<const ArmSummary*> arms;
  for (const ArmSummary& arm : summary.arms) arms.push_back(&arm);
  std::stable_sort(arms.begin(), arms.end(), [](const ArmSummary* a, const ArmSummary* b) {
    if ((a->loss.count > 0) != (b->loss.count > 0)) return a->loss.count > 0;
    return a->loss.count > 0 && a->loss.mean < b->loss.mean;
  });
  for (const ArmSummary* arm : arms) text += Row(*arm, arm->name == d.baseline);
  text += "\n`*`: the lowest or highest of the rates tried was the best.\n";
  text += Remarks(summary);
  text += "\n![loss curves](" + figures + "-curves.svg)\n\n![gaps](" + figures + "-gaps.svg)\n";
  return text;
}

Result<std::string> ReplaceBlock(const std::string& document, const std::string& id,
                                 const std::string& text) {
  const std::string begin = "<!-- study " + id + " begin -->\n";
  const std::string end = "<!-- study " + id + " end -->";
  const size_t from = document.find(begin);
  const size_t to = from == std::string::npos ? from : document.find(end, from);
  if (to == std::string::npos) return NotFoundError("no block of study " + id);
  return document.substr(0, from + begin.size()) + text + document.substr(to);
}

Status WriteReport(const StudyPlan& plan, const ResultLookup& results,
                   const ReportOptions& options) {
  const StudySummary summary = Summarise(plan, results);
  const std::string name = "study-" + plan.definition.id();
  const std::string data = JoinPath(options.docs_folder, "data");
  const std::string figures = JoinPath(options.docs_folder, "figures");
  RETURN_IF_ERROR(MakeDirectories(data));
  RETURN_IF_ERROR(MakeDirectories(figures));
  const Json json = ReportJson(plan, summary, results, options.machine);
  RETURN_IF_ERROR(AtomicWriteFile(JoinPath(data, name + ".json"), json.Dump(1) + "\n"));
  const std::string& title = plan.definition.title;
  RETURN_IF_ERROR(
      AtomicWriteFile(JoinPath(figures, name + "-curves.svg"), CurvesFigure(title, summary)));
  RETURN_IF_ERROR(
      AtomicWriteFile(JoinPath(figures, name + "-gaps.svg"),
                      GapFigure(title + ": gap to " + plan.definition.baseline, summary)));
  const auto document = ReadFile(options.document);
  if (!document.ok()) return OkStatus();
  const auto replaced =
      ReplaceBlock(*document, plan.definition.id(), ReportMarkdown(plan, summary));
  return replaced.ok() ? AtomicWriteFile(options.document, *replaced) : OkStatus();
}

std::string MachineName() {
  return StrFormat("%s, %u cores", HostProcessorName().c_str(),
                   std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace nibble
