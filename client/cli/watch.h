// SPDX-License-Identifier: Apache-2.0
//
// Following a job until it ends: live block on a terminal, plain lines elsewhere. One thread.
#pragma once

#include <ostream>
#include <string>

#include "client/cli/context.h"
#include "client/cli/job_view.h"

namespace nibble::cli {

// Watches `job` with its metrics and draws on `out` (a terminal when terminal.out_is_tty). `view`
// holds the last state afterwards. OK once the job has ended; CANCELLED when interrupted.
Status FollowJob(Client& client, const std::string& job, std::ostream& out,
                 const Terminal& terminal, JobView& view);

// "SUCCEEDED: ..." with reason and numbers: the last line of watch and wait.
std::string EndSentence(const v1::Job& job);

// Exit code of `wait` for a job: 0, 100, 101 or 103; with `propagate` the job's own code.
int JobExitCode(const v1::Job& job, bool propagate);

}  // namespace nibble::cli
