// SPDX-License-Identifier: Apache-2.0
//
// AttemptTable: every attempt this worker has to do with, and the rules between them.
//
// Invariants: a device is in at most one attempt whose processes may live; a job has at most one;
// an epoch not above the highest one known for the job starts nothing. What could not be sent is
// due again: callers confirm with ReportSent.
// Thread-safety: one thread. Ownership: owns the attempts, borrows the clock.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "worker/agent/attempt.h"

namespace nibble::agent {

inline constexpr int64_t kMaxWaitForDeviceMs = 60'000;
inline constexpr size_t kMaxRefusals = 64;  // unsent answers to requests that start nothing

struct AttemptStats {
  int trainers_running = 0;
  int64_t exits_ok = 0;
  int64_t exits_error = 0;
  int64_t exits_signal = 0;
  int64_t journal_lag_bytes = 0;
  int64_t records_in_flight = 0;
};

class AttemptTable {
 public:
  AttemptTable(RunSettings settings, int64_t default_grace_ms, const Clock& clock)
      : settings_(std::move(settings)), default_grace_ms_(default_grace_ms), clock_(clock) {}
  AttemptTable(const AttemptTable&) = delete;
  AttemptTable& operator=(const AttemptTable&) = delete;

  // Takes over what earlier worker processes left. Unreadable records are logged and skipped.
  void Load();

  // Requests of the controller.
  void Start(const StartRequest& request);
  void Stop(const StopRequest& request);
  // What goes on, of the inventory; everything else that lives is killed and forgotten.
  void Keep(const std::vector<AttemptKey>& keys);
  void AcknowledgeEnd(const AttemptKey& key);
  void AcknowledgeTelemetry(const AttemptKey& key, int64_t cursor);

  // Watches processes and journals; call a few times a second.
  void Poll();
  // Asks every trainer to save and end, and refuses new attempts from now on.
  void StopAll(const std::string& reason);

  // For a new session: what to register with (every attempt with living processes, and every end
  // that is not acknowledged), and everything unacknowledged becomes due again.
  std::vector<AttemptReport> Inventory() const;
  void ResetSession();

  std::optional<AttemptReport> NextReport();
  void ReportSent(const AttemptReport& report);
  // nullopt when no attempt has records to send now. Counts as sent: resent unless acknowledged.
  std::optional<TelemetryBatch> NextTelemetry();

  bool idle() const;  // no attempt waits or has processes
  AttemptStats Stats() const;

 private:
  Attempt* Find(const AttemptKey& key);
  void Refuse(const AttemptKey& key, const std::string& why);
  // Why the request can never start here, or "".
  std::string Unacceptable(const StartRequest& request) const;
  // An attempt that must be gone before `attempt` may start; nullptr when there is none.
  const Attempt* Blocker(const Attempt& attempt) const;
  void LaunchWaiting(int64_t now_ms);
  void CountExit(const Attempt& attempt);
  void Forget(int64_t now_ms);

  const RunSettings settings_;
  const int64_t default_grace_ms_;
  const Clock& clock_;
  std::deque<Attempt> attempts_;           // a handful: at most what the devices hold, and ends
  std::map<std::string, int64_t> epochs_;  // highest known per job, from the run folders too
  std::deque<AttemptReport> refusals_;     // told once
  bool closing_ = false;
  size_t telemetry_turn_ = 0;  // which attempt sends next
  AttemptStats exits_;
};

}  // namespace nibble::agent
