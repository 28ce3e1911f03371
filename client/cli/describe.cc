// SPDX-License-Identifier: Apache-2.0
//
// nibble describe, why and events: one job in full.
#include "base/clock.h"
#include "base/strings.h"
#include "client/cli/commands.h"
#include "client/cli/job_text.h"
#include "client/lib/proto_json.h"
#include "client/lib/quantities.h"

namespace nibble::cli {
namespace {

// "Key:      value" lines; empty values are left out.
void Line(CliContext& context, const std::string& key, const std::string& value) {
  if (!value.empty()) context.out << StrFormat("%-17s", (key + ":").c_str()) << value << "\n";
}

void PrintProgress(CliContext& context, const v1::Job& job) {
  const v1::Progress& progress = job.progress();
  if (progress.steps_total() == 0) return;
  context.out << "\nProgress\n";
  Line(context, "  step", StepText(progress));
  if (progress.step() > 0) {
    Line(context, "  loss", LossText(progress.loss()));
    Line(context, "  grad norm", StrFormat("%.4f", progress.grad_norm()));
    Line(context, "  learning rate", StrFormat("%.3e", progress.learning_rate()));
    Line(context, "  tokens", FormatCount(static_cast<double>(progress.tokens())));
    Line(context, "  tokens/s", FormatCount(progress.tokens_per_second()));
  }
  if (progress.first_validation_loss() != 0 || progress.validation_loss() != 0) {
    Line(context, "  validation",
         LossText(progress.validation_loss()) +
             StrFormat(" at step %lld (first %s)",
                       static_cast<long long>(progress.validation_step()),
                       LossText(progress.first_validation_loss()).c_str()));
  }
  Line(context, "  ETA", EtaText(job));
  Line(context, "  memory", MemoryText(progress.memory_bytes()));
}

void PrintAttempts(CliContext& context, const v1::Job& job) {
  if (job.attempts_size() == 0) return;
  context.out << "\nAttempts\n";
  Table table(
      {">NO", ">EPOCH", "NODE", "STATE", "STARTED", "ENDED", ">FROM STEP", ">EXIT", "REASON"});
  for (const v1::Attempt& attempt : job.attempts()) {
    std::string exit;
    if (attempt.has_end_time()) {
      exit = attempt.signal() != 0 ? StrFormat("signal %d", attempt.signal())
                                   : std::to_string(attempt.exit_code());
    }
    std::string reason = attempt.end_reason();
    if (attempt.end_message().starts_with(reason)) {
      reason = attempt.end_message();
    } else if (!attempt.end_message().empty()) {
      reason += ": " + attempt.end_message();
    }
    table.AddRow({std::to_string(attempt.number()), std::to_string(attempt.epoch()),
                  attempt.worker_id(), attempt.state(), TimeText(attempt.start_time()),
                  TimeText(attempt.end_time()), std::to_string(attempt.resumed_from_step()), exit,
                  reason});
  }
  for (const std::string& line : table.Lines(true)) context.out << "  " << line << "\n";
}

void PrintJob(CliContext& context, const v1::Job& job) {
  const v1::JobSpec& spec = job.spec();
  Line(context, "ID", job.id());
  Line(context, "Name", spec.metadata().name());
  Line(context, "Project", spec.metadata().project());
  std::vector<std::string> labels;
  const std::map<std::string, std::string> sorted(spec.metadata().labels().begin(),
                                                  spec.metadata().labels().end());
  for (const auto& [key, value] : sorted) labels.push_back(key + "=" + value);
  Line(context, "Labels", StrJoin(labels, ","));
  Line(context, "User", job.user());
  Line(context, "Queue", spec.queue());
  Line(context, "Priority", std::to_string(spec.priority()));
  Line(context, "State",
       JobStateName(job.state()) + (job.reason().empty() ? "" : " (" + job.reason() + ")"));
  Line(context, "Message", job.message());
  if (job.queue_position() > 0) Line(context, "Position", std::to_string(job.queue_position()));
  Line(context, "Recipe", spec.precision().recipe());
  Line(context, "Submitted", TimeText(job.submit_time()));
  Line(context, "Started", TimeText(job.start_time()));
  Line(context, "Ended", TimeText(job.end_time()));
  if (spec.has_time_limit()) {
    Line(context, "Time limit", WriteDuration(static_cast<double>(spec.time_limit().seconds())));
  }
  Line(context, "Spec hash", job.spec_hash());
  if (!job.checkpoint_path().empty()) {
    Line(context, "Checkpoint",
         job.checkpoint_path() +
             StrFormat(" (step %lld)", static_cast<long long>(job.checkpoint_step())));
  }
  Line(context, "Best", job.best_checkpoint_path());
  PrintProgress(context, job);
  PrintAttempts(context, job);
  context.out << "\nSpec\n";
  for (const std::string& line : StrSplit(JsonToYaml(MessageToJson(spec)), '\n')) {
    if (!line.empty()) context.out << "  " << line << "\n";
  }
  context.out.flush();
}

}  // namespace

int RunDescribe(CliContext& context, const JobOptions& options) {
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  const auto job = (*client)->GetJob(options.job);
  if (!job.ok()) return context.Fail(job.status());
  if (context.output == OutputFormat::kName) {
    context.out << job->id() << std::endl;
  } else if (!context.PrintStructured(MessageToJson(*job))) {
    PrintJob(context, *job);
  }
  return kExitOk;
}

int RunWhy(CliContext& context, const JobOptions& options) {
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  const auto why = (*client)->ExplainJob(options.job);
  if (!why.ok()) return context.Fail(why.status());
  if (context.PrintStructured(MessageToJson(*why))) return kExitOk;
  Line(context, "Job", why->job_id());
  Line(context, "State", JobStateName(why->state()));
  Line(context, "Reason", why->reason());
  Line(context, "Message", why->message());
  Line(context, "Next", why->next_event());
  Line(context, "Ahead", StrJoin({why->jobs_ahead().begin(), why->jobs_ahead().end()}, ", "));
  if (why->nodes_size() > 0) {
    context.out << "\n";
    Table table({"NODE", "FITS", "WHY NOT"});
    for (const v1::NodeVerdict& node : why->nodes()) {
      table.AddRow({node.worker_id(), node.fits() ? "yes" : "no", node.why_not()});
    }
    table.Print(context.out, context.headers);
  }
  context.out.flush();
  return kExitOk;
}

int RunEvents(CliContext& context, const JobOptions& options) {
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  const auto events = (*client)->ListJobEvents(options.job);
  if (!events.ok()) return context.Fail(events.status());
  Json items = Json::Array();
  for (const v1::JobEvent& event : *events) items.Append(MessageToJson(event));
  if (context.PrintStructured(items)) return kExitOk;
  Table table({">SEQ", "TIME", "TYPE", ">ATTEMPT", ">EPOCH", "ACTOR", "MESSAGE"});
  for (const v1::JobEvent& event : *events) {
    table.AddRow({std::to_string(event.seq()), TimeText(event.time()), event.type(),
                  event.attempt() > 0 ? std::to_string(event.attempt()) : "",
                  event.epoch() > 0 ? std::to_string(event.epoch()) : "", event.actor(),
                  event.message()});
  }
  table.Print(context.out, context.headers);
  return kExitOk;
}

}  // namespace nibble::cli
