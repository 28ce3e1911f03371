// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/attempt.h"

#include <algorithm>
#include <csignal>
#include <utility>

#include "base/files.h"
#include "base/log.h"
#include "base/strings.h"

namespace nibble::agent {
namespace {

constexpr int kMaxPiecesPerPoll = 16;  // of kReadBytes each

AttemptRecord NewRecord(const AttemptKey& key, const std::vector<int>& devices) {
  AttemptRecord record;
  record.key = key;
  record.devices = devices;
  return record;
}

}  // namespace

Attempt::Attempt(const RunSettings& settings, const AttemptRecord& record)
    : settings_(&settings),
      record_(record),
      run_dir_(RunDir(settings.state_dir, record.key)),
      observer_(JoinPath(run_dir_, kJournalFileName), record.acked_offset, record.acked_seq),
      sender_(JoinPath(run_dir_, kJournalFileName), record.acked_seq, record.acked_offset) {}

Attempt::Attempt(const RunSettings& settings, StartRequest request, int64_t now_ms)
    : Attempt(settings, NewRecord(request.key, request.devices)) {
  request_ = std::move(request);
  waiting_since_ms_ = now_ms;
}

Attempt Attempt::Failed(const RunSettings& settings, const AttemptKey& key, std::string why) {
  Attempt attempt(settings, NewRecord(key, {}));
  attempt.GiveUp(why);
  return attempt;
}

Result<Attempt> Attempt::Adopt(const RunSettings& settings, const std::string& run_dir,
                               const AttemptRecord& record) {
  Attempt attempt(settings, record);
  attempt.on_disk_ = true;
  ASSIGN_OR_RETURN(attempt.process_, TrainerProcess::Adopt(run_dir));
  return attempt;
}

void Attempt::Launch() {
  const auto start = [this]() -> Status {
    if (LoadAttemptRecord(run_dir_).status().code() != StatusCode::kNotFound) {
      return AlreadyExistsError(run_dir_ + " holds an earlier attempt of the same number");
    }
    ASSIGN_OR_RETURN(const TrainerProcess::Launch launch, PrepareRun(*settings_, request_));
    RETURN_IF_ERROR(SaveAttemptRecord(run_dir_, record_));
    on_disk_ = true;
    ASSIGN_OR_RETURN(process_, TrainerProcess::Start(launch));
    return OkStatus();
  };
  const Status status = start();
  if (!status.ok()) return GiveUp(status.message());
  LogInfo("attempt started", {{"attempt", key().ToString()},
                              {"name", request_.job_name},
                              {"supervisor", std::to_string(process_->pid())},
                              {"run", run_dir_}});
  request_ = {};
}

bool Attempt::Observe() {
  const int64_t malformed_before = observer_.malformed_lines();
  bool at_end = false;
  for (int piece = 0; piece < kMaxPiecesPerPoll && !at_end; ++piece) {
    const int64_t before = observer_.offset();
    for (JournalRecord& record : observer_.Read()) {
      const auto* step = std::get_if<StepRecord>(&record.event);
      if (step != nullptr) record_.step = step->step;
      record_.running |= step != nullptr || std::holds_alternative<StartRecord>(record.event);
      if (std::holds_alternative<CheckpointRecord>(record.event)) checkpoint_ = std::move(record);
    }
    at_end = observer_.offset() == before;
  }
  if (observer_.malformed_lines() > malformed_before && malformed_before == 0) {
    LogWarning("a journal has unreadable lines; they are skipped",
               {{"attempt", key().ToString()}, {"journal", observer_.path()}});
  }
  return at_end;
}

void Attempt::Poll(int64_t now_ms) {
  if (ended()) {
    if (drain_since_ms_ == 0) drain_since_ms_ = now_ms;
    return;
  }
  if (!process_.has_value()) return;
  // Asked first: what is observed afterwards is all that will ever be there.
  const bool gone = process_->Gone();
  const bool at_end = Observe();
  if (gone) {
    if (!at_end) return;
    drain_since_ms_ = now_ms;
    return Finish();
  }
  if (stopping_ && !killing_ && now_ms >= stop_deadline_ms_) {
    LogWarning("the trainer did not end in its grace time; killing it",
               {{"attempt", key().ToString()}, {"reason", stop_reason_}});
    Kill(stop_reason_, now_ms);
  }
  if (killing_ && now_ms - last_kill_ms_ >= kKillRepeatMs) {
    const bool overdue = now_ms - killing_since_ms_ >= kKillSupervisorAfterMs;
    if (overdue && last_kill_ms_ - killing_since_ms_ < kKillSupervisorAfterMs) {
      LogError("processes survive SIGKILL; their device stays taken until they are gone",
               {{"attempt", key().ToString()}, {"supervisor", std::to_string(process_->pid())}});
    }
    process_->Kill(overdue);
    last_kill_ms_ = now_ms;
  }
}

void Attempt::Stop(int64_t grace_ms, const std::string& reason, int64_t now_ms) {
  if (ended() || killing_) return;
  if (waiting()) return GiveUp("stopped before it was started (" + reason + ")");
  const int64_t deadline_ms = now_ms + grace_ms;
  stop_deadline_ms_ = stopping_ ? std::min(stop_deadline_ms_, deadline_ms) : deadline_ms;
  if (stopping_) return;
  stopping_ = true;
  stop_reason_ = reason;
  LogInfo("asking the trainer to save and end",
          {{"attempt", key().ToString()}, {"reason", reason}});
  process_->Terminate();
}

void Attempt::Kill(const std::string& reason, int64_t now_ms) {
  if (ended() || killing_) return;
  if (waiting()) return GiveUp("killed before it was started (" + reason + ")");
  LogInfo("killing the trainer", {{"attempt", key().ToString()}, {"reason", reason}});
  stopping_ = true;
  killing_ = true;
  stop_reason_ = reason;
  killing_since_ms_ = now_ms;
  last_kill_ms_ = now_ms;
  process_->Kill(false);
}

void Attempt::KillStale(int64_t now_ms) {
  stale_ = true;
  Kill("stale", now_ms);
}

void Attempt::GiveUp(const std::string& why) {
  LogWarning("attempt not started", {{"attempt", key().ToString()}, {"error", why}});
  AttemptReport report;
  report.start_failed = true;
  report.end_message = why;
  End(std::move(report));
}

void Attempt::Finish() {
  AttemptReport report;
  report.step = record_.step;
  const Result<EndRecord> end = ReadEndRecord(observer_.path());
  if (end.ok()) {
    report.end_reason = end->reason;
    report.end_message = end->message;
    report.step = std::max(report.step, end->step);
  } else if (killing_) {
    report.end_message = "killed (" + stop_reason_ + ")";
  }
  const Result<TrainerExit> how = process_->Exit();
  if (how.ok()) {
    report.exit_code = how->exit_code;
    report.signal = how->signal;
    report.start_failed = !how->start_error.empty();
    if (report.start_failed) report.end_message = how->start_error;
  } else if (end.ok()) {
    report.exit_code = TrainerExitCode(end->reason);
  } else {
    report.signal = SIGKILL;
    if (!killing_)
      report.end_message = "ended unseen: its supervisor was killed or the host restarted";
  }
  LogInfo("attempt ended", {{"attempt", key().ToString()},
                            {"exit_code", std::to_string(report.exit_code)},
                            {"signal", std::to_string(report.signal)},
                            {"reason", report.end_reason},
                            {"message", report.end_message}});
  End(std::move(report));
}

void Attempt::End(AttemptReport report) {
  report.key = key();
  report.state = kStateEnded;
  report.checkpoint = checkpoint_;
  ended_ = std::move(report);
}

bool Attempt::Draining(int64_t now_ms) const {
  return ended() && !stale_ && !skip_drain_ && !end_acked_ &&
         now_ms - drain_since_ms_ < kDrainBeforeReportMs && !sender_.Drained();
}

AttemptReport Attempt::Report(int64_t now_ms) const {
  if (ended_.has_value() && !Draining(now_ms)) return *ended_;
  AttemptReport report;
  report.key = key();
  report.step = record_.step;
  report.state = stopping_ ? kStateStopping : record_.running ? kStateRunning : kStateStarting;
  return report;
}

std::optional<AttemptReport> Attempt::DueReport(int64_t now_ms) {
  if (end_acked_) return std::nullopt;
  AttemptReport report = Report(now_ms);
  const bool ended = report.state == kStateEnded;
  if (report.state == reported_state_ && (!ended || now_ms < next_report_ms_)) {
    return std::nullopt;
  }
  return report;
}

void Attempt::ReportSent(const AttemptReport& report, int64_t now_ms) {
  reported_state_ = report.state;
  next_report_ms_ = now_ms + report_repeat_ms_;
  if (report.state != kStateEnded) return;
  report_repeat_ms_ = std::min(2 * report_repeat_ms_, kReportRepeatMaxMs);
  if (++end_reports_ == kMaxEndReports) {
    LogError("the controller never acknowledged the end of an attempt; forgetting it",
             {{"attempt", key().ToString()}});
    stale_ = true;
  }
}

void Attempt::AcknowledgeEnd(int64_t now_ms) {
  if (!ended() || end_acked_) return;
  end_acked_ = true;
  end_acked_ms_ = now_ms;
}

void Attempt::AcknowledgeTelemetry(int64_t cursor, int64_t now_ms) {
  sender_.Acknowledge(cursor, now_ms);
  record_.acked_seq = sender_.acked_seq();
  record_.acked_offset = sender_.acked_offset();
  if (!on_disk_ || now_ms - saved_ms_ < kRecordSaveMs) return;
  saved_ms_ = now_ms;
  Save();
}

void Attempt::RepeatReport() {
  reported_state_.clear();
  report_repeat_ms_ = kReportRepeatMs;
}

void Attempt::ResetSession(int64_t now_ms) {
  RepeatReport();
  sender_.Rewind();
  if (ended()) drain_since_ms_ = now_ms;
}

bool Attempt::Forgettable(int64_t now_ms) {
  if (!ended()) return false;
  const bool sent =
      stale_ || (end_acked_ && (now_ms - end_acked_ms_ >= kDrainAfterAckMs || sender_.Drained()));
  if (!sent) return false;
  record_.done = true;
  if (on_disk_) Save();
  return true;
}

void Attempt::Save() {
  const Status status = SaveAttemptRecord(run_dir_, record_);
  const bool failed_before = std::exchange(save_failed_, !status.ok());
  if (save_failed_ && !failed_before) {
    LogWarning("cannot save the record of an attempt",
               {{"attempt", key().ToString()}, {"error", status.ToString()}});
  }
}

}  // namespace nibble::agent
