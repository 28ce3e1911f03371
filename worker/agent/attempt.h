// SPDX-License-Identifier: Apache-2.0
//
// Attempt: one try to run a job on this worker, from the controller's request to its last
// acknowledgement.
//
//   waiting -> starting -> running -> (stopping) -> ended -> forgotten
//
// Invariants: `ended` is reported only when no process of the attempt is left; the report is sent
// again until it is acknowledged; what the journal holds goes out first (for at most
// kDrainBeforeReportMs of a session, so that telemetry never holds back an outcome: until then the
// attempt is reported as it was before its end), and the report itself names the newest checkpoint.
// Thread-safety: one thread. Ownership: destruction ends no process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "worker/agent/journal_reader.h"
#include "worker/agent/messages.h"
#include "worker/agent/run_folder.h"
#include "worker/agent/trainer_process.h"

namespace nibble::agent {

inline constexpr int64_t kDrainBeforeReportMs = 5'000;
inline constexpr int64_t kDrainAfterAckMs = 60'000;  // then unacknowledged records stay on disk
inline constexpr int64_t kReportRepeatMs = 1'000;    // doubled up to
inline constexpr int64_t kReportRepeatMaxMs = 30'000;
inline constexpr int kMaxEndReports = 100;  // about 50 minutes; then nobody wants it
inline constexpr int64_t kKillRepeatMs = 200;
inline constexpr int64_t kKillSupervisorAfterMs = 10'000;
inline constexpr int64_t kRecordSaveMs = 1'000;  // least time between saves of a cursor

class Attempt {
 public:
  // An attempt that waits for Launch.
  Attempt(const RunSettings& settings, StartRequest request, int64_t now_ms);
  // One that can never start: ended at once, to be reported.
  static Attempt Failed(const RunSettings& settings, const AttemptKey& key, std::string why);
  // One of an earlier worker process, whether it still runs or ended meanwhile.
  static Result<Attempt> Adopt(const RunSettings& settings, const std::string& run_dir,
                               const AttemptRecord& record);

  // Precondition: waiting(). A failure ends the attempt as one that could not be started.
  void Launch();
  // Watches process, journal and deadlines.
  void Poll(int64_t now_ms);
  // Asks the trainer to save and end; kills it after the grace time. May be asked again: the
  // earlier deadline holds.
  void Stop(int64_t grace_ms, const std::string& reason, int64_t now_ms);
  void Kill(const std::string& reason, int64_t now_ms);
  // Kill, and forget without an acknowledgement.
  void KillStale(int64_t now_ms);
  // Ends a waiting attempt that will not be launched.
  void GiveUp(const std::string& why);

  const AttemptKey& key() const { return record_.key; }
  const std::vector<int>& devices() const { return record_.devices; }
  bool waiting() const { return !ended_.has_value() && !process_.has_value(); }
  bool ended() const { return ended_.has_value(); }
  bool stopping() const { return stopping_; }
  bool stale() const { return stale_; }
  bool end_acknowledged() const { return end_acked_; }
  int64_t waiting_since_ms() const { return waiting_since_ms_; }
  const std::string& run_dir() const { return run_dir_; }
  AttemptReport Report(int64_t now_ms) const;
  // How it ended. Precondition: ended().
  const AttemptReport& end() const { return *ended_; }

  // The report to send now: the state changed, or the end is still not acknowledged.
  std::optional<AttemptReport> DueReport(int64_t now_ms);
  void ReportSent(const AttemptReport& report, int64_t now_ms);
  void AcknowledgeEnd(int64_t now_ms);
  // The controller asked about it again.
  void RepeatReport();
  // The controller wants it gone and so waits for no more of its journal.
  void SkipDrain() { skip_drain_ = true; }
  // A new session: everything not acknowledged goes out again.
  void ResetSession(int64_t now_ms);
  // True when nobody needs the attempt any more; the record on disk says so then.
  bool Forgettable(int64_t now_ms);

  JournalSender& sender() { return sender_; }
  const JournalSender& sender() const { return sender_; }
  void AcknowledgeTelemetry(int64_t cursor, int64_t now_ms);

 private:
  Attempt(const RunSettings& settings, const AttemptRecord& record);
  bool Observe();  // true at the end of what the journal holds
  // Ended, and the journal is still to be sent before that is told.
  bool Draining(int64_t now_ms) const;
  void Finish();
  void End(AttemptReport report);
  void Save();

  const RunSettings* settings_;  // borrowed; outlives the attempt
  AttemptRecord record_;
  std::string run_dir_;
  StartRequest request_;
  std::optional<TrainerProcess> process_;
  JournalReader observer_;
  JournalSender sender_;
  int64_t waiting_since_ms_ = 0;
  bool on_disk_ = false;  // has a record to keep

  bool stopping_ = false;
  bool killing_ = false;
  bool stale_ = false;
  std::string stop_reason_;
  int64_t stop_deadline_ms_ = 0;
  int64_t killing_since_ms_ = 0;
  int64_t last_kill_ms_ = 0;

  std::optional<AttemptReport> ended_;
  std::optional<JournalRecord> checkpoint_;  // newest seen
  int64_t drain_since_ms_ = 0;  // set by the first Poll after the end, and by each session
  bool skip_drain_ = false;
  std::string reported_state_;
  int64_t report_repeat_ms_ = kReportRepeatMs;
  int64_t next_report_ms_ = 0;
  int end_reports_ = 0;
  bool end_acked_ = false;
  int64_t end_acked_ms_ = 0;
  int64_t saved_ms_ = 0;
  bool save_failed_ = false;  // told once
};

}  // namespace nibble::agent
