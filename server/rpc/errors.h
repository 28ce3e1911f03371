// SPDX-License-Identifier: Apache-2.0
//
// Errors: the one place where a Status of ours becomes a gRPC status with its ErrorDetail.
//
// Thread-safety: pure functions; a ServerContext belongs to its call. The detail travels as a
// serialized nibble.v1.ErrorDetail in the trailer kErrorTrailer, because the answer of a failed
// call has no message of its own.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "base/status.h"
#include "server/rpc/failure.h"

namespace nibble::rpc {

inline constexpr char kErrorTrailer[] = "nibble-error-bin";
// gRPC refuses more than 8 KiB of trailers; long messages and lists are cut to fit.
inline constexpr size_t kMaxErrorDetailBytes = 4096;
inline constexpr size_t kMaxErrorMessageBytes = 2048;

// OK for an OK status. Adds the trailer to `context`.
grpc::Status ToGrpc(const Failure& failure, grpc::ServerContextBase* context);

// OK, or why the call is refused: its "authorization" metadata against the controller's token.
Status CheckCaller(const grpc::ServerContextBase& context, const std::string& token);

// The call's deadline on the steady clock, at most `default_ms` from now.
int64_t DeadlineSteadyMs(const grpc::ServerContextBase& context, int64_t steady_now_ms,
                         int64_t default_ms);

}  // namespace nibble::rpc
