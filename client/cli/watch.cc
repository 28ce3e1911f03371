// SPDX-License-Identifier: Apache-2.0
//
// nibble watch and nibble wait: a job until its end.
#include "client/cli/watch.h"

#include <chrono>
#include <optional>
#include <thread>

#include "base/strings.h"
#include "client/cli/commands.h"
#include "client/cli/job_text.h"
#include "client/cli/screen.h"
#include "client/lib/proto_json.h"

namespace nibble::cli {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::milliseconds kRedrawInterval{200};
constexpr int kPlainLinesPerRun = 20;  // without a terminal: a line every 5 % of the steps

// Lines for pipes and logs: state changes, validations and every 5 % of the steps.
class PlainWriter {
 public:
  PlainWriter(std::ostream& out, const Terminal& terminal) : out_(out), terminal_(terminal) {
    terminal_.color = false;
  }

  void Update(const JobView& view) {
    const std::string header = view.HeaderLine(terminal_);
    if (header != header_) out_ << header << "\n";
    header_ = header;
    const int64_t total = std::max<int64_t>(view.steps_total(), 1);
    const int64_t part = view.step() * kPlainLinesPerRun / total;
    const size_t validations = view.validation().size();
    if (!view.losses().empty() && (part != part_ || validations != validations_)) {
      out_ << view.ProgressLine(0) << "\n";
    }
    part_ = part;
    validations_ = validations;
    out_.flush();
  }

 private:
  std::ostream& out_;
  Terminal terminal_;
  std::string header_;
  int64_t part_ = 0;
  size_t validations_ = 0;
};

void KeepsRunning(CliContext& context, const std::string& job) {
  context.Note("interrupted; job " + job + " goes on. Stop it with 'nibble cancel " + job + "'");
}

// The raw messages, one JSON object a line.
int WatchAsJson(CliContext& context, Client& client, const v1::WatchJobRequest& request) {
  const Status status = client.WatchJob(request, [&](const v1::WatchJobResponse& message) {
    context.out << MessageToJson(message).Dump() << std::endl;
    return true;
  });
  return context.Fail(status);
}

}  // namespace

Status FollowJob(Client& client, const std::string& job, std::ostream& out,
                 const Terminal& terminal, JobView& view) {
  v1::WatchJobRequest request;
  request.set_job(job);
  request.set_metrics(true);
  LiveRegion region(out, terminal);
  PlainWriter plain(out, terminal);
  auto last_draw = steady_clock::now() - kRedrawInterval;
  const Status status = client.WatchJob(request, [&](const v1::WatchJobResponse& message) {
    view.Apply(message);
    if (!terminal.out_is_tty) {
      plain.Update(view);
    } else if (view.ended() || steady_clock::now() - last_draw >= kRedrawInterval) {
      last_draw = steady_clock::now();
      region.Draw(view.Render(terminal));
    }
    return true;
  });
  if (terminal.out_is_tty && !view.job().id().empty()) region.Draw(view.Render(terminal));
  return status;
}

std::string EndSentence(const v1::Job& job) {
  std::string text = "job " + job.id() + " " + JobStateName(job.state());
  if (!job.reason().empty()) text += ": " + job.reason();
  if (!job.message().empty()) text += " (" + job.message() + ")";
  return text;
}

int JobExitCode(const v1::Job& job, bool propagate) {
  if (!IsTerminal(job.state())) return kExitJobActive;
  if (propagate && job.attempts_size() > 0) {
    const v1::Attempt& last = job.attempts(job.attempts_size() - 1);
    return last.signal() != 0 ? 1 : last.exit_code();
  }
  if (job.state() == v1::JOB_STATE_SUCCEEDED) return kExitOk;
  return job.state() == v1::JOB_STATE_CANCELLED ? kExitJobCancelled : kExitJobFailed;
}

int RunWatch(CliContext& context, const JobOptions& options) {
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  if (context.output == OutputFormat::kJson || context.output == OutputFormat::kJsonl) {
    v1::WatchJobRequest request;
    request.set_job(options.job);
    request.set_metrics(true);
    return WatchAsJson(context, **client, request);
  }
  JobView view;
  const Status status = FollowJob(**client, options.job, context.out, context.terminal, view);
  if (!status.ok()) {
    if (status.code() == StatusCode::kCancelled) KeepsRunning(context, options.job);
    return context.Fail(status);
  }
  context.Note(EndSentence(view.job()));
  return kExitOk;
}

int RunWait(CliContext& context, const WaitOptions& options) {
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  v1::WatchJobRequest request;
  request.set_job(options.job);
  Interrupt& interrupt = context.interrupt;
  std::optional<steady_clock::time_point> deadline;
  if (!options.timeout.empty()) {
    const auto seconds = ParseDurationSeconds(options.timeout);
    if (!seconds.ok()) return context.Fail(seconds.status().WithContext("--timeout"));
    deadline = steady_clock::now() +
               std::chrono::milliseconds(static_cast<int64_t>(std::min(*seconds, 1e9) * 1000));
  }
  // With a deadline the job is asked for again and again: a stream would block beyond it.
  v1::Job job;
  if (deadline.has_value()) {
    constexpr std::chrono::milliseconds kPoll{250};
    while (true) {
      const auto answer = (*client)->GetJob(options.job);
      if (!answer.ok()) return context.Fail(answer.status());
      job = *answer;
      const auto left =
          std::chrono::ceil<std::chrono::milliseconds>(*deadline - steady_clock::now());
      if (IsTerminal(job.state()) || left.count() <= 0) break;
      if (interrupt.WaitFor(std::min(kPoll, left))) return kExitInterrupted;
    }
  } else {
    const Status status = (*client)->WatchJob(request, [&](const v1::WatchJobResponse& message) {
      if (message.has_job()) job = message.job();
      return !IsTerminal(job.state());
    });
    if (!status.ok()) {
      if (status.code() == StatusCode::kCancelled) KeepsRunning(context, options.job);
      return context.Fail(status);
    }
  }
  if (!context.PrintStructured(MessageToJson(job))) context.Note(EndSentence(job));
  return JobExitCode(job, options.propagate);
}

}  // namespace nibble::cli
