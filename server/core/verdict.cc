// SPDX-License-Identifier: Apache-2.0
#include "server/core/verdict.h"

#include <algorithm>
#include <csignal>

#include "base/process.h"
#include "base/strings.h"

namespace nibble::core {
namespace {

// A requeue that nobody asked for and nobody pays for waits at least this long, so that a trainer
// that always says "preempted" cannot spin.
constexpr int64_t kUnaskedPreemptionPauseMs = 5'000;

// Signals a program brings on itself; all others came from outside.
bool IsCrash(int signal) {
  return signal == SIGSEGV || signal == SIGABRT || signal == SIGBUS || signal == SIGFPE ||
         signal == SIGILL || signal == SIGSYS;
}

bool Contains(const std::vector<int>& codes, int code) {
  return std::find(codes.begin(), codes.end(), code) != codes.end();
}

std::string HowItEnded(const Outcome& outcome) {
  switch (outcome.kind) {
    case OutcomeKind::kLost:
      return "lost";
    case OutcomeKind::kStartFailed:
      return "the worker could not start the trainer";
    case OutcomeKind::kNeverStarted:
      return "never started";
    case OutcomeKind::kExited:
      break;
  }
  return ExitStatus{outcome.exit_code, outcome.signal}.ToString();
}

Verdict JudgeExit(const Outcome& outcome, const RetryPolicy& retry) {
  const bool by_itself = outcome.signal == 0;
  switch (outcome.reported) {
    case EndReason::kNone:
      break;
    case EndReason::kCompleted:
      // Killed after its last word: the work is done. A failing exit code: it is not to be trusted.
      if (by_itself && outcome.exit_code != 0)
        return {EndReason::kUserError, Charge::kUser, false, ""};
      return {EndReason::kCompleted, Charge::kNone, false, ""};
    case EndReason::kPreempted:
      return {EndReason::kPreempted, Charge::kNone, true, ""};
    case EndReason::kUserError:
      return {EndReason::kUserError, Charge::kUser,
              by_itself && Contains(retry.on_exit_codes, outcome.exit_code), ""};
    case EndReason::kGpuFault:
    case EndReason::kNodeLost:
      return {outcome.reported, Charge::kInfra, true, ""};
    default:
      return {outcome.reported, Charge::kUser, false, ""};
  }
  if (!by_itself && IsCrash(outcome.signal))
    return {EndReason::kUserError, Charge::kUser, true, ""};
  if (by_itself && outcome.exit_code != 0) {
    return {EndReason::kUserError, Charge::kUser, Contains(retry.on_exit_codes, outcome.exit_code),
            ""};
  }
  return {EndReason::kNodeLost, Charge::kInfra, true, ""};
}

// How much a share's verdict tells about the cause of the whole: peers are killed once one share
// ended badly, so deaths from outside explain least.
int Weight(const Outcome& outcome, const Verdict& verdict) {
  if (verdict.reason == EndReason::kCompleted) return 0;
  if (outcome.kind == OutcomeKind::kNeverStarted) return 1;
  if (verdict.reason == EndReason::kPreempted) return 2;
  if (verdict.charge == Charge::kInfra) return outcome.kind == OutcomeKind::kExited ? 3 : 4;
  return outcome.reported == EndReason::kNone ? 5 : 6;
}

// A stop we asked for explains every end but the trainer's own verdict on the run.
bool ExplainedByStop(const Verdict& verdict) {
  return verdict.reason == EndReason::kPreempted || verdict.charge == Charge::kInfra;
}

NextStep Failed(const Verdict& verdict, bool budget_spent) {
  return {JobState::kFailed, budget_spent ? EndReason::kRetryBudgetSpent : verdict.reason, 0,
          verdict.detail};
}

}  // namespace

Verdict JudgeOutcome(const Outcome& outcome, const RetryPolicy& retry) {
  switch (outcome.kind) {
    case OutcomeKind::kLost:
    case OutcomeKind::kStartFailed:
      return {EndReason::kNodeLost, Charge::kInfra, true, ""};
    case OutcomeKind::kNeverStarted:
      return {EndReason::kPreempted, Charge::kNone, true, ""};
    case OutcomeKind::kExited:
      break;
  }
  return JudgeExit(outcome, retry);
}

Verdict JudgeAttempt(const Job& job, const Attempt& attempt) {
  Verdict verdict{EndReason::kCompleted, Charge::kNone, false, ""};
  const Share* decisive = &attempt.shares.front();
  int weight = 0;
  for (const Share& share : attempt.shares) {
    const Verdict one = JudgeOutcome(share.outcome, job.spec.retry);
    const int one_weight = Weight(share.outcome, one);
    if (one_weight <= weight) continue;
    verdict = one;
    weight = one_weight;
    decisive = &share;
  }
  const Outcome& outcome = decisive->outcome;
  if (verdict.reason != EndReason::kCompleted && ExplainedByStop(verdict)) {
    switch (job.stop.cause) {
      case StopCause::kNone:
      case StopCause::kPeerFailed:
        break;
      case StopCause::kStartTimeout:
        verdict = {EndReason::kStartTimeout, Charge::kInfra, true, ""};
        break;
      case StopCause::kStalled:
        verdict = {EndReason::kStalled, Charge::kInfra, true, ""};
        break;
      case StopCause::kCancel:
        verdict = {EndReason::kCancelledByUser, Charge::kNone, false, ""};
        break;
      case StopCause::kTimeLimit:
        verdict = {EndReason::kTimeLimit, Charge::kNone, false, ""};
        break;
      case StopCause::kPause:
      case StopCause::kRequeue:
      case StopCause::kDrain:
        verdict = {EndReason::kPreempted, Charge::kNone, true, ""};
        break;
    }
  }
  verdict.detail = std::string(Name(verdict.reason)) + ": " + HowItEnded(outcome);
  if (outcome.rank >= 0) verdict.detail += StrFormat(", rank %d", outcome.rank);
  verdict.detail += " on " + decisive->worker_id;
  if (outcome.last_step > 0) {
    verdict.detail += StrFormat(", step %lld", static_cast<long long>(outcome.last_step));
  }
  if (!outcome.message.empty()) verdict.detail += ": " + outcome.message;
  return verdict;
}

int64_t BackoffMillis(const RetryPolicy& retry, int failures_in_row, Charge charge) {
  const int doublings = failures_in_row - (charge == Charge::kInfra ? 2 : 1);
  if (doublings < 0) return 0;
  int64_t wait_ms = std::min(retry.backoff_base_ms, retry.backoff_max_ms);
  for (int i = 0; i < doublings && wait_ms < retry.backoff_max_ms; ++i) wait_ms *= 2;
  return std::min(wait_ms, retry.backoff_max_ms);
}

NextStep Decide(const Job& job, const Verdict& verdict, int64_t wall_ms) {
  if (verdict.reason == EndReason::kCompleted) {
    return {JobState::kSucceeded, EndReason::kCompleted, 0, ""};
  }
  // Cancel and time limit end the job even when the trainer failed while it stopped.
  if (job.stop.cause == StopCause::kCancel) {
    return {JobState::kCancelled, EndReason::kCancelledByUser, 0, "cancelled by " + job.stop.actor};
  }
  if (job.stop.cause == StopCause::kTimeLimit) {
    return {JobState::kTimedOut, EndReason::kTimeLimit, 0,
            "ran " + FormatDuration(double(job.ran_ms) / 1000) + ", limit " +
                FormatDuration(double(job.spec.time_limit_ms) / 1000)};
  }
  if (!verdict.may_retry) return Failed(verdict, false);
  const int64_t wait_ms = BackoffMillis(job.spec.retry, job.failures_in_row, verdict.charge);
  switch (verdict.charge) {
    case Charge::kUser:
      if (job.user_failures > job.spec.retry.user) return Failed(verdict, job.spec.retry.user > 0);
      return {JobState::kPending, EndReason::kNone, wall_ms + wait_ms, verdict.detail};
    case Charge::kInfra:
      if (static_cast<int>(job.infra_failures_ms.size()) > job.spec.retry.infra_per_day) {
        return Failed(verdict, job.spec.retry.infra_per_day > 0);
      }
      return {JobState::kRecovering, EndReason::kNone, wait_ms == 0 ? 0 : wall_ms + wait_ms,
              verdict.detail};
    case Charge::kNone:
      break;
  }
  if (job.stop.cause == StopCause::kPause) {
    return {JobState::kHeld, EndReason::kNone, 0, "paused by " + job.stop.actor};
  }
  const bool asked = job.stop.cause != StopCause::kNone;
  return {JobState::kPending, EndReason::kNone, asked ? 0 : wall_ms + kUnaskedPreemptionPauseMs,
          verdict.detail};
}

}  // namespace nibble::core
