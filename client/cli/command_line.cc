// SPDX-License-Identifier: Apache-2.0
#include "client/cli/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <map>
#include <memory>

#include "base/strings.h"
#include "client/cli/commands.h"

namespace nibble::cli {
namespace {

const std::map<std::string, OutputFormat>& Formats() {
  static const std::map<std::string, OutputFormat> formats = {
      {"table", OutputFormat::kTable}, {"wide", OutputFormat::kWide}, {"json", OutputFormat::kJson},
      {"yaml", OutputFormat::kYaml},   {"name", OutputFormat::kName}, {"csv", OutputFormat::kCsv},
      {"jsonl", OutputFormat::kJsonl}};
  return formats;
}

// The parser and the options it fills. One per run.
class CommandLine {
 public:
  CommandLine()
      : app_("Nibble pretrains language models in FP4 and runs that training as a service.",
             "nibble") {
    app_.require_subcommand(1);
    app_.set_version_flag("--version", [] { return std::string("nibble ") + NIBBLE_VERSION; });
    app_.footer(
        "Every subcommand has --help with an example. Start with: nibble up\n"
        "Reference: docs/reference/cli.md");
    AddConnection(app_, true);
    AddSubmitCommands();
    AddInspectCommands();
    AddCurveCommands();
    AddControlCommands();
    AddClusterCommands();
    AddLocalCommands();
    AddRecipeCommand();
  }

  int Run(std::vector<std::string> arguments, CliContext& context);
  std::vector<CommandInfo> Describe() const;

 private:
  using Runner = std::function<int(CliContext&)>;

  // A subcommand with the flags all of them have.
  CLI::App* Add(const std::string& name, const std::string& description, const std::string& example,
                Runner run, const std::vector<std::string>& formats, Positional positional) {
    CLI::App* command = app_.add_subcommand(name, description);
    command->footer("Example:\n  " + example);
    command->callback([this, run = std::move(run)] { chosen_ = run; });
    if (!formats.empty()) {
      command->add_option("-o,--output", output_, "How to print: " + StrJoin(formats, ", "))
          ->check(CLI::IsMember(formats))
          ->type_name("FORMAT");
      formats_[command] = formats;
      command->add_flag("--no-headers", no_headers_, "Tables without their first line");
    }
    positionals_[command] = positional;
    return command;
  }

  void AddConnection(CLI::App& command, bool with_timeout) {
    command
        .add_option("--server", connection_.server, "HOST:PORT of the controller [$NIBBLE_SERVER]")
        ->group("Connection");
    command
        .add_option("--token-file", connection_.token_file,
                    "File with the access token [$NIBBLE_TOKEN holds the token itself]")
        ->type_name("FILE")
        ->group("Connection");
    command
        .add_option("--tls-ca", connection_.tls_ca,
                    "PEM file of the authority that signed the server's certificate "
                    "[$NIBBLE_TLS_CA]")
        ->type_name("FILE")
        ->group("Connection");
    if (with_timeout) {
      command.add_option("--timeout", connection_.timeout, "Longest time a call may take [10s]")
          ->type_name("DURATION")
          ->group("Connection");
    }
  }

  // Add for commands that talk to the controller.
  CLI::App* AddRemote(const std::string& name, const std::string& description,
                      const std::string& example, Runner run, Positional positional,
                      const std::vector<std::string>& formats = {"table", "wide", "json", "yaml",
                                                                 "name"}) {
    CLI::App* command = Add(name, description, example, std::move(run), formats, positional);
    AddConnection(*command, name != "wait");
    return command;
  }

  static void AddJob(CLI::App* command, std::string& job) {
    command->add_option("job", job, "Job id, or the name of the newest job so named")
        ->required()
        ->type_name("JOB");
  }
  static void AddJobs(CLI::App* command, std::vector<std::string>& jobs) {
    command->add_option("jobs", jobs, "Job ids or names")->required()->type_name("JOB");
  }

  void AddSubmitCommands();
  void AddInspectCommands();
  void AddCurveCommands();
  void AddControlCommands();
  void AddClusterCommands();
  void AddLocalCommands();
  void AddRecipeCommand();

  CLI::App app_;
  Runner chosen_;
  ConnectionFlags connection_;
  std::string output_;
  bool no_headers_ = false;
  std::map<const CLI::App*, Positional> positionals_;
  std::map<const CLI::App*, std::vector<std::string>> formats_;

  SubmitOptions submit_;
  ListOptions list_;
  JobOptions job_;
  LogsOptions logs_;
  MetricsOptions metrics_;
  CompareOptions compare_;
  CancelOptions cancel_;
  JobsOptions jobs_;
  UpdateOptions update_;
  WaitOptions wait_;
  DrainOptions drain_;
  TopOptions top_;
  RecipesOptions recipes_;
  VersionOptions version_;
  UpOptions up_;
  QuickstartOptions quickstart_;
  TokenizeOptions tokenize_;
  std::string shell_;
};

void CommandLine::AddSubmitCommands() {
  CLI::App* submit = AddRemote(
      "submit", "Submit a training job",
      "nibble submit -f job.yaml --set schedule.steps=500 --watch",
      [this](CliContext& context) { return RunSubmit(context, submit_); }, Positional::kNone);
  submit->alias("run")->alias("apply");
  submit->add_option("-f,--file", submit_.file, "Job file in YAML; - reads standard input")
      ->required()
      ->type_name("FILE");
  submit->add_option("-n,--name", submit_.name, "Name instead of the file's metadata.name");
  submit->add_option("-q,--queue", submit_.queue, "Queue to wait in");
  submit->add_option("--set", submit_.settings, "Override one key, e.g. model.layers=4; repeatable")
      ->type_name("PATH=VALUE")
      ->allow_extra_args(false);
  submit->add_option("--env", submit_.env, "Environment of the trainer; repeatable")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
  submit->add_option("--priority", submit_.priority, "Higher goes first, -1000 to 1000");
  submit->add_option("-t,--time-limit", submit_.time_limit, "Longest running time, e.g. 90m")
      ->type_name("DURATION");
  submit->add_option("--request-id", submit_.request_id,
                     "Submitting again with the same id gives the same job");
  submit->add_flag("--dry-run", submit_.dry_run, "Only check and estimate; submit nothing");
  submit->add_flag("--wait", submit_.wait, "Wait for the end; exit code as of 'wait'");
  submit->add_flag("-w,--watch,--follow", submit_.watch, "Show progress and loss until the end");
  submit->add_option("--wait-timeout", submit_.wait_timeout, "Longest time of --wait")
      ->type_name("DURATION");
}

void CommandLine::AddInspectCommands() {
  CLI::App* list = AddRemote(
      "ps", "List jobs, newest first", "nibble ps --state running,pending -l arm=fp4 -o wide",
      [this](CliContext& context) { return RunList(context, list_); }, Positional::kNone);
  list->alias("list")->alias("ls")->alias("queue");
  list->add_option("-q,--queue", list_.queue, "Only this queue");
  list->add_option("--state", list_.states, "Only these states, e.g. running,pending")
      ->allow_extra_args(false);
  list->add_option("-l,--selector", list_.selector, "Only jobs with this label, key=value")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  list->add_option("--limit", list_.limit, "At most so many jobs [200]; 0 = all")
      ->check(CLI::Range(0, 10'000))
      ->type_name("N");
  list->add_option("--sort", list_.sort, "age, name, state, priority, loss or step");
  list->add_flag("-w,--watch", list_.watch, "Draw again every 2 seconds");

  AddJob(AddRemote(
             "describe", "Show everything about a job", "nibble describe quickstart",
             [this](CliContext& context) { return RunDescribe(context, job_); }, Positional::kJob),
         job_.job);
  AddJob(AddRemote("why", "Say why a job waits, or how it ended", "nibble why quickstart",
                   [this](CliContext& context) { return RunWhy(context, job_); }, Positional::kJob,
                   {"table", "json", "yaml"}),
         job_.job);
  AddJob(AddRemote("events", "List what happened to a job", "nibble events quickstart",
                   [this](CliContext& context) { return RunEvents(context, job_); },
                   Positional::kJob, {"table", "json", "yaml", "jsonl"}),
         job_.job);
  AddJob(AddRemote("watch", "Follow a job: progress, ETA and loss curve", "nibble watch quickstart",
                   [this](CliContext& context) { return RunWatch(context, job_); },
                   Positional::kJob, {"table", "json", "jsonl"}),
         job_.job);

  CLI::App* logs =
      AddRemote("logs", "Print what the trainer wrote", "nibble logs -f quickstart --tail 50",
                [this](CliContext& context) { return RunLogs(context, logs_); }, Positional::kJob,
                {"table", "json", "jsonl"});
  AddJob(logs, logs_.job);
  logs->add_flag("-f,--follow", logs_.follow, "Wait for more; Ctrl-C stops reading, not the job");
  logs->add_option("--rank", logs_.rank, "Rank [0]")->check(CLI::NonNegativeNumber);
  logs->add_option("--attempt", logs_.attempt, "Attempt [the newest]")
      ->check(CLI::NonNegativeNumber);
  logs->add_option("--since", logs_.since, "Only lines younger than this, e.g. 10m")
      ->type_name("DURATION");
  logs->add_option("--tail", logs_.tail, "Only the last lines")->check(CLI::NonNegativeNumber);
  logs->add_flag("--timestamps", logs_.timestamps, "Put the time before each line");
}

void CommandLine::AddCurveCommands() {
  CLI::App* metrics = AddRemote(
      "metrics", "Print a job's recorded points", "nibble metrics quickstart -o csv > curve.csv",
      [this](CliContext& context) { return RunMetrics(context, metrics_); }, Positional::kJob,
      {"table", "wide", "json", "yaml", "jsonl", "csv"});
  AddJob(metrics, metrics_.job);
  metrics->add_option("--kind", metrics_.kind,
                      "step, validation, health, checkpoint, memory or all [step]");
  metrics->add_option("--from-step", metrics_.from_step, "Leave earlier steps out");
  metrics
      ->add_option("--max-points", metrics_.max_points,
                   "Thin out to so many steps; 0 = all [20 for tables, else all]")
      ->check(CLI::NonNegativeNumber);
  metrics->add_flag("--raw", metrics_.raw, "Every attempt's points, also those trained again");

  CLI::App* compare =
      AddRemote("compare", "Compare jobs with the first one", "nibble compare run-bf16 run-fp4",
                [this](CliContext& context) { return RunCompare(context, compare_); },
                Positional::kJob, {"table", "json", "yaml"});
  compare->add_option("jobs", compare_.jobs, "Two or more jobs; the first is the reference")
      ->required()
      ->expected(2, 16)
      ->type_name("JOB");
  compare->add_option("--points", compare_.points, "Steps to show [10]")
      ->check(CLI::Range(1, 1000));

  CLI::App* top =
      AddRemote("top", "Show workers and live jobs with their loss curves", "nibble top",
                [this](CliContext& context) { return RunTop(context, top_); }, Positional::kNone,
                {"table", "json", "yaml"});
  top->add_option("--interval", top_.interval_seconds, "Seconds between refreshes [2]");
  top->add_flag("--once", top_.once, "Print once, also on a terminal");
}

void CommandLine::AddControlCommands() {
  CLI::App* cancel = AddRemote(
      "cancel", "Stop jobs for good, after saving", "nibble cancel quickstart",
      [this](CliContext& context) { return RunCancel(context, cancel_); }, Positional::kJob);
  AddJobs(cancel, cancel_.jobs);
  cancel->add_flag("--now", cancel_.now, "Kill without saving");
  cancel->add_option("--request-id", cancel_.request_id, "Makes repeating the call harmless");

  AddJobs(AddRemote(
              "pause", "Save jobs and release their devices", "nibble pause quickstart",
              [this](CliContext& context) { return RunPause(context, jobs_); }, Positional::kJob),
          jobs_.jobs);
  AddJobs(AddRemote(
              "resume", "Let paused jobs wait for devices again", "nibble resume quickstart",
              [this](CliContext& context) { return RunResume(context, jobs_); }, Positional::kJob),
          jobs_.jobs);

  CLI::App* update = AddRemote(
      "update", "Change a job's priority or time limit", "nibble update quickstart --priority 10",
      [this](CliContext& context) { return RunUpdate(context, update_); }, Positional::kJob);
  AddJob(update, update_.job);
  update->add_option("--priority", update_.priority, "Higher goes first, -1000 to 1000");
  update->add_option("-t,--time-limit", update_.time_limit, "Longest running time, e.g. 2h")
      ->type_name("DURATION");

  CLI::App* wait = AddRemote("wait", "Wait for a job's end; the exit code tells how it ended",
                             "nibble wait quickstart --timeout 10m",
                             [this](CliContext& context) { return RunWait(context, wait_); },
                             Positional::kJob, {"table", "json", "yaml"});
  AddJob(wait, wait_.job);
  wait->add_option("--timeout,--wait-timeout", wait_.timeout,
                   "Give up waiting after this time (exit code 101)")
      ->type_name("DURATION");
  wait->add_flag("--propagate", wait_.propagate, "Exit with the trainer's own code");
}

void CommandLine::AddClusterCommands() {
  AddRemote(
      "nodes", "List workers and their devices", "nibble nodes -o wide",
      [](CliContext& context) { return RunNodes(context); }, Positional::kNone);
  CLI::App* drain = AddRemote("drain", "Place no new work on a worker",
                              "nibble drain w-1 --reason 'kernel update'",
                              [this](CliContext& context) { return RunDrain(context, drain_); },
                              Positional::kNode, {"table", "json", "yaml"});
  drain->add_option("node", drain_.node, "Worker id")->required()->type_name("NODE");
  drain->add_option("--reason", drain_.reason, "Why; shown by nodes -o wide");
  drain->add_flag("--checkpoint-now", drain_.checkpoint_now,
                  "Save what runs there and move it, instead of letting it finish");
  AddRemote("undrain", "Let a worker take work again", "nibble undrain w-1",
            [this](CliContext& context) { return RunUndrain(context, drain_); }, Positional::kNode,
            {"table", "json", "yaml"})
      ->add_option("node", drain_.node, "Worker id")
      ->required()
      ->type_name("NODE");
  CLI::App* version = AddRemote(
      "version", "Print the versions of this program and of the controller", "nibble version",
      [this](CliContext& context) { return RunVersion(context, version_); }, Positional::kNone,
      {"table", "json", "yaml"});
  version->add_flag("--client", version_.client_only, "Do not ask the controller");
}

void CommandLine::AddRecipeCommand() {
  CLI::App* recipes = Add(
      "recipes", "List, show and check recipes", "nibble recipes show nvfp4_te",
      [this](CliContext& context) { return RunRecipes(context, recipes_); },
      {"table", "json", "yaml", "name"}, Positional::kRecipe);
  recipes->add_option("action", recipes_.action, "list, show NAME|FILE or validate FILE")
      ->required()
      ->check(CLI::IsMember({"list", "show", "validate"}))
      ->type_name("ACTION");
  recipes->add_option("target", recipes_.target, "Recipe name, or file in YAML or JSON; - is stdin")
      ->type_name("NAME|FILE");
  recipes->add_flag("--json", recipes_.json, "Short for -o json");
}

void CommandLine::AddLocalCommands() {
  CLI::App* up = Add(
      "up", "Run a controller and a worker on this machine until Ctrl-C",
      "nibble up --state-dir ~/nibble-state",
      [this](CliContext& context) { return RunUp(context, up_); }, {}, Positional::kNone);
  up->add_option("--state-dir", up_.state_dir, "Where everything is kept [~/.nibble/local]")
      ->type_name("DIR");
  up->add_option("--slots", up_.slots, "Jobs that may run at once [1]")->check(CLI::Range(1, 64));
  up->add_option("--listen", up_.listen, "API address [127.0.0.1:7790]; port 0 = any free one")
      ->type_name("HOST:PORT");
  up->add_option("--http", up_.http, "Metrics address [127.0.0.1:7791]; port 0 = any free one")
      ->type_name("HOST:PORT");
  up->add_option("--pool", up_.pool, "Pool of the worker [main]");
  up->add_option("--token-file", up_.token_file, "Demand this token from every caller")
      ->type_name("FILE");

  CLI::App* quickstart = Add(
      "quickstart", "Train a small FP4 model on real text, from nothing to a sample",
      "nibble quickstart --compare",
      [this](CliContext& context) { return RunQuickstart(context, quickstart_); }, {},
      Positional::kNone);
  quickstart
      ->add_option("--state-dir", quickstart_.state_dir,
                   "Where everything is kept [~/.nibble/quickstart]")
      ->type_name("DIR");
  quickstart->add_option("--spec", quickstart_.spec, "Job file [examples/quickstart.yaml]")
      ->type_name("FILE");
  quickstart->add_option("--text", quickstart_.text, "Train on these text files instead")
      ->type_name("FILE");
  quickstart->add_option("--recipe", quickstart_.recipe, "Recipe instead of the spec's");
  quickstart->add_option("--set", quickstart_.settings, "Override one key of the spec; repeatable")
      ->type_name("PATH=VALUE")
      ->allow_extra_args(false);
  quickstart->add_flag("--compare", quickstart_.compare,
                       "Train the same model in BF16 too and print both");
  quickstart->add_flag("--json", quickstart_.json, "Print the summary as one JSON object");

  CLI::App* tokenize = Add(
      "tokenize", "Turn text into token shards (runs nibble-data tokenize)",
      "nibble tokenize --tokenizer corpus.model --out data/ corpus.txt",
      [this](CliContext& context) { return RunTokenize(context, tokenize_); }, {},
      Positional::kFile);
  tokenize->prefix_command();
  tokenize->set_help_flag();  // --help is nibble-data's
  tokenize->callback([this, tokenize] {
    tokenize_.arguments = tokenize->remaining();
    chosen_ = [this](CliContext& context) { return RunTokenize(context, tokenize_); };
  });

  CLI::App* completion = Add(
      "completion", "Print a completion script for bash, zsh or fish",
      "source <(nibble completion bash)",
      [this](CliContext& context) {
        const auto script = CompletionScript(shell_, Describe());
        if (!script.ok()) return context.Fail(script.status());
        context.out << *script;
        context.out.flush();
        return kExitOk;
      },
      {}, Positional::kShell);
  completion->add_option("shell", shell_, "bash, zsh or fish")->required()->type_name("SHELL");
}

int CommandLine::Run(std::vector<std::string> arguments, CliContext& context) {
  const bool bare = arguments.empty();
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them last first
  try {
    app_.parse(arguments);
  } catch (const CLI::Success& success) {  // --help, --version
    app_.exit(success, context.out, context.err);
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    if (bare) context.err << app_.help();
    context.Note(std::string(error.what()) + " (see 'nibble --help')");
    return kExitUsage;
  }
  context.connection = connection_;
  if (!output_.empty()) context.output = Formats().at(output_);
  context.headers = !no_headers_;
  return chosen_(context);
}

std::vector<CommandInfo> CommandLine::Describe() const {
  std::vector<CommandInfo> commands;
  for (const CLI::App* command : app_.get_subcommands(nullptr)) {
    CommandInfo info;
    info.name = command->get_name();
    info.aliases = command->get_aliases();
    info.description = command->get_description();
    info.positional = positionals_.at(command);
    for (const CLI::Option* option : command->get_options()) {
      if (!option->nonpositional()) continue;
      OptionInfo entry;
      for (const std::string& name : option->get_snames()) entry.names.push_back("-" + name);
      for (const std::string& name : option->get_lnames()) entry.names.push_back("--" + name);
      entry.description = option->get_description();
      entry.takes_value = option->get_expected_max() > 0;
      entry.takes_file = option->get_type_name() == "FILE" || option->get_type_name() == "DIR";
      const auto formats = formats_.find(command);
      if (option->check_lname("output") && formats != formats_.end()) {
        entry.choices = formats->second;
      }
      info.options.push_back(std::move(entry));
    }
    commands.push_back(std::move(info));
  }
  return commands;
}

}  // namespace

int RunCommandLine(const std::vector<std::string>& arguments, CliContext& context) {
  return CommandLine().Run(arguments, context);
}

std::vector<CommandInfo> DescribeCommands() { return CommandLine().Describe(); }

}  // namespace nibble::cli
