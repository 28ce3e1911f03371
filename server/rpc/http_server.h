// SPDX-License-Identifier: Apache-2.0
//
// HttpServer: a small read-only HTTP server (CivetWeb) for /metrics, /sd, /healthz and /readyz.
//
// Thread-safety: handlers run on the server's threads, several at a time, until the destructor
// returns. Ownership: owns its threads and socket.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/status.h"
#include "server/rpc/options.h"

namespace nibble::rpc {

struct HttpResponse {
  int code = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

class HttpServer {
 public:
  using Handler = std::function<HttpResponse()>;

  // Serves GET and HEAD of exactly these paths; 404 lists them. Port 0 takes a free one.
  // FAILED_PRECONDITION when the address cannot be bound, naming it.
  static Result<std::unique_ptr<HttpServer>> Start(const HostPort& address,
                                                   std::map<std::string, Handler> handlers);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  const HostPort& address() const { return address_; }  // with the real port

 private:
  struct Impl;
  HttpServer();
  std::unique_ptr<Impl> impl_;
  HostPort address_;
};

}  // namespace nibble::rpc
