// SPDX-License-Identifier: Apache-2.0
//
// Verdict: from how the shares of an attempt ended to an end reason, who pays, and what becomes of
// the job. Pure functions; the table is in docs/reference (end reasons).
//
// Rules: the trainer's last journal event together with its exit status decides. A trainer that
// vanished without a last word (killed from outside, lost with its node) is infrastructure and is
// never success and never the user's cost. What training itself decided (Diverged, unreadable
// data) is not retried, because it would happen again.
#pragma once

#include <cstdint>
#include <string>

#include "server/core/types.h"

namespace nibble::core {

struct Verdict {
  EndReason reason = EndReason::kNone;  // of the attempt
  Charge charge = Charge::kNone;
  bool may_retry = false;  // as far as the reason goes; budgets are looked at by NextStep
  std::string detail;      // "UserError: exit code 3, rank 0 on w-1, step 120: message"
};

// One share's outcome by itself.
Verdict JudgeOutcome(const Outcome& outcome, const RetryPolicy& retry);

// The attempt as a whole: all shares ended; job.stop says whether and why it was asked to stop.
Verdict JudgeAttempt(const Job& job, const Attempt& attempt);

// What becomes of a job whose attempt ended.
struct NextStep {
  JobState state = JobState::kFailed;   // terminal, kHeld, kPending or kRecovering
  EndReason reason = EndReason::kNone;  // for a terminal state
  int64_t not_before_ms = 0;            // for a queued state
  std::string detail;
};
// `job` already counts the charge of the ended attempt.
NextStep Decide(const Job& job, const Verdict& verdict, int64_t wall_ms);

// Wait before the retry after `failures_in_row` failures; infrastructure's first is immediate.
int64_t BackoffMillis(const RetryPolicy& retry, int failures_in_row, Charge charge);

}  // namespace nibble::core
