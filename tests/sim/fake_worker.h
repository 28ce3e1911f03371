// SPDX-License-Identifier: Apache-2.0
//
// FakeWorker: a worker and its trainers, in virtual time. It follows the contract of
// server/core/inputs.h: starts an epoch once, remembers what it was told to stop, reports
// everything in its inventory until it is told to forget.
//
// What a trainer will do (how long, how it ends) is drawn when it starts. One thread.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "server/core/inputs.h"
#include "tests/sim/random.h"

namespace nibble::sim {

// What really happened, as the simulator knows it; the controller must not contradict it.
struct Truth {
  std::map<std::string, int> user_errors;  // job -> ends that are the user's
  std::set<std::string> completed;         // jobs of which every rank of an attempt completed
  std::map<std::string, std::map<int64_t, int>> completed_shares;  // job -> epoch -> shares
  // Newest checkpoint of each ended trainer: job -> (epoch, worker) -> step.
  std::map<std::string, std::map<std::pair<int64_t, std::string>, int64_t>> saved;
};

class FakeWorker {
 public:
  using SendFn = std::function<void(core::Input)>;

  FakeWorker(std::string id, std::string pool, int devices, uint64_t seed, Truth* truth);

  const std::string& id() const { return id_; }
  bool up() const { return up_; }
  bool connected() const { return connected_; }
  const std::string& session() const { return session_; }

  // Trainers work on: one virtual second. `calm`: no trainer fails any more.
  void Second(int64_t now_ms, bool calm, const SendFn& send);
  void Receive(const core::Command& command, int64_t now_ms);
  void Answer(const Status& reply);  // to a registration or heartbeat of the present session

  void Disconnect();  // the connection broke
  void Crash();       // the worker process dies; trainers live on and are adopted
  void HostCrash();   // everything dies
  void Start() { up_ = true; }
  void Pause(int64_t until_ms) { paused_until_ms_ = until_ms; }
  bool paused(int64_t now_ms) const { return now_ms < paused_until_ms_; }
  void KillATrainer();  // SIGKILL from outside

  // Devices of living trainers; a device twice in it is a violation.
  std::vector<std::string> DevicesInUse() const;
  int violations() const { return violations_; }

 private:
  struct Trainer {
    core::StartAttempt start;
    core::SharePhase phase = core::SharePhase::kStarted;
    core::Outcome outcome;
    int64_t step = 0;
    int64_t end_step = 0;
    std::optional<core::Checkpoint> checkpoint;
    core::Outcome plan;
    bool hangs_on_stop = false;
    bool stopping = false;
    int64_t kill_at_ms = 0;
  };
  using Key = std::pair<std::string, int64_t>;  // job, epoch

  void Connect(const SendFn& send);
  std::vector<core::AttemptReport> Inventory() const;
  core::AttemptReport Report(const Trainer& trainer) const;
  void Begin(const core::StartAttempt& start);
  // Puts an end into the inventory for an attempt that is not there.
  void Bury(const std::string& job_id, int attempt, int64_t epoch, core::OutcomeKind kind);
  void End(Trainer& trainer, core::Outcome outcome);
  void Advance(Trainer& trainer, int64_t now_ms, bool calm, const SendFn& send);

  const std::string id_;
  const std::string pool_;
  const int devices_;
  Random random_;
  Truth* truth_;
  bool up_ = true;
  bool connected_ = false;
  int64_t paused_until_ms_ = 0;
  int64_t retry_at_ms_ = 0;
  int64_t next_heartbeat_ms_ = 0;
  int sessions_ = 0;
  std::string session_;
  int64_t sequence_ = 0;
  std::map<Key, Trainer> trainers_;              // survive Crash, not HostCrash
  std::map<std::string, int64_t> newest_epoch_;  // per job; survives Crash
  int violations_ = 0;
};

}  // namespace nibble::sim
