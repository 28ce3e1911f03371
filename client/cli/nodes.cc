// SPDX-License-Identifier: Apache-2.0
//
// nibble nodes, drain, undrain and version: the cluster itself.
#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/strings.h"
#include "client/cli/commands.h"
#include "client/cli/job_text.h"
#include "client/lib/proto_json.h"

#ifndef NIBBLE_VERSION
#error "NIBBLE_VERSION comes from the build"
#endif

namespace nibble::cli {
namespace {

constexpr size_t kMaxNamedWorkers = 3;

int PrintNode(CliContext& context, const Result<v1::Node>& node) {
  if (!node.ok()) return context.Fail(node.status());
  if (!context.PrintStructured(MessageToJson(*node))) {
    context.out << node->worker_id() << " " << node->state() << std::endl;
  }
  return kExitOk;
}

// The notes of all workers beneath the table, each once with those who say it.
void PrintNotes(CliContext& context, const std::vector<v1::Node>& nodes) {
  std::vector<std::pair<std::string, std::vector<std::string>>> said;  // note, workers
  for (const v1::Node& node : nodes) {
    for (const std::string& note : node.notes()) {
      auto same = std::find_if(said.begin(), said.end(),
                               [&note](const auto& entry) { return entry.first == note; });
      if (same == said.end()) same = said.insert(said.end(), {note, {}});
      same->second.push_back(node.worker_id());
    }
  }
  for (auto& [note, workers] : said) {
    const size_t count = workers.size();
    if (count > kMaxNamedWorkers) {
      workers.resize(kMaxNamedWorkers);
      workers.back() += StrFormat(" and %zu more", count - kMaxNamedWorkers);
    }
    context.Note(StrJoin(workers, ", ") + ": " + note);
  }
}

}  // namespace

int RunNodes(CliContext& context) {
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  const auto nodes = (*client)->ListNodes();
  if (!nodes.ok()) return context.Fail(nodes.status());
  if (context.output == OutputFormat::kName) {
    for (const v1::Node& node : *nodes) context.out << node.worker_id() << "\n";
    return kExitOk;
  }
  Json items = Json::Array();
  for (const v1::Node& node : *nodes) items.Append(MessageToJson(node));
  if (context.PrintStructured(items)) return kExitOk;
  NodeTable(*nodes, context.output == OutputFormat::kWide, Clock::Real().WallMillis())
      .Print(context.out, context.headers);
  context.out.flush();
  PrintNotes(context, *nodes);
  if (nodes->empty())
    context.Note("no workers; start one with 'nibble-worker --controller HOST:PORT'");
  return kExitOk;
}

int RunDrain(CliContext& context, const DrainOptions& options) {
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  v1::DrainNodeRequest request;
  request.set_worker_id(options.node);
  request.set_reason(options.reason);
  request.set_actor(CurrentUser());
  request.set_checkpoint_now(options.checkpoint_now);
  return PrintNode(context, (*client)->DrainNode(request));
}

int RunUndrain(CliContext& context, const DrainOptions& options) {
  const Result<Client*> client = context.client();
  if (!client.ok()) return context.Fail(client.status());
  v1::UndrainNodeRequest request;
  request.set_worker_id(options.node);
  request.set_actor(CurrentUser());
  return PrintNode(context, (*client)->UndrainNode(request));
}

int RunVersion(CliContext& context, const VersionOptions& options) {
  Json json = Json::Object({{"client", NIBBLE_VERSION}});
  Result<v1::ServerInfo> info = UnavailableError("not asked");
  if (!options.client_only) {
    const Result<Client*> client = context.client();
    if (!client.ok()) return context.Fail(client.status());
    info = (*client)->GetServerInfo();
    if (info.ok()) json.Set("server", MessageToJson(*info));
  }
  if (!context.PrintStructured(json)) {
    context.out << "client  " << NIBBLE_VERSION << "\n";
    if (info.ok()) {
      context.out << "server  " << info->version() << " at "
                  << (*context.client())->options().server << ", metrics at http://"
                  << info->http_address() << "/metrics, " << info->jobs_live() << " live of "
                  << info->jobs_total() << " jobs\n";
    }
  }
  context.out.flush();
  return options.client_only ? kExitOk : context.Fail(info.status());
}

}  // namespace nibble::cli
