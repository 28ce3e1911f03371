// SPDX-License-Identifier: Apache-2.0
//
// nibble submit: a job file to a job, or (--dry-run) to an estimate.
#include <map>

#include "base/strings.h"
#include "client/cli/commands.h"
#include "client/cli/job_text.h"
#include "client/cli/watch.h"
#include "client/lib/job_yaml.h"
#include "client/lib/proto_json.h"

namespace nibble::cli {
namespace {

// What flags say beats what the file says.
Status ApplyFlags(const SubmitOptions& options, v1::JobSpec* spec) {
  for (const std::string& setting : options.settings) {
    RETURN_IF_ERROR(ApplySetting(setting, spec));
  }
  for (const std::string& pair : options.env) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos || equals == 0) {
      return InvalidArgumentError("--env " + pair + ": write NAME=VALUE");
    }
    (*spec->mutable_env())[pair.substr(0, equals)] = pair.substr(equals + 1);
  }
  if (!options.name.empty()) spec->mutable_metadata()->set_name(options.name);
  if (!options.queue.empty()) spec->set_queue(options.queue);
  if (options.priority.has_value()) {
    spec->set_priority(*options.priority);
    spec->clear_priority_class();
  }
  if (!options.time_limit.empty()) {
    RETURN_IF_ERROR(ApplySetting("timeLimit=" + options.time_limit, spec));
  }
  return OkStatus();
}

// The server's objections with the lines of the file they are about.
int FailWithLines(CliContext& context, Client& client, const ParsedJob& parsed,
                  const std::string& file, const Status& status) {
  const auto& violations = client.last_error().violations();
  if (status.code() != StatusCode::kInvalidArgument || violations.empty()) {
    return context.FailSpec(status);
  }
  context.Note("the job was rejected");
  for (const v1::FieldViolation& violation : violations) {
    context.err << LocatedMessage(parsed, file, violation.field(), violation.description()) << "\n";
  }
  context.err.flush();
  return kExitSpecRejected;
}

void PrintEstimate(CliContext& context, const v1::Estimate& estimate) {
  std::ostream& out = context.out;
  out << "parameters       " << FormatCount(static_cast<double>(estimate.parameters())) << "\n"
      << "steps            " << estimate.steps() << "\n"
      << "tokens           " << FormatCount(static_cast<double>(estimate.tokens_total())) << "\n"
      << "FLOPs per token  " << FormatCount(estimate.flops_per_token()) << "\n"
      << "memory           " << MemoryText(estimate.memory_bytes()) << "\n\n";
  Table table({"NODE", "FITS", ">STEP", ">TOTAL", "WHY NOT"});
  for (const v1::Fit& fit : estimate.fits()) {
    const bool known = fit.step_seconds() > 0;
    table.AddRow({fit.worker_id(), fit.fits() ? "yes" : "no",
                  known ? FormatDuration(fit.step_seconds()) : "",
                  known ? FormatDuration(fit.total_hours() * 3600) : "", fit.why_not()});
  }
  if (estimate.fits_size() > 0) {
    table.Print(out, context.headers);
  } else {
    out << "no worker is registered: nothing to fit it on\n";
  }
  for (const std::string& warning : estimate.warnings()) context.Note("warning: " + warning);
}

void PrintSubmitted(CliContext& context, const v1::SubmitJobResponse& response) {
  const v1::Job& job = response.job();
  if (context.PrintStructured(MessageToJson(job))) return;
  if (context.output == OutputFormat::kName) {
    context.out << job.id() << std::endl;
    return;
  }
  context.out << "submitted " << job.id() << " (" << job.spec().metadata().name() << ") to queue "
              << job.spec().queue() << ": " << JobStateName(job.state())
              << (job.reason().empty() ? "" : ", " + job.reason()) << std::endl;
  for (const std::string& warning : response.estimate().warnings()) {
    context.Note("warning: " + warning);
  }
  context.Note("follow it with 'nibble watch " + job.id() + "'");
}

}  // namespace

int RunSubmit(CliContext& context, const SubmitOptions& options) {
  Result<ParsedJob> parsed = ReadJobFile(options.file);
  if (!parsed.ok()) return context.FailSpec(parsed.status());
  const std::string file = options.file == "-" ? "stdin" : options.file;
  v1::SubmitJobRequest request;
  *request.mutable_spec() = parsed->spec;
  if (const Status applied = ApplyFlags(options, request.mutable_spec()); !applied.ok()) {
    return context.FailSpec(applied);
  }
  request.set_request_id(options.request_id);
  request.set_dry_run(options.dry_run);
  request.set_user(CurrentUser());
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  const Result<v1::SubmitJobResponse> response = (*client)->SubmitJob(request);
  if (!response.ok()) return FailWithLines(context, **client, *parsed, file, response.status());
  if (options.dry_run) {
    if (!context.PrintStructured(MessageToJson(response->estimate()))) {
      PrintEstimate(context, response->estimate());
    }
    return kExitOk;
  }
  PrintSubmitted(context, *response);
  if (options.watch) {
    const int shown = RunWatch(context, {response->job().id()});
    if (shown != kExitOk || !options.wait) return shown;
  }
  if (!options.wait) return kExitOk;
  return RunWait(context, {response->job().id(), options.wait_timeout, false});
}

}  // namespace nibble::cli
