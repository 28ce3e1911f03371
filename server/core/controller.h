// SPDX-License-Identifier: Apache-2.0
//
// Controller: the job state machine. Inputs in; events to persist, commands to send and replies
// out. It does no I/O and reads no clock, so the simulator runs this very code.
//
// Thread-safety: one thread. Ownership: owns the State.
//
// How to drive it (store::Engine does):
//   for a batch of inputs: decisions.push_back(controller.Handle(input, now));
//   append all their events to the log with one fsync;
//   on success: controller.Commit(), then send commands, then reply;
//   on failure: controller.Rollback(), reply with the failure, send nothing.
// Between Handle and Commit the state holds what may yet be undone: serve no reads then.
//
// Invariants (checked by tests/sim after every event): terminal is final; at most one live attempt
// per job; no device in two live attempts; a job is RUNNING only under a lease that has not
// expired; infrastructure losses never touch the user's retry budget; a stale epoch changes
// nothing.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "server/core/inputs.h"
#include "server/core/scheduler.h"
#include "server/core/state.h"

namespace nibble::core {

struct Options {
  int64_t heartbeat_interval_ms = 5'000;  // told to workers
  int64_t suspect_after_ms = 30'000;
  int64_t lease_ms = 120'000;
  // A stop whose end is not confirmed this long after its grace time is repeated as a kill, and
  // after twice as long the worker is drained by the controller.
  int64_t stop_confirm_ms = 30'000;
  // A placed attempt that a talking worker has not confirmed this long is given up (infra pays).
  int64_t start_confirm_ms = 120'000;
  int64_t resend_ms = 10'000;  // unconfirmed commands are repeated no faster
  // A gap between two ticks above this is the controller's own pause (stopped process, suspended
  // machine) and is not counted as silence of the workers.
  int64_t max_tick_gap_ms = 10'000;
  int64_t max_active_jobs = 100'000;
};

// What is known of a worker since this controller started; not durable.
struct WorkerRuntime {
  std::string session;        // "" = not connected
  int64_t last_heard_ms = 0;  // steady
  int64_t inventory_sequence = 0;
  // Devices held by processes of fenced or unknown attempts, with the steady time until which that
  // is believed: one lease after it was last reported, or until the end is reported.
  std::map<std::string, int64_t> unwanted_devices;
};

// What is known of a live attempt since this controller started; not durable.
struct AttemptRuntime {
  int attempt = 0;
  int64_t step = 0;
  int64_t step_at_ms = 0;    // steady time of the last new step
  int64_t placed_at_ms = 0;  // steady; moved back by what had passed before a restart
  bool started = false;
  int64_t started_at_ms = 0;  // steady; meaningful when started
  int64_t stop_at_ms = 0;     // steady time the stop was asked; 0 = none
  bool stop_escalated = false;
  std::map<std::string, int64_t> sent_ms;  // worker -> steady time of the last command
};

class Controller {
 public:
  // `state` from the log. Every worker that had a lease gets a full one to come back.
  Controller(Options options, State state, Instant now);

  // Decides on one input. Never fails as such: refusals are in Decision::reply, with no events.
  Decision Handle(const Input& input, Instant now);

  // The events of all decisions since the last Commit are durable / could not be made durable.
  void Commit() { state_.Commit(); }
  void Rollback();

  // For incremental snapshots: see State.
  SnapshotRows Changes() const { return state_.Changes(); }
  void ForgetChanges() { state_.ForgetChanges(); }

  // Something happened that may let a job start: hand in a Tick soon.
  bool NeedsTick() const { return needs_tick_; }

  const State& state() const { return state_; }
  const Options& options() const { return options_; }

  // May data of this attempt be written? OK for the live attempt and for one that ended in the
  // ordinary way (its journal may arrive late); ABORTED for an unknown, stale or fenced epoch.
  Status CheckEpoch(std::string_view job_id, int attempt, int64_t epoch) const;

  // `why`: see scheduler.h.
  Result<Explanation> Explain(std::string_view job_id, int64_t wall_ms) const;
  Explanation ExplainSpec(const JobSpec& spec) const;
  Availability Available() const;

  // Running time of all attempts including the live one.
  int64_t RanMillis(const Job& job, Instant now) const;
  // nullptr when there is none.
  const WorkerRuntime* FindWorkerRuntime(std::string_view worker_id) const;
  const AttemptRuntime* FindAttemptRuntime(std::string_view job_id) const;

 private:
  // The decision under construction.
  struct Context {
    Instant now;
    Decision decision;
  };

  // requests.cc: what people ask for.
  void On(const SubmitJob& input, Context& context);
  void On(const CancelJob& input, Context& context);
  void On(const PauseJob& input, Context& context);
  void On(const ResumeJob& input, Context& context);
  void On(const RequeueJob& input, Context& context);
  void On(const UpdateJob& input, Context& context);
  void On(const DrainWorker& input, Context& context);
  void On(const UndrainWorker& input, Context& context);
  Result<const Job*> FindActive(const std::string& job_id) const;

  // reports.cc: what workers say.
  void On(const RegisterWorker& input, Context& context);
  void On(const Heartbeat& input, Context& context);
  void On(const ReportAttempt& input, Context& context);
  void On(const ReportCheckpoint& input, Context& context);
  void On(const ReportProgress& input, Context& context);
  void On(const SessionClosed& input, Context& context);
  Status CheckSession(const std::string& worker_id, const std::string& session) const;
  void Heard(Context& context, const std::string& worker_id);
  Status TakeReport(Context& context, const std::string& worker_id, const AttemptReport& report);
  Status TakeCheckpoint(Context& context, const ReportCheckpoint& input);
  void Reconcile(Context& context, const std::string& worker_id,
                 const std::vector<AttemptReport>& inventory);
  void NoteStep(Context& context, const std::string& job_id, const std::string& worker_id,
                SharePhase phase, int64_t step);

  // ticks.cc: timers and scheduling.
  void On(const Tick& input, Context& context);
  void ForgiveOwnPause(Instant now);
  void CheckLeases(Context& context);
  void CheckLiveJob(Context& context, const std::string& job_id);
  void CheckStop(Context& context, const std::string& job_id);
  void StartPlacedJobs(Context& context);

  // lifecycle.cc: starting, stopping and ending attempts.
  void Emit(Context& context, Event event);  // applies to the tentative state, and records
  Event AttemptEvent(EventType type, const Job& job, const std::string& worker_id) const;
  void BeginStop(Context& context, const std::string& job_id, EventType type, StopRequest stop,
                 const std::string& detail);
  void EndShare(Context& context, const std::string& job_id, const std::string& worker_id,
                Outcome outcome);
  void FinishAttempt(Context& context, const std::string& job_id);
  void SendUnconfirmed(Context& context, const std::string& job_id);
  void SendStart(Context& context, const Job& job, const Share& share);
  void SendStop(Context& context, const Job& job, const Share& share);
  void Send(Context& context, const std::string& worker_id,
            std::variant<StartAttempt, StopAttempt, ForgetAttempt> body);
  AttemptRuntime RuntimeFromState(const Job& job, Instant now) const;

  Options options_;
  State state_;
  std::map<std::string, WorkerRuntime, std::less<>> workers_;
  std::map<std::string, AttemptRuntime, std::less<>> attempts_;  // by job id, live ones
  Instant last_now_;
  int64_t last_tick_ms_ = 0;  // steady
  bool needs_tick_ = true;
};

}  // namespace nibble::core
