// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/errors.h"

#include <algorithm>
#include <chrono>

#include "base/strings.h"
#include "nibble/v1/errors.pb.h"
#include "server/rpc/options.h"

namespace nibble::rpc {
namespace {

// At most `limit` bytes of `text`, then "..." when it was longer.
std::string Cut(const std::string& text, size_t limit) {
  if (text.size() <= limit) return text;
  return std::string(Utf8Prefix(text, limit)) + "...";
}

}  // namespace

grpc::Status ToGrpc(const Failure& failure, grpc::ServerContextBase* context) {
  if (failure.status.ok()) return grpc::Status::OK;
  v1::ErrorDetail detail;
  detail.set_reason(failure.reason.empty() ? DefaultReason(failure.status.code()) : failure.reason);
  detail.set_retry_after_ms(failure.retry_after_ms);
  for (const FieldError& violation : failure.violations) {
    v1::FieldViolation* added = detail.add_violations();
    added->set_field(Cut(violation.field, 200));
    added->set_description(Cut(violation.description, 800));
    if (detail.ByteSizeLong() > kMaxErrorDetailBytes) {
      detail.mutable_violations()->RemoveLast();
      break;
    }
  }
  context->AddTrailingMetadata(kErrorTrailer, detail.SerializeAsString());
  return grpc::Status(static_cast<grpc::StatusCode>(failure.status.code()),
                      Cut(failure.status.message(), kMaxErrorMessageBytes));
}

Status CheckCaller(const grpc::ServerContextBase& context, const std::string& token) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find("authorization");
  if (found == metadata.end()) return CheckAuthorization(token, {});
  return CheckAuthorization(token, {found->second.data(), found->second.size()});
}

int64_t DeadlineSteadyMs(const grpc::ServerContextBase& context, int64_t steady_now_ms,
                         int64_t default_ms) {
  const auto left = context.deadline() - std::chrono::system_clock::now();
  const int64_t left_ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
  return steady_now_ms + std::clamp<int64_t>(left_ms, 0, default_ms);
}

}  // namespace nibble::rpc
