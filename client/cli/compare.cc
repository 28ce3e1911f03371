// SPDX-License-Identifier: Apache-2.0
//
// nibble compare: two or more jobs, the first being the reference.
#include "client/cli/commands.h"
#include "client/cli/comparison.h"

namespace nibble::cli {

int RunCompare(CliContext& context, const CompareOptions& options) {
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  std::vector<RunSummary> runs;
  for (const std::string& name : options.jobs) {
    const auto job = (*client)->GetJob(name);
    if (!job.ok()) return context.Fail(job.status());
    v1::GetMetricsRequest request;
    request.set_job(job->id());
    const auto metrics = (*client)->GetMetrics(request);
    if (!metrics.ok()) return context.Fail(metrics.status());
    runs.push_back(Summarize(*job, *metrics));
  }
  if (context.PrintStructured(ComparisonToJson(runs, options.points))) return kExitOk;
  SummaryTable(runs).Print(context.out, context.headers);
  if (CommonSteps(runs, options.points).empty()) {
    context.Note("the jobs have no step in common yet");
    return kExitOk;
  }
  context.out << "\nTraining loss (mean of the steps around), gap to " << runs[0].name << "\n";
  LossTable(runs, options.points).Print(context.out, context.headers);
  return kExitOk;
}

}  // namespace nibble::cli
