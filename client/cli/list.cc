// SPDX-License-Identifier: Apache-2.0
//
// nibble ps: the jobs as a table.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>

#include "base/clock.h"
#include "base/strings.h"
#include "client/cli/commands.h"
#include "client/cli/job_text.h"
#include "client/cli/screen.h"
#include "client/lib/proto_json.h"

namespace nibble::cli {
namespace {

constexpr std::chrono::milliseconds kRefreshInterval{2000};

Result<v1::ListJobsRequest> BuildRequest(const ListOptions& options) {
  v1::ListJobsRequest request;
  request.set_queue(options.queue);
  for (const std::string& list : options.states) {
    for (const std::string& name : StrSplit(list, ',')) {
      ASSIGN_OR_RETURN(const v1::JobState state, ParseJobState(name));
      request.add_states(state);
    }
  }
  for (const std::string& list : options.selector) {
    for (const std::string& pair : StrSplit(list, ',')) {
      const size_t equals = pair.find('=');
      if (equals == std::string::npos || equals == 0) {
        return InvalidArgumentError("selector '" + pair + "' is not key=value");
      }
      (*request.mutable_labels())[pair.substr(0, equals)] = pair.substr(equals + 1);
    }
  }
  return request;
}

// Sorts by the named column; the server's order (newest first) breaks ties.
Status SortJobs(const std::string& key, std::vector<v1::Job>& jobs) {
  using Less = std::function<bool(const v1::Job&, const v1::Job&)>;
  static const std::vector<std::pair<std::string, Less>> kOrders = {
      {"age",
       [](const v1::Job& a, const v1::Job& b) {
         return a.submit_time().seconds() < b.submit_time().seconds();
       }},
      {"name",
       [](const v1::Job& a, const v1::Job& b) {
         return a.spec().metadata().name() < b.spec().metadata().name();
       }},
      {"state", [](const v1::Job& a, const v1::Job& b) { return a.state() < b.state(); }},
      {"priority", [](const v1::Job& a,
                      const v1::Job& b) { return a.spec().priority() > b.spec().priority(); }},
      {"loss",
       [](const v1::Job& a, const v1::Job& b) {
         const auto rank = [](const v1::Job& job) {  // jobs without a loss go last
           const double loss = job.progress().loss();
           return job.progress().step() == 0 || std::isnan(loss) ? HUGE_VAL : loss;
         };
         return rank(a) < rank(b);
       }},
      {"step", [](const v1::Job& a,
                  const v1::Job& b) { return a.progress().step() > b.progress().step(); }},
  };
  std::vector<std::string> names;
  for (const auto& [name, less] : kOrders) {
    if (name == key) {
      std::stable_sort(jobs.begin(), jobs.end(), less);
      return OkStatus();
    }
    names.push_back(name);
  }
  return InvalidArgumentError(UnknownNameMessage("sort key", key, names));
}

Result<std::vector<v1::Job>> Fetch(CliContext& context, const ListOptions& options) {
  ASSIGN_OR_RETURN(Client * client, context.client());
  ASSIGN_OR_RETURN(const v1::ListJobsRequest request, BuildRequest(options));
  ASSIGN_OR_RETURN(std::vector<v1::Job> jobs, client->ListJobs(request, options.limit));
  if (!options.sort.empty()) RETURN_IF_ERROR(SortJobs(options.sort, jobs));
  return jobs;
}

// Redraws until interrupted; without a terminal prints the table again and again.
int WatchList(CliContext& context, const ListOptions& options) {
  LiveRegion region(context.out, context.terminal);
  do {
    const auto jobs = Fetch(context, options);
    if (!jobs.ok()) return context.Fail(jobs.status());
    const bool wide = context.output == OutputFormat::kWide;
    region.Draw(JobTable(*jobs, wide, Clock::Real().WallMillis()).Lines(context.headers));
  } while (!context.interrupt.WaitFor(kRefreshInterval));
  return kExitInterrupted;
}

}  // namespace

int RunList(CliContext& context, const ListOptions& options) {
  if (options.watch) return WatchList(context, options);
  const auto jobs = Fetch(context, options);
  if (!jobs.ok()) return context.Fail(jobs.status());
  if (context.output == OutputFormat::kName) {
    for (const v1::Job& job : *jobs) context.out << job.id() << "\n";
    return kExitOk;
  }
  Json items = Json::Array();
  for (const v1::Job& job : *jobs) items.Append(MessageToJson(job));
  if (context.PrintStructured(items)) return kExitOk;
  JobTable(*jobs, context.output == OutputFormat::kWide, Clock::Real().WallMillis())
      .Print(context.out, context.headers);
  if (jobs->empty()) context.Note("no jobs; submit one with 'nibble submit -f job.yaml'");
  return kExitOk;
}

}  // namespace nibble::cli
