// SPDX-License-Identifier: Apache-2.0
//
// Failure: a Status with what the API adds to it: a reason from a closed list, field violations and
// when to try again. Value type; free of gRPC.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "worker/spec/run_config.h"

namespace nibble::rpc {

struct Failure {
  Status status;
  std::string reason;  // "" = the usual one of the status code
  std::vector<FieldError> violations;
  int retry_after_ms = 0;

  Failure() = default;
  Failure(Status s) : status(std::move(s)) {}  // NOLINT(google-explicit-constructor)
  Failure(Status s, std::string r) : status(std::move(s)), reason(std::move(r)) {}
  bool ok() const { return status.ok(); }
};

// INVALID_ARGUMENT, reason InvalidSpec, listing every mistake.
Failure InvalidSpecFailure(std::vector<FieldError> violations);
// NOT_FOUND, reason UnknownJob.
Failure UnknownJobFailure(const std::string& job);
// UNAVAILABLE, reason Busy, with a time to try again.
Failure BusyFailure();

// The usual reason of a status code: "NotFound", "WrongState", ...
std::string DefaultReason(StatusCode code);

}  // namespace nibble::rpc
