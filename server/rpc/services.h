// SPDX-License-Identifier: Apache-2.0
//
// The gRPC services: thin handlers that check the caller and pass on to Service.
//
// Ownership: they borrow the Service, which outlives the gRPC server. Thread-safety: gRPC calls
// them from its own threads.
#pragma once

#include <memory>
#include <string>

#include "server/rpc/service.h"

namespace grpc {
class Service;
}

namespace nibble::rpc {

std::unique_ptr<grpc::Service> MakeJobService(ControllerService* service, std::string token);
std::unique_ptr<grpc::Service> MakeClusterService(ControllerService* service, std::string token);
// With `demand_certificate`, a session without a verified client certificate is refused.
std::unique_ptr<grpc::Service> MakeWorkerService(ControllerService* service, std::string token,
                                                 bool demand_certificate);

}  // namespace nibble::rpc
