// SPDX-License-Identifier: Apache-2.0
//
// nibble cancel, pause, resume and update: asking for another state of a job.
#include <functional>

#include "client/cli/commands.h"
#include "client/lib/job_yaml.h"
#include "client/lib/proto_json.h"

namespace nibble::cli {
namespace {

// One call per job; goes on after a failure and returns the first failure's code.
int ForEachJob(CliContext& context, const std::vector<std::string>& jobs,
               const std::function<Result<v1::Job>(Client&, const std::string&)>& call) {
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  int code = kExitOk;
  Json items = Json::Array();
  for (const std::string& name : jobs) {
    const Result<v1::Job> job = call(**client, name);
    if (!job.ok()) {
      const int failed = context.Fail(job.status());
      if (code == kExitOk) code = failed;
      continue;
    }
    items.Append(MessageToJson(*job));
    if (context.output == OutputFormat::kName) {
      context.out << job->id() << "\n";
    } else if (context.output == OutputFormat::kTable || context.output == OutputFormat::kWide) {
      context.out << job->id() << " " << JobStateName(job->state())
                  << (job->reason().empty() ? "" : " (" + job->reason() + ")") << "\n";
    }
  }
  if (items.size() > 0) context.PrintStructured(jobs.size() == 1 ? items.At(0) : items);
  context.out.flush();
  return code;
}

}  // namespace

int RunCancel(CliContext& context, const CancelOptions& options) {
  return ForEachJob(context, options.jobs, [&](Client& client, const std::string& name) {
    v1::CancelJobRequest request;
    request.set_job(name);
    request.set_now(options.now);
    request.set_request_id(options.request_id);
    request.set_actor(CurrentUser());
    return client.CancelJob(request);
  });
}

int RunPause(CliContext& context, const JobsOptions& options) {
  return ForEachJob(context, options.jobs, [](Client& client, const std::string& name) {
    v1::PauseJobRequest request;
    request.set_job(name);
    request.set_actor(CurrentUser());
    return client.PauseJob(request);
  });
}

int RunResume(CliContext& context, const JobsOptions& options) {
  return ForEachJob(context, options.jobs, [](Client& client, const std::string& name) {
    v1::ResumeJobRequest request;
    request.set_job(name);
    request.set_actor(CurrentUser());
    return client.ResumeJob(request);
  });
}

int RunUpdate(CliContext& context, const UpdateOptions& options) {
  v1::UpdateJobRequest request;
  request.set_actor(CurrentUser());
  if (options.priority.has_value()) request.set_priority(*options.priority);
  if (!options.time_limit.empty()) {
    v1::JobSpec spec;
    const Status status = ApplySetting("timeLimit=" + options.time_limit, &spec);
    if (!status.ok()) return context.Fail(status);
    *request.mutable_time_limit() = spec.time_limit();
  }
  if (!request.has_priority() && !request.has_time_limit()) {
    return context.Fail(InvalidArgumentError("give --priority or --time-limit"));
  }
  return ForEachJob(context, {options.job}, [&](Client& client, const std::string& name) {
    request.set_job(name);
    return client.UpdateJob(request);
  });
}

}  // namespace nibble::cli
