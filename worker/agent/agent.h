// SPDX-License-Identifier: Apache-2.0
//
// Agent: the worker itself. Proves its devices, keeps a session to the controller, and carries
// requests, reports and telemetry between the session and the attempts.
//
// One thread runs everything (Run); gRPC's threads fill its inbox, HTTP's read its statistics.
// Invariant: nothing that happens to the connection ends a trainer. Only the controller's word
// does: a stop, a newer epoch, or a registration answer that does not name the attempt.
// State folder: worker.lock, worker.id, worker.address and runs/ (run_folder.h).
// Ownership: owns session, attempts and HTTP server.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/files.h"
#include "base/status.h"
#include "worker/agent/attempt_table.h"
#include "worker/agent/session.h"
#include "worker/agent/status_page.h"

namespace nibble::agent {

inline constexpr char kWorkerAddressFile[] = "worker.address";
inline constexpr char kWorkerIdFile[] = "worker.id";
inline constexpr int64_t kTickMs = 50;
inline constexpr int64_t kRegisterTimeoutMs = 10'000;  // from opening a session to Registered
inline constexpr int64_t kMinSilenceMs = 5'000;        // a session is dead after 4 heartbeats
inline constexpr int64_t kBackoffMinMs = 200;          // between sessions, doubled up to
inline constexpr int64_t kBackoffMaxMs = 10'000;
inline constexpr int64_t kLastReportsMs = 3'000;  // to report ends before the worker exits
inline constexpr int kMaxSendsPerTick = 32;

struct AgentOptions {
  SessionOptions session;  // session.controller, token, TLS
  bool insecure = false;   // a controller elsewhere without TLS was asked for by name
  std::string state_dir;
  std::string pool = "main";
  int slots = 1;
  std::string worker_id;  // "" = the one in the state folder, made at the first start
  std::string http = "127.0.0.1:0";
  std::string trainer;        // absolute path of nibble-trainer
  std::string supervisor;     // absolute path of a program that knows "supervise"
  int64_t grace_ms = 60'000;  // when the controller names none
  bool stop_trainers_on_exit = false;
  std::string version;
};

// INVALID_ARGUMENT or FAILED_PRECONDITION naming the flag to change.
Status CheckAgentOptions(const AgentOptions& options);

class Agent {
 public:
  // Locks the state folder, proves the devices, adopts trainers that still run, opens the HTTP
  // port. Fails with a message for the person who started it.
  static Result<std::unique_ptr<Agent>> Create(AgentOptions options, const Clock& clock);
  ~Agent();
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  // Runs until `stop` is set. Trainers go on, unless stop_trainers_on_exit asks to end them.
  void Run(const std::atomic<bool>& stop);

  const std::string& worker_id() const { return options_.worker_id; }
  const std::string& http_address() const { return page_->address(); }

 private:
  Agent(AgentOptions options, const Clock& clock);
  void Tick();
  void OpenSession(int64_t now_ms);
  void CloseSession(const Status& why, int64_t now_ms);
  void HandleEvent(SessionEvent event);
  void HandleMessage(const v1::ControllerMessage& message);
  void HandleRegistered(const v1::Registered& registered);
  void SendRegister();
  void SendHeartbeat(int64_t now_ms);
  void SendWhatIsDue();
  void CheckSilence(int64_t now_ms);
  void StopTrainers();
  void UpdateStatistics(int64_t now_ms);

  AgentOptions options_;
  const Clock& clock_;
  FileLock lock_;
  std::vector<DeviceInfo> devices_;
  std::vector<std::string> notes_;  // of the self-test
  std::unique_ptr<AttemptTable> attempts_;
  std::unique_ptr<StatusPage> page_;
  SessionInbox inbox_{kInboxCapacity};  // before session_, which fills it until its end
  std::unique_ptr<Session> session_;    // nullptr between sessions

  int64_t session_number_ = 0;
  bool registered_ = false;  // in the present session
  int64_t registrations_ = 0;
  std::string last_failure_;  // of the connection, "" while it stands: told once
  int64_t backoff_ms_ = kBackoffMinMs;
  int64_t next_session_ms_ = 0;
  int64_t last_heard_ms_ = 0;
  int64_t heartbeat_ms_ = 5'000;  // the controller's wish
  int64_t next_heartbeat_ms_ = 0;
  int64_t heartbeat_sequence_ = 0;
  int64_t next_statistics_ms_ = 0;
  int64_t disk_free_bytes_ = 0;
  std::mt19937_64 random_{std::random_device{}()};  // jitter only
};

}  // namespace nibble::agent
