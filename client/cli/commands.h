// SPDX-License-Identifier: Apache-2.0
//
// The subcommands of `nibble`: their options and entry points. Each returns the exit code.
//
// Thread-safety: one thread. command_line.cc fills the options from the command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/cli/context.h"

namespace nibble::cli {

struct SubmitOptions {
  std::string file;
  std::string name;
  std::string queue;
  std::vector<std::string> settings;  // path=value
  std::vector<std::string> env;       // NAME=VALUE
  std::optional<int> priority;
  std::string time_limit;
  std::string request_id;
  bool dry_run = false;
  bool wait = false;
  bool watch = false;
  std::string wait_timeout;
};
int RunSubmit(CliContext& context, const SubmitOptions& options);

struct ListOptions {
  std::string queue;
  std::vector<std::string> states;
  std::vector<std::string> selector;  // key=value, also comma-separated
  int limit = 200;
  std::string sort;
  bool watch = false;
};
int RunList(CliContext& context, const ListOptions& options);

struct JobOptions {
  std::string job;
};
int RunDescribe(CliContext& context, const JobOptions& options);
int RunWhy(CliContext& context, const JobOptions& options);
int RunEvents(CliContext& context, const JobOptions& options);
int RunWatch(CliContext& context, const JobOptions& options);

struct LogsOptions {
  std::string job;
  bool follow = false;
  int rank = 0;
  int attempt = 0;
  int tail = 0;
  std::string since;  // a duration back from now
  bool timestamps = false;
};
int RunLogs(CliContext& context, const LogsOptions& options);

struct MetricsOptions {
  std::string job;
  std::string kind = "step";
  int64_t from_step = 0;
  int max_points = -1;  // -1: 20 for tables, all otherwise
  bool raw = false;
};
int RunMetrics(CliContext& context, const MetricsOptions& options);

struct CompareOptions {
  std::vector<std::string> jobs;
  int points = 10;
};
int RunCompare(CliContext& context, const CompareOptions& options);

struct CancelOptions {
  std::vector<std::string> jobs;
  bool now = false;
  std::string request_id;
};
int RunCancel(CliContext& context, const CancelOptions& options);

struct JobsOptions {
  std::vector<std::string> jobs;
};
int RunPause(CliContext& context, const JobsOptions& options);
int RunResume(CliContext& context, const JobsOptions& options);

struct UpdateOptions {
  std::string job;
  std::optional<int> priority;
  std::string time_limit;
};
int RunUpdate(CliContext& context, const UpdateOptions& options);

struct WaitOptions {
  std::string job;
  std::string timeout;  // a duration; "" = for ever
  bool propagate = false;
};
int RunWait(CliContext& context, const WaitOptions& options);

int RunNodes(CliContext& context);

struct DrainOptions {
  std::string node;
  std::string reason;
  bool checkpoint_now = false;
};
int RunDrain(CliContext& context, const DrainOptions& options);
int RunUndrain(CliContext& context, const DrainOptions& options);

struct TopOptions {
  double interval_seconds = 2;
  bool once = false;
};
int RunTop(CliContext& context, const TopOptions& options);

struct RecipesOptions {
  std::string action;  // list, show or validate
  std::string target;  // show: name; validate: file
  bool json = false;
};
int RunRecipes(CliContext& context, const RecipesOptions& options);

struct VersionOptions {
  bool client_only = false;
};
int RunVersion(CliContext& context, const VersionOptions& options);

struct UpOptions {
  std::string state_dir;
  int slots = 1;
  std::string listen;
  std::string http;
  std::string token_file;
  std::string pool;
};
int RunUp(CliContext& context, const UpOptions& options);

struct QuickstartOptions {
  std::string state_dir;
  std::string spec;
  std::vector<std::string> text;
  std::string recipe;
  std::vector<std::string> settings;
  bool compare = false;
  bool json = false;
};
int RunQuickstart(CliContext& context, const QuickstartOptions& options);

struct TokenizeOptions {
  std::vector<std::string> arguments;  // handed to `nibble-data tokenize` as they are
};
int RunTokenize(CliContext& context, const TokenizeOptions& options);

}  // namespace nibble::cli
