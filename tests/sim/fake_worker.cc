// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/fake_worker.h"

#include <algorithm>
#include <csignal>

namespace nibble::sim {
namespace {
constexpr int64_t kHeartbeatMs = 5'000;
constexpr int64_t kReconnectMs = 3'000;
constexpr int64_t kCheckpointEverySteps = 20;

core::Outcome Killed() {
  core::Outcome outcome;
  outcome.signal = SIGKILL;
  return outcome;
}
}  // namespace

FakeWorker::FakeWorker(std::string id, std::string pool, int devices, uint64_t seed, Truth* truth)
    : id_(std::move(id)), pool_(std::move(pool)), devices_(devices), random_(seed), truth_(truth) {}

void FakeWorker::Connect(const SendFn& send) {
  session_ = id_ + "-s" + std::to_string(++sessions_);
  sequence_ = 0;
  connected_ = true;
  core::RegisterWorker message;
  message.worker.id = id_;
  message.worker.host = "host-" + id_;
  message.worker.pool = pool_;
  for (int i = 0; i < devices_; ++i) {
    core::Device device;
    device.id = "cpu" + std::to_string(i);
    message.worker.devices.push_back(std::move(device));
  }
  message.session = session_;
  message.inventory = Inventory();
  send(std::move(message));
}

core::AttemptReport FakeWorker::Report(const Trainer& trainer) const {
  core::AttemptReport report{
      trainer.start.job_id,  trainer.start.attempt, trainer.start.epoch, trainer.phase,
      trainer.start.devices, trainer.step,          trainer.outcome,     {}};
  if (trainer.phase == core::SharePhase::kEnded) report.checkpoint = trainer.checkpoint;
  return report;
}

std::vector<core::AttemptReport> FakeWorker::Inventory() const {
  std::vector<core::AttemptReport> inventory;
  for (const auto& [key, trainer] : trainers_) inventory.push_back(Report(trainer));
  return inventory;
}

void FakeWorker::Second(int64_t now_ms, bool calm, const SendFn& send) {
  // Trainers do not depend on the worker process.
  const bool can_send = up_ && connected_ && now_ms >= paused_until_ms_;
  const SendFn quiet = [](core::Input) {};
  for (auto& [key, trainer] : trainers_) {
    Advance(trainer, now_ms, calm, can_send ? send : quiet);
  }
  if (!up_ || now_ms < paused_until_ms_) return;
  if (!connected_) {
    if (now_ms >= retry_at_ms_) {
      retry_at_ms_ = now_ms + kReconnectMs;
      next_heartbeat_ms_ = now_ms + kHeartbeatMs;
      Connect(send);
    }
  } else if (now_ms >= next_heartbeat_ms_) {
    next_heartbeat_ms_ = now_ms + kHeartbeatMs;
    send(core::Heartbeat{id_, session_, ++sequence_, true, Inventory()});
  }
}

void FakeWorker::Advance(Trainer& trainer, int64_t now_ms, bool calm, const SendFn& send) {
  if (trainer.phase == core::SharePhase::kEnded) return;
  const core::StartAttempt& start = trainer.start;
  if (trainer.stopping && now_ms >= trainer.kill_at_ms) return End(trainer, Killed());
  if (trainer.stopping && !trainer.hangs_on_stop) {
    core::Outcome saved;
    saved.reported = core::EndReason::kPreempted;
    End(trainer, saved);
  } else {
    ++trainer.step;
    trainer.phase = core::SharePhase::kRunning;
    if (calm && trainer.plan.reported != core::EndReason::kCompleted) {
      trainer.plan = core::Outcome();
      trainer.plan.reported = core::EndReason::kCompleted;
    }
    if (trainer.step % kCheckpointEverySteps == 0) {
      core::Checkpoint checkpoint;
      checkpoint.step = trainer.step;
      checkpoint.path = "checkpoints/" + std::to_string(trainer.step);
      trainer.checkpoint = checkpoint;
      send(core::ReportCheckpoint{id_, start.job_id, start.attempt, start.epoch, checkpoint});
    }
    if (trainer.step >= trainer.end_step) End(trainer, trainer.plan);
  }
  if (trainer.phase == core::SharePhase::kEnded || random_.Chance(0.1)) {
    send(core::ReportAttempt{id_, session_, ++sequence_, Report(trainer)});
  } else {
    send(core::ReportProgress{id_, start.job_id, start.attempt, start.epoch, trainer.step});
  }
}

void FakeWorker::End(Trainer& trainer, core::Outcome outcome) {
  outcome.last_step = trainer.step;
  trainer.phase = core::SharePhase::kEnded;
  trainer.outcome = outcome;
  const std::string& job = trainer.start.job_id;
  if (trainer.checkpoint) {
    truth_->saved[job][{trainer.start.epoch, id_}] = trainer.checkpoint->step;
  }
  if (outcome.reported == core::EndReason::kCompleted && outcome.signal == 0) {
    if (++truth_->completed_shares[job][trainer.start.epoch] == trainer.start.nodes) {
      truth_->completed.insert(job);
    }
  }
  if (outcome.exit_code != 0 || outcome.reported == core::EndReason::kDiverged ||
      outcome.signal == SIGSEGV) {
    ++truth_->user_errors[job];
  }
}

void FakeWorker::Bury(const std::string& job_id, int attempt, int64_t epoch,
                      core::OutcomeKind kind) {
  // Some workers say nothing about what they do not have; the controller must find out.
  if (trainers_.contains({job_id, epoch}) || random_.Chance(0.5)) return;
  Trainer tombstone;
  tombstone.start.job_id = job_id;
  tombstone.start.attempt = attempt;
  tombstone.start.epoch = epoch;
  tombstone.phase = core::SharePhase::kEnded;
  tombstone.outcome.kind = kind;
  trainers_[{job_id, epoch}] = std::move(tombstone);
}

void FakeWorker::Begin(const core::StartAttempt& start) {
  int64_t& newest = newest_epoch_[start.job_id];
  if (start.epoch <= newest) {  // a repeat, stopped before it came, or gone with its host
    return Bury(start.job_id, start.attempt, start.epoch, core::OutcomeKind::kLost);
  }
  newest = start.epoch;
  Trainer trainer;
  trainer.start = start;
  const std::vector<std::string> used = DevicesInUse();
  for (const std::string& device : start.devices) {
    if (std::find(used.begin(), used.end(), device) == used.end()) continue;
    ++violations_;
    trainer.phase = core::SharePhase::kEnded;
    trainer.outcome.kind = core::OutcomeKind::kStartFailed;
  }
  const int64_t begin = start.resume_from ? start.resume_from->step : 0;
  trainer.step = begin;
  trainer.end_step = begin + random_.Range(5, 240);
  trainer.hangs_on_stop = random_.Chance(0.1);
  trainer.plan.reported = core::EndReason::kCompleted;
  if (random_.Chance(0.4)) {
    trainer.plan.reported = core::EndReason::kNone;
    switch (random_.Range(0, 5)) {
      case 0:
        trainer.plan.exit_code = 75;
        trainer.plan.reported = core::EndReason::kUserError;
        break;
      case 1:
        trainer.plan.exit_code = 3;
        break;
      case 2:
        trainer.plan.signal = SIGSEGV;
        break;
      case 3:
        trainer.plan.reported = core::EndReason::kDiverged;
        break;
      default:
        trainer.plan.signal = SIGKILL;
    }
  }
  trainers_[{start.job_id, start.epoch}] = std::move(trainer);
}

void FakeWorker::Receive(const core::Command& command, int64_t now_ms) {
  if (!up_ || command.session != session_) return;
  if (const auto* start = std::get_if<core::StartAttempt>(&command.body)) return Begin(*start);
  if (const auto* forget = std::get_if<core::ForgetAttempt>(&command.body)) {
    const auto found = trainers_.find({forget->job_id, forget->epoch});
    if (found != trainers_.end() && found->second.phase == core::SharePhase::kEnded) {
      trainers_.erase(found);
    }
    return;
  }
  const auto& stop = std::get<core::StopAttempt>(command.body);
  const auto found = trainers_.find({stop.job_id, stop.epoch});
  if (found == trainers_.end()) {
    int64_t& newest = newest_epoch_[stop.job_id];
    const bool seen = stop.epoch <= newest;
    newest = std::max(newest, stop.epoch);
    return Bury(stop.job_id, stop.attempt, stop.epoch,
                seen ? core::OutcomeKind::kLost : core::OutcomeKind::kNeverStarted);
  }
  Trainer& trainer = found->second;
  const int64_t kill_at_ms = now_ms + (stop.mode == core::StopMode::kKill ? 0 : stop.grace_ms);
  if (!trainer.stopping || kill_at_ms < trainer.kill_at_ms) trainer.kill_at_ms = kill_at_ms;
  trainer.stopping = true;
}

void FakeWorker::Answer(const Status& reply) {
  if (!reply.ok()) Disconnect();
}

void FakeWorker::Disconnect() { connected_ = false; }

void FakeWorker::Crash() {
  up_ = false;
  Disconnect();
}

void FakeWorker::HostCrash() {
  Crash();
  trainers_.clear();
}

void FakeWorker::KillATrainer() {
  for (auto& [key, trainer] : trainers_) {
    if (trainer.phase == core::SharePhase::kEnded) continue;
    return End(trainer, Killed());
  }
}

std::vector<std::string> FakeWorker::DevicesInUse() const {
  std::vector<std::string> devices;
  for (const auto& [key, trainer] : trainers_) {
    if (trainer.phase == core::SharePhase::kEnded) continue;
    devices.insert(devices.end(), trainer.start.devices.begin(), trainer.start.devices.end());
  }
  return devices;
}

}  // namespace nibble::sim
