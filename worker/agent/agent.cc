// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/agent.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/ids.h"
#include "base/log.h"
#include "base/strings.h"
#include "worker/agent/devices.h"
#include "worker/agent/wire.h"
#include "worker/spec/feature_text.h"

namespace nibble::agent {
namespace {

constexpr int64_t kStatisticsMs = 1'000;
constexpr int64_t kSilentHeartbeats = 4;
constexpr int64_t kMinHeartbeatMs = 20;
constexpr int64_t kMaxHeartbeatMs = 60'000;
constexpr int64_t kStopMarginMs = 15'000;  // beyond the grace time, for killing and looking

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host.rfind("127.", 0) == 0 || host == "[::1]" || host == "::1";
}

Result<std::string> LoadOrMakeWorkerId(const std::string& state_dir, const std::string& asked) {
  const std::string path = JoinPath(state_dir, kWorkerIdFile);
  std::string id = asked;
  if (id.empty() && PathExists(path)) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1024));
    id = StrTrim(text);
  }
  if (id.empty()) id = RandomId("w");
  if (!IsValidName(id)) {
    return InvalidArgumentError("worker id '" + id +
                                "' is not 1 to 63 characters of a-z, 0-9 and '-'; choose another "
                                "with --worker-id, or correct " +
                                path);
  }
  RETURN_IF_ERROR(AtomicWriteFile(path, id + "\n"));
  return id;
}

}  // namespace

Status CheckAgentOptions(const AgentOptions& options) {
  const std::string& controller = options.session.controller;
  const size_t colon = controller.rfind(':');
  if (colon == std::string::npos || !ParseInt(controller.substr(colon + 1)).ok()) {
    return InvalidArgumentError("--controller '" + controller +
                                "' is not HOST:PORT, e.g. 127.0.0.1:7790");
  }
  if (options.session.tls_cert.empty() != options.session.tls_key.empty()) {
    return InvalidArgumentError("--tls-cert and --tls-key go together; give both or neither");
  }
  if (!options.session.tls_cert.empty() && options.session.tls_ca.empty()) {
    return InvalidArgumentError("--tls-cert needs --tls-ca, the authority of the controller");
  }
  if (options.session.tls_ca.empty() && !options.insecure &&
      !IsLoopback(controller.substr(0, colon))) {
    return FailedPreconditionError("the controller " + controller +
                                   " is not on this machine; give --tls-ca FILE, or --insecure to "
                                   "talk to it in the clear");
  }
  if (options.slots < 1 || options.slots > kMaxSlots) {
    return InvalidArgumentError(
        StrFormat("--slots %d is not in 1 to %d", options.slots, kMaxSlots));
  }
  if (!IsValidName(options.pool)) {
    return InvalidArgumentError("--pool '" + options.pool +
                                "' is not 1 to 63 characters of a-z, 0-9 and '-'");
  }
  return OkStatus();
}

Agent::Agent(AgentOptions options, const Clock& clock)
    : options_(std::move(options)), clock_(clock) {}

Agent::~Agent() = default;

Result<std::unique_ptr<Agent>> Agent::Create(AgentOptions options, const Clock& clock) {
  RETURN_IF_ERROR(CheckAgentOptions(options));
  RETURN_IF_ERROR(MakeDirectories(options.state_dir));
  std::unique_ptr<Agent> agent(new Agent(std::move(options), clock));
  AgentOptions& own = agent->options_;
  ASSIGN_OR_RETURN(agent->lock_, FileLock::Acquire(JoinPath(own.state_dir, "worker.lock")));
  ASSIGN_OR_RETURN(own.worker_id, LoadOrMakeWorkerId(own.state_dir, own.worker_id));
  ASSIGN_OR_RETURN(ProvedDevices proved, ProveDevices(own.trainer, own.slots, own.state_dir));
  agent->devices_ = std::move(proved.devices);
  for (const DeviceInfo& device : agent->devices_) {
    LogInfo("device proved", {{"index", std::to_string(device.index)},
                              {"kind", device.kind},
                              {"name", device.name},
                              {"threads", std::to_string(device.threads)},
                              {"memory", FormatBytes(static_cast<double>(device.memory_bytes))},
                              {"features", FeatureText(device.features)}});
  }
  agent->notes_ = std::move(proved.notes);
  for (const std::string& note : agent->notes_) LogInfo("self-test: " + note);
  RunSettings settings{own.state_dir, own.trainer, own.supervisor, agent->devices_};
  agent->attempts_ = std::make_unique<AttemptTable>(std::move(settings), own.grace_ms, clock);
  agent->attempts_->Load();
  ASSIGN_OR_RETURN(agent->page_, StatusPage::Start(own.http, own.version));
  RETURN_IF_ERROR(
      AtomicWriteFile(JoinPath(own.state_dir, kWorkerAddressFile), agent->page_->address() + "\n"));
  agent->UpdateStatistics(clock.SteadyMillis());
  return agent;
}

void Agent::Run(const std::atomic<bool>& stop) {
  LogInfo("worker runs", {{"worker", options_.worker_id},
                          {"controller", options_.session.controller},
                          {"http", page_->address()},
                          {"state", options_.state_dir}});
  while (!stop) Tick();
  if (options_.stop_trainers_on_exit) StopTrainers();
  session_.reset();
  LogInfo("worker ends", {{"trainers", attempts_->idle() ? "none" : "go on without it"}});
}

void Agent::Tick() {
  std::optional<SessionEvent> event = inbox_.PopFor(std::chrono::milliseconds(kTickMs));
  if (event.has_value()) HandleEvent(std::move(*event));
  const int64_t now_ms = clock_.SteadyMillis();
  attempts_->Poll();
  if (session_ == nullptr && now_ms >= next_session_ms_) OpenSession(now_ms);
  CheckSilence(now_ms);
  if (registered_) {
    if (now_ms >= next_heartbeat_ms_) SendHeartbeat(now_ms);
    SendWhatIsDue();
  }
  if (now_ms >= next_statistics_ms_) UpdateStatistics(now_ms);
}

void Agent::StopTrainers() {
  attempts_->StopAll("worker shutdown");
  const int64_t deadline_ms = clock_.SteadyMillis() + options_.grace_ms + kStopMarginMs;
  while (!attempts_->idle() && clock_.SteadyMillis() < deadline_ms) Tick();
  if (!attempts_->idle()) LogError("trainers did not end; leaving them");
  const int64_t report_deadline_ms = clock_.SteadyMillis() + kLastReportsMs;
  while (registered_ && !attempts_->Inventory().empty() &&
         clock_.SteadyMillis() < report_deadline_ms) {
    Tick();
  }
}

void Agent::OpenSession(int64_t now_ms) {
  last_heard_ms_ = now_ms;
  Result<std::unique_ptr<Session>> session =
      Session::Open(options_.session, ++session_number_, inbox_);
  if (!session.ok()) return CloseSession(session.status(), now_ms);
  session_ = std::move(*session);
  attempts_->ResetSession();
  SendRegister();
}

void Agent::CloseSession(const Status& why, int64_t now_ms) {
  if (registered_ || why.ToString() != last_failure_) {
    LogWarning("no connection to the controller; trainers go on",
               {{"controller", options_.session.controller}, {"error", why.ToString()}});
  }
  last_failure_ = why.ToString();
  registered_ = false;
  session_.reset();
  std::uniform_int_distribution<int64_t> jitter(backoff_ms_ / 2, backoff_ms_);
  next_session_ms_ = now_ms + jitter(random_);
  backoff_ms_ = std::min(2 * backoff_ms_, kBackoffMaxMs);
}

void Agent::CheckSilence(int64_t now_ms) {
  if (session_ == nullptr) return;
  const int64_t limit_ms =
      registered_ ? std::max(kMinSilenceMs, kSilentHeartbeats * heartbeat_ms_) : kRegisterTimeoutMs;
  if (now_ms - last_heard_ms_ < limit_ms) return;
  CloseSession(DeadlineExceededError(StrFormat("the controller was silent for %lld ms",
                                               static_cast<long long>(limit_ms))),
               now_ms);
}

void Agent::HandleEvent(SessionEvent event) {
  if (session_ == nullptr || event.session != session_number_) return;  // of an earlier session
  const int64_t now_ms = clock_.SteadyMillis();
  if (event.closed) return CloseSession(event.status, now_ms);
  last_heard_ms_ = now_ms;
  HandleMessage(event.message);
  session_->Continue();
}

void Agent::HandleMessage(const v1::ControllerMessage& message) {
  using Kind = v1::ControllerMessage::MessageCase;
  switch (message.message_case()) {
    case Kind::kRegistered:
      return HandleRegistered(message.registered());
    case Kind::kStart:
      return attempts_->Start(FromProto(message.start()));
    case Kind::kStop:
      return attempts_->Stop(FromProto(message.stop()));
    case Kind::kTelemetryAck:
      return attempts_->AcknowledgeTelemetry(FromProto(message.telemetry_ack().key()),
                                             message.telemetry_ack().cursor());
    case Kind::kAttemptAck:
      return attempts_->AcknowledgeEnd(FromProto(message.attempt_ack().key()));
    case Kind::kLease:
    case Kind::MESSAGE_NOT_SET:  // of a newer controller
      return;
  }
}

void Agent::HandleRegistered(const v1::Registered& registered) {
  registered_ = true;
  ++registrations_;
  last_failure_.clear();
  backoff_ms_ = kBackoffMinMs;
  if (registered.heartbeat_ms() > 0) {
    heartbeat_ms_ =
        std::clamp<int64_t>(registered.heartbeat_ms(), kMinHeartbeatMs, kMaxHeartbeatMs);
  }
  next_heartbeat_ms_ = clock_.SteadyMillis();
  std::vector<AttemptKey> keep;
  for (const v1::AttemptKey& key : registered.keep()) keep.push_back(FromProto(key));
  LogInfo("registered with the controller", {{"controller", options_.session.controller},
                                             {"heartbeat_ms", std::to_string(heartbeat_ms_)},
                                             {"kept", std::to_string(keep.size())}});
  attempts_->Keep(keep);
}

void Agent::SendRegister() {
  v1::WorkerMessage message;
  v1::Register& content = *message.mutable_register_();
  content.set_worker_id(options_.worker_id);
  content.set_host(HostName());
  content.set_pool(options_.pool);
  content.set_version(options_.version);
  content.set_http_address(page_->address());
  for (const DeviceInfo& device : devices_) *content.add_devices() = ToProto(device);
  *content.mutable_notes() = {notes_.begin(), notes_.end()};
  for (const AttemptReport& report : attempts_->Inventory()) {
    *content.add_inventory() = ToProto(report);
  }
  session_->TrySend(std::move(message));  // the first: there is room
}

void Agent::SendHeartbeat(int64_t now_ms) {
  v1::WorkerMessage message;
  v1::Heartbeat& content = *message.mutable_heartbeat();
  content.set_sequence(++heartbeat_sequence_);
  content.set_disk_free_bytes(disk_free_bytes_);
  for (const AttemptReport& report : attempts_->Inventory()) {
    *content.add_running() = ToProto(report.key);
  }
  session_->TrySend(std::move(message));  // a full outbox means that others wait before it
  next_heartbeat_ms_ = now_ms + heartbeat_ms_;
}

void Agent::SendWhatIsDue() {
  for (int sent = 0; sent < kMaxSendsPerTick; ++sent) {
    const std::optional<AttemptReport> report = attempts_->NextReport();
    if (!report.has_value()) break;
    v1::WorkerMessage message;
    *message.mutable_attempt() = ToProto(*report);
    if (!session_->TrySend(std::move(message))) return;
    attempts_->ReportSent(*report);
  }
  for (int sent = 0; sent < kMaxSendsPerTick && session_->HasRoom(); ++sent) {
    const std::optional<TelemetryBatch> batch = attempts_->NextTelemetry();
    if (!batch.has_value()) return;
    v1::WorkerMessage message;
    *message.mutable_telemetry() = ToProto(*batch);
    session_->TrySend(std::move(message));  // into a stream that just broke: the next one resends
  }
}

void Agent::UpdateStatistics(int64_t now_ms) {
  next_statistics_ms_ = now_ms + kStatisticsMs;
  disk_free_bytes_ = FreeDiskBytes(options_.state_dir).value_or(0);
  WorkerStats stats;
  stats.attempts = attempts_->Stats();
  stats.connected = registered_;
  stats.reconnects = std::max<int64_t>(0, registrations_ - 1);
  stats.disk_free_bytes = disk_free_bytes_;
  page_->Update(stats);
}

}  // namespace nibble::agent
