// SPDX-License-Identifier: Apache-2.0
//
// nibble logs: what the trainer wrote.
#include "base/clock.h"
#include "base/strings.h"
#include "client/cli/commands.h"
#include "client/lib/proto_json.h"

namespace nibble::cli {

int RunLogs(CliContext& context, const LogsOptions& options) {
  v1::StreamLogsRequest request;
  request.set_job(options.job);
  request.set_follow(options.follow);
  request.set_rank(options.rank);
  request.set_attempt(options.attempt);
  request.set_tail(options.tail);
  if (!options.since.empty()) {
    const auto seconds = ParseDurationSeconds(options.since);
    if (!seconds.ok()) return context.Fail(seconds.status().WithContext("--since"));
    request.set_since_ms(Clock::Real().WallMillis() - static_cast<int64_t>(*seconds * 1000));
  }
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  const bool json = context.output == OutputFormat::kJson || context.output == OutputFormat::kJsonl;
  int64_t lines = 0;
  const Status status = (*client)->StreamLogs(request, [&](const v1::StreamLogsResponse& line) {
    ++lines;
    if (json) {
      context.out << MessageToJson(line).Dump() << "\n";
    } else {
      if (options.timestamps) context.out << FormatUtc(line.time_ms()) << " ";
      if (!line.level().empty() && line.level() != "info") {
        context.out << line.level() << ": ";
      }
      context.out << line.text() << "\n";
    }
    if (options.follow) context.out.flush();
    return context.out.good();
  });
  context.out.flush();
  if (status.code() == StatusCode::kCancelled && context.interrupt.requested()) {
    context.Note("stopped reading; job " + options.job + " goes on. Stop it with 'nibble cancel " +
                 options.job + "'");
  }
  if (status.ok() && lines == 0) context.Note("no log lines; 'nibble watch' shows the steps");
  return context.Fail(status);
}

}  // namespace nibble::cli
