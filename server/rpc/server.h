// SPDX-License-Identifier: Apache-2.0
//
// ControllerServer: the whole controller in one object: Service, gRPC and HTTP.
//
// Thread-safety: thread-safe. Ownership: owns all of it; the clock outlives it. Port 0 takes a free
// port; the real addresses are in the accessors and, for gRPC, in <state-dir>/controller.address.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "server/rpc/options.h"

namespace nibble::rpc {

class ControllerServer {
 public:
  // What CheckOptions says; FAILED_PRECONDITION when another controller holds the state directory
  // or an address is in use; DATA_LOSS when the log is damaged.
  static Result<std::unique_ptr<ControllerServer>> Start(const ControllerOptions& options,
                                                         const Clock& clock);
  ~ControllerServer();  // as Shutdown with no patience

  const std::string& address() const;       // gRPC, "127.0.0.1:40123"
  const std::string& http_address() const;  // HTTP
  // Ends streams and sessions, lets calls finish until `patience`, then stops everything.
  void Shutdown(std::chrono::milliseconds patience);

 private:
  struct Impl;
  ControllerServer();
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::rpc
