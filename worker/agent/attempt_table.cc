// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/attempt_table.h"

#include <algorithm>
#include <csignal>
#include <utility>

#include "base/ids.h"
#include "base/log.h"
#include "base/strings.h"

namespace nibble::agent {
namespace {

constexpr int kMaxWorldSize = 1;  // ranks of one attempt; this release has no communicator

bool SharesDevice(const Attempt& a, const Attempt& b) {
  for (const int index : a.devices()) {
    if (std::find(b.devices().begin(), b.devices().end(), index) != b.devices().end()) return true;
  }
  return false;
}

}  // namespace

void AttemptTable::Load() {
  for (const std::string& run_dir : ListRunDirs(settings_.state_dir)) {
    const Result<AttemptRecord> record = LoadAttemptRecord(run_dir);
    if (!record.ok()) {
      LogError("cannot read the record of an attempt; it is left alone",
               {{"run", run_dir}, {"error", record.status().ToString()}});
      continue;
    }
    int64_t& epoch = epochs_[record->key.job_id];
    epoch = std::max(epoch, record->key.epoch);
    if (record->done) continue;
    Result<Attempt> attempt = Attempt::Adopt(settings_, run_dir, *record);
    if (!attempt.ok()) {
      LogError("cannot adopt an attempt",
               {{"run", run_dir}, {"error", attempt.status().ToString()}});
      continue;
    }
    LogInfo("attempt of an earlier worker process found",
            {{"attempt", record->key.ToString()}, {"run", run_dir}});
    attempts_.push_back(std::move(*attempt));
  }
  Poll();
}

Attempt* AttemptTable::Find(const AttemptKey& key) {
  for (Attempt& attempt : attempts_) {
    if (attempt.key() == key) return &attempt;
  }
  return nullptr;
}

void AttemptTable::Refuse(const AttemptKey& key, const std::string& why) {
  LogWarning("request refused", {{"attempt", key.ToString()}, {"error", why}});
  AttemptReport report;
  report.key = key;
  report.state = kStateEnded;
  report.start_failed = true;
  report.end_message = why;
  if (refusals_.size() >= kMaxRefusals) refusals_.pop_front();
  refusals_.push_back(std::move(report));
}

std::string AttemptTable::Unacceptable(const StartRequest& request) const {
  if (request.world_size > kMaxWorldSize) {
    return StrFormat("asked for %d ranks; this release runs %d per job", request.world_size,
                     kMaxWorldSize);
  }
  if (request.devices.empty()) return "the request names no device";
  for (const int index : request.devices) {
    if (index < 0 || index >= static_cast<int>(settings_.devices.size())) {
      return StrFormat("device %d does not exist; this worker has 0 to %zu", index,
                       settings_.devices.size() - 1);
    }
  }
  return "";
}

void AttemptTable::Start(const StartRequest& request) {
  const int64_t now_ms = clock_.SteadyMillis();
  const AttemptKey& key = request.key;
  if (!IsValidName(key.job_id) || key.attempt < 1) {
    return Refuse(key, "'" + key.job_id + "' attempt " + std::to_string(key.attempt) +
                           " is not a valid name of a run folder");
  }
  if (Attempt* known = Find(key); known != nullptr) return known->RepeatReport();
  if (closing_) return Refuse(key, "this worker is shutting down");
  int64_t& epoch = epochs_[key.job_id];
  if (key.epoch <= epoch) {
    return Refuse(key, StrFormat("stale epoch %lld: this worker knows epoch %lld of the job",
                                 static_cast<long long>(key.epoch), static_cast<long long>(epoch)));
  }
  epoch = key.epoch;
  for (Attempt& attempt : attempts_) {
    if (attempt.key().job_id == key.job_id) attempt.KillStale(now_ms);
  }
  const std::string unacceptable = Unacceptable(request);
  if (!unacceptable.empty()) {
    attempts_.push_back(Attempt::Failed(settings_, key, unacceptable));
    return;
  }
  attempts_.emplace_back(settings_, request, now_ms);
  const Attempt* blocker = Blocker(attempts_.back());
  if (blocker != nullptr && !blocker->stopping()) {
    attempts_.back().GiveUp("its device is held by " + blocker->key().ToString());
  }
  LaunchWaiting(now_ms);
}

const Attempt* AttemptTable::Blocker(const Attempt& attempt) const {
  bool later = false;  // attempts are in the order of their requests
  for (const Attempt& other : attempts_) {
    later |= &other == &attempt;
    if (&other == &attempt || other.ended() || (later && other.waiting())) continue;
    if (other.key().job_id == attempt.key().job_id || SharesDevice(other, attempt)) return &other;
  }
  return nullptr;
}

void AttemptTable::LaunchWaiting(int64_t now_ms) {
  for (Attempt& attempt : attempts_) {
    if (!attempt.waiting()) continue;
    const Attempt* blocker = Blocker(attempt);
    if (blocker == nullptr) {
      attempt.Launch();
    } else if (now_ms - attempt.waiting_since_ms() >= kMaxWaitForDeviceMs) {
      attempt.GiveUp("processes of " + blocker->key().ToString() +
                     " still hold its device; see this worker's log");
    }
  }
}

void AttemptTable::Stop(const StopRequest& request) {
  const int64_t now_ms = clock_.SteadyMillis();
  Attempt* attempt = Find(request.key);
  if (attempt == nullptr) {
    const auto known = epochs_.find(request.key.job_id);
    if (known != epochs_.end() && request.key.epoch < known->second) {
      LogInfo("stale stop request ignored", {{"attempt", request.key.ToString()}});
      return;
    }
    return Refuse(request.key, "this worker has no such attempt");
  }
  if (attempt->ended()) {
    if (!request.save) attempt->SkipDrain();
    return attempt->RepeatReport();
  }
  const int64_t grace_ms = request.grace_ms > 0 ? request.grace_ms : default_grace_ms_;
  if (request.save) {
    attempt->Stop(grace_ms, request.reason, now_ms);
  } else {
    attempt->Kill(request.reason, now_ms);
  }
}

void AttemptTable::Keep(const std::vector<AttemptKey>& keys) {
  for (Attempt& attempt : attempts_) {
    if (attempt.ended() || std::find(keys.begin(), keys.end(), attempt.key()) != keys.end()) {
      continue;
    }
    LogWarning("the controller does not know this attempt any more",
               {{"attempt", attempt.key().ToString()}});
    attempt.KillStale(clock_.SteadyMillis());
  }
}

void AttemptTable::AcknowledgeEnd(const AttemptKey& key) {
  if (Attempt* attempt = Find(key); attempt != nullptr) {
    attempt->AcknowledgeEnd(clock_.SteadyMillis());
  }
}

void AttemptTable::AcknowledgeTelemetry(const AttemptKey& key, int64_t cursor) {
  if (Attempt* attempt = Find(key); attempt != nullptr) {
    attempt->AcknowledgeTelemetry(cursor, clock_.SteadyMillis());
  }
}

void AttemptTable::Poll() {
  const int64_t now_ms = clock_.SteadyMillis();
  for (Attempt& attempt : attempts_) {
    const bool lived = !attempt.ended();
    attempt.Poll(now_ms);
    if (lived && attempt.ended()) CountExit(attempt);
  }
  LaunchWaiting(now_ms);
  Forget(now_ms);
}

void AttemptTable::CountExit(const Attempt& attempt) {
  const AttemptReport& report = attempt.end();
  if (report.signal != 0) {
    ++exits_.exits_signal;
  } else if (report.exit_code != 0 || report.start_failed) {
    ++exits_.exits_error;
  } else {
    ++exits_.exits_ok;
  }
}

void AttemptTable::Forget(int64_t now_ms) {
  for (auto attempt = attempts_.begin(); attempt != attempts_.end();) {
    if (!attempt->Forgettable(now_ms)) {
      ++attempt;
      continue;
    }
    if (attempt->stale()) {
      if (refusals_.size() >= kMaxRefusals) refusals_.pop_front();
      refusals_.push_back(attempt->end());
    }
    attempt = attempts_.erase(attempt);
  }
}

void AttemptTable::StopAll(const std::string& reason) {
  closing_ = true;
  for (Attempt& attempt : attempts_) {
    attempt.Stop(default_grace_ms_, reason, clock_.SteadyMillis());
  }
}

std::vector<AttemptReport> AttemptTable::Inventory() const {
  std::vector<AttemptReport> inventory;
  const int64_t now_ms = clock_.SteadyMillis();
  for (const Attempt& attempt : attempts_) {
    if (!attempt.end_acknowledged()) inventory.push_back(attempt.Report(now_ms));
  }
  return inventory;
}

void AttemptTable::ResetSession() {
  for (Attempt& attempt : attempts_) attempt.ResetSession(clock_.SteadyMillis());
}

std::optional<AttemptReport> AttemptTable::NextReport() {
  if (!refusals_.empty()) return refusals_.front();
  for (Attempt& attempt : attempts_) {
    std::optional<AttemptReport> report = attempt.DueReport(clock_.SteadyMillis());
    if (report.has_value()) return report;
  }
  return std::nullopt;
}

void AttemptTable::ReportSent(const AttemptReport& report) {
  if (!refusals_.empty() && refusals_.front().key == report.key) {
    refusals_.pop_front();
    return;
  }
  if (Attempt* attempt = Find(report.key); attempt != nullptr) {
    attempt->ReportSent(report, clock_.SteadyMillis());
  }
}

std::optional<TelemetryBatch> AttemptTable::NextTelemetry() {
  for (size_t tried = 0; tried < attempts_.size(); ++tried) {
    Attempt& attempt = attempts_[telemetry_turn_++ % attempts_.size()];
    if (attempt.stale()) continue;
    TelemetryBatch batch;
    batch.records = attempt.sender().NextBatch(clock_.SteadyMillis());
    if (batch.records.empty()) continue;
    batch.key = attempt.key();
    return batch;
  }
  return std::nullopt;
}

bool AttemptTable::idle() const {
  return std::all_of(attempts_.begin(), attempts_.end(), [](const auto& a) { return a.ended(); });
}

AttemptStats AttemptTable::Stats() const {
  AttemptStats stats = exits_;
  for (const Attempt& attempt : attempts_) {
    if (!attempt.ended() && !attempt.waiting()) ++stats.trainers_running;
    stats.journal_lag_bytes += attempt.sender().lag_bytes();
    stats.records_in_flight += attempt.sender().records_in_flight();
  }
  return stats;
}

}  // namespace nibble::agent
