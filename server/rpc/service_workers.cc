// SPDX-License-Identifier: Apache-2.0
//
// ClusterService and the worker's side: nodes, sessions, heartbeats, reports, telemetry.
#include <algorithm>
#include <utility>

#include "base/ids.h"
#include "base/log.h"
#include "base/strings.h"
#include "server/rpc/service.h"

namespace nibble::rpc {
namespace {

constexpr size_t kMaxAddressBytes = 256;

bool SameKey(const v1::AttemptKey& key, const std::string& job_id, int64_t epoch) {
  return key.job_id() == job_id && key.epoch() == epoch;
}

// Killed by the commands that go with the registration.
bool IsKilled(const v1::AttemptKey& key, const std::vector<core::Command>& commands) {
  return std::any_of(commands.begin(), commands.end(), [&key](const core::Command& command) {
    const auto* stop = std::get_if<core::StopAttempt>(&command.body);
    return stop != nullptr && stop->mode == core::StopMode::kKill &&
           SameKey(key, stop->job_id, stop->epoch);
  });
}

v1::ControllerMessage StaleStop(const v1::AttemptKey& key) {
  v1::ControllerMessage message;
  *message.mutable_stop()->mutable_key() = key;
  message.mutable_stop()->set_reason("stale");
  return message;
}

Status CheckRegister(const v1::Register& message) {
  if (message.devices().empty()) {
    return InvalidArgumentError("worker '" + message.worker_id() +
                                "' registers no device; at least one must pass the self-test");
  }
  if (message.http_address().size() > kMaxAddressBytes) {
    return InvalidArgumentError("http_address is longer than 256 bytes");
  }
  return OkStatus();
}

}  // namespace

void ControllerService::ListNodes(int64_t deadline, Done<v1::ListNodesResponse> done) {
  Inspect<v1::ListNodesResponse>(
      deadline, std::move(done), [this](const View& view, const auto& answer) {
        v1::ListNodesResponse response;
        for (const auto& [id, worker] : view.state.workers()) {
          *response.add_nodes() = ToProto(worker, sessions_.Find(id), view.state);
        }
        answer(Failure(), std::move(response));
      });
}

void ControllerService::ChangeNode(const std::string& worker_id, int64_t deadline,
                                   core::Input input, Done<v1::Node> done) {
  LoopRequest post;
  post.deadline_steady_ms = deadline;
  post.make = [input = std::move(input)](const View&) -> Result<std::vector<core::Input>> {
    return std::vector<core::Input>{input};
  };
  post.reply = [this, done, worker_id](const Status& status,
                                       const std::vector<core::Decision>& decisions,
                                       const View& view) {
    if (!status.ok()) return done(status, {});
    const Status& reply = decisions.front().reply;
    if (!reply.ok()) {
      return done(Failure(reply, reply.code() == StatusCode::kNotFound ? "UnknownWorker" : ""), {});
    }
    const core::Worker* worker = view.state.FindWorker(worker_id);
    if (worker == nullptr) return done(InternalError("the worker is not there any more"), {});
    done(Failure(), ToProto(*worker, sessions_.Find(worker_id), view.state));
  };
  if (!Post(std::move(post))) done(BusyFailure(), {});
}

void ControllerService::DrainNode(const v1::DrainNodeRequest& request, int64_t deadline,
                                  Done<v1::Node> done) {
  if (request.reason().size() > core::kMaxTextBytes) {
    return done(InvalidArgumentError(StrFormat("reason has %zu bytes; at most %zu",
                                               request.reason().size(), core::kMaxTextBytes)),
                {});
  }
  core::DrainWorker input;
  input.worker_id = request.worker_id();
  input.reason = request.reason();
  input.actor = request.actor();
  if (request.checkpoint_now()) input.deadline_ms = clock_.WallMillis();
  ChangeNode(request.worker_id(), deadline, std::move(input), std::move(done));
}

void ControllerService::UndrainNode(const v1::UndrainNodeRequest& request, int64_t deadline,
                                    Done<v1::Node> done) {
  ChangeNode(request.worker_id(), deadline,
             core::UndrainWorker{request.worker_id(), request.actor()}, std::move(done));
}

void ControllerService::OnWorkerMessage(const std::string& session, const std::string& worker_id,
                                        v1::WorkerMessage message,
                                        const std::shared_ptr<Outbox>& outbox) {
  switch (message.message_case()) {
    case v1::WorkerMessage::kRegister:
      return OnRegister(session, message.register_(), outbox);
    case v1::WorkerMessage::kHeartbeat:
      return OnHeartbeat(session, worker_id, message.heartbeat());
    case v1::WorkerMessage::kAttempt:
      return OnAttempt(session, worker_id, message.attempt());
    case v1::WorkerMessage::kTelemetry:
      return OnTelemetry(session, worker_id, std::move(*message.mutable_telemetry()));
    default:
      LogWarning("a worker sent a message this controller does not know", {{"worker", worker_id}});
  }
}

void ControllerService::OnRegister(const std::string& session, const v1::Register& message,
                                   const std::shared_ptr<Outbox>& outbox) {
  const Status valid = CheckRegister(message);
  if (!valid.ok()) return outbox->Close(valid);
  sessions_.Prepare(session, outbox);
  LoopRequest post;
  post.make = [session, message](const View& view) -> Result<std::vector<core::Input>> {
    return std::vector<core::Input>{ToCore(message, session, view.state)};
  };
  post.reply = [this, session, message, outbox](const Status& status,
                                                const std::vector<core::Decision>& decisions,
                                                const View& view) {
    const Status& reply = status.ok() ? decisions.front().reply : status;
    if (!reply.ok()) {
      LogWarning("worker refused", {{"worker", message.worker_id()}, {"why", reply.message()}});
      sessions_.Close(message.worker_id(), session);
      return outbox->Close(reply);
    }
    v1::ControllerMessage out;
    v1::Registered& registered = *out.mutable_registered();
    registered.set_heartbeat_ms(static_cast<int32_t>(options_.heartbeat_ms));
    registered.set_lease_ms(static_cast<int32_t>(options_.lease_ms));
    for (const v1::AttemptReport& report : message.inventory()) {
      if (!IsKilled(report.key(), decisions.front().commands)) {
        *registered.add_keep() = report.key();
      }
    }
    WorkerFacts facts;
    facts.devices = {message.devices().begin(), message.devices().end()};
    facts.http_address = message.http_address();
    facts.pool = message.pool().empty() ? "main" : message.pool();
    facts.last_heard_wall_ms = view.now.wall_ms;
    facts.last_heard_steady_ms = view.now.steady_ms;
    sessions_.Accept(message.worker_id(), session, std::move(facts), std::move(out));
    LogInfo("worker registered", {{"worker", message.worker_id()},
                                  {"host", message.host()},
                                  {"devices", std::to_string(message.devices_size())}});
  };
  if (!Post(std::move(post))) {
    sessions_.Close(message.worker_id(), session);
    outbox->Close(BusyFailure().status);
  }
}

void ControllerService::OnHeartbeat(const std::string& session, const std::string& worker_id,
                                    const v1::Heartbeat& message) {
  LoopRequest post;
  post.make = [session, worker_id,
               sequence = message.sequence()](const View&) -> Result<std::vector<core::Input>> {
    return std::vector<core::Input>{core::Heartbeat{worker_id, session, sequence, false, {}}};
  };
  post.reply =
      [this, session, worker_id, sequence = message.sequence(), disk = message.disk_free_bytes()](
          const Status& status, const std::vector<core::Decision>& decisions, const View& view) {
        const Status& reply = status.ok() ? decisions.front().reply : status;
        if (reply.code() == StatusCode::kAborted) {
          return sessions_.Kick(worker_id, session, reply.message());
        }
        if (!reply.ok()) return;  // the worker sends another one soon
        sessions_.Heard(worker_id, view.now.wall_ms, view.now.steady_ms, disk);
        v1::ControllerMessage lease;
        lease.mutable_lease()->set_sequence(sequence);
        sessions_.Send(worker_id, session, std::move(lease));
      };
  // A full queue loses this heartbeat only: the lease outlasts many of them.
  static_cast<void>(Post(std::move(post)));
}

void ControllerService::OnAttempt(const std::string& session, const std::string& worker_id,
                                  const v1::AttemptReport& message) {
  LoopRequest post;
  post.make = [session, worker_id, message](const View& view) -> Result<std::vector<core::Input>> {
    return std::vector<core::Input>{
        core::ReportAttempt{worker_id, session, 0, ToCore(message, view.state, worker_id)}};
  };
  post.reply = [this, session, worker_id, message](const Status& status,
                                                   const std::vector<core::Decision>& decisions,
                                                   const View&) {
    const Status& reply = status.ok() ? decisions.front().reply : status;
    if (reply.ok()) return;
    if (reply.code() != StatusCode::kAborted) {
      // Not recorded: the worker shall come back and report again with its inventory.
      return sessions_.Kick(worker_id, session, reply.message());
    }
    if (message.state() != "ended") return;
    v1::ControllerMessage forget;  // nobody wants the end of a stale attempt
    *forget.mutable_attempt_ack()->mutable_key() = message.key();
    sessions_.Send(worker_id, session, std::move(forget));
  };
  if (!Post(std::move(post))) sessions_.Kick(worker_id, session, "the controller is busy");
}

void ControllerService::OnTelemetry(const std::string& session, const std::string& worker_id,
                                    v1::Telemetry message) {
  const auto item = std::make_shared<TelemetryItem>();
  item->worker_id = worker_id;
  item->session = session;
  item->message = std::move(message);
  LoopRequest post;
  post.make = [this, item](const View& view) -> Result<std::vector<core::Input>> {
    const v1::AttemptKey& key = item->message.key();
    const Status fresh = view.controller.CheckEpoch(key.job_id(), key.attempt(), key.epoch());
    if (!fresh.ok()) return fresh;
    std::vector<core::Input> inputs;
    int64_t step = 0;
    for (const v1::JournalRecord& record : item->message.records()) {
      if (record.has_step()) step = std::max(step, record.step().step());
      if (!record.has_checkpoint()) continue;
      // Room for the newest and for the progress: an older one tells nothing more.
      if (inputs.size() + 2 > kMaxInputsPerRequest) inputs.erase(inputs.begin());
      inputs.emplace_back(core::ReportCheckpoint{item->worker_id, key.job_id(), key.attempt(),
                                                 key.epoch(), CheckpointOf(record)});
    }
    if (step > 0) {
      inputs.emplace_back(
          core::ReportProgress{item->worker_id, key.job_id(), key.attempt(), key.epoch(), step});
    }
    return inputs;
  };
  post.reply = [this, item](const Status& status, const std::vector<core::Decision>& decisions,
                            const View&) {
    if (status.code() == StatusCode::kAborted) {
      return sessions_.Send(item->worker_id, item->session, StaleStop(item->message.key()));
    }
    bool durable = status.ok();
    for (const core::Decision& decision : decisions) {
      // ABORTED: the attempt ended meanwhile; its late points are still its points.
      durable = durable && (decision.reply.ok() || decision.reply.code() == StatusCode::kAborted);
    }
    if (!durable) {
      metrics_.CountDropped(DropReason::kStoreError, item->message.records_size());
      return;
    }
    telemetry_->Offer(std::move(*item));
  };
  if (!Post(std::move(post))) {
    metrics_.CountDropped(DropReason::kQueueFull, item->message.records_size());
  }
}

void ControllerService::OnSessionClosed(const std::string& session, const std::string& worker_id) {
  sessions_.Close(worker_id, session);
  LoopRequest post;
  post.make = [session, worker_id](const View&) -> Result<std::vector<core::Input>> {
    return std::vector<core::Input>{core::SessionClosed{worker_id, session}};
  };
  post.reply = [](const Status&, const std::vector<core::Decision>&, const View&) {};
  // Lost when the queue is full or closed: the lease then decides.
  static_cast<void>(Post(std::move(post)));
}

}  // namespace nibble::rpc
