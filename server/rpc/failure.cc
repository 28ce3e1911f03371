// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/failure.h"

#include "base/strings.h"

namespace nibble::rpc {
namespace {

constexpr int kBusyRetryMs = 1000;

}  // namespace

std::string DefaultReason(StatusCode code) {
  switch (code) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kOutOfRange:
      return "InvalidArgument";
    case StatusCode::kNotFound:
      return "NotFound";
    case StatusCode::kAlreadyExists:
      return "RequestIdReused";
    case StatusCode::kFailedPrecondition:
      return "WrongState";
    case StatusCode::kAborted:
      return "StaleEpoch";
    case StatusCode::kResourceExhausted:
      return "LimitReached";
    case StatusCode::kUnauthenticated:
      return "Unauthenticated";
    case StatusCode::kPermissionDenied:
      return "PermissionDenied";
    case StatusCode::kUnavailable:
      return "Busy";
    case StatusCode::kDeadlineExceeded:
      return "DeadlineExceeded";
    case StatusCode::kUnimplemented:
      return "NotInThisRelease";
    case StatusCode::kDataLoss:
      return "DataLoss";
    default:
      return "Internal";
  }
}

Failure InvalidSpecFailure(std::vector<FieldError> violations) {
  std::vector<std::string> lines;
  for (const FieldError& violation : violations) {
    lines.push_back(violation.field + ": " + violation.description);
  }
  Failure failure(InvalidArgumentError(StrFormat("the spec has %zu mistake%s: ", lines.size(),
                                                 lines.size() == 1 ? "" : "s") +
                                       StrJoin(lines, "; ")),
                  "InvalidSpec");
  failure.violations = std::move(violations);
  return failure;
}

Failure UnknownJobFailure(const std::string& job) {
  return {NotFoundError("no job has the id or name '" + job.substr(0, 80) +
                        "'; `nibble ps` lists the jobs"),
          "UnknownJob"};
}

Failure BusyFailure() {
  Failure failure(UnavailableError("the controller's queue is full or it is shutting down"));
  failure.retry_after_ms = kBusyRetryMs;
  return failure;
}

}  // namespace nibble::rpc
