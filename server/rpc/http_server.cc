// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/http_server.h"

#include <civetweb.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "base/strings.h"

namespace nibble::rpc {
namespace {

constexpr char kThreads[] = "4";
constexpr char kRequestTimeoutMs[] = "10000";
constexpr int kMaxPokes = 20;
constexpr std::chrono::milliseconds kPokeInterval{5};

const char* ReasonPhrase(int code) {
  switch (code) {
    case 200:
      return "OK";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 503:
      return "ControllerService Unavailable";
    default:
      return "Error";
  }
}

}  // namespace

struct HttpServer::Impl {
  std::map<std::string, Handler> handlers;
  std::string last_error;  // of mg_start, which runs in the caller's thread
  std::atomic<bool> started = false;
  mg_context* context = nullptr;

  HttpResponse Answer(const mg_request_info& request) const {
    const std::string method = request.request_method != nullptr ? request.request_method : "";
    if (method != "GET" && method != "HEAD") return {405, "text/plain", "only GET and HEAD\n"};
    const std::string path = request.local_uri != nullptr ? request.local_uri : "";
    const auto found = handlers.find(path);
    if (found != handlers.end()) return found->second();
    std::string known;
    for (const auto& [name, handler] : handlers) known += " " + name;
    return {404, "text/plain", "no such page; this server has:" + known + "\n"};
  }

  static int OnRequest(mg_connection* connection) {
    const mg_request_info* request = mg_get_request_info(connection);
    const auto* self = static_cast<const Impl*>(request->user_data);
    const HttpResponse answer = self->Answer(*request);
    const bool head =
        request->request_method != nullptr && std::string_view(request->request_method) == "HEAD";
    mg_printf(connection,
              "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
              "Cache-Control: no-store\r\nConnection: close\r\n\r\n",
              answer.code, ReasonPhrase(answer.code), answer.content_type.c_str(),
              answer.body.size());
    if (!head) mg_write(connection, answer.body.data(), answer.body.size());
    return answer.code;
  }

  static int OnLog(const mg_connection* connection, const char* message) {
    const mg_context* context = mg_get_context(connection);
    auto* self = static_cast<Impl*>(context != nullptr ? mg_get_user_data(context) : nullptr);
    if (self != nullptr && !self->started) self->last_error = message;
    return 1;  // nothing on stderr
  }
};

HttpServer::HttpServer() : impl_(std::make_unique<Impl>()) {}

Result<std::unique_ptr<HttpServer>> HttpServer::Start(const HostPort& address,
                                                      std::map<std::string, Handler> handlers) {
  std::unique_ptr<HttpServer> server(new HttpServer());
  server->impl_->handlers = std::move(handlers);
  HostPort numeric = address;
  if (numeric.host == "localhost") numeric.host = "127.0.0.1";
  const std::string ports = numeric.ToString();
  const char* options[] = {"listening_ports",    ports.c_str(),     "num_threads", kThreads,
                           "request_timeout_ms", kRequestTimeoutMs, nullptr};
  mg_callbacks callbacks{};
  callbacks.begin_request = &Impl::OnRequest;
  callbacks.log_message = &Impl::OnLog;
  mg_context* context = mg_start(&callbacks, server->impl_.get(), options);
  if (context == nullptr) {
    return FailedPreconditionError("cannot serve HTTP on " + address.ToString() +
                                   ": the address is in use or not this machine's" +
                                   (server->impl_->last_error.empty()
                                        ? std::string()
                                        : " (" + server->impl_->last_error + ")") +
                                   "; choose another with --http HOST:PORT (port 0 = any free)");
  }
  server->impl_->context = context;
  server->impl_->started = true;
  mg_server_port bound[2] = {};
  const int count = mg_get_server_ports(context, 2, bound);
  server->address_ = address;
  if (count > 0) server->address_.port = bound[0].port;
  return server;
}

namespace {

// Connects to the server and hangs up, which wakes its accepting thread.
void Poke(const HostPort& address) {
  const bool ipv6 = address.host.find(':') != std::string::npos;
  const bool any = address.host == "0.0.0.0" || address.host == "::";
  char error[128] = "";
  const std::string host = any ? (ipv6 ? "::1" : "127.0.0.1") : address.host;
  mg_connection* connection = mg_connect_client(host.c_str(), address.port, 0, error, sizeof error);
  if (connection != nullptr) mg_close_connection(connection);
}

}  // namespace

HttpServer::~HttpServer() {
  if (impl_->context == nullptr) return;
  // CivetWeb notices a stop only when its accepting thread wakes, every two seconds by itself.
  std::atomic<bool> stopped = false;
  std::thread stopper([this, &stopped] {
    mg_stop(impl_->context);
    stopped = true;
  });
  for (int i = 0; i < kMaxPokes && !stopped; ++i) {
    std::this_thread::sleep_for(kPokeInterval);
    if (!stopped) Poke(address_);
  }
  stopper.join();
}

}  // namespace nibble::rpc
