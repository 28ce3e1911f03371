// SPDX-License-Identifier: Apache-2.0
//
// nibble nodes, drain, undrain and version: the cluster itself.
#include "base/clock.h"
#include "client/cli/commands.h"
#include "client/cli/job_text.h"
#include "client/lib/proto_json.h"

#ifndef NIBBLE_VERSION
#error "NIBBLE_VERSION comes from the build"
#endif

namespace nibble::cli {
namespace {

int PrintNode(CliContext& context, const Result<v1::Node>& node) {
  if (!node.ok()) return context.Fail(node.status());
  if (!context.PrintStructured(MessageToJson(*node))) {
    context.out << node->worker_id() << " " << node->state() << std::endl;
  }
  return kExitOk;
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
