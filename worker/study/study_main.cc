// SPDX-License-Identifier: Apache-2.0
//
// nibble-study: compares recipes by training with each of them; see
// docs/performance/convergence.md.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "base/files.h"
#include "base/strings.h"
#include "worker/data/cli_args.h"
#include "worker/study/study_report.h"
#include "worker/study/study_runner.h"
#include "worker/train/stop_signal.h"

namespace nibble {
namespace {

constexpr int kExitDone = 0;
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;
constexpr int kExitStopped = 3;  // by a signal or the budget; the same command goes on

struct StudyCommand {
  CliCommand cli;
  std::function<int(const CliArgs&)> run;
};

int FailWith(const Status& status, int code) {
  std::fprintf(stderr, "nibble-study: %s\n", status.message().c_str());
  return code;
}

// The progress line, redrawn on a terminal and written now and then elsewhere.
class StatusLine {
 public:
  void Show(const std::string& line) {
    if (!terminal_ && shown_++ % kLinesSkipped != 0) return;
    std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", line.c_str());
    drawn_ = terminal_;
  }
  void Note(const std::string& line) {
    std::fprintf(stderr, "%s%s\n", drawn_ ? "\r\033[K" : "", line.c_str());
    drawn_ = false;
  }

 private:
  static constexpr int kLinesSkipped = 30;  // a line a minute
  const bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  bool drawn_ = false;
  int shown_ = 0;
};

Result<StudyPlan> PlanFrom(const CliArgs& args, const std::string& name, StatusLine* line) {
  const std::string scale = args.Has("--quick") ? "quick" : args.Get("--scale");
  ASSIGN_OR_RETURN(StudyDefinition definition, LoadStudy(args.Get("--definitions"), name, scale));
  StudyDataOptions options;
  options.folder = JoinPath(args.Get("--folder"), "data");
  if (args.Has("--text")) options.text = {args.Get("--text")};
  const char* data_dir = std::getenv("NIBBLE_DATA_DIR");
  options.data_dir = data_dir != nullptr ? data_dir : "";
  options.note = [line](const std::string& text) { line->Note(text); };
  ASSIGN_OR_RETURN(StudyData data, PrepareStudyData(definition.corpus, options));
  return MakePlan(std::move(definition), std::move(data));
}

Status Report(const CliArgs& args, const StudyPlan& plan, const ResultLookup& find) {
  const std::string docs = args.Get("--docs");
  const ReportOptions options{docs, JoinPath(docs, "convergence.md"), MachineName()};
  RETURN_IF_ERROR(WriteReport(plan, find, options));
  const StudySummary summary = Summarise(plan, find);
  const std::string text =
      args.json() ? ReportJson(plan, summary, find, options.machine).Dump() + "\n"
                  : "\n## " + plan.definition.title + "\n\n" + ReportMarkdown(plan, summary);
  std::fputs(text.c_str(), stdout);
  std::fprintf(stderr, "written: %s\n",
               JoinPath(docs, "data/study-" + plan.definition.id() + ".json").c_str());
  return OkStatus();
}

Result<StudyRunnerOptions> RunnerOptionsFrom(const CliArgs& args, StatusLine* line) {
  StudyRunnerOptions options;
  options.folder = args.Get("--folder");
  options.revision = NIBBLE_REVISION;
  ASSIGN_OR_RETURN(const std::string here, ExecutableDirectory());
  options.trainer =
      args.Has("--trainer") ? args.Get("--trainer") : JoinPath(here, "nibble-trainer");
  ASSIGN_OR_RETURN(const int64_t threads, args.GetInt("--threads", 1, 1024));
  ASSIGN_OR_RETURN(const int64_t jobs, args.GetInt("--jobs", 0, 1024));
  const auto cores = static_cast<int64_t>(::sysconf(_SC_NPROCESSORS_ONLN));
  options.threads = static_cast<int>(threads);
  options.jobs = static_cast<int>(jobs > 0 ? jobs : std::max<int64_t>(1, cores / threads));
  ASSIGN_OR_RETURN(const double budget, args.GetDouble("--budget", 0, 1e6));
  options.budget_seconds = budget * 60;
  options.keep_checkpoints = args.Has("--keep-checkpoints");
  options.stop_requested = &StopSignal::Requested;
  options.note = [line](const std::string& text) { line->Note(text); };
  options.status = [line](const std::string& text) { line->Show(text); };
  return options;
}

int RunStudy(const CliArgs& args) {
  StatusLine line;
  const Result<StudyRunnerOptions> options = RunnerOptionsFrom(args, &line);
  if (!options.ok()) return FailWith(options.status(), kExitUsage);
  StopSignal::Install();
  Status made = MakeDirectories(options->folder);
  if (!made.ok()) return FailWith(made, kExitFailed);
  const Result<FileLock> lock = FileLock::Acquire(JoinPath(options->folder, "study.lock"));
  if (!lock.ok()) {
    return FailWith(lock.status().WithContext("another study runs in " + options->folder),
                    kExitFailed);
  }
  RunStore store(options->folder, true);
  const ResultLookup find = [&store](const std::string& hash) { return store.Find(hash); };
  int code = kExitDone;
  for (const std::string& name : args.operands()) {
    const Result<StudyPlan> plan = PlanFrom(args, name, &line);
    if (!plan.ok()) return FailWith(plan.status(), kExitUsage);
    for (const ArmPlan& arm : plan->arms) {
      if (!arm.not_run.empty()) line.Note(arm.arm.name + ": not run: " + arm.not_run);
    }
    StudyRunner runner(*plan, &store, *options);
    const Result<StudyEnd> end = runner.Run();
    const Status reported = Report(args, *plan, find);
    if (!end.ok()) return FailWith(end.status(), kExitFailed);
    if (!reported.ok()) return FailWith(reported, kExitFailed);
    if (*end != StudyEnd::kFinished) {
      line.Note(*end == StudyEnd::kStopped ? "stopped; the same command goes on from here"
                                           : "the budget is spent; the same command goes on");
      code = kExitStopped;
      break;
    }
  }
  return code;
}

int ReportStudy(const CliArgs& args) {
  StatusLine line;
  RunStore store(args.Get("--folder"), false);
  const ResultLookup find = [&store](const std::string& hash) { return store.Find(hash); };
  for (const std::string& name : args.operands()) {
    const Result<StudyPlan> plan = PlanFrom(args, name, &line);
    if (!plan.ok()) return FailWith(plan.status(), kExitUsage);
    const Status reported = Report(args, *plan, find);
    if (!reported.ok()) return FailWith(reported, kExitFailed);
  }
  return kExitDone;
}

std::string PlanLine(const std::string& name, const std::vector<StudyPlan>& plans,
                     double tokens_per_second) {
  size_t arms = 0;
  size_t blocked = 0;
  for (const StudyPlan& plan : plans) {
    arms += plan.arms.size();
    for (const ArmPlan& arm : plan.arms) blocked += arm.not_run.empty() ? 0 : 1;
  }
  const PlanCost cost = CostOf(plans);
  const auto tokens = static_cast<double>(cost.tokens);
  return StrFormat("%-12s %4zu %9zu %5d %11s %11s %7.2f\n", name.c_str(), arms, blocked, cost.runs,
                   cost.runs > 0 ? FormatCount(tokens / cost.runs).c_str() : "-",
                   FormatCount(tokens).c_str(), tokens / tokens_per_second / 3600);
}

int PlanStudies(const CliArgs& args) {
  StatusLine line;
  const Result<double> speed = args.GetDouble("--tokens-per-second", 1, 1e9);
  if (!speed.ok()) return FailWith(speed.status(), kExitUsage);
  std::vector<std::string> names = args.operands();
  if (names.empty()) {
    const auto listed = ListStudies(args.Get("--definitions"));
    if (!listed.ok()) return FailWith(listed.status(), kExitFailed);
    for (const StudyListing& study : *listed) names.push_back(study.name);
  }
  std::string text = StrFormat("%-12s %4s %9s %5s %11s %11s %7s\n", "study", "arms", "not built",
                               "runs", "tokens/run", "tokens", "hours");
  std::vector<StudyPlan> plans;
  for (const std::string& name : names) {
    Result<StudyPlan> plan = PlanFrom(args, name, &line);
    if (!plan.ok()) return FailWith(plan.status(), kExitUsage);
    text += PlanLine(name, {*plan}, *speed);
    plans.push_back(*std::move(plan));
  }
  if (plans.size() > 1) text += PlanLine("together", plans, *speed);
  std::fputs(text.c_str(), stdout);
  return kExitDone;
}

int ListAll(const CliArgs& args) {
  const auto listed = ListStudies(args.Get("--definitions"));
  if (!listed.ok()) return FailWith(listed.status(), kExitFailed);
  for (const StudyListing& study : *listed) {
    std::printf("%-12s %s\n", study.name.c_str(), study.title.c_str());
  }
  return kExitDone;
}

std::vector<StudyCommand> Commands() {
  const CliFlag definitions{"--definitions", "DIR", "folder of study files", "examples/studies"};
  const std::vector<CliFlag> common = {
      definitions,
      {"--folder", "DIR", "runs and data go below it", "study"},
      {"--docs", "DIR", "reports go below it", "docs/performance"},
      {"--scale", "NAME", "full, or a scale the study names", kFullScale},
      {"--quick", "", "the same as --scale quick", ""},
      {"--text", "FILE", "train on this UTF-8 file instead of the usual texts", ""}};
  std::vector<CliFlag> run = common;
  run.insert(run.end(),
             {{"--threads", "N", "threads of each trainer", "1"},
              {"--jobs", "N", "trainers at once; 0: cores / threads", "0"},
              {"--budget", "MINUTES", "stop after so long; 0: no limit", "0"},
              {"--trainer", "PROGRAM", "nibble-trainer, when it is not beside this program", ""},
              {"--keep-checkpoints", "", "leave the last checkpoint of finished runs", ""}});
  std::vector<CliFlag> plan = common;
  plan.push_back({"--tokens-per-second", "N", "of all trainers together, for the hours", "10000"});
  return {{{"run", "Runs what is missing of studies, then reports.", "NAME...", true, run,
            "nibble-study run fig6a --budget 60"},
           RunStudy},
          {{"report", "Writes table, data and figures of the runs there are.", "NAME...", true,
            common, "nibble-study report fig6a"},
           ReportStudy},
          {{"plan", "Prints what studies cost; all of them when none is named.", "NAME...", false,
            plan, "nibble-study plan fig6a fig6b --tokens-per-second 12000"},
           PlanStudies},
          {{"list", "Prints the studies there are.", "", false, {definitions}, "nibble-study list"},
           ListAll}};
}

std::string Overview(const std::vector<StudyCommand>& commands) {
  std::string out =
      "nibble-study compares recipes: it trains the same model on the same text with each.\n\n"
      "Usage: nibble-study COMMAND [flags] ...\n\nCommands:\n";
  for (const StudyCommand& command : commands) {
    out += StrFormat("  %-8s %s\n", command.cli.name.c_str(), command.cli.summary.c_str());
  }
  return out +
         "\nexit codes: 0 done, 1 failed, 2 wrong usage or study file, 3 stopped before the end;\n"
         "the same command goes on\n\n'nibble-study COMMAND --help' explains one.\n\nExample:\n"
         "  nibble-study run fig6a --quick\n";
}

int Main(const std::vector<std::string>& words) {
  const std::vector<StudyCommand> commands = Commands();
  if (words.empty() || words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    std::fputs(Overview(commands).c_str(), words.empty() ? stderr : stdout);
    return words.empty() ? kExitUsage : kExitDone;
  }
  std::vector<std::string> names;
  for (const StudyCommand& command : commands) {
    names.push_back(command.cli.name);
    if (command.cli.name != words[0]) continue;
    const auto args =
        CliArgs::Parse(command.cli, std::vector<std::string>(words.begin() + 1, words.end()));
    if (!args.ok()) return FailWith(args.status(), kExitUsage);
    if (args->Has("--help")) {
      std::fputs(CliHelp("nibble-study", command.cli).c_str(), stdout);
      return kExitDone;
    }
    return command.run(*args);
  }
  return FailWith(InvalidArgumentError(UnknownNameMessage("command", words[0], names)), kExitUsage);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  return nibble::Main(std::vector<std::string>(argv + 1, argv + argc));
}
