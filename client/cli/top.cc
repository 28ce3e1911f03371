// SPDX-License-Identifier: Apache-2.0
//
// nibble top: workers and live jobs with their loss as a sparkline.
#include <algorithm>

#include "base/clock.h"
#include "base/strings.h"
#include "client/cli/commands.h"
#include "client/cli/job_text.h"
#include "client/cli/screen.h"
#include "client/lib/curve.h"
#include "client/lib/proto_json.h"
#include "client/lib/quantities.h"

namespace nibble::cli {
namespace {

constexpr int kSparklineWidth = 20;
constexpr int kSparklinePoints = 40;
constexpr int kMaxTopJobs = 20;  // the newest live ones

struct Snapshot {
  v1::ServerInfo info;
  std::vector<v1::Node> nodes;
  std::vector<v1::Job> jobs;
  std::vector<std::vector<double>> losses;  // one list a job
};

Result<Snapshot> Fetch(CliContext& context) {
  Snapshot snapshot;
  ASSIGN_OR_RETURN(Client * client, context.client());
  ASSIGN_OR_RETURN(snapshot.info, client->GetServerInfo());
  ASSIGN_OR_RETURN(snapshot.nodes, client->ListNodes());
  v1::ListJobsRequest request;
  for (const v1::JobState state :
       {v1::JOB_STATE_PENDING, v1::JOB_STATE_HELD, v1::JOB_STATE_STARTING, v1::JOB_STATE_RUNNING,
        v1::JOB_STATE_SUSPECT, v1::JOB_STATE_PREEMPTING, v1::JOB_STATE_RECOVERING,
        v1::JOB_STATE_STOPPING}) {
    request.add_states(state);
  }
  ASSIGN_OR_RETURN(snapshot.jobs, client->ListJobs(request, kMaxTopJobs));
  for (const v1::Job& job : snapshot.jobs) {
    snapshot.losses.emplace_back();
    if (job.progress().step() == 0) continue;
    v1::GetMetricsRequest metrics;
    metrics.set_job(job.id());
    metrics.set_max_points(kSparklinePoints);
    ASSIGN_OR_RETURN(const v1::GetMetricsResponse response, client->GetMetrics(metrics));
    for (const v1::MetricRecord& record : response.records()) {
      if (record.record().has_step()) {
        snapshot.losses.back().push_back(record.record().step().loss());
      }
    }
  }
  return snapshot;
}

std::vector<std::string> Render(const Snapshot& snapshot, bool headers) {
  const int64_t now_ms = Clock::Real().WallMillis();
  std::vector<std::string> lines = {
      StrFormat("controller %s, up %s, %d live of %d jobs", snapshot.info.version().c_str(),
                FormatAge(SecondsSince(snapshot.info.start_time(), now_ms)).c_str(),
                snapshot.info.jobs_live(), snapshot.info.jobs_total()),
      ""};
  for (std::string& line : NodeTable(snapshot.nodes, false, now_ms).Lines(headers)) {
    lines.push_back(std::move(line));
  }
  if (snapshot.jobs.empty()) return lines;
  lines.emplace_back();
  Table table({"JOB", "NAME", "STATE", ">STEP", ">LOSS", ">VAL", ">TOK/S", ">ETA", "LOSS CURVE"});
  for (size_t i = 0; i < snapshot.jobs.size(); ++i) {
    const v1::Job& job = snapshot.jobs[i];
    const v1::Progress& progress = job.progress();
    const bool stepped = progress.step() > 0;
    table.AddRow({job.id(), job.spec().metadata().name(), JobStateName(job.state()),
                  StepText(progress), stepped ? LossText(progress.loss()) : "",
                  progress.validation_loss() != 0 ? LossText(progress.validation_loss()) : "",
                  stepped ? FormatCount(progress.tokens_per_second()) : "", EtaText(job),
                  Sparkline(snapshot.losses[i], kSparklineWidth)});
  }
  for (std::string& line : table.Lines(headers)) lines.push_back(std::move(line));
  return lines;
}

Json ToJson(const Snapshot& snapshot) {
  Json nodes = Json::Array(), jobs = Json::Array();
  for (const v1::Node& node : snapshot.nodes) nodes.Append(MessageToJson(node));
  for (const v1::Job& job : snapshot.jobs) jobs.Append(MessageToJson(job));
  return Json::Object({{"server", MessageToJson(snapshot.info)}, {"nodes", nodes}, {"jobs", jobs}});
}

}  // namespace

int RunTop(CliContext& context, const TopOptions& options) {
  const bool once = options.once || !context.terminal.out_is_tty;
  const auto interval = std::chrono::milliseconds(
      static_cast<int64_t>(std::clamp(options.interval_seconds, 0.2, 3600.0) * 1000));
  LiveRegion region(context.out, context.terminal);
  while (true) {
    const Result<Snapshot> snapshot = Fetch(context);
    if (!snapshot.ok()) return context.Fail(snapshot.status());
    if (context.PrintStructured(ToJson(*snapshot))) return kExitOk;
    region.Draw(Render(*snapshot, context.headers));
    if (once) return kExitOk;
    if (context.interrupt.WaitFor(interval)) return kExitInterrupted;
  }
}

}  // namespace nibble::cli
